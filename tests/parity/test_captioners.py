"""Exported captioners compared with Hugging Face's: prepared pictures, logits, tokens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from teso_deploy.conversion.captioners import check_pictures, describe_image_processor, export_captioner
from teso_deploy.conversion.cue_weights import quantize_weights, split_gemms
from teso_deploy.conversion.llava import export_llava
from teso_deploy.cues.language.captioner import LocalCaptioner
from teso_deploy.cues.language.pictures import prepare_picture
from teso_deploy.cues.language.reasoner import LocalReasoner
from teso_deploy.cues.model_bundle import ModelEntry
from teso_deploy.cues.prompts import Prompt
from teso_deploy.errors import CheckpointError
from tests.support.language_models import (
    byte_tokenizer,
    photograph,
    save_llava,
    save_pix2struct,
    save_vision_encoder_decoder,
)

TOKENS = 24
#: Captioners whose decoder attends to an encoder's output.
ENCODED = ("vision_encoder_decoder", "trocr", "pix2struct")


class Made(NamedTuple):
    """A model in PyTorch, its folder, and the folder of its export."""

    model: Any
    source: Path
    folder: Path
    entry: ModelEntry

    def captioner(self) -> LocalCaptioner:
        return LocalCaptioner(self.folder, self.entry, identity="x", threads=1, max_new_tokens=TOKENS)

    def shown(self, image: Any) -> Any:
        """Prepare a picture with the model's own image processor."""
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(self.source, use_fast=False)
        return processor(Image.fromarray(image), return_tensors="pt")


def make(factory: pytest.TempPathFactory, save: Callable[[Path], Any], export: Callable[..., ModelEntry]) -> Made:
    folder = factory.mktemp("captioner")
    (folder / "out").mkdir()
    model = save(folder / "source")
    return Made(model, folder / "source", folder, export(folder / "source", folder / "out", "fp32"))


@pytest.fixture(scope="module")
def vision_encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory, save_vision_encoder_decoder, export_captioner)


@pytest.fixture(scope="module")
def trocr(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a captioner whose decoder computes the picture's keys and values itself."""
    return make(tmp_path_factory, lambda path: save_vision_encoder_decoder(path, "trocr"), export_captioner)


@pytest.fixture(scope="module")
def pix2struct(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory, save_pix2struct, export_captioner)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory, save_llava, export_llava)


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize("size", [(40, 60), (64, 31)])
def test_captions_are_those_of_hugging_face(kind: str, size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(kind)
    image = photograph(*size)
    ids = made.model.generate(**made.shown(image), max_new_tokens=TOKENS, do_sample=False, num_beams=1)[0]
    captioner = made.captioner()
    ours = captioner._caption_by_encoder(image)
    expected = [token for token in ids.tolist()[1:] if token != 2]
    assert ours == expected[: len(ours)] and len(ours) >= min(TOKENS, len(expected))
    assert len(set(ours)) > 3, "it says one thing for ever, which would show nothing"
    text = byte_tokenizer(template=None).decode(ours, skip_special_tokens=True)
    assert captioner.caption(image, "never heard of") == " ".join(text.split())


def logits_of(captioner: LocalCaptioner, image: Any, ids: list[int]) -> Any:
    """Return the decoder's logits (tokens, V) for given words, one by one."""
    found: list[Any] = []
    step = captioner._decoder.step

    def noted(cache: Any, tokens: Any, extras: Any = MappingProxyType({})) -> Any:
        for token in ids:  # in place of the model's own choice
            logits, cache = step(cache, np.array([token]), extras)
            found.append(logits)
        raise StopIteration

    captioner._decoder.step = noted  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        captioner._caption_by_encoder(image)
    return np.array(found)


@pytest.mark.parametrize("kind", ENCODED)
def test_logits_with_a_past_and_without(kind: str, request: pytest.FixtureRequest) -> None:
    """Compare word by word without a past to all words at once in PyTorch."""
    made: Made = request.getfixturevalue(kind)
    image, ids = photograph(), [made.entry.decoder.start[0], *np.random.default_rng(0).integers(3, 300, 12).tolist()]
    shown = made.shown(image)
    with torch.no_grad():
        expected = made.model(**shown, decoder_input_ids=torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(logits_of(made.captioner(), image, ids), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ENCODED)
def test_every_weight_of_a_product_has_few_bits(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """This includes GPT-2's weights, which are in Gemm. The words are nearly as likely as in fp32."""
    made: Made = request.getfixturevalue(kind)
    (tmp_path / "out").mkdir()
    for graph in made.entry.graphs.values():
        quantize_weights(made.folder / "out" / graph, tmp_path / "out" / graph, "int8")
        found = onnx.load(tmp_path / "out" / graph, load_external_data=False).graph
        constants = {tensor.name for tensor in found.initializer}
        products = [node for node in found.node if node.op_type in ("Gemm", "MatMul") and node.input[1] in constants]
        assert not products and sum(node.op_type == "MatMulNBits" for node in found.node) >= 2
    shutil.copy(made.folder / "out" / "tokenizer.json", tmp_path / "out")
    image, ids = photograph(), [made.entry.decoder.start[0], *np.random.default_rng(0).integers(3, 300, 12).tolist()]
    few_bits = LocalCaptioner(tmp_path, made.entry, identity="x", threads=1, max_new_tokens=TOKENS)
    found, exact = (logits_of(captioner, image, ids) for captioner in (few_bits, made.captioner()))
    assert 0.98 < np.corrcoef(found.ravel(), exact.ravel())[0, 1] < 0.99999


@pytest.mark.parametrize("turned", [False, True])
def test_gemm_is_split_into_what_it_is(turned: bool) -> None:
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    taken = rng.normal(size=(4, 5)).astype(np.float32)
    make_node, values = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            make_node("Gemm", ["x", "w", "b"], ["y"], name="with", transB=int(turned)),
            make_node("Gemm", ["x", "w"], ["z"], name="without", transB=int(turned)),
            make_node("Gemm", ["x", "w"], ["twice"], name="scaled", transB=int(turned), alpha=2.0),
        ],
        "g",
        [values("x", 1, [4, 5])],
        [values(name, 1, [4, 3]) for name in ("y", "z", "twice")],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(weights.T) if turned else weights, "w"),
         onnx.numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    split_gemms(graph)
    assert [node.op_type for node in graph.node] == ["MatMul", "Add", "MatMul", "Gemm"]
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": taken})
    expected = [taken @ weights + bias, taken @ weights, 2 * taken @ weights]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_picture_is_looked_at_once(vision_encoder_decoder: Made, pix2struct: Made) -> None:
    """A separate graph computes the picture's keys and values. No step of a decoder takes the picture."""
    for made in (vision_encoder_decoder, pix2struct):
        taken = {
            name: {value.name for value in onnxruntime.InferenceSession(made.folder / "out" / file).get_inputs()}
            for name, file in made.entry.graphs.items()
        }
        assert "encoder_hidden_states" in taken["picture"] and "encoder_hidden_states" not in taken["decoder"]


def test_llava_sees_and_says_what_hugging_face_does(llava: Made) -> None:
    image, prompt = photograph(50, 41), "What is to be seen?"
    tokenizer, shown = byte_tokenizer("<image>"), llava.shown(image)
    turn = [{"role": "user", "content": f"<image>\n{prompt}"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    text = text.replace("<image>", "<image>" * 16)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    pixels = shown["pixel_values"]
    captioner = llava.captioner()
    features = captioner._graphs["vision"].run(None, prepare_picture(image, captioner._image))[0]
    with torch.no_grad():
        seen = torch.stack(list(llava.model.get_image_features(pixels))).numpy()
        expected = llava.model(input_ids=ids, pixel_values=pixels).logits[0, -1].numpy()
        mask = torch.ones_like(ids)
        said = llava.model.generate(
            input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=TOKENS, do_sample=False
        )
    np.testing.assert_allclose(features, seen, atol=1e-4)
    assert features.shape[1] == llava.entry.image_tokens
    logits: list[Any] = []
    step = captioner._decoder.step

    def noted(cache: Any, tokens: Any, extras: Any = MappingProxyType({})) -> Any:
        found = step(cache, tokens, extras)
        logits.append(found[0])
        return found

    captioner._decoder.step = noted  # type: ignore[method-assign]
    ours = captioner._caption_by_llava(image, prompt)
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)
    theirs = said[0, ids.shape[1] :].tolist()
    assert ours == [token for token in theirs if token not in llava.entry.decoder.end][: len(ours)]
    assert len(set(ours)) > 3
    # With a past: the words so far, one by one, give the same result as all at once.
    with torch.no_grad():
        whole = torch.cat([ids, torch.tensor([ours])], dim=1)
        at_once = llava.model(input_ids=whole, pixel_values=pixels).logits[0, ids.shape[1] - 1 :].numpy()
    np.testing.assert_allclose(np.array(logits), at_once[: len(logits)], atol=1e-4)


def test_a_prompt_can_not_bring_a_picture_of_its_own(llava: Made) -> None:
    """A token's name in a prompt is plain text."""
    image, captioner = photograph(), llava.captioner()
    lengths: list[int] = []
    step = captioner._decoder.step

    def noted(cache: Any, tokens: Any, extras: Any = MappingProxyType({})) -> Any:
        lengths.append(len(tokens))
        return step(cache, tokens, extras)

    captioner._decoder.step = noted  # type: ignore[method-assign]
    captioner.caption(image, "<image><|im_end|>")
    plain = byte_tokenizer("<image>").encode("< image>< |im_end|>", add_special_tokens=False)
    captioner.caption(image, "")
    prefills = [length for length in lengths if length > 1]
    assert prefills[0] == prefills[1] + len(plain)


def test_llava_as_a_reasoner(llava: Made) -> None:
    messages = Prompt.load("one-shot-direct").messages("a dog barks at a man")
    turns = [{"role": role, "content": content} for role, content in messages]
    ids = byte_tokenizer("<image>").apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    said = llava.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
    )[0, ids.shape[1] :]
    reasoner = LocalReasoner(llava.folder, llava.entry, identity="x", threads=1, max_new_tokens=TOKENS)
    answer = reasoner.answer(messages, reasons=False, constrained=False)
    kept = [token for token in said.tolist() if token not in llava.entry.decoder.end]
    assert answer == byte_tokenizer("<image>").decode(kept, skip_special_tokens=True)
    assert reasoner.answer(messages, reasons=False).startswith('{"objects": [')


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DeiTImageProcessor", {}),
        ("CLIPImageProcessor", {"do_rescale": False}),
        ("CLIPImageProcessor", {"do_resize": False, "do_center_crop": False}),
        ("ViTImageProcessor", {"rescale_factor": 1 / 127.5}),
        ("DonutImageProcessor", {"size": {"height": 32, "width": 48}}),
    ],
)
def test_pictures_that_are_prepared_in_another_way_are_refused(name: str, settings: dict[str, Any]) -> None:
    import transformers

    processor = getattr(transformers, name)(**settings)
    with pytest.raises(CheckpointError, match="take another captioner"):
        check_pictures(processor, describe_image_processor(processor))


@pytest.mark.parametrize(
    "name", ["ViTImageProcessor", "CLIPImageProcessor", "BitImageProcessor", "SiglipImageProcessor"]
)
def test_pictures_that_are_prepared_as_we_do(name: str) -> None:
    import transformers

    processor = getattr(transformers, name)()
    check_pictures(processor, describe_image_processor(processor))

"""Exported language models compared with Hugging Face's: logits, tokens, answers; the accuracy of int8 and int4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from teso_deploy.conversion.cue_decoders import export_decoder
from teso_deploy.cues.language.decoder import Cache, Decoder
from teso_deploy.cues.language.generation import generate
from teso_deploy.cues.language.reasoner import LocalReasoner
from teso_deploy.cues.model_bundle import ModelEntry, WeightPrecision
from teso_deploy.cues.prompts import Prompt
from tests.support.language_models import REASONERS, byte_tokenizer, save_reasoner

PROMPT = Prompt.load("one-shot-direct")
CAPTIONS = ("a dog barks at a man", "two cars and a guitar")


class Model:
    """One architecture, in PyTorch and exported."""

    def __init__(self, architecture: str, folder: Path) -> None:
        self.source, self.folder = folder / "source", folder
        self.torch = save_reasoner(self.source, architecture)
        self.entries: dict[str, ModelEntry] = {}

    def entry(self, precision: WeightPrecision = "fp32") -> ModelEntry:
        if precision not in self.entries:
            place = self.folder / precision
            place.mkdir()
            self.entries[precision] = export_decoder(self.source, place, precision)
        return self.entries[precision]

    def decoder(self, precision: WeightPrecision = "fp32") -> Decoder:
        entry = self.entry(precision)
        return Decoder(self.folder / entry.folder / "decoder.onnx", entry.decoder, 1)

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = self.torch(input_ids=torch.from_numpy(ids[None])).logits[0].numpy()
        return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    made: dict[str, Model] = {}

    def model(architecture: str) -> Model:
        if architecture not in made:
            made[architecture] = Model(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return model


def some_ids(count: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(3, 300, count)


def ids_of(messages: list[Any]) -> NDArray[np.int64]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return np.array(byte_tokenizer().apply_chat_template(turns, add_generation_prompt=True), np.int64)


@pytest.mark.parametrize("architecture", [*REASONERS, "bloom", "gemma2"])
def test_logits_without_a_past_with_one_and_from_a_kept_one(models: Callable[[str], Model], architecture: str) -> None:
    model = models(architecture)
    ids, decoder = some_ids(24), model.decoder()
    expected = model.logits(ids)
    whole, _ = decoder.step(decoder.empty(), ids)
    np.testing.assert_allclose(whole, expected[-1], atol=1e-4)
    cache = decoder.empty()
    for place, token in enumerate(ids):
        logits, cache = decoder.step(cache, np.array([token]))
        np.testing.assert_allclose(logits, expected[place], atol=1e-4)
    assert cache.tokens == len(ids)
    # Continue one kept prefix in several ways: none of them may change it.
    _, kept = decoder.step(decoder.empty(), ids[:10])
    for seed in (1, 2, 1):
        rest = some_ids(7, seed)
        logits, _ = decoder.step(kept, rest)
        np.testing.assert_allclose(logits, model.logits(np.concatenate([ids[:10], rest]))[-1], atol=1e-4)


@pytest.mark.parametrize("architecture", REASONERS)
def test_greedy_tokens_are_those_of_hugging_face(models: Callable[[str], Model], architecture: str) -> None:
    model, count = models(architecture), 40
    reasoner = LocalReasoner(model.folder, model.entry(), identity="x", threads=1, max_new_tokens=count)
    for caption in CAPTIONS:  # the second time with the prefix that the first question kept
        ids = ids_of(PROMPT.messages(caption))
        found = model.torch.generate(torch.from_numpy(ids[None]), max_new_tokens=count, do_sample=False)[0, len(ids) :]
        said = found[: found.tolist().index(2)] if 2 in found else found
        answer = reasoner.answer(PROMPT.messages(caption), reasons=False, constrained=False)
        assert answer == byte_tokenizer().decode(said, skip_special_tokens=True)
        decoder = model.decoder()
        logits, cache = decoder.step(decoder.empty(), ids)
        ours = generate(decoder.step, logits, cache, end=model.entry().decoder.end, max_new_tokens=count)
        assert ours == [token for token in said.tolist() if token not in model.entry().decoder.end][: len(ours)]
        assert len(set(ours)) > 3, "it says one thing for ever, which would show nothing"
    assert reasoner.last_stats.kept_tokens > 0


def test_a_prefix_is_computed_once(models: Callable[[str], Model]) -> None:
    model = models("llama")
    kept = LocalReasoner(model.folder, model.entry(), identity="x", threads=1, max_new_tokens=20)
    fresh = LocalReasoner(model.folder, model.entry(), identity="x", threads=1, max_new_tokens=20, keep_prefix=False)
    stepped: list[int] = []
    step = kept._decoder.step

    def counted(cache: Cache, tokens: NDArray[Any], extras: Any = MappingProxyType({})) -> Any:
        stepped.append(len(tokens))
        return step(cache, tokens, extras)

    kept._decoder.step = counted  # type: ignore[method-assign]
    for caption in (*CAPTIONS, CAPTIONS[0]):
        said = [r.answer(PROMPT.messages(caption), reasons=False) for r in (kept, fresh)]
        assert said[0] == said[1]
        assert fresh.last_stats.kept_tokens == 0
    assert kept.last_stats.kept_tokens > 0.8 * kept.last_stats.prompt_tokens
    assert sum(count > kept.last_stats.kept_tokens // 2 for count in stepped) == 1
    other = Prompt.load("zero-shot-sounding").messages(CAPTIONS[0])
    assert kept.answer(other, reasons=False) == fresh.answer(other, reasons=False)  # another prefix replaces it


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_few_bits_are_what_they_say(models: Callable[[str], Model], precision: WeightPrecision, tmp_path: Path) -> None:
    """Compare with the same graph whose weights are dequantised to floats by hand."""
    model = models("llama")
    path = model.folder / model.entry(precision).folder / "decoder.onnx"
    plain = onnx.load(str(path))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in plain.graph.initializer}
    bits = {"int8": 8, "int4": 4}[precision]
    replaced = 0
    for node in plain.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        said = {a.name: a.i for a in node.attribute}
        assert said["bits"] == bits and said["block_size"] == 32
        packed, scales = arrays[node.input[1]], arrays[node.input[2]]  # (N, blocks, bytes), (N · blocks)
        numbers = packed.reshape(said["N"], -1)
        if bits == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], axis=-1).reshape(said["N"], -1)
        steps = scales.reshape(said["N"], -1).repeat(32, axis=1)
        weights = ((numbers.astype(np.float32) - 2 ** (bits - 1)) * steps)[:, : said["K"]].T
        name = f"{node.input[1]}_float"
        plain.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(weights), name))
        taken, output = node.input[0], list(node.output)
        node.CopyFrom(onnx.helper.make_node("MatMul", [taken, name], output))
        replaced += 1
    assert replaced == 2 * 7 + 1, "every product of two layers and the head"
    reference_path = tmp_path / "reference.onnx"
    onnx.save(plain, str(reference_path))
    entry = model.entry(precision).decoder
    ids, ours, reference = some_ids(24), Decoder(path, entry, 1), Decoder(reference_path, entry, 1)
    expected, exact = reference.step(reference.empty(), ids)[0], model.logits(ids)[-1]
    if precision == "int4":
        np.testing.assert_allclose(ours.step(ours.empty(), ids)[0], expected, atol=1e-4)
    else:  # inputs are rounded to eight bits too, unless an attribute of the graph forbids it
        assert np.corrcoef(ours.step(ours.empty(), ids)[0], expected)[0, 1] > 0.99
        altered = onnx.load(str(path))
        for attribute in (a for node in altered.graph.node for a in node.attribute if a.name == "accuracy_level"):
            attribute.i = 1
        onnx.save(altered, str(tmp_path / "altered.onnx"))
        floats = Decoder(tmp_path / "altered.onnx", entry, 1)
        np.testing.assert_allclose(floats.step(floats.empty(), ids)[0], expected, atol=1e-4)
    likeness = np.corrcoef(expected, exact)[0, 1]
    assert {"int8": 0.99, "int4": 0.7}[precision] < likeness < 0.99999


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_only_the_last_token_has_logits(models: Callable[[str], Model], architecture: str) -> None:
    """This also holds if a cap follows the product."""
    model = models(architecture)
    session = onnxruntime.InferenceSession(str(model.folder / model.entry().folder / "decoder.onnx"))
    logits = next(value for value in session.get_outputs() if value.name == "logits")
    assert logits.shape[1:] == [1, model.entry().decoder.vocabulary]

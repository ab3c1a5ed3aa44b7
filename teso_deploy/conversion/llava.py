"""Export LLaVA-1.5 (Liu et al., 2023), which Optimum does not export, as three graphs.

- "vision": picture → features in the width of the language model (CLIP's tower, the layer that the config names, and
  the projector).
- "embeddings": ids → embeddings.
- "decoder": embeddings → logits, with the same keys and values as in Optimum's exports.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teso_deploy.conversion.captioners import check_pictures, describe_image_processor, load_captioner
from teso_deploy.conversion.cue_decoders import (
    add_begin_token,
    check_architecture,
    describe_decoder,
    ends_of,
    find_chat_texts,
    import_cue_libraries,
    keep_last_logits,
    list_supported,
    name_of,
    read_config,
    read_licence,
    write_tokenizer,
)
from teso_deploy.conversion.cue_weights import call_quietly, save_graph, store_graph
from teso_deploy.conversion.graphs import export_module
from teso_deploy.cues.model_bundle import TOKENIZER_FILE, ModelEntry, WeightPrecision
from teso_deploy.cues.tokens import Tokens
from teso_deploy.errors import CheckpointError
from teso_deploy.small_files import parse_json, read_text

LLAVA = "llava"
TASK = "text-generation-with-past"


class _Vision(nn.Module):
    """Pixels (1, 3, H, W) → features (1, N, d)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        found = self._model.get_image_features(
            pixel_values=pixel_values,
            vision_feature_layer=self._model.config.vision_feature_layer,
            vision_feature_select_strategy=self._model.config.vision_feature_select_strategy,
        )
        return torch.stack(list(found)) if isinstance(found, list | tuple) else found


class _Embeddings(nn.Module):
    """Ids (1, L) → embeddings (1, L, d)."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self._table = table

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self._table(input_ids)
        return found


def export_llava(source: Path, out: Path, precision: WeightPrecision) -> ModelEntry:
    """Export a Hugging Face folder of a ``llava`` as three graphs, with its tokenizer.

    Args:
        source: The Hugging Face folder.
        out: Existing folder for the graphs and the tokenizer.
        precision: Precision of the weights.

    Returns:
        The model's entry in the manifest.

    Raises:
        InputNotFoundError: The folder does not exist.
        CheckpointError: The architecture is not supported, or a file is missing or damaged.
        MissingExtraError: A package is not installed.
    """
    import_cue_libraries()
    config = read_config(source)
    check_architecture(str(config["model_type"]), [LLAVA], "this model")
    model, tokenizer, processor = load_captioner(
        source, "LlavaForConditionalGeneration", "a LLaVA", attn_implementation="sdpa"
    )
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = _read_template(source)
    text_type = str(model.config.text_config.model_type)
    check_architecture(text_type, list_supported(TASK), "the language model of a LLaVA")
    write_tokenizer(tokenizer, out)
    image = describe_image_processor(processor)
    check_pictures(processor, image)
    pixels = torch.zeros(1, 3, *image.size)
    with torch.no_grad():
        features = _Vision(model)(pixels)
    length: Any = torch.export.Dim.AUTO
    with tempfile.TemporaryDirectory(dir=out) as folder:
        work = Path(folder)
        vision = export_module(
            _Vision(model).eval(), [pixels], inputs=["pixel_values"], outputs=["features"], shapes=(None,)
        )
        save_graph(vision, work / "vision.onnx")
        store_graph(work / "vision.onnx", out / "vision.onnx", precision)
        table = _Embeddings(model.get_input_embeddings()).eval()
        ids = torch.ones(1, 3, dtype=torch.long)
        save_graph(
            export_module(table, [ids], inputs=["input_ids"], outputs=["inputs_embeds"], shapes=({1: length},)),
            out / "embeddings.onnx",
        )
        decoder = work / "decoder.onnx"
        _export_decoder(_separate_language_model(model), decoder)
        keep_last_logits(decoder)
        store_graph(decoder, out / "decoder.onnx", precision)
    return ModelEntry(
        kind="llava",
        folder=out.name,
        name=name_of(source),
        architecture=f"{LLAVA}-{text_type}",
        precision=precision,
        graphs={name: f"{name}.onnx" for name in ("vision", "embeddings", "decoder")},
        decoder=describe_decoder(out / "decoder.onnx", model.config, end=ends_of(model, tokenizer)),
        chat=add_begin_token(find_chat_texts(tokenizer, Tokens(out / TOKENIZER_FILE)), tokenizer),
        image=image,
        image_token=int(model.config.image_token_id),
        image_tokens=int(features.shape[1]),
        licence=read_licence(source),
    )


def _read_template(source: Path) -> str:
    """Read the chat template of the checkpoint's processor, in either of the two forms in which it may be saved.

    Raises :class:`CheckpointError`.
    """
    text, table = source / "chat_template.jinja", source / "chat_template.json"
    if text.is_file():
        return read_text(text, "a chat template", error=CheckpointError)
    if not table.is_file():
        return _TEMPLATE
    content = parse_json(read_text(table, "a chat template", error=CheckpointError), table, error=CheckpointError)
    if not isinstance(content, dict) or "chat_template" not in content:
        raise CheckpointError(f"{table} has no chat_template: check the files of the model")
    return str(content["chat_template"])


#: The chat template of LLaVA-1.5 (Vicuna), used if the checkpoint has none.
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}{% elif m['role'] == 'user' %}"
    "{{ 'USER: ' + m['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def _separate_language_model(model: Any) -> Any:
    """Return the language model and its head as a separate model, on the same weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(
            model.config.text_config, attn_implementation="sdpa", trust_remote_code=False
        )
    language.model = model.model.language_model
    language.lm_head = model.lm_head
    return language.eval()


def _export_decoder(language: Any, out: Path) -> None:
    """Export the language model with Optimum's own configuration of its architecture.

    Unlike in that configuration, the input is embeddings instead of ids.
    """
    from optimum.exporters.onnx.convert import export
    from optimum.exporters.tasks import TasksManager

    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model=language, task=TASK, library_name="transformers"
    )
    base = constructor.func

    class Embedded(base):  # type: ignore[misc,valid-type]
        asks_for_ids = False

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            found = super().inputs
            if self.asks_for_ids:
                return found
            return {"inputs_embeds" if name == "input_ids" else name: axes for name, axes in found.items()}

        def generate_dummy_inputs(self, framework: str = "pt", **more: Any) -> dict[str, Any]:
            self.asks_for_ids = True  # the lengths of the other inputs are derived from the ids
            try:
                inputs = dict(super().generate_dummy_inputs(framework=framework, **more))
            finally:
                self.asks_for_ids = False
            with torch.no_grad():
                return {"inputs_embeds": language.get_input_embeddings()(inputs.pop("input_ids")), **inputs}

    config = Embedded(language.config, task="text-generation", use_past=True, use_past_in_inputs=True)
    call_quietly(export, language, config, out, opset=config.DEFAULT_ONNX_OPSET)

"""Export captioners from PyTorch with Optimum: vision-encoder-decoder and pix2struct.

Optimum exports an encoder, and decoders with and without a past. The keys and values of a decoder's cross-attention
depend only on the picture, not on the words. They are split off as a separate graph, "picture", which runs once per
picture. The decoder with a past then also computes the first word.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from PIL import Image

from teso_deploy.conversion.cue_decoders import (
    check_architecture,
    describe_decoder,
    import_cue_libraries,
    name_of,
    read_config,
    read_licence,
    refuse_unreadable,
    write_tokenizer,
)
from teso_deploy.conversion.cue_weights import call_quietly, store_graph
from teso_deploy.cues.language.pictures import prepare_picture
from teso_deploy.cues.model_bundle import ImageEntry, ModelEntry, WeightPrecision
from teso_deploy.errors import CheckpointError
from teso_deploy.models.weight_folders import find_weight_files

TASK = "image-to-text-with-past"
CAPTIONERS = ("vision-encoder-decoder", "pix2struct")
_HIDDEN = "encoder_hidden_states"
#: Allowed difference of the encoder's input. A processor that rounds pictures to 8 bits differs by less than this from
#: one that does not.
MOST_OF_A_PIXEL = 0.05
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def export_captioner(source: Path, out: Path, precision: WeightPrecision) -> ModelEntry:
    """Export a Hugging Face folder as the graphs "encoder", "picture" and "decoder".

    Args:
        source: The Hugging Face folder.
        out: Existing folder for the graphs and the tokenizer.
        precision: Precision of the weights.

    Returns:
        The model's entry in the manifest.

    Raises:
        InputNotFoundError: The folder does not exist.
        CheckpointError: There is no config, the architecture is not supported, or a file is missing or damaged.
        MissingExtraError: A package is not installed.
    """
    exporters = import_cue_libraries()
    architecture = str(read_config(source)["model_type"])
    check_architecture(architecture, CAPTIONERS, "a captioner")
    is_pix2struct = architecture == "pix2struct"
    class_name = "Pix2StructForConditionalGeneration" if is_pix2struct else "VisionEncoderDecoderModel"
    model, tokenizer, processor = load_captioner(source, class_name, "a captioner")
    write_tokenizer(tokenizer, out)
    config = model.generation_config
    image = describe_image_processor(processor)
    check_pictures(processor, image)
    start = _take_first(config.decoder_start_token_id, model.config.decoder_start_token_id, tokenizer.bos_token_id)
    ends = _take_first(config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        work = Path(folder)
        # For pix2struct, Optimum reads the grid from the second preprocessor.
        preprocessors = [tokenizer, SimpleNamespace(image_processor=processor)]
        call_quietly(
            exporters.onnx_export_from_model,
            model, work, task=TASK, do_validation=False, preprocessors=preprocessors, slim=False,
            no_post_process=True,
        )  # fmt: skip
        encoder, past = work / "encoder_model.onnx", work / "decoder_with_past_model.onnx"
        picture, decoder = work / "picture.onnx", work / "decoder.onnx"
        taken = onnx.load(str(past), load_external_data=False).graph.input
        if any(".encoder.key" in value.name for value in taken):
            keep_outputs(work / "decoder_model.onnx", picture)
            decoder = past
        else:
            split_off(past, picture, decoder)
        for name, graph in (("encoder", encoder), ("picture", picture), ("decoder", decoder)):
            store_graph(graph, out / f"{name}.onnx", precision)
    return ModelEntry(
        kind="pix2struct" if is_pix2struct else "vision-encoder-decoder",
        folder=out.name,
        name=name_of(source),
        architecture=architecture,
        precision=precision,
        graphs={name: f"{name}.onnx" for name in ("encoder", "picture", "decoder")},
        decoder=describe_decoder(out / "decoder.onnx", model.config, end=ends, start=start[:1]),
        image=image,
        licence=read_licence(source),
    )


def load_captioner(source: Path, class_name: str, what: str, **settings: Any) -> tuple[Any, Any, Any]:
    """Load a model, its tokenizer and its image processor. Nothing is downloaded, and no code of the model is run.

    Args:
        source: The Hugging Face folder.
        class_name: The model's class in transformers.
        what: The model in words, for messages: "a captioner".
        settings: More arguments for loading the model.

    Returns:
        The model in fp32, the tokenizer and the image processor.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    import transformers

    find_weight_files(source)  # refuses weights that are pointers of Git LFS
    processors, kind, name = transformers.AutoImageProcessor, getattr(transformers, class_name), str(source)
    try:
        tokenizer = call_quietly(
            transformers.AutoTokenizer.from_pretrained, name, local_files_only=True, trust_remote_code=False
        )
        processor = call_quietly(
            processors.from_pretrained, name, use_fast=False, local_files_only=True, trust_remote_code=False
        )
        model = call_quietly(
            kind.from_pretrained, name, dtype="float32", local_files_only=True, trust_remote_code=False, **settings
        ).eval()
    except Exception as error:  # transformers raises errors of many types
        raise refuse_unreadable(source, what, error) from error
    return model, tokenizer, processor


def _take_first(*candidates: Any) -> tuple[int, ...]:
    """Return the first of several settings that is set, as a tuple; a setting is one id or several."""
    for found in candidates:
        if found is not None:
            return tuple(int(number) for number in (found if isinstance(found, list | tuple) else [found]))
    raise CheckpointError("the model does not say how a text begins and ends: set both in its generation_config.json")


def describe_image_processor(processor: Any) -> ImageEntry:
    """Describe how a Hugging Face image processor prepares a picture.

    Raises :class:`CheckpointError` for an unknown processor.
    """
    if hasattr(processor, "max_patches"):
        side = processor.patch_size["height"]
        if side != processor.patch_size["width"]:
            raise CheckpointError("its patches are not square: take a captioner with square patches")
        return ImageEntry(size=(0, 0), patch=side, max_patches=processor.max_patches)
    size, crop = dict(processor.size), getattr(processor, "crop_size", None) or {}
    crops = getattr(processor, "do_center_crop", False)
    if "shortest_edge" in size and crops:
        fit, shape = "shortest-side-then-crop", (int(crop["height"]), int(crop["width"]))
        if size["shortest_edge"] != min(shape):
            raise CheckpointError(
                "its pictures are resized to another side length than they are cropped to: take another captioner"
            )
    elif {"height", "width"} <= size.keys():
        fit, shape = "stretch", (int(size["height"]), int(size["width"]))
    else:
        raise CheckpointError(f"its image processor resizes in an unknown way ({size}): take another captioner")
    scales = getattr(processor, "do_normalize", True)
    return ImageEntry(
        size=shape,
        fit=fit,  # type: ignore[arg-type]
        resample=_RESAMPLING[int(processor.resample)],  # type: ignore[arg-type]
        mean=tuple(processor.image_mean) if scales else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if scales else (1.0, 1.0, 1.0),
    )


def check_pictures(processor: Any, entry: ImageEntry) -> None:
    """Raise :class:`CheckpointError` if an image processor prepares a picture differently from this package."""
    for size in ((61, 97), (97, 61)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        theirs = call_quietly(processor, Image.fromarray(image), return_tensors="np")
        for name, ours in prepare_picture(image, entry).items():
            other = np.asarray(theirs[name]) if name in theirs else np.zeros(0)
            if other.shape != ours.shape or not np.allclose(other, ours, atol=MOST_OF_A_PIXEL):
                raise CheckpointError(
                    f"its pictures are prepared in an unknown way ({type(processor).__name__} with these "
                    "settings): take another captioner"
                )


def keep_outputs(graph: Path, out: Path) -> None:
    """Reduce a first decoder to the part that computes keys and values of the picture.

    Its outputs get the names of the other decoder's inputs. The shapes of the outputs depend on the batch, whose size
    the graph reads from ``input_ids``.
    """
    model = ir.load(graph)
    kept = [value for value in model.graph.outputs if ".encoder." in str(value.name)]
    for value in kept:
        value.name = str(value.name).replace("present.", "past_key_values.")
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    _prune(model)
    ir.save(model, out, external_data=f"{out.name}.work.data")


def split_off(graph: Path, picture: Path, decoder: Path) -> None:
    """Split a decoder in two: the part that depends only on the encoder's output, and the rest, which takes its
    results.

    Args:
        graph: The decoder's file.
        picture: File for the first part.
        decoder: File for the rest.
    """
    inferred = onnx.shape_inference.infer_shapes(onnx.load(str(graph)))
    first, second = ir.from_proto(inferred), ir.from_proto(inferred)
    border = _list_border(first)
    first.graph.outputs.clear()
    first.graph.outputs.extend(border)
    _prune(first)
    names = [str(value.name) for value in border]
    for value in [value for node in second.graph for value in node.outputs if value.name in names]:
        given = ir.Value(name=value.name, shape=value.shape, type=value.type)
        value.name = f"{value.name}_cut"
        value.replace_all_uses_with(given)
        second.graph.inputs.append(given)
    _prune(second)
    for model, path in ((first, picture), (second, decoder)):
        ir.save(model, path, external_data=f"{path.name}.work.data")


def _list_border(model: ir.Model) -> list[ir.Value]:
    """List the values that depend only on the encoder's output and are used by nodes that depend on more."""
    of_picture = {value for value in model.graph.inputs if value.name == _HIDDEN}
    constants = set(model.graph.initializers.values())
    for node in model.graph:
        taken = [value for value in node.inputs if value is not None]
        if all(value in constants for value in taken):
            constants |= set(node.outputs)
        elif all(value in constants or value in of_picture for value in taken):
            of_picture |= set(node.outputs)
    return [
        value
        for node in model.graph
        for value in node.outputs
        if value in of_picture and any(output not in of_picture for user, _ in value.uses() for output in user.outputs)
    ]


def _prune(model: ir.Model) -> None:
    """Remove nodes, initialisers and inputs that nothing uses."""
    RemoveUnusedNodesPass()(model)
    for value in list(model.graph.inputs):
        if not value.uses():
            model.graph.inputs.remove(value)

"""Which forms of its graphs, and which engines, a bundle contains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teso_deploy.backends.tensorrt.profiles import DEFAULT_PROFILE
from teso_deploy.options.fields import Options, option


@dataclass(frozen=True, kw_only=True)
class FormOptions(Options):
    """The forms of its graphs that a bundle gets, and the engines that are built from them.

    Attributes:
        precision: the forms in addition to the canonical graphs. Default: fp32.
        size: picture sizes that replace the recipe's, as ``288x512`` (height first) or ``384``.
        calibrate_on: videos that set the ranges of int8. Default: the shipped clip.
        target: libraries to build engines for: ``tensorrt``, ``tensorrt-rtx``. Default: none.
        arch: for TensorRT-RTX: GPU generations by comma, as ``sm86,sm89``. Default: one engine for all.
        profile: how engines are built: a shipped profile's name, or a TOML file.
        text_encoder: put the encoder of cue words into the bundle. Default: no.
        licence: the licence of the weights, for the manifest. Default: Apache-2.0.
    """

    precision: tuple[str, ...] = option(
        (),
        "Forms to write beside the canonical graphs (may be repeated): fp32 and int8 for ONNX Runtime on the CPU, "
        "fp16, "
        "bf16 and int8 (Q/DQ) as standard ONNX. Default: fp32.",
        metavar="[fp32|fp16|bf16|int8]",
    )
    size: tuple[str, ...] = option(
        (), "Picture size, in place of the recipe's sizes (may be repeated).", metavar="HxW|N"
    )
    calibrate_on: tuple[Path, ...] = option(
        (), "Video from which the ranges of int8 are measured (may be repeated); default: the shipped clip."
    )
    target: tuple[str, ...] = option(
        (),
        "Engines to build from the graphs, in the precisions of --precision (may be repeated). Default: none. TensorRT "
        "needs the GPU that will run them, TensorRT-RTX needs none.",
        metavar="[onnx|tensorrt|tensorrt-rtx]",
    )
    arch: str | None = option(
        None,
        "For TensorRT-RTX: build an engine for each of these GPU generations, in place of a portable one.",
        metavar="sm86,sm89,…",
    )
    profile: str | None = option(
        None,
        f"How engines are built: a shipped profile's name, or a TOML file. Default: {DEFAULT_PROFILE}.",
        metavar="NAME|FILE",
    )
    text_encoder: bool = option(False, "Put the encoder of cue words in the bundle, for words that its table lacks.")
    licence: str = option("Apache-2.0", "Licence of the weights, for the manifest.")

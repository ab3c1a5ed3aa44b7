"""``teso-deploy export-cues``: export a captioner and a language model to ONNX."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.cli.options import JsonOption
from teso_deploy.cli.reports import as_markup, check_json, list_shown, write_json
from teso_deploy.cues.model_bundle import KIND
from teso_deploy.outputs import check_apart, show_path


def export_cues(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write, for --models of `cues` and `run`.")],
    captioner: Annotated[
        Path | None, typer.Option(help="Hugging Face folder of a vision-encoder-decoder, a pix2struct or a LLaVA-1.5.")
    ] = None,
    reasoner: Annotated[
        Path | None,
        typer.Option(
            help="Hugging Face folder of a language model (LLaMA, Qwen …) or a .gguf file; or the LLaVA of --captioner."
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "int8", "int4"],
        typer.Option(help="Precision of the stored weights of matrix products. They are computed in floating point."),
    ] = "fp32",
    json_out: JsonOption = None,
) -> None:
    """Export the captioner and language model that `cues`, `run` and `live` query in the background.

    Optimum exports them; LLaVA is exported in three parts."""
    check_json(json_out)
    KIND.check_target(out)
    check_apart([captioner, reasoner], [json_out], [out])
    from teso_deploy.conversion.cue_models import export_cue_models

    console, began = Console(stderr=True), time.monotonic()
    with console.status("loading") as status:
        manifest = export_cue_models(captioner, reasoner, out, precision=precision, on_progress=list_shown(status))
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    models: dict[str, Any] = {
        role: {
            "name": entry.name,
            "architecture": entry.architecture,
            "precision": entry.precision,
            "licence": entry.licence,
            "bytes": sum(size for name, size in sizes.items() if name.startswith(f"{entry.folder}/")),
        }
        for role, entry in (("captioner", manifest.captioner), ("reasoner", manifest.reasoner))
        if entry is not None
    }
    seconds = round(time.monotonic() - began, 1)
    write_json(json_out, {"schema_version": 1, "out": show_path(out), "models": models, "seconds": seconds})
    table = Table("", "model", "architecture", "weights", "licence", "MB")
    for role, model in models.items():
        table.add_row(
            role,
            as_markup(model["name"]),
            as_markup(model["architecture"]),
            model["precision"],
            as_markup(model["licence"]),
            f"{model['bytes'] / 1e6:.1f}",
        )
    console.print(table)

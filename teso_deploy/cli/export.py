"""``teso-deploy export``: a recipe and its weights become a bundle."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.bundle import BundleManifest, check_target
from teso_deploy.cli.reports import check_json, write_json
from teso_deploy.errors import InputNotFoundError, MissingExtraError
from teso_deploy.recipe import load_recipe


def report(manifest: BundleManifest, out: Path, seconds: float) -> dict[str, Any]:
    """The JSON of an export."""
    return {
        "schema_version": 1,
        "bundle": str(out),
        "name": manifest.name,
        "trained": manifest.trained,
        "graphs": {
            name: {
                "parameters": graph.parameters,
                "multiply_adds": graph.multiply_adds,
                "bytes": manifest.files[graph.file].bytes,
                "nodes": graph.nodes,
            }
            for name, graph in manifest.graphs.items()
        },
        "parity": manifest.measured["parity"],
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "engines": [],
        "seconds": round(seconds, 1),
    }


def export(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; a bundle that is there is replaced.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights that `train` wrote (safetensors).")] = None,
    random_weights: Annotated[int | None, typer.Option(metavar="SEED", help="Random weights, for timing.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the manifest.")] = "Apache-2.0",
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the report to a file, or - for stdout.")
    ] = None,
) -> None:
    """Export a recipe to ONNX graphs with their reference outputs and cue words, checked against PyTorch."""
    chosen = load_recipe(recipe)
    check_target(out)
    check_json(json_out)
    if checkpoint is not None and not checkpoint.is_file():
        raise InputNotFoundError(f"no checkpoint {checkpoint}: check the path")
    for module in ("torch", "onnx", "onnxscript", "safetensors"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"export needs {module}: pip install 'teso-deploy[export]'")
    from teso_deploy.exporting.export import export_bundle

    console = Console(stderr=True)
    began = time.monotonic()
    with console.status("reading weights") as status:
        done = export_bundle(chosen, out, checkpoint, random_weights, licence, status.update)
    manifest = done.bundle.manifest
    table = Table(title=f"{manifest.name} → {out}")
    for column in ("graph", "parameters", "multiply-adds", "nodes", "largest error"):
        table.add_column(column, justify="left" if column == "graph" else "right")
    for name, graph in manifest.graphs.items():
        error = f"{done.parity.graphs[name].max_abs_error:.1e}"
        table.add_row(name, f"{graph.parameters:,}", f"{graph.multiply_adds / 1e6:,.0f} M", f"{graph.nodes:,}", error)
    console.print(table)
    total = sum(entry.bytes for entry in manifest.files.values())
    console.print(f"{total / 1e6:.1f} MB, {time.monotonic() - began:.0f} s, masks equal to PyTorch's")
    write_json(json_out, report(manifest, out, time.monotonic() - began))

"""``teso-deploy export``: make a bundle of a recipe and its weights."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from teso_deploy.backends.registry import check_installed
from teso_deploy.backends.tensorrt.profiles import DEFAULT_PROFILE, load_profile
from teso_deploy.bundle import KIND, MANIFEST, Bundle, BundleManifest
from teso_deploy.cli.options import Given, JsonOption, refuse_given, with_options
from teso_deploy.cli.reports import as_markup, check_json, list_shown, say, toml_file, write_json
from teso_deploy.cli.values import parse_checkpoint, parse_precision, parse_size, parse_targets
from teso_deploy.errors import BundleError, MissingExtraError, RecipeError
from teso_deploy.hub import hub_snapshot
from teso_deploy.media.reader import VideoReader
from teso_deploy.options.fields import OptionError
from teso_deploy.options.forms import FormOptions
from teso_deploy.options.weights import WeightOptions
from teso_deploy.outputs import check_apart, show_path
from teso_deploy.recipe import Recipe, load_recipe
from teso_deploy.requirements import write_install_command
from teso_deploy.types import Precision

if TYPE_CHECKING:
    from teso_deploy.conversion.bundle_export import ExportReport


def _describe_engines(manifest: BundleManifest, folder: Path) -> list[dict[str, Any]]:
    """Describe the engines that were built, one row each, from their sidecars."""
    from teso_deploy.backends.tensorrt.sidecar import read_sidecar

    rows = []
    for entry in manifest.engines:
        sidecar = read_sidecar(folder / entry.file)
        half = sidecar.shares.get("fp16", 0.0) + sidecar.shares.get("bf16", 0.0)
        rows.append(
            {
                "graph": entry.graph,
                "target": entry.target,
                "arch": entry.architecture,
                "precision": entry.precision,
                "half_share": round(half, 4),
                "shares": sidecar.shares,
                "shares_from": sidecar.shares_from,
                "msda": sidecar.msda,
                "parity": sidecar.parity,
                "bytes": sidecar.bytes,
                "build_seconds": sidecar.build_seconds,
                "path": entry.file,
            }
        )
    return rows


def make_report(manifest: BundleManifest, out: Path, *, random: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Make the report of an export, ready for JSON.

    Args:
        manifest: the manifest of the written bundle.
        out: the bundle's folder.
        random: the weights that no checkpoint gave.
        seconds: how long the export took.
    """
    return {
        "schema_version": 1,
        "bundle": show_path(out),
        "name": manifest.name,
        "trained": manifest.trained,
        "random_keys": list(random),
        "graphs": {
            name: {
                "parameters": graph.parameters,
                "multiply_adds": graph.multiply_adds,
                "bytes": manifest.files[graph.file].bytes,
                "weights_bytes": manifest.files[graph.weights].bytes if graph.weights else 0,
                "nodes": graph.nodes,
            }
            for name, graph in manifest.graphs.items()
        },
        "parity": manifest.measured["parity"],
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "engines": [
            {
                "form": name,
                "graph": graph,
                "target": entry.target,
                "precision": entry.precision,
                "half_share": round(entry.shares.get("fp16", 0.0) + entry.shares.get("bf16", 0.0), 4),
                "shares": entry.shares,
                "bytes": manifest.files[entry.file].bytes,
                "path": entry.file,
            }
            for name, form in manifest.forms.items()
            for graph, entry in form.items()
        ]
        + _describe_engines(manifest, out),
        "seconds": round(seconds, 1),
    }


def make_engine_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make a table of the engines that were built."""
    checked = sum(row["parity"] is not None for row in rows)
    targets = " and ".join(dict.fromkeys(row["target"] for row in rows))
    table = Table(
        *("engine", "for", "", "half", "MB", "s"),
        title=f"{len(rows)} engines of {targets}" + (f", {checked} checked on this GPU" if checked else ""),
    )
    for row in rows:
        size, seconds = f"{row['bytes'] / 1e6:.1f}", f"{row['build_seconds']:.1f}"
        table.add_row(
            as_markup(row["graph"]), as_markup(row["arch"]), row["precision"], f"{row['half_share']:.0%}", size, seconds
        )
    return table


def replace_sizes(recipe: Recipe, sizes: Sequence[tuple[int, int]]) -> Recipe:
    """Return a recipe with other picture sizes. Raises :class:`RecipeError` if it does not support them."""
    table = recipe.model_dump(mode="json", by_alias=True)
    table["image"]["sizes"] = list(dict.fromkeys(sizes))
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RecipeError(f"recipe {recipe.name} can't have these sizes: {reason}") from error


def check_extra() -> None:
    """Raise :class:`MissingExtraError` if the extra ``export`` is not installed."""
    for module in ("torch", "onnx", "onnxscript", "safetensors"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"export needs {module}: {write_install_command('export')}")


def show_plan(console: Console, recipe: Recipe, json_out: Path | None) -> None:
    """Show how large the graphs of an export would be, as a table and as JSON.

    Args:
        console: shows the table.
        recipe: the recipe.
        json_out: where the JSON goes; None: nowhere.
    """
    from teso_deploy.conversion.plan import plan_export

    with console.status("shapes of every graph"):
        plans = plan_export(recipe)
    table = Table(title=as_markup(f"{recipe.name}: {recipe.summary}" if recipe.summary else recipe.name))
    for column in ("graph", "parameters", "multiply-adds", "bytes (fp32)"):
        table.add_column(column, justify="left" if column == "graph" else "right")
    for name, plan in plans.items():
        table.add_row(name, f"{plan.parameters:,}", f"{plan.multiply_adds / 1e9:,.2f} G", f"{plan.bytes / 1e6:,.1f} MB")
    console.print(table)
    fields = ("parameters", "multiply_adds", "bytes")
    graphs = {name: {field: getattr(plan, field) for field in fields} for name, plan in plans.items()}
    write_json(json_out, {"schema_version": 1, "name": recipe.name, "dry_run": True, "graphs": graphs})


@with_options
def export(
    recipe: Annotated[
        str,
        typer.Argument(help="A shipped recipe's name, or a TOML file; or a bundle's folder, to give it other forms."),
    ],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle; an existing bundle is replaced.")] = None,
    weights: WeightOptions,
    forms: FormOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how large every graph would be.")] = False,
    json_out: JsonOption = None,
    given: Given,
) -> None:
    """Export a recipe to ONNX graphs with their reference outputs and cue words, checked against PyTorch."""
    is_bundle = os.path.isfile(hub_snapshot(Path(recipe)) / MANIFEST)
    if is_bundle and (
        weights.checkpoint or weights.random_weights is not None or weights.averaging or forms.size or dry_run
    ):
        raise BundleError(
            f"{recipe} is a bundle, which has its weights and sizes: "
            "omit --checkpoint, --random-weights, --weights, --size and --dry-run"
        )
    if is_bundle:
        refuse_given(given, ("forms.licence",), "for recipes, since a bundle already has its licence")
    source = Bundle.open(recipe) if is_bundle else None
    # A bundle is not built again, so the networks of its recipe may be unknown here.
    chosen = None if is_bundle else load_recipe(recipe)
    if chosen is not None and forms.size:
        chosen = replace_sizes(chosen, [parse_size(text) for text in forms.size])
    for video in forms.calibrate_on:
        with VideoReader(video):
            pass
    precisions: list[Precision] = ["fp32", *(parse_precision(text) for text in forms.precision)]
    if forms.calibrate_on and "int8" not in precisions:
        raise OptionError("{calibrate_on} sets the ranges of int8: add {precision} int8, or omit it")
    targets = parse_targets(forms.target)
    settings = load_profile(forms.profile or DEFAULT_PROFILE)
    if forms.profile is not None and not targets:
        raise typer.BadParameter("needs --target tensorrt or --target tensorrt-rtx", param_hint="--profile")
    architectures = [name.strip().lower() for name in (forms.arch or "").split(",") if name.strip()]
    if architectures and "tensorrt-rtx" not in targets:
        raise typer.BadParameter("needs --target tensorrt-rtx", param_hint="--arch")
    check_json(json_out)
    files = [parse_checkpoint(text) for text in weights.checkpoint]
    console = Console(stderr=True)
    named = Path(recipe) if is_bundle else toml_file(recipe)
    read = [toml_file(forms.profile), *forms.calibrate_on, *(path for _, path in files)]
    if dry_run and chosen is not None:
        check_apart([named, *read], [json_out])
        check_extra()
        show_plan(console, chosen, json_out)
        return
    if out is None:
        raise typer.BadParameter("name the bundle's folder, or use --dry-run", param_hint="--out")
    KIND.check_target(out)
    check_apart([named, *read], [json_out])
    # A bundle may replace itself with other forms, so it is read before it is replaced.
    is_itself = is_bundle and os.path.realpath(out) == os.path.realpath(recipe)
    check_apart(read if is_itself else [named, *read], [json_out], [out])
    check_extra()
    for library in targets:
        check_installed(library)
    from teso_deploy.conversion.bundle_export import ExportReport, export_bundle
    from teso_deploy.conversion.derive import derive_bundle
    from teso_deploy.conversion.engines import request_engines

    requests = request_engines(
        targets, architectures=architectures, precisions=precisions[1:] or ["fp32"], settings=settings
    )
    began = time.monotonic()
    with console.status("reading weights") as status:
        if source is not None:
            derived = derive_bundle(
                source,
                out,
                precisions=precisions,
                calibrate_on=forms.calibrate_on,
                engines=requests,
                on_progress=list_shown(status),
                text_encoder=forms.text_encoder,
            )
            done = ExportReport(*derived)
        elif chosen is not None:
            done = export_bundle(
                chosen,
                out,
                files,
                random_weights_seed=weights.random_weights,
                licence=forms.licence,
                on_progress=list_shown(status),
                precisions=precisions,
                calibrate_on=forms.calibrate_on,
                engines=requests,
                text_encoder=forms.text_encoder,
                averaging=weights.averaging,
            )
    seconds = time.monotonic() - began
    _show_export(console, done, out, has_checkpoint=bool(files), seconds=seconds)
    write_json(json_out, make_report(done.bundle.manifest, out, random=done.random, seconds=seconds))


def _show_export(console: Console, done: ExportReport, out: Path, *, has_checkpoint: bool, seconds: float) -> None:
    """Print what was exported, as tables."""
    from teso_deploy.models.assembly import group_keys

    manifest = done.bundle.manifest
    table = Table(title=as_markup(f"{manifest.name} → {out}"))
    for column in ("graph", "parameters", "multiply-adds", "nodes", "largest error"):
        table.add_column(column, justify="left" if column == "graph" else "right")
    for name, graph in manifest.graphs.items():
        parity = done.parity.parity(name)
        error = "–" if parity is None else f"{parity.max_abs_error:.1e}"
        table.add_row(
            as_markup(name), f"{graph.parameters:,}", f"{graph.multiply_adds / 1e6:,.0f} M", f"{graph.nodes:,}", error
        )
    console.print(table)
    if manifest.engines:
        console.print(make_engine_table(_describe_engines(manifest, out)))
    if done.random and has_checkpoint:
        say(console, f"random, since no checkpoint gives them: {group_keys(done.random)}")
    total = sum(entry.bytes for entry in manifest.files.values())
    console.print(f"{total / 1e6:.1f} MB, {seconds:.0f} s, masks equal to PyTorch's")

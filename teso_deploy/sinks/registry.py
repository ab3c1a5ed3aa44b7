"""The sinks by name: the output and the requirements of each. To add a sink, add an entry here and its module."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from teso_deploy.errors import InputNotFoundError, MissingExtraError, OutputError
from teso_deploy.outputs import check_file, check_folder
from teso_deploy.requirements import write_install_command
from teso_deploy.sinks.contracts import InputKind, RunFacts, Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkEntry:
    """A kind of output.

    Attributes:
        name: Its name.
        subject: MODULE:CLASS of the sink, or a function that opens it, called with a target and :class:`RunFacts`.
        summary: A description of its output, for users.
        option: The option of the command line that opens it. None: there is none.
        writes: The kind of target: a file, a folder, or nothing that has a path.
        suffixes: Endings that the name of the target may have, in lower case. Empty: any.
        kinds: The kinds of inputs whose results it takes.
        takes_many: Whether it takes the results of several inputs; otherwise each input has a separate sink.
        check: MODULE:FUNCTION that refuses a target before work starts. Default: the rules of ``writes`` and
            ``suffixes``.
        extra: The extra of this package that it needs. Default: None.
        modules: Modules of that extra; if they are installed, so is the extra.
    """

    name: str
    subject: str
    summary: str
    option: str | None
    writes: Literal["file", "folder", "nothing"]
    suffixes: tuple[str, ...] = ()
    kinds: tuple[InputKind, ...] = ("files", "streams")
    takes_many: bool = True
    check: str | None = None
    extra: str | None = None
    modules: tuple[str, ...] = ()


_HERE = "teso_deploy.sinks"
SINKS = {
    entry.name: entry
    for entry in (
        SinkEntry(
            name="video",
            subject=f"{_HERE}.video:AnnotatedVideoSink",
            summary="annotated video, MP4 with the sound that the model hears",
            option="--out",
            writes="file",
            suffixes=(".mp4",),
            takes_many=False,
            check=f"{_HERE}.video:check_video_file",
        ),
        SinkEntry(
            name="mask-folder",
            subject=f"{_HERE}.mask_folder:MaskFolderSink",
            summary="{index:06d}.png in a folder: 8-bit class ids with a palette, 0 = background",
            option="--masks",
            writes="folder",
            takes_many=False,
            check="teso_deploy.media.mask_folder:check_mask_folder",
        ),
        SinkEntry(
            name="mask-lines",
            subject=f"{_HERE}.mask_lines:MaskLinesSink",
            summary="masks as COCO run lengths in JSON lines",
            option="--masks",
            writes="file",
            suffixes=(".jsonl",),
        ),
        SinkEntry(
            name="heat-map-folder",
            subject=f"{_HERE}.heat_map_folder:HeatMapFolderSink",
            summary="probability of what sounds, with and without cues and sound: pictures and arrays in a folder",
            option="--heatmaps",
            writes="folder",
            kinds=("files",),
            takes_many=False,
            check=f"{_HERE}.heat_map_folder:check_heat_map_folder",
        ),
        SinkEntry(
            name="events",
            subject=f"{_HERE}.events:EventSink",
            summary="onset, end and confidence of each sounding object, as JSON lines",
            option="--events",
            writes="file",
        ),
        SinkEntry(
            name="report",
            subject=f"{_HERE}.report:ReportSink",
            summary="counts, latencies and cues of the run, as JSON",
            option=None,  # --json may write to standard output, and a live run reports its accounting
            writes="file",
        ),
        SinkEntry(
            name="callback",
            subject=f"{_HERE}.callback:open_callback_sink",
            summary="calls a function with every result",
            option=None,
            writes="nothing",
        ),
    )
}


def find_sink(name: str) -> SinkEntry:
    """Return a sink's entry. Raises :class:`InputNotFoundError` for an unknown name."""
    if name not in SINKS:
        raise InputNotFoundError(f"unknown sink {name!r}: name one of {', '.join(SINKS)}")
    return SINKS[name]


def choose_sink(option: str, target: Path) -> SinkEntry:
    """Return the entry for an option and the name of its target: ``--masks m.jsonl``, ``--masks folder``.

    A sink with a matching suffix has priority over one that takes any name. If neither exists, the first one is
    returned, and :func:`check_target` then names the allowed targets.
    """
    entries = [entry for entry in SINKS.values() if entry.option == option]
    suffix = target.suffix.lower()
    return min(entries, key=lambda entry: 0 if suffix in entry.suffixes else 1 if not entry.suffixes else 2)


def _import_subject(entry: SinkEntry, subject: str) -> Any:
    if any(importlib.util.find_spec(module) is None for module in entry.modules):
        command = write_install_command(entry.extra) if entry.extra else f"pip install {' '.join(entry.modules)}"
        raise MissingExtraError(f"the sink {entry.name} needs {', '.join(entry.modules)}: {command}")
    module, _, name = subject.partition(":")
    return getattr(importlib.import_module(module), name)


def load_sink(entry: SinkEntry) -> Callable[[Any, RunFacts], Sink]:
    """Import the function that opens a sink. Raises :class:`MissingExtraError`, which names the extra to install."""
    found: Callable[[Any, RunFacts], Sink] = _import_subject(entry, entry.subject)
    return found


def check_target(entry: SinkEntry, target: Path) -> None:
    """Raise :class:`OutputError` for a target that the sink can't write. Refuses a sink whose extra is missing, too."""
    load_sink(entry)
    if entry.check is not None:
        _import_subject(entry, entry.check)(target)
    elif entry.writes == "folder":
        check_folder(target)
    elif entry.writes == "file":
        if entry.suffixes and target.suffix.lower() not in entry.suffixes:
            raise OutputError(f"{target} can't be written: its name must end in {' or '.join(entry.suffixes)}")
        check_file(target)


def open_sink(entry: SinkEntry, target: Any, run: RunFacts) -> Sink:
    """Open a sink.

    Args:
        entry: The registry's entry, see :func:`find_sink` and :func:`choose_sink`.
        target: A path, or for "callback" a function.
        run: Facts of the run.

    Returns:
        The sink.

    Raises:
        OutputError: The target can't be written, or the sink does not take results of this kind or number of inputs.
        MissingExtraError: The sink's extra is not installed.
    """
    if run.kind not in entry.kinds:
        raise OutputError(f"the sink {entry.name} takes only results of {' and '.join(entry.kinds)}: name another")
    if len(run.inputs) > 1 and not entry.takes_many:
        raise OutputError(f"the sink {entry.name} takes results of one input: open one for each")
    return load_sink(entry)(target, run)

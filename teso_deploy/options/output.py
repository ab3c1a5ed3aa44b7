"""Where results go."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from teso_deploy.options.fields import Options, option, spell_flag
from teso_deploy.sinks.registry import SINKS, SinkEntry, choose_sink


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """Where the results of a run go.

    Attributes:
        out: annotated video, .mp4, with the sound that was heard; a folder for several files.
        masks: folder of PNGs with class ids, or a ``.jsonl`` file of COCO run lengths.
        heatmaps: folder of heat maps, of files only: the probability of what sounds, with and without cues and sound.
        events: JSON lines with onset, end and confidence of what sounds.
        json_out: the report as JSON: a file, or ``-`` for standard output.
    """

    out: Path | None = option(
        None, "Annotated video, .mp4 with the sound that the model heard; a folder for several inputs."
    )
    masks: Path | None = option(
        None,
        "Folder for {index:06d}.png: 8-bit class ids with a palette, 0 = background; or a .jsonl file of COCO run "
        "lengths.",
    )
    heatmaps: Path | None = option(
        None,
        "Folder for the probability of what sounds, before the threshold, with and without cues and sound: a .png for "
        "each, and a .npz of their arrays. For files.",
    )
    events: Path | None = option(None, "Onset, end and confidence of each sounding object, as JSON lines.")
    json_out: Path | None = option(None, "Write the report to a file, or - for stdout.", flag="--json")

    @property
    def sinks(self) -> list[tuple[SinkEntry, Path]]:
        """The sinks that the options open, each with its target. They are found by the names of the options."""
        given = {spell_flag(one): getattr(self, one.name) for one in fields(self)}
        options = {entry.option for entry in SINKS.values()}
        return [
            (choose_sink(option, target), target)
            for option, target in given.items()
            if option in options and target is not None
        ]

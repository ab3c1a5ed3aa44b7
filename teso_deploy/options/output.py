"""Where results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teso_deploy.options.fields import Options, option
from teso_deploy.sinks.registry import choose_sink


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """Where the results of a run go.

    Attributes:
        out: annotated video, .mp4, with the sound that was heard; a folder for several files.
        masks: folder of PNGs with class ids, or a ``.jsonl`` file of COCO run lengths.
        events: JSON lines with onset, end and confidence of what sounds.
        json_out: the report as JSON: a file, or ``-`` for standard output.
    """

    out: Path | None = option(None, "Annotated video, .mp4 with the sound that was heard; a folder for several inputs.")
    masks: Path | None = option(
        None,
        "Folder for {index:06d}.png: 8-bit class ids with a palette, 0 = background; or a .jsonl file of COCO run "
        "lengths.",
    )
    events: Path | None = option(None, "Onset, end and confidence of what sounds, as JSON lines.")
    json_out: Path | None = option(None, "Write the report to a file, or - for stdout.", flag="--json")

    @property
    def masks_are_a_folder(self) -> bool:
        """Whether ``masks`` names a folder, not a file of lines."""
        return self.masks is not None and choose_sink("--masks", self.masks).writes == "folder"

    @property
    def targets(self) -> dict[str, Path]:
        """Option → its path, for the outputs that a sink writes."""
        targets = {"--out": self.out, "--masks": self.masks, "--events": self.events}
        return {option: target for option, target in targets.items() if target is not None}

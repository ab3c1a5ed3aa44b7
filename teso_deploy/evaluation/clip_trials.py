"""The trials of clips on disk: each labelled frame with each kind of sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teso_deploy.evaluation.conditions import Condition, Partners, make_windows
from teso_deploy.evaluation.datasets.contracts import FRAME_OFFSET_SECONDS, MaskKind, VideoSample
from teso_deploy.evaluation.datasets.pictures import load_frame
from teso_deploy.evaluation.datasets.reading import load_mask
from teso_deploy.evaluation.datasets.registry import Layout
from teso_deploy.evaluation.datasets.sounds import read_sample_windows


@dataclass(frozen=True, slots=True, eq=False)
class ClipTrial:
    """A frame of a clip with a window of sound.

    Attributes:
        clip: The clip.
        frame: The frame's number, from 0.
        image: (H, W, 3) uint8 RGB.
        samples: (15600,) float32 in [-1, 1], 16 kHz mono.
        start_seconds: When the window starts, in seconds of the clip.
        condition: The name of the condition.
        is_negative: Whether the sound belongs to nothing in the picture.
        truth: (H, W) uint8, the masks of the clip's own sound: 0 is background.
        words: The words of the clip; empty if the data set does not say.
    """

    clip: VideoSample
    frame: int
    image: NDArray[np.uint8]
    samples: NDArray[np.float32]
    start_seconds: float
    condition: str
    is_negative: bool
    truth: NDArray[np.uint8]
    words: tuple[str, ...] = ()

    @property
    def pts_seconds(self) -> float:
        """When the frame was taken, in seconds of the clip."""
        return self.clip.times[self.frame] if self.clip.times else self.frame + FRAME_OFFSET_SECONDS


class ClipReader:
    """Reads the trials of clips.

    Args:
        clips: All clips of the data set, from which other sounds are taken.
        layout: Their layout.
        kind: Which masks are the truth.
        conditions: The kinds of sound.
        partners: Chooses clips whose sounds are taken.
        words: Clip → its words.
        hop_seconds: Window k of a clip starts at k times this.
    """

    def __init__(
        self,
        clips: Sequence[VideoSample],
        *,
        layout: Layout,
        kind: MaskKind,
        conditions: Sequence[Condition],
        partners: Partners,
        words: Mapping[str, tuple[str, ...]],
        hop_seconds: float,
    ) -> None:
        self._clips = {clip.uid: clip for clip in clips}
        self._layout, self._kind, self._conditions = layout, kind, conditions
        self._partners, self._words, self._hop_seconds = partners, words, hop_seconds

    def read(self, clip: VideoSample) -> Iterator[ClipTrial]:
        """Yield the trials of a clip, frame by frame, so that a picture is encoded once for all of its sounds.

        A frame without a mask is not a trial. A condition without a partner is omitted.

        Raises:
            InputNotFoundError: A file is missing.
            DataError: A picture or a mask is damaged, or their sizes differ.
            MediaError: A sound can't be decoded.
        """
        sounds, starts = self._make_sounds(clip), clip.list_window_starts(self._hop_seconds)
        for number, (picture, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            if mask is None:
                continue
            image, truth = load_frame(picture), load_mask(mask, self._layout, self._kind)
            for condition, windows in sounds.items():
                yield ClipTrial(
                    clip,
                    number,
                    image,
                    windows[number],
                    starts[number],
                    condition.name,
                    condition.is_negative,
                    truth,
                    self._words.get(clip.uid, ()),
                )

    def _make_sounds(self, clip: VideoSample) -> dict[Condition, NDArray[np.float32]]:
        count = len(clip.frames)
        own = read_sample_windows(clip, self._hop_seconds)
        sounds = {}
        for condition in self._conditions:
            other = None
            if condition.kind == "shifted" and count == 1:
                continue  # it would be the normal sound
            if condition.needs_partner:
                partner = self._partners.choose(condition, clip.uid)
                if partner is None:
                    continue
                other = self._read_other(self._clips[partner], count)
            sounds[condition] = make_windows(condition, clip.uid, own, other=other)
        return sounds

    def _read_other(self, clip: VideoSample, count: int) -> NDArray[np.float32]:
        """Read the windows of another clip. They are repeated if it has fewer frames."""
        windows = read_sample_windows(clip, self._hop_seconds)[:count]
        return windows[np.arange(count) % len(windows)]

"""Segment a frame with and without its cues, and with and without its sound."""

from __future__ import annotations

import numpy as np

from teso_deploy.media.heat_map import VARIANTS
from teso_deploy.pipeline.stream import Offered, Stream
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Frame, Segmentation


class VariantRunner:
    """Segments the frames of a video in variants. Only the decoder and what depends on sound and cues run again.

    Args:
        stream: The video's stream.
        has_sound: Whether the video has sound. Otherwise only the muted variants are made.
    """

    def __init__(self, stream: Stream, *, has_sound: bool = True) -> None:
        self._stream, self._has_sound = stream, has_sound
        # A program that looks at past windows must not find silence among them. Its muted variants get their own past.
        self._muted = stream.pipeline.open_stream() if stream.pipeline.program.past_windows else stream

    def segment(
        self, frame: Frame, sound: AudioWindow, cues: Offered = None
    ) -> tuple[Segmentation, dict[str, Segmentation]]:
        """Segment a frame.

        Without cues the model uses its fallback. If no cues are offered, there are no variants with cues.

        Args:
            frame: The picture.
            sound: Its audio window.
            cues: As :meth:`Stream.segment` takes them. Default: none.

        Returns:
            The segmentation with the cues and the sound, and all variants by name, in the order of :data:`VARIANTS`.

        Raises:
            CueError: A word has no embedding, or the bundle has no tagger.
        """
        silence = AudioWindow(np.zeros(WINDOW_SAMPLES, np.float32), sound.start_seconds, is_silent=True)
        encoded = self._stream.encode(frame)
        found = self._stream.decode(encoded, sound, cues)
        made: dict[str, Segmentation] = {}
        if found.cues is None:
            offers: dict[str, Offered] = {"": None}
        elif found.cues.source == "fallback":
            offers = {"no-cues-": None}
        else:
            offers = {"cues-": found.cues, "no-cues-": None}
        first, *others = offers
        made[first + ("sound" if self._has_sound else "muted")] = found
        for prefix in others:  # first all with the sound, because each change of the sound runs the audio encoder
            made[prefix + ("sound" if self._has_sound else "muted")] = self._stream.decode(
                encoded, sound, offers[prefix]
            )
        if self._has_sound:
            of_muted = encoded if self._muted is self._stream else self._muted.encode(frame)
            for prefix, offered in offers.items():
                made[prefix + "muted"] = self._muted.decode(of_muted, silence, offered)
        return found, {name: made[name] for name in VARIANTS if name in made}

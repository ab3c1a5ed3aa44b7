"""Frames, sounds and cues of real videos as inputs of the graphs, to calibrate int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.bundle import Preprocessing
from teso_deploy.cues.table import CueTable
from teso_deploy.errors import DataError, TesoError
from teso_deploy.media.audio import find_sound, make_no_sound_error
from teso_deploy.media.reader import VideoReader
from teso_deploy.pipeline.preprocess import compute_fitted_size, normalise_picture, resize_picture
from teso_deploy.program import Program, select_inputs
from teso_deploy.small_files import parse_json, read_text

FRAMES_PER_VIDEO = 12


def read_visible_words(script: Path) -> list[str]:
    """Return the words that a clip's script calls visible; empty if the JSON of a video is not such a script."""
    try:
        content = parse_json(read_text(script, "the script of a clip"), script, error=DataError)
    except TesoError:
        return []
    visible = content.get("visible") if isinstance(content, dict) else None
    return [word for word in visible if isinstance(word, str)] if isinstance(visible, list) else []


def read_video_frames(
    program: Program, how: Preprocessing, table: CueTable, *, videos: Sequence[Path], count: int = FRAMES_PER_VIDEO
) -> list[dict[str, NDArray[Any]]]:
    """Return the inputs of all graphs, batch 1, for frames evenly spread over each video, each with its sound.

    The cues are the words that the JSON beside a video calls visible; without it, the first words of the table.

    Args:
        program: The program, which says which inputs there are.
        how: How pictures are prepared. They get its first size.
        table: The cue table.
        videos: The videos.
        count: Frames of each video.

    Returns:
        One dictionary of input name → array per frame.

    Raises:
        InputNotFoundError: A video does not exist.
        MediaError: A video can't be read.
    """
    found, size = [], how.sizes[0]
    for video in videos:
        words = list(read_visible_words(video.with_suffix(".json")) or table.names)[: table.max_cues]
        cues = table.lookup(words)
        with VideoReader(video) as reader:
            sound, seconds = find_sound(video), reader.info.duration_seconds or 1.0
            if sound.track is None:
                raise make_no_sound_error(video, sound)
            wanted = list(np.linspace(0, seconds, count, endpoint=False))
            for frame in reader:
                if not wanted or frame.pts_seconds < wanted[0]:
                    continue
                wanted = [time for time in wanted if time > frame.pts_seconds]
                picture = resize_picture(frame.image, compute_fitted_size(frame.image, size, how.fit))
                tensors = {
                    "image": normalise_picture(picture, mean=how.mean, std=how.std, bucket=size),
                    "waveform": sound.track.window(frame.pts_seconds, "centred").samples[None],
                    "cues": cues.embeddings[None],
                    "cue_valid": cues.valid[None],
                }
                found.append(select_inputs(program, tensors))
    return found

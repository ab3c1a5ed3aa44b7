"""Options of the commands that read videos: which tracks of them."""

from __future__ import annotations

from typing import Annotated

import typer

VideoTrackOption = Annotated[
    int | None,
    typer.Option(
        "--video-track",
        min=0,
        help="Number of the video's track of pictures, from 0 (FFmpeg's v:0). Default: the one that players take.",
    ),
]
AudioTrackOption = Annotated[
    int | None,
    typer.Option(
        "--audio-track",
        min=0,
        help="Number of the track of sound, from 0 (FFmpeg's a:0), in the file that the sound comes from. Default: the "
        "one that players take and that can be decoded.",
    ),
]

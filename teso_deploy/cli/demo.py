"""``teso-deploy demo``: the shipped model on the shipped clip, with its sound and without."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from teso_deploy.bundle import find_bundle_folder
from teso_deploy.cli.options import JsonOption, adapt, with_options
from teso_deploy.cli.reports import as_markup, check_json, progress_bar, say, write_json
from teso_deploy.errors import CheckFailedError, InputNotFoundError, MediaError
from teso_deploy.latency import LatencyLog
from teso_deploy.media.audio import AudioTrack
from teso_deploy.media.fitted_video import FittedVideo
from teso_deploy.media.overlay import Overlay
from teso_deploy.options.engine import EngineOptions
from teso_deploy.outputs import check_apart, check_file, check_folder, make_folder, open_staged_file, show_path
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.resources import find_shipped_path
from teso_deploy.small_files import parse_json, read_text

Picture = NDArray[np.uint8]
#: Name → spans [start, end] in seconds in which its sound is audible.
Spans = dict[str, list[list[float]]]

HALVES = ("with sound", "muted")
#: The mute gate: at least this share of the muted frames must be blank.
BLANK_SHARE = 0.99
#: If the middles of spans are closer than this, they share a column of the contact sheet.
SAME_MOMENT_SECONDS = 0.5


def _add_caption(picture: Picture, text: str) -> Picture:
    """Add a strip with a line of text above a picture."""
    height = max(20, picture.shape[0] // 14)
    strip = Image.new("RGB", (picture.shape[1], height), (16, 16, 20))
    font = ImageFont.load_default(size=height * 0.62)
    ImageDraw.Draw(strip).text((strip.width / 2, height / 2), text, (240, 240, 240), font, anchor="mm")
    return np.concatenate([np.asarray(strip), picture])


def choose_sheet_moments(spans: Spans, visible: list[str]) -> list[tuple[float, str]]:
    """List the middle of each span and the sounds at that time, in order. Omit a middle close to the previous one."""
    moments: list[tuple[float, str]] = []
    for middle in sorted((start + end) / 2 for pairs in spans.values() for start, end in pairs):
        if not moments or middle - moments[-1][0] >= SAME_MOMENT_SECONDS:
            heard = [
                name if name in visible else f"unseen {name}"
                for name, pairs in spans.items()
                if any(start <= middle <= end for start, end in pairs)
            ]
            moments.append((middle, " + ".join(heard)))
    return moments


def _read_script(path: Path) -> tuple[Spans, list[str]]:
    """Read when each sound is audible, and which objects are always visible."""
    if not path.is_file():
        raise InputNotFoundError(f"no {path}: the installation lacks the demo clip; install teso-deploy again")
    script = parse_json(read_text(path, "the script of a clip", error=MediaError), path, error=MediaError)
    return script["heard"], script["visible"]


def _write_demo(
    pipeline: Pipeline, source: VideoSource, spans: Spans, *, visible: list[str], video: Path, sheet: Path
) -> dict[str, Any]:
    duration = source.info.duration_seconds
    tracks = {"with sound": source.track, "muted": AudioTrack.silence(duration)}
    overlays = {half: Overlay(pipeline.classes, track, duration) for half, track in tracks.items()}
    cues = pipeline.cues_of(visible)
    wanted = choose_sheet_moments(spans, visible)
    columns: list[Picture] = []
    nonblank = dict.fromkeys(HALVES, 0)
    frames, latency = 0, LatencyLog()
    with ExitStack() as stack:
        written = stack.enter_context(FittedVideo(video, fps=source.shown_fps, sound=source.track))
        bar = stack.enter_context(progress_bar(Console(stderr=True)))
        task = bar.add_task(as_markup(source.path.name), total=duration)
        for frame, _, seconds in source:
            drawn = []
            for half in HALVES:
                window = tracks[half].window(seconds, "centred")
                segmentation = pipeline.segment(frame, window, cues)
                nonblank[half] += not segmentation.is_blank
                drawn.append(_add_caption(overlays[half].draw(frame, segmentation), half))
                if half == "with sound":
                    latency.add(segmentation.stamps)
            frames += 1
            written.write(np.concatenate(drawn, axis=1), seconds)
            if len(columns) < len(wanted) and seconds >= wanted[len(columns)][0]:
                moment, heard = wanted[len(columns)]
                columns.append(_add_caption(np.concatenate(drawn), f"{moment:.1f} s: {heard}"))
            bar.update(task, completed=seconds)
        bar.update(task, completed=duration)
    if columns:
        with open_staged_file(sheet) as staged:
            Image.fromarray(np.concatenate(columns, axis=1)).save(staged, "PNG")
    return {
        "schema_version": 1,
        "video": show_path(video),
        "contact_sheet": show_path(sheet),
        "frames": frames,
        "nonblank_rate": {half: nonblank[half] / frames for half in HALVES},
        "cues": list(cues.names),
        "latency_ms": latency.summary(),
        "backend": pipeline.backend,
        "bundle": pipeline.bundle.manifest.name,
        "passed": nonblank["muted"] <= (1 - BLANK_SHARE) * frames,
    }


@with_options
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the video and the contact sheet; made if needed.")] = Path(
        "demo"
    ),
    engine: Annotated[EngineOptions, adapt(only=("threads",))],
    json_out: JsonOption = None,
) -> None:
    """Run the shipped model on the shipped clip, with its sound and muted, side by side.

    Exit 1 when the muted half is not blank in at least 99 % of the frames.
    """
    clip = find_shipped_path("export/demo/clip.mp4")
    spans, visible = _read_script(find_shipped_path("export/demo/clip.json"))
    video, sheet = out / "demo.mp4", out / "contact-sheet.png"
    check_folder(out)
    check_json(json_out)
    check_apart([clip, find_bundle_folder(None)], [video, sheet, json_out])
    pipeline = Pipeline.load(threads=engine.threads)
    make_folder(out)
    for path in (video, sheet):
        check_file(path)
    with VideoSource(clip) as source:
        report = _write_demo(pipeline, source, spans, visible=visible, video=video, sheet=sheet)
    write_json(json_out, report)
    console = Console(stderr=json_out is not None, highlight=False)
    rates = report["nonblank_rate"]
    console.print(f"frames with something segmented: with sound {rates['with sound']:.1%}, muted {rates['muted']:.1%}")
    say(console, f"video:         {video}\ncontact sheet: {sheet}")
    if not report["passed"]:
        raise CheckFailedError(
            f"the mute gate failed: with the sound muted {rates['muted']:.1%} of the frames are not blank, "
            f"at most {1 - BLANK_SHARE:.0%} may be; export a bundle of a model that obeys the sound"
        )

"""Write data sets in the layouts of AVSBench, composed from a media folder, for evaluations that can be repeated.

    python -m benchmarks run composed-data --data MEDIA --out FOLDER [--layout avss] [--clips 300] [--seed 0]

Only pictures and sounds of the split ``test`` are used. A third of the clips show natural scenes, the others pasted
objects. What sounds changes every few seconds, some objects are silent, some seconds are blank. The same seed and media
give the same bytes. FOLDER gets a folder for each layout: avss (v1s, v1m and v2, a third of the clips each), s4, ms3.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from benchmarks.composed_clips import Clip, ClipPlan, choose_natural_scenes, compose_clip, read_natural_scenes
from benchmarks.results_files import add_out, record
from teso_deploy.comparison.report import environment_of
from teso_deploy.errors import OutputError
from teso_deploy.evaluation.datasets import ms3, s4
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.datasets.contracts import FRAMES, SUBSETS
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, read_library
from teso_deploy.evaluation.scenes import Picture
from teso_deploy.outputs import make_folder
from teso_deploy.staging import create_folder, put_in_place
from teso_deploy.types import SAMPLE_RATE_HZ

#: Words of a media folder → the class of AVSS, where the names differ.
AVSS_CLASS_OF_WORD = {
    "chicken": "hen",
    "drum kit": "drum",
    "electric guitar": "guitar",
    "motorbike": "motorcycle",
    "person": "man",
}
SIZES = {"s4": (224, 224), "ms3": (224, 224), "avss": (360, 480)}
_NATURAL_SHARE = 1 / 3
_SPLIT: Final = "test"


def find_avss_class(word: str) -> str | None:
    """Return the class of AVSS that a word of a media folder names; None if there is none."""
    name = AVSS_CLASS_OF_WORD.get(word, word)
    return name if name in list_avss_classes() else None


def find_category(word: str) -> str:
    """Return the category of S4 for a word, or the word itself if S4 has none."""
    by_class = {name: category for category, name in s4.CATEGORY_WORDS.items()}
    # Every guitar of S4 is acoustic.
    known = None if word == "electric guitar" else by_class.get(find_avss_class(word) or word)
    return known or word.replace(" ", "_")


def plan_clips(layout: str, library: MediaLibrary, count: int) -> list[ClipPlan]:
    """Plan the clips of a data set."""
    words = sorted(library.pictures.keys() & library.sounds.keys())
    if layout == "avss":
        words = [word for word in words if find_avss_class(word) is not None]
        subsets = [SUBSETS[number * len(SUBSETS) // count] for number in range(count)]
    else:
        subsets = [{"s4": "v1s", "ms3": "v1m"}[layout]] * count
    return [
        ClipPlan(
            f"{layout}-{number:04d}", subset, FRAMES[subset], SIZES[layout], tuple(words), has_several=subset != "v1s"
        )
        for number, subset in enumerate(subsets)
    ]


def compose_clips(
    layout: str, library: MediaLibrary, scenes: Sequence[Picture], *, count: int, seed: int
) -> Iterator[Clip]:
    """Yield the clips of a data set. The first third of each subset has natural scenes."""
    plans = plan_clips(layout, library, count)
    sizes, done = Counter(plan.subset for plan in plans), Counter[str]()
    for number, plan in enumerate(plans):
        place, done[plan.subset] = done[plan.subset], done[plan.subset] + 1
        natural = choose_natural_scenes(scenes, plan) if place < sizes[plan.subset] * _NATURAL_SHARE else []
        yield compose_clip(
            np.random.default_rng([seed, list(SIZES).index(layout), number]),
            library,
            plan,
            first=plan.words[place % len(plan.words)],
            scene=natural[place % len(natural)] if natural else None,
        )


def _save(pixels: NDArray[np.uint8], path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def _write_sound(samples: NDArray[np.float32], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def _list_sounding(clip: Clip) -> list[str]:
    """Return the words that sound in any second, in order of their first sound."""
    return list(dict.fromkeys(word for words in clip.sounding for word in words))


def _label(clip: Clip, second: int, value_of: Callable[[str], int]) -> NDArray[np.uint8]:
    """Return a mask with the value of each word where it is visible and sounds, (H, W)."""
    values = [0, *(value_of(word) if word in clip.sounding[second] else 0 for word in clip.shown)]
    return np.array(values, np.uint8)[clip.owners[second]]


def write_avss_clip(root: Path, clip: Clip) -> dict[str, Any]:
    """Write a clip of avss, and return its row of the table."""
    uid, home = f"{clip.plan.name}_0_{len(clip.frames)}000", root / clip.plan.subset
    classes = list_avss_classes()
    for second, frame in enumerate(clip.frames):
        _save(frame, home / uid / "frames" / f"{second}.jpg", quality=92)
        mask = _label(clip, second, lambda word: 1 + classes.index(find_avss_class(word) or ""))
        _save(mask, home / uid / "labels_semantic" / f"{second}.png")
    _write_sound(clip.samples, home / uid / "audio.wav")
    objects = dict.fromkeys((find_avss_class(word) or "").replace(" ", "-") for word in _list_sounding(clip))
    row = {"vid": clip.plan.name, "uid": uid, "s_min": 0, "s_sec": 0, "a_obj": "_".join(objects)}
    return row | {"split": _SPLIT, "label": clip.plan.subset}


def write_s4_clip(root: Path, clip: Clip) -> dict[str, Any]:
    """Write a clip of s4, and return its row of the table. See :func:`write_avss_clip`."""
    uid, data = f"{clip.plan.name}_0_5000", root / "Single-source/s4_data"
    category = find_category(_list_sounding(clip)[0])
    for second, frame in enumerate(clip.frames):
        file = Path(_SPLIT, category, uid, f"{uid}_{second + 1}.png")
        _save(frame, data / "visual_frames" / file)
        _save(_label(clip, second, lambda word: 255), data / "gt_masks" / file)
    _write_sound(clip.samples, data / "audio_wav" / _SPLIT / category / f"{uid}.wav")
    return {"name": uid, "start": 0, "category": category, "split": _SPLIT}


def write_ms3_clip(root: Path, clip: Clip) -> dict[str, Any]:
    """Write a clip of ms3, and return its row of the table. See :func:`write_avss_clip`."""
    uid, data = f"{clip.plan.name}_0", root / "Multi-sources/ms3_data"
    for second, frame in enumerate(clip.frames):
        _save(frame, data / "visual_frames" / uid / f"{uid}.mp4_{second + 1}.png")
        _save(_label(clip, second, lambda word: 255), data / "gt_masks" / _SPLIT / uid / f"{uid}_{second + 1}.png")
    _write_sound(clip.samples, data / "audio_wav" / _SPLIT / f"{uid}.wav")
    return {"video_id": uid, "split": _SPLIT}


#: Layout → the function that writes a clip, and the table.
WRITERS: dict[str, tuple[Callable[[Path, Clip], dict[str, Any]], str]] = {
    "avss": (write_avss_clip, "metadata.csv"),
    "s4": (write_s4_clip, f"Single-source/{s4.TABLE}"),
    "ms3": (write_ms3_clip, f"Multi-sources/{ms3.TABLE}"),
}


def write_dataset(
    root: Path, layout: str, *, library: MediaLibrary, scenes: Sequence[Picture], count: int, seed: int
) -> dict[str, Any]:
    """Write a data set as a whole, and return what it contains.

    Args:
        root: Its folder, which must not exist.
        layout: ``avss``, ``s4`` or ``ms3``.
        library: The media of the split ``test``.
        scenes: Natural scenes of that split.
        count: How many clips.
        seed: The random seed.

    Raises:
        OutputError: The folder exists or can't be written.
    """
    if root.exists():
        raise OutputError(f"{root} exists: remove it, or name another folder by --out")
    write_clip, table = WRITERS[layout]
    rows, seconds, words = [], Counter[str](), set[str]()
    clips = compose_clips(layout, library, scenes, count=count, seed=seed)
    with create_folder(root.parent) as staged:
        for clip in track(clips, f"composing {layout}", total=count):
            rows.append(write_clip(staged, clip))
            words.update(clip.shown)
            seconds["seconds"] += len(clip.frames)
            seconds["blank"] += sum(not heard for heard in clip.sounding)
            seconds["several"] += sum(len(heard) > 1 for heard in clip.sounding)
            seconds["with silent objects"] += sum(len(heard) < len(clip.shown) for heard in clip.sounding)
            seconds["changes"] += sum(before != after for before, after in pairwise(clip.sounding))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        (staged / table).write_text(text.getvalue(), encoding="utf-8")
        put_in_place(staged, root)
    return {"name": layout, "clips": count, "words": len(words), **seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = os.environ.get("TESO_AVS_DATA")
    parser.add_argument("--data", type=Path, default=given, required=given is None, help="the media folder")
    parser.add_argument("--layout", choices=list(WRITERS), action="append", help="may be repeated; default: all")
    parser.add_argument("--clips", type=int, default=300, help="of each data set")
    parser.add_argument("--seed", type=int, default=0)
    add_out(parser)
    options = parser.parse_args(arguments)
    if options.clips < len(SUBSETS):
        parser.error(f"--clips must be at least {len(SUBSETS)}")
    library = read_library(Path(options.data), _SPLIT, max_side=640)
    scenes = read_natural_scenes(Path(options.data), library)
    make_folder(options.out)
    rows = [
        write_dataset(
            options.out / layout, layout, library=library, scenes=scenes, count=options.clips, seed=options.seed
        )
        for layout in options.layout or WRITERS
    ]
    report = {
        "schema_version": 1,
        "rows": rows,
        "bound_by": f"Seed {options.seed}; {library.fingerprint}; {len(scenes)} natural scenes.",
        "environment": environment_of(1),
    }
    record("composed-data", "Composed data sets", report, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

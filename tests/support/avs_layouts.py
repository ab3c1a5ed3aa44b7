"""Small audio-visual segmentation data sets in the published layouts, for tests: shapes that have a tone each.

A video shows two of three objects, which move side by side: dogs are red discs of 500 Hz, cars blue squares of 1000 Hz,
pianos green triangles of 2000 Hz. The sounding object changes every second, and the mask shows it. Only the sound
reveals which one it is. The n-th video is the same in every split. So a model that over-fits on one split can be scored
on any other.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

#: Colour and tone of each object.
THINGS = {"dog": ((220, 30, 30), 500.0), "car": ((30, 60, 220), 1000.0), "piano": ((30, 200, 60), 2000.0)}
#: Values of an AVSS index mask: those of its label2idx.json minus one.
AVSS_INDEX = {"dog": 17, "car": 11, "piano": 47}
#: Categories of s4.
S4_CATEGORY = {"dog": "dog_barking", "car": "race_car", "piano": "playing_piano"}
#: Which of a video's two objects sound in each second: the first, the second, both, none, the first.
PATTERN: tuple[tuple[int, ...], ...] = ((0,), (1,), (0, 1), (), (0,))
SPLITS = ("train", "val", "test")
WAV_RATE_HZ = 16_000


def things_of(video: int) -> tuple[str, str]:
    """Return the left and the right object of the n-th video."""
    words = tuple(THINGS)
    return words[video % 3], words[(video + 1) % 3]


def sounding(video: int, second: int) -> tuple[str, ...]:
    """Return the objects that sound in a second of the n-th video of ms3 and avss."""
    shown = things_of(video)
    return tuple(shown[side] for side in PATTERN[second % len(PATTERN)])


def _shape(word: str, side: int, second: int, size: int) -> NDArray[np.bool_]:
    """Return the mask of an object, (size, size) bool.

    It is in its half of the picture, a little lower every second.
    """
    mask = Image.new("1", (size, size))
    draw = ImageDraw.Draw(mask)
    left, top = side * size // 2 + size // 16, size // 4 + second % 5 * size // 32
    box = (left, top, left + size * 3 // 8, top + size * 3 // 8)
    if word == "dog":
        draw.ellipse(box, fill=1)
    elif word == "car":
        draw.rectangle(box, fill=1)
    else:
        draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=1)
    return np.array(mask)


def _picture(shown: Sequence[str], second: int, size: int) -> Image.Image:
    pixels = np.full((size, size, 3), 110, np.uint8)
    for side, word in enumerate(shown):
        pixels[_shape(word, side, second, size)] = THINGS[word][0]
    return Image.fromarray(pixels)


def _indices(shown: Sequence[str], heard: Sequence[str], second: int, size: int) -> NDArray[np.uint8]:
    """Return AVSS's values where an object sounds, and 0 elsewhere."""
    mask = np.zeros((size, size), np.uint8)
    for side, word in enumerate(shown):
        if word in heard:
            mask[_shape(word, side, second, size)] = AVSS_INDEX[word]
    return mask


def avss_colours() -> NDArray[np.uint8]:
    """Return the palette of ``labels_rgb``, (71, 3). A value's bits go in turn to R, G and B, the high bits first."""
    values = np.arange(71)
    colours = np.zeros((71, 3), np.uint8)
    for bit in range(7):
        colours[:, bit % 3] |= (((values >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours


def write_wav(path: Path, seconds: Sequence[Sequence[str]], rate_hz: int = WAV_RATE_HZ) -> None:
    """Write the tones of each second's sounding objects: 16 bit, two equal channels as in the released files."""
    times = np.arange(rate_hz * len(seconds)) / rate_hz
    sound = np.zeros(len(times))
    for second, words in enumerate(seconds):
        part = slice(second * rate_hz, (second + 1) * rate_hz)
        for word in words:
            sound[part] += 0.3 * np.sin(2 * np.pi * THINGS[word][1] * times[part])
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((np.repeat(sound[:, None], 2, axis=1) * 32767).astype("<i2").tobytes())


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


def _save_binary(mask: NDArray[np.uint8], path: Path) -> None:
    _save(Image.fromarray((mask > 0).astype(np.uint8) * 255), path)


def write_s4(root: Path, videos: int = 2, size: int = 64) -> Path:
    """Write ``root/Single-source`` with ``videos`` videos per split, and return the root.

    The left object always sounds.
    """
    data = root / "Single-source" / "s4_data"
    lines = ["name,start,category,split"]
    for split in SPLITS:
        for video in range(videos):
            shown, name = things_of(video), f"{split}-{video}_0_5000"
            category = S4_CATEGORY[shown[0]]
            lines.append(f"{name},0,{category},{split}")
            for second in range(5):
                file = Path(split, category, name, f"{name}_{second + 1}.png")
                _save(_picture(shown, second, size), data / "visual_frames" / file)
                if second == 0 or split != "train":
                    _save_binary(_indices(shown, shown[:1], second, size), data / "gt_masks" / file)
            write_wav(data / "audio_wav" / split / category / f"{name}.wav", [shown[:1]] * 5)
    (data.parent / "s4_meta_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_ms3(root: Path, videos: int = 2, size: int = 64) -> Path:
    """Write ``root/Multi-sources`` with ``videos`` videos per split, as :data:`PATTERN` says. Return the root."""
    data = root / "Multi-sources" / "ms3_data"
    lines = ["video_id,split"]
    for split in SPLITS:
        for video in range(videos):
            shown, name = things_of(video), f"{split}-{video}_0"
            lines.append(f"{name},{split}")
            for second in range(5):
                picture = data / "visual_frames" / name / f"{name}.mp4_{second + 1}.png"
                _save(_picture(shown, second, size), picture)
                mask = _indices(shown, sounding(video, second), second, size)
                _save_binary(mask, data / "gt_masks" / split / name / f"{name}_{second + 1}.png")
            write_wav(data / "audio_wav" / split / f"{name}.wav", [sounding(video, second) for second in range(5)])
    (data.parent / "ms3_meta_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_avss(root: Path, videos: int = 2, size: int = 64, subsets: Sequence[str] = ("v1m",)) -> Path:
    """Write AVSBench-semantic with ``videos`` videos per split and subset, and return the root.

    They sound as :data:`PATTERN` says.
    In ``v1s`` of the split ``train`` only the first frame has a label. ``v2`` has ten frames.
    """
    colours = avss_colours()
    lines = ["vid,uid,s_min,s_sec,a_obj,split,label"]
    for subset in subsets:
        seconds = 10 if subset == "v2" else 5
        for split in SPLITS:
            for video in range(videos):
                shown, vid = things_of(video), f"{split}-{video}"
                uid = f"{vid}_0_{seconds}000"
                lines.append(f"{vid},{uid},0,0,{'_'.join(shown)},{split},{subset}")
                home = root / subset / uid
                for second in range(seconds):
                    _save(_picture(shown, second, size), home / "frames" / f"{second}.jpg")
                    if second and (subset, split) == ("v1s", "train"):
                        continue
                    mask = _indices(shown, sounding(video, second), second, size)
                    _save(Image.fromarray(mask), home / "labels_semantic" / f"{second}.png")
                    _save(Image.fromarray(colours[mask]), home / "labels_rgb" / f"{second}.png")
                write_wav(home / "audio.wav", [sounding(video, second) for second in range(seconds)])
    (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_v3(root: Path, size: int = 16) -> Path:
    """Write AVSBench-semantic with the tables of AVS-V3: of the test clips, one is a shot and the others are tested."""
    write_avss(root, videos=2, size=size, subsets=("v1m", "v2"))
    head, *lines = (root / "metadata.csv").read_text(encoding="utf-8").splitlines()
    rows = {line.split(",")[1]: line.split(",") for line in lines}

    def write(name: str, uids: Sequence[str], split: str, *, keeps_objects: bool = True) -> None:
        written = [head]
        for uid in uids:
            vid, _, minute, second, objects, _, label = rows[uid]
            about = f"{minute},{second},{objects}" if keeps_objects else ",,"
            written.append(f"{vid},{uid},{about},{split},{label}")
        (root / "v3" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "v3" / name).write_text("\n".join(written) + "\n", encoding="utf-8")

    write("meta_v3_seen_train.csv", ["train-0_0_5000", "train-1_0_10000"], "seen_train")
    write("meta_v3_seen_val.csv", ["val-0_0_5000"], "seen_val")
    unseen = ["test-0_0_5000", "test-1_0_5000", "test-0_0_10000", "test-1_0_10000"]
    write("meta_v3_unseen.csv", unseen, "unseen")
    write("v3_1_shot/train.csv", unseen[:1], "v3_1_shot_train", keeps_objects=False)
    write("v3_1_shot/test.csv", unseen[1:], "v3_1_shot_train", keeps_objects=False)
    return root

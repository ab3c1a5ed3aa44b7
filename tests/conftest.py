"""Fixtures that every test may use."""

from __future__ import annotations

import csv
import shutil
import signal
import sys
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, read_library
from teso_deploy.recipe import Recipe
from teso_deploy.types import Precision
from tests.support.imports import find_absent_packages
from tests.support.recording_times import TimeRecorder
from tests.support.sharing import CACHE, exported_once, shared_folder
from tests.support.tiers import COLLECTED, load_tiers

#: Import names of the packages in the base install, and of those that run the tests.
ALWAYS_INSTALLED = {
    "numpy", "onnxruntime", "av", "PIL", "typer", "rich", "pydantic", "prometheus_client", "pytest", "hypothesis",
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--base-install", action="store_true", help="omit the test files whose imports need an extra")
    parser.addoption(
        "--record-times", metavar="FILE", help="append the seconds of each test; see tests/support/tiers.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Restore SIGINT, which a script's background jobs ignore: tests end commands with it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # once per run, in the process that starts the others
        CACHE.prune()
    if times := config.getoption("record_times"):
        config.pluginmanager.register(TimeRecorder(Path(times).absolute()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow tests before pytest selects tests by marks."""
    config.stash[COLLECTED] = list(items)
    tiers = load_tiers()
    for item in items:
        if tiers.is_slow(item.nodeid):
            item.add_marker("slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Distribute whole files, so that files that wait run next to files that compute."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.support.distribution import TieredScheduling

    return TieredScheduling(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Omit files that need an extra. A missing package of the base install is still an error."""
    if not config.getoption("base_install") or collection_path.suffix != ".py":
        return None
    return bool(find_absent_packages(collection_path) - ALWAYS_INSTALLED) or None


def need_export() -> None:
    """Skip a test if its bundle must be exported and torch is not installed."""
    if find_spec("torch") is None:
        pytest.skip("its bundle is exported by torch")


TINY = {
    "name": "tiny",
    "summary": "All parts at the smallest size, for tests.",
    "image": {"sizes": [[64, 64]]},
    "swin": {"embed_dim": 8, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 4},
    "pixel_decoder": {"dim": 16, "layers": 1, "heads": 2, "points": 2, "ffn_dim": 32, "mask_dim": 16},
    "decoder": {"queries": 6, "layers": 2, "heads": 2, "ffn_dim": 32},
    "audio": {"channels": [4, 4, 8, 8, 8, 8], "hidden": [16, 16], "dim": 12},
    "text": {"dim": 384, "max_cues": 4},
    "fusion": {"dim": 16, "heads": 2, "latents": 3, "sedam_layers": 2, "pmqs_layers": 2, "ffn_dim": 32},
    "head": {"kind": "semantic", "classes": ["dog", "cow", "car"], "threshold": 0.5},
    "tagger": {"words": ["car", "cow", "dog"]},
}


@pytest.fixture(autouse=True)
def seeded_torch() -> None:
    """Begin each test with the same generator of PyTorch: what it draws must not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """Return a recipe of 64 × 64 pixels and a few thousand weights."""
    return Recipe.model_validate(TINY)


#: Each word is a colour and a tone: red dogs at 500 Hz, green cows at 1000 Hz, blue cars at 2000 Hz.
SHAPES = {"dog": ((220, 20, 20), 500), "cow": ((20, 220, 20), 1000), "car": ((20, 20, 220), 2000)}


def _write_tone(path: Path, hertz: float, seconds: float = 2.0) -> None:
    samples = np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16_000)) / 16_000) * 0.5
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A media folder in the documented layout: coloured discs and squares, tones, grey backgrounds."""
    root = tmp_path_factory.mktemp("media")
    rows = [("file", "label", "kind", "split")]
    for word, (colour, hertz) in SHAPES.items():
        for split, numbers in (("train", (0, 1)), ("test", (2,))):
            for number in numbers:
                picture, sound = f"stamps/{word}/{number}.png", f"audio/{word}/{number}.wav"
                for name in (picture, sound):
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
                draw = ImageDraw.Draw(image)
                (draw.ellipse if number % 2 else draw.rectangle)((8, 8, 52, 52), fill=(*colour, 255))
                image.save(root / picture)
                _write_tone(root / sound, hertz)
                rows += [(picture, word, "picture", split), (sound, word, "sound", split)]
    (root / "audio/speech").mkdir(parents=True)
    _write_tone(root / "audio/speech/0.wav", 3500)
    rows += [("audio/speech/0.wav", "speech", "sound", split) for split in ("train", "test")]
    for split in ("train", "test"):
        name = f"backgrounds/{split}.jpg"
        (root / "backgrounds").mkdir(exist_ok=True)
        noise = np.random.default_rng(len(split)).integers(90, 150, (12, 12, 1), np.uint8).repeat(3, axis=2)
        Image.fromarray(noise).resize((160, 120), Image.Resampling.BILINEAR).save(root / name)
        rows.append((name, "", "background", split))
    with (root / "split.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


@pytest.fixture(scope="session")
def calibration_folder(media_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Add training sounds to :func:`media_folder`, six for each word, so that some are reserved for calibration."""
    root = tmp_path_factory.mktemp("calibration") / "media"
    shutil.copytree(media_folder, root)
    with (root / "split.csv").open("a", newline="") as file:
        for word, (_, hertz) in SHAPES.items():
            for number in range(3, 7):
                _write_tone(root / f"audio/{word}/{number}.wav", hertz + 10 * number)
                csv.writer(file).writerow((f"audio/{word}/{number}.wav", word, "sound", "train"))
    return root


@pytest.fixture(scope="session")
def shapes_and_tones(media_folder: Path) -> MediaLibrary:
    """Read the training split of :func:`media_folder`."""
    return read_library(media_folder, "train")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all processes of this run share; see :mod:`tests.support.sharing`."""
    return shared_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def tiny_bundle(tiny_recipe: Recipe, shared: Path) -> Path:
    """Export the tiny model with random weights as a bundle. Tests must not write to it."""
    need_export()

    def export(out: Path) -> None:
        from teso_deploy.conversion.bundle_export import export_bundle

        export_bundle(tiny_recipe, out, random_weights_seed=0)

    return exported_once(shared / "tiny", tiny_recipe, export)


@pytest.fixture(scope="session")
def full_bundle(tiny_recipe: Recipe, shared: Path) -> Path:
    """Export the tiny model in two picture sizes, one not square, and every precision. Tests must not write to it."""
    need_export()
    image = tiny_recipe.image.model_copy(update={"sizes": ((64, 64), (64, 96))})
    recipe = tiny_recipe.model_copy(update={"image": image})

    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")

    def export(out: Path) -> None:
        from teso_deploy.conversion.bundle_export import export_bundle

        export_bundle(recipe, out, random_weights_seed=0, precisions=precisions)

    return exported_once(shared / "full", (recipe, precisions), export)

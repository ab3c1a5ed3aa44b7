"""``teso-deploy train``: train a recipe on composed scenes, or on videos."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from teso_deploy.cli.options import Given, adapt, refuse_given, with_options
from teso_deploy.cli.reports import say, toml_file
from teso_deploy.cli.values import parse_checkpoint
from teso_deploy.errors import DataError, MissingExtraError
from teso_deploy.evaluation.datasets.registry import LAYOUTS
from teso_deploy.options.training import TrainingOptions
from teso_deploy.options.weights import StartOptions
from teso_deploy.outputs import check_apart
from teso_deploy.recipe import Calibration, Recipe, load_recipe
from teso_deploy.requirements import write_install_command
from teso_deploy.resources import cache_folder

if TYPE_CHECKING:
    from teso_deploy.evaluation.datasets.registry import Layout
    from teso_deploy.training.loop import Progress as TrainingProgress

#: Options that have an effect only for training on videos, or only for training on scenes.
_OF_VIDEOS = (
    "training.layout",
    "training.cues_file",
    "training.framing",
    "weights.checkpoint",
    "weights.random_weights",
)
_OF_SCENES = ("weights.start", "training.workers")


def check_extra(also: str | None = None) -> None:
    """Raise :class:`MissingExtraError` if the extra ``train`` is not installed."""
    for module in ("torch", "scipy", "matplotlib", "safetensors", also):
        if module and importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"training needs {module}: {write_install_command('train')}")


def embed_words(console: Console, recipe: Recipe, data: Path) -> dict[str, NDArray[np.float32]]:
    """Embed all nouns and the labels of a media folder.

    Args:
        console: shows the progress.
        recipe: the recipe, whose text encoder embeds the words.
        data: the media folder.

    Returns:
        Word → its embedding.
    """
    from teso_deploy.conversion.vocabulary import build_cue_table, read_shipped_nouns
    from teso_deploy.evaluation.datasets.media_folder import label_words

    with console.status("embedding cue words"):
        words, embeddings = build_cue_table(recipe, sorted({*read_shipped_nouns(), *label_words(data)}))
    return dict(zip(words, embeddings, strict=True))


def show_calibration(console: Console, found: Calibration) -> None:
    """Print the thresholds and what they achieve, in two lines."""
    tags = "" if found.tag_threshold is None else f", tags {found.tag_threshold:.2f} (F2 {found.tag_f2:.2f})"
    console.print(f"thresholds: gate {found.gate_threshold:.3f}, masks {found.mask_threshold:.2f}{tags}")
    console.print(
        f"on {found.scenes} calibration scenes a row: {found.open_rate:.1%} of sounding cues accepted, "
        f"{found.false_alarm_rate:.1%} false alarms, mIoU {found.miou:.3f}"
    )


def _make_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
        console=console,
    )


def _make_shower(bar: Progress, name: str) -> Callable[[TrainingProgress], None]:
    """Return a function that moves a bar and shows the most useful values."""
    task = bar.add_task(name, total=None, values="reading the media")

    def show(progress: TrainingProgress) -> None:
        picked = {key: progress.values[key] for key in ("total", "iou", "blank_rate") if key in progress.values}
        text = "  ".join(f"{key} {value:.2f}" for key, value in picked.items())
        bar.update(task, total=progress.steps, completed=progress.step, values=text)

    return show


def train_scenes(
    console: Console, recipe: Recipe, data: Path, *, out: Path, weights: StartOptions, training: TrainingOptions
) -> Path:
    """Train on scenes that are composed from a folder of media, then calibrate the thresholds.

    Args:
        console: shows the progress.
        recipe: the model's recipe.
        data: folder of pictures and sounds.
        out: folder for state, weights, log and curves.
        weights: the weights to begin with.
        training: device and processes.

    Returns:
        The file of the trained weights.
    """
    from teso_deploy.training import loop
    from teso_deploy.training.calibration import calibrate_checkpoint

    table = embed_words(console, recipe, data)
    with _make_bar(console) as bar:
        trained = loop.train_model(
            recipe,
            data,
            out,
            embeddings=table,
            device=training.device,
            on_progress=_make_shower(bar, recipe.name),
            save_every_steps=training.save_every_steps,
            start=weights.start,
            workers=training.workers,
            averaging=weights.averaging,
        )
    try:
        with console.status("calibrating"):
            show_calibration(console, calibrate_checkpoint(trained, data, table))
    except DataError as error:
        say(console, f"not calibrated, so the recipe's thresholds stay: {error}")
    return trained


def train_videos(
    console: Console, recipe: Recipe, data: Path, *, out: Path, weights: StartOptions, training: TrainingOptions
) -> Path:
    """Train on the training split of a public data set.

    Args:
        console: shows the progress.
        recipe: the model's recipe.
        data: folder of the data set.
        out: folder for state, weights, log and curves.
        weights: the weights to begin with.
        training: layout, cues, device and how often the state is saved.

    Returns:
        The file of the trained weights.
    """
    from teso_deploy.conversion.bundle_export import make_cue_table
    from teso_deploy.evaluation.datasets.reading import detect_layout, read_dataset
    from teso_deploy.models.assembly import assemble
    from teso_deploy.training import finetune
    from teso_deploy.training.videos import VideoBatches, list_words, read_cue_file

    finetune.check_trainable(recipe)
    chosen: Layout = training.layout or detect_layout(data)  # type: ignore[assignment]
    samples = read_dataset(data, chosen, "train")
    cues = read_cue_file(training.cues_file) if training.cues_file is not None else None
    files, seed = [parse_checkpoint(text) for text in weights.checkpoint], weights.random_weights
    with console.status("reading weights"):
        built = assemble(recipe, files, random_weights_seed=seed, averaging=weights.averaging)
    with console.status("embedding cue words"):
        words, embeddings, _ = make_cue_table(
            built.model.recipe, built.text, random_weights_seed=seed, nouns=list_words(samples, chosen, cues)
        )
    table = dict(zip(words, embeddings, strict=True))
    batches = VideoBatches(built.model.recipe, samples, layout=chosen, embeddings=table, cue_file=cues)
    with _make_bar(console) as bar:
        shower = _make_shower(bar, recipe.name)
        return finetune.train_on_videos(
            built, batches, out, device=training.device, on_progress=shower, save_every_steps=training.save_every_steps
        )


def _check_apart(read: list[Path | None], data: Path, out: Path) -> None:
    """Refuse a folder in which training would overwrite its inputs. Raises :class:`OutputError`."""
    from teso_deploy.training.loop import CURVES, LOG, STATE, WEIGHTS

    # In a resumed run the files are its own, even if they are in the folder of the data.
    is_resumed = os.path.isfile(out / STATE)
    check_apart([*read, None if is_resumed else data], [out / name for name in (STATE, WEIGHTS, LOG, CURVES)])


@with_options
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    *,
    data: Annotated[
        Path, typer.Option(envvar="TESO_AVS_DATA", help="Folder of pictures and sounds, or a data set of videos.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for state, weights, log and curves.")] = None,
    weights: Annotated[
        StartOptions,
        adapt(
            helps={
                "checkpoint": "For training on videos: weights to start from, as for `export`; may be repeated.",
                "random_weights": "For training on videos: weights that no checkpoint gives start at random.",
            }
        ),
    ],
    training: Annotated[
        TrainingOptions,
        adapt(
            helps={
                "layout": f"Layout of a data set of videos: {', '.join(LAYOUTS)}. Default: it is detected.",
            }
        ),
    ],
    given: Given,
) -> None:
    """Train a recipe on scenes composed from a folder of media, or on videos. An interrupted run is continued."""
    chosen = load_recipe(recipe)
    on_videos = chosen.train is not None and chosen.train.videos is not None
    if on_videos:
        refuse_given(given, _OF_SCENES, f"for training on scenes, but {chosen.name} trains on videos")
    else:
        refuse_given(given, _OF_VIDEOS, f"for training on videos, but {chosen.name} trains on scenes")
    check_extra("accelerate" if on_videos else None)
    if training.layout not in (None, *LAYOUTS):
        raise typer.BadParameter(
            f"unknown layout {training.layout!r}: choose one of {', '.join(LAYOUTS)}", param_hint="--layout"
        )
    if weights.averaging and not (weights.checkpoint if on_videos else weights.start):
        needed = "--checkpoint" if on_videos else "--start"
        raise typer.BadParameter(f"needs {needed}, from which it chooses weights", param_hint="--weights")
    if training.framing is not None:  # part of the recipe, so that the exported bundle has it too
        audio = chosen.audio.model_copy(update={"framing": training.framing})
        chosen = chosen.model_copy(update={"audio": audio})
    out = out or cache_folder("train") / chosen.name
    files = [path for _, path in map(parse_checkpoint, weights.checkpoint)]
    _check_apart([weights.start, training.cues_file, toml_file(recipe), *files], data, out)
    # With several processes, only the first one prints.
    console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
    run = train_videos if on_videos else train_scenes
    trained = run(console, chosen, data, out=out, weights=weights, training=training)
    say(console, f"weights: {trained}\ncurves:  {trained.with_name('curves.png')}")
    say(console, f"next:    teso-deploy export {recipe} --checkpoint {trained} --out BUNDLE")

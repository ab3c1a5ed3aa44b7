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

from teso_deploy.cli.export import WeightsOption, part_and_file
from teso_deploy.cli.reports import say, toml_file
from teso_deploy.errors import DataError, MissingExtraError
from teso_deploy.outputs import check_apart
from teso_deploy.recipe import Calibration, Recipe, load_recipe
from teso_deploy.requirements import write_install_command
from teso_deploy.resources import cache_folder

if TYPE_CHECKING:
    from teso_deploy.evaluation.datasets.registry import Layout
    from teso_deploy.models.state_dicts import Averaging
    from teso_deploy.training.loop import Progress as TrainingProgress


def check_extra(also: str | None = None) -> None:
    """Raises :class:`MissingExtraError` where the extra ``train`` is not installed."""
    for module in ("torch", "scipy", "matplotlib", "safetensors", also):
        if module and importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"training needs {module}: {write_install_command('train')}")


def embedded_words(console: Console, recipe: Recipe, data: Path) -> dict[str, NDArray[np.float32]]:
    """Embeddings of all nouns and of a media folder's labels."""
    from teso_deploy.conversion.vocabulary import build_cue_table, shipped_nouns
    from teso_deploy.evaluation.datasets.media_folder import label_words

    with console.status("embedding cue words"):
        words, embeddings = build_cue_table(recipe, sorted({*shipped_nouns(), *label_words(data)}))
    return dict(zip(words, embeddings, strict=True))


def show_calibration(console: Console, found: Calibration) -> None:
    """The thresholds and what they give, in two lines."""
    tags = "" if found.tag_threshold is None else f", tags {found.tag_threshold:.2f} (F2 {found.tag_f2:.2f})"
    console.print(f"thresholds: gate {found.gate_threshold:.3f}, masks {found.mask_threshold:.2f}{tags}")
    console.print(
        f"on {found.scenes} calibration scenes a row: {found.open_rate:.1%} of sounding cues heard, "
        f"{found.false_alarm_rate:.1%} false alarms, mIoU {found.miou:.3f}"
    )


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
        console=console,
    )


def _shower(bar: Progress, name: str) -> Callable[[TrainingProgress], None]:
    """Moves a bar and shows the values that say most."""
    task = bar.add_task(name, total=None, values="reading the media")

    def show(progress: TrainingProgress) -> None:
        picked = {key: progress.values[key] for key in ("total", "iou", "blank_rate") if key in progress.values}
        text = "  ".join(f"{key} {value:.2f}" for key, value in picked.items())
        bar.update(task, total=progress.steps, completed=progress.step, values=text)

    return show


def train_scenes(
    console: Console,
    recipe: Recipe,
    data: Path,
    out: Path,
    start: Path | None,
    device: str,
    workers: int,
    every: int,
    averaging: Averaging | None = None,
) -> Path:
    """Composed scenes of a folder of media, then the calibration."""
    from teso_deploy.training import loop
    from teso_deploy.training.calibration import calibrate_checkpoint

    table = embedded_words(console, recipe, data)
    with _bar(console) as bar:
        weights = loop.train_model(
            recipe, data, out, table, device, _shower(bar, recipe.name), every, start, workers, averaging=averaging
        )
    try:
        with console.status("calibrating"):
            show_calibration(console, calibrate_checkpoint(weights, data, table))
    except DataError as error:
        say(console, f"not calibrated, the recipe's thresholds stay: {error}")
    return weights


def train_videos(
    console: Console,
    recipe: Recipe,
    data: Path,
    out: Path,
    layout: str | None,
    files: list[tuple[str | None, Path]],
    seed: int | None,
    cues_file: Path | None,
    device: str,
    every: int,
    averaging: Averaging | None = None,
) -> Path:
    """The training split of a public data set."""
    from teso_deploy.conversion.bundle_export import cue_table
    from teso_deploy.evaluation.datasets.reading import detect_layout, read_dataset
    from teso_deploy.models.assembly import assemble
    from teso_deploy.training import finetune
    from teso_deploy.training.videos import VideoBatches, read_cue_file, words_of

    finetune.check_trainable(recipe)
    chosen: Layout = layout or detect_layout(data)  # type: ignore[assignment]
    samples = read_dataset(data, chosen, "train")
    cues = read_cue_file(cues_file) if cues_file is not None else None
    with console.status("reading weights"):
        built = assemble(recipe, files, seed, averaging)
    with console.status("embedding cue words"):
        words, embeddings, _ = cue_table(built.model.recipe, built.text, seed, words_of(samples, chosen, cues))
    table = dict(zip(words, embeddings, strict=True))
    batches = VideoBatches(built.model.recipe, samples, chosen, table, cues)
    with _bar(console) as bar:
        return finetune.train_on_videos(built, batches, out, device, _shower(bar, recipe.name), every)


def _check_apart(read: list[Path | None], data: Path, out: Path) -> None:
    """Refuse a folder in which training would overwrite what it reads (:class:`OutputError`)."""
    from teso_deploy.training.loop import CURVES, LOG, STATE, WEIGHTS

    is_resumed = os.path.isfile(out / STATE)  # then its files are the run's own, also in the folder of the data
    check_apart([*read, None if is_resumed else data], [out / name for name in (STATE, WEIGHTS, LOG, CURVES)])


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    data: Annotated[
        Path, typer.Option(envvar="TESO_AVS_DATA", help="Folder of pictures and sounds, or a data set of videos.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where state, weights, log and curves are kept.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="Of a data set of videos: s4, ms3 or avss; default: what is there.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="[PART=]FILE", help="On videos: what to begin with, as for `export`; may be repeated."),
    ] = None,
    random_weights: Annotated[
        int | None, typer.Option(metavar="SEED", help="On videos: what no checkpoint gives begins at random.")
    ] = None,
    averaging: WeightsOption = None,
    cues_file: Annotated[
        Path | None, typer.Option(help='On videos: JSON with the cues of each frame, {"uid": {"f0": "guitar,"}}.')
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="On scenes: checkpoint whose encoders to begin with, in place of their phase.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes that make scenes ahead, for a GPU.")] = 0,
    save_every_steps: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 100,
) -> None:
    """Train a recipe on scenes composed from a folder of media, or on videos. A run that was broken off goes on."""
    chosen = load_recipe(recipe)
    on_videos = chosen.train is not None and chosen.train.videos is not None
    check_extra("accelerate" if on_videos else None)
    if layout not in (None, "s4", "ms3", "avss"):
        raise typer.BadParameter(f"no layout {layout!r}: s4, ms3 or avss", param_hint="--layout")
    if averaging and not (checkpoint if on_videos else start):
        needed = "--checkpoint" if on_videos else "--start"
        raise typer.BadParameter(f"there is no {needed} to choose weights of", param_hint="--weights")
    out = out or cache_folder("train") / chosen.name
    files = [part_and_file(text) for text in checkpoint or ()]
    _check_apart([start, cues_file, toml_file(recipe), *(path for _, path in files)], data, out)
    # Of several processes the first one speaks.
    console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
    if on_videos:
        weights = train_videos(
            console, chosen, data, out, layout, files, random_weights, cues_file, device, save_every_steps, averaging
        )
    else:
        weights = train_scenes(console, chosen, data, out, start, device, workers, save_every_steps, averaging)
    say(console, f"weights: {weights}\ncurves:  {weights.with_name('curves.png')}")
    say(console, f"next:    teso-deploy export {recipe} --checkpoint {weights} --out BUNDLE")

"""``teso-deploy train``: train a recipe on composed scenes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from teso_deploy.errors import DataError, MissingExtraError
from teso_deploy.recipe import Calibration, Recipe, load_recipe


def check_extra() -> None:
    """Raises :class:`MissingExtraError` where the extra ``train`` is not installed."""
    for module in ("torch", "scipy", "matplotlib", "safetensors"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"training needs {module}: pip install 'teso-deploy[train]'")


def embedded_words(console: Console, recipe: Recipe, data: Path) -> dict[str, NDArray[np.float32]]:
    """Embeddings of all nouns and of a media folder's labels."""
    from teso_deploy.evaluation.library import label_words
    from teso_deploy.exporting.vocabulary import build_cue_table, shipped_nouns

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


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    data: Annotated[Path, typer.Option(envvar="TESO_AVS_DATA", help="Folder of pictures and sounds.")],
    out: Annotated[Path | None, typer.Option(help="Where state, weights, log and curves are kept.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint whose encoders to begin with, in place of their own phase.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes that make scenes ahead, for a GPU.")] = 0,
    save_every_steps: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 100,
) -> None:
    """Train a recipe on scenes composed from a folder of media. A run that was broken off goes on."""
    check_extra()
    chosen = load_recipe(recipe)
    from teso_deploy.training import loop
    from teso_deploy.training.calibration import calibrate_checkpoint

    folder = out or Path.home() / ".cache" / "teso-deploy" / "train" / chosen.name
    console = Console(stderr=True)
    table = embedded_words(console, chosen, data)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(chosen.name, total=None, values="reading the media")

        def show(progress: loop.Progress) -> None:
            names = [name for name in ("total", "iou", "blank_rate") if name in progress.values]
            picked = {name: progress.values[name] for name in names}
            text = "  ".join(f"{name} {value:.2f}" for name, value in picked.items())
            bar.update(task, total=progress.steps, completed=progress.step, values=text)

        weights = loop.train_model(chosen, data, folder, table, device, show, save_every_steps, start, workers)
    console.print(f"weights: {weights}\ncurves:  {folder / loop.CURVES}")
    try:
        with console.status("calibrating"):
            show_calibration(console, calibrate_checkpoint(weights, data, table))
    except DataError as error:
        console.print(f"not calibrated, the recipe's thresholds stay: {error}")
    console.print(f"next:    teso-deploy export {recipe} --checkpoint {weights} --out BUNDLE")

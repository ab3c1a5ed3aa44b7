"""``teso-deploy train``: train a recipe on composed scenes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from teso_deploy.errors import MissingExtraError
from teso_deploy.recipe import load_recipe


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    data: Annotated[Path, typer.Option(envvar="TESO_AVS_DATA", help="Folder of pictures and sounds.")],
    out: Annotated[Path | None, typer.Option(help="Where state, weights, log and curves are kept.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint whose encoders to begin with, in place of their own phase.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    save_every_steps: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 100,
) -> None:
    """Train a recipe on scenes composed from a folder of media. A run that was broken off goes on."""
    for module in ("torch", "scipy", "matplotlib", "safetensors"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"training needs {module}: pip install 'teso-deploy[train]'")
    chosen = load_recipe(recipe)
    from teso_deploy.evaluation.library import label_words
    from teso_deploy.exporting.vocabulary import build_cue_table, shipped_nouns
    from teso_deploy.training import loop

    folder = out or Path.home() / ".cache" / "teso-deploy" / "train" / chosen.name
    console = Console(stderr=True)
    with console.status("embedding cue words"):
        words, embeddings = build_cue_table(chosen, sorted({*shipped_nouns(), *label_words(data)}))
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

        weights = loop.train_model(
            chosen, data, folder, dict(zip(words, embeddings, strict=True)), device, show, save_every_steps, start
        )
    console.print(f"weights: {weights}\ncurves:  {folder / loop.CURVES}")
    console.print(f"next:    teso-deploy export {recipe} --checkpoint {weights} --out BUNDLE")

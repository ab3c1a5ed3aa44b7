"""``teso-deploy calibrate``: choose the thresholds that training does not learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from teso_deploy.cli.reports import check_json, write_json
from teso_deploy.cli.train import check_extra, embed_words, show_calibration
from teso_deploy.outputs import check_apart, check_file, show_path


def calibrate(
    checkpoint: Annotated[
        Path, typer.Argument(help="The model.safetensors that `train` wrote; the thresholds are written into it.")
    ],
    *,
    data: Annotated[Path, typer.Option(envvar="TESO_AVS_DATA", help="Folder of pictures and sounds.")],
    scenes: Annotated[int, typer.Option(min=10, help="Number of scenes of each row.")] = 150,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the calibration to a file, or - for stdout.")
    ] = None,
) -> None:
    """Choose the thresholds of gate, masks and tags on sounds that training did not use; the checkpoint keeps them.

    `train` does this at its end; `export` puts the thresholds into the bundle.
    """
    check_extra()
    check_json(json_out)
    check_file(checkpoint)
    check_apart([checkpoint, data], [json_out])
    from teso_deploy.models import checkpoints
    from teso_deploy.training.calibration import calibrate_checkpoint

    console = Console(stderr=True)
    table = embed_words(console, checkpoints.read_recipe(checkpoint), data)
    with console.status("calibrating"):
        found = calibrate_checkpoint(checkpoint, data, table, scenes=scenes, seed=seed)
    show_calibration(console, found)
    write_json(json_out, {"schema_version": 1, "checkpoint": show_path(checkpoint), **found.model_dump(mode="json")})

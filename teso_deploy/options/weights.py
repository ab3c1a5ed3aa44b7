"""Which weights a model is made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teso_deploy.options.fields import OptionError, Options, option

AveragingChoice = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class WeightOptions(Options):
    """Which weights a model is made with.

    Attributes:
        checkpoint: files; each may begin with its part, as in ``visual=FILE``: visual, audio, text or model.
        random_weights: seed of the weights that no file gives. Default: every weight has to come from a file.
        averaging: of a checkpoint that holds both: ``ema``, the average that training kept, or ``raw``, the trained
            weights. Default: such a checkpoint is refused.
    """

    checkpoint: tuple[str, ...] = option(
        (),
        "Weights: a file of `train`, or one of visual=, audio=, text= and model= (may be repeated).",
        metavar="[PART=]FILE",
    )
    random_weights: int | None = option(
        None,
        "Use random weights where no checkpoint gives any, for timing.",
        metavar="SEED",
        minimum=0,
        maximum=2**32 - 1,
    )
    averaging: AveragingChoice | None = option(
        None,
        "For a checkpoint with both: use the average that training kept (ema), or the trained weights (raw).",
        flag="--weights",
    )

    def check(self) -> None:
        """Refuse ``averaging`` if no checkpoint is given."""
        if self.averaging and not self.checkpoint:
            raise OptionError("needs {checkpoint}, from which it chooses weights", field="averaging")


@dataclass(frozen=True, kw_only=True)
class StartOptions(WeightOptions):
    """The weights that training begins with.

    Attributes:
        start: for training on scenes: a checkpoint that gives the encoders. It replaces the phase in which they are
            trained alone.
    """

    start: Path | None = option(
        None, "For training on scenes: a checkpoint that gives trained encoders. Their training phase is skipped."
    )

    def check(self) -> None:
        """Leave the choice of weights to the command, which knows whether it trains on scenes or on videos."""

"""The training loop on composed scenes. It can be resumed, and gives the same result for the same seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from teso_deploy.errors import CheckpointError, RecipeError
from teso_deploy.evaluation.datasets.media_folder import read_library
from teso_deploy.models import build, checkpoints
from teso_deploy.models.state_dicts import Averaging
from teso_deploy.recipe import Recipe, TrainPhase, TrainRecipe
from teso_deploy.training.batches import Batch, Lesson, SceneBatches
from teso_deploy.training.curves import draw_curves
from teso_deploy.training.losses import TrainingHeads, compute_encoder_losses, compute_training_losses
from teso_deploy.training.states import is_of_recipe, load_state, read_log, save_state
from teso_deploy.training.teachers import Teachers, load_teachers

STATE, WEIGHTS, LOG, CURVES = "state.pt", "model.safetensors", "log.jsonl", "curves.png"
#: The parts that can start from a checkpoint with another fusion and decoder.
START_PARTS = ("visual_encoder", "audio_encoder")


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a training: ``step`` of ``steps`` done, and the latest log values."""

    step: int
    steps: int
    values: Mapping[str, float]


def find_phase(train: TrainRecipe, step: int) -> TrainPhase:
    """Return the scene phase that a step belongs to."""
    for phase in train.phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    raise RecipeError(f"step {step} is after the last phase")


def make_moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return an exponential moving average without a bias to its start: its decay grows from 2/11 to ``decay``."""

    def update(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        return average.lerp(current, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update


def compute_learning_rate(peak: float, *, warmup_steps: int, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a half cosine to a hundredth of the peak.

    Args:
        peak: The highest rate.
        warmup_steps: Steps of the warm-up.
        step: The step, from 0.
        steps: Number of steps.

    Returns:
        The learning rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


#: The modules to which ``encoder_rate`` applies: all that the encoders' phase trains.
ENCODERS = ("visual_encoder.swin.", "visual_encoder.pixel_decoder.", "visual_encoder.tagger.", "audio_encoder.")


def make_optimizer(
    model: nn.Module, heads: nn.Module, *, train: TrainRecipe, encoder_rate: float = 1.0
) -> torch.optim.AdamW:
    """Make AdamW with weight decay on matrices only. A group's ``rate`` multiplies the learning rate of a step.

    Args:
        model: The model.
        heads: The heads for training.
        train: The recipe's settings.
        encoder_rate: Factor of the encoders' learning rate. Default: 1.

    Returns:
        The optimiser.
    """
    groups = []
    for rate, parameters in (
        (
            encoder_rate,
            [p for name, p in model.named_parameters() if name.startswith(ENCODERS)] + [*heads.parameters()],
        ),
        (1.0, [p for name, p in model.named_parameters() if not name.startswith(ENCODERS)]),
    ):
        for decay, chosen in (
            (train.weight_decay, [p for p in parameters if p.ndim >= 2]),
            (0.0, [p for p in parameters if p.ndim < 2]),
        ):
            groups.append({"params": chosen, "weight_decay": decay, "rate": rate})
    return torch.optim.AdamW(groups, lr=train.learning_rate)


@torch.no_grad()
def compute_batch_scores(recipe: Recipe, scores: Tensor, batch: Batch) -> dict[str, float]:
    """Compute the IoU over rows in which something sounds, and the share of blank rows with blank masks.

    Args:
        recipe: The recipe.
        scores: Class probabilities (N, C, h, w).
        batch: The batch.

    Returns:
        Name of the score → value.
    """
    best, label = scores.max(dim=1)
    label = torch.where(best >= recipe.head.threshold, label, -1)
    truth = torch.full_like(label, -1)
    masks = F.adaptive_avg_pool2d(batch.masks, (scores.shape[2], scores.shape[3]))
    for t in range(batch.classes.shape[1]):
        here = (masks[:, t] > 0.5) & (batch.classes[:, t] >= 0)[:, None, None]
        truth = torch.where(here, batch.classes[:, t][:, None, None], truth)
    hit = ((label == truth) & (truth >= 0)).sum((1, 2)).float()
    union = ((label >= 0) | (truth >= 0)).sum((1, 2)).float()
    sounds = (truth >= 0).any(2).any(1)
    blank = ((label >= 0).float().mean((1, 2)) < 0.002)[~sounds].float()
    return {
        "iou": float((hit / union.clamp(min=1))[sounds].mean()) if sounds.any() else math.nan,
        "blank_rate": float(blank.mean()) if len(blank) else math.nan,
    }


class Trainer:
    """Model, optimiser and averaged weights, and the files of their run."""

    def __init__(
        self,
        recipe: Recipe,
        batches: SceneBatches,
        out: Path,
        *,
        device: torch.device,
        teachers: Teachers | None = None,
    ) -> None:
        assert recipe.train is not None
        self.teachers = teachers or Teachers()
        self.recipe, self.train, self.batches, self.out, self.device = recipe, recipe.train, batches, out, device
        self.encoder_steps = self.train.encoders.steps if self.train.encoders else 0
        self.steps = self.encoder_steps + sum(phase.steps for phase in self.train.phases)
        self.step = 0
        torch.manual_seed(self.train.seed)
        self.model = build(recipe, self.train.seed).to(device)
        picture_dims, sound_dims = self.teachers.channels
        self.heads = TrainingHeads(
            recipe, audio_words=len(batches.audio_words), picture_dims=picture_dims, sound_dims=sound_dims
        ).to(device)
        self.optimizer = make_optimizer(self.model, self.heads, train=self.train)
        self.average = AveragedModel(self.model, avg_fn=make_moving_average(self.train.ema_decay))

    def _state(self) -> dict[str, object]:
        return {
            "recipe": self.recipe.model_dump_json(by_alias=True),
            "step": self.step,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }

    def save(self) -> None:
        """Write the state and the averaged weights."""
        save_state(self._state(), self.out / STATE)
        metadata = {"recipe": self.recipe.model_dump_json(by_alias=True), "step": str(self.step)}
        checkpoints.save(self.average.module, self.out / WEIGHTS, metadata)

    def resume(self) -> bool:
        """Continue from a state in ``out``. Return False if there is none.

        Raises :class:`CheckpointError` if the state is damaged or of another recipe.
        """
        path = self.out / STATE
        if not path.is_file():
            return False
        state = load_state(path, self.device, ("recipe", "step", "model", "heads", "optimizer", "average"))
        if not is_of_recipe(state["recipe"], self.recipe):
            raise CheckpointError(
                f"{path} was trained with another recipe: give another --out, or remove the folder to start again"
            )
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.step = state["step"]
        return True

    def start_from(
        self, checkpoint: Path, parts: Sequence[str] = START_PARTS, averaging: Averaging | None = None
    ) -> None:
        """Take some parts from a checkpoint, and start after the encoders' phase.

        Args:
            checkpoint: The checkpoint.
            parts: The parts to take. Default: both encoders.
            averaging: Which weights to take if the file has both trained and averaged ones.

        Raises:
            CheckpointError: The weights are of another recipe.
        """
        checkpoints.load(self.model, checkpoint, parts=tuple(f"{part}." for part in parts), averaging=averaging)
        self.average.module.load_state_dict(self.model.state_dict())
        self.step = self.encoder_steps

    def lesson(self, step: int) -> Lesson:
        """Make the lesson of a step, with the teachers' answers: a :class:`Batch` after the encoders' phase."""
        if step >= self.encoder_steps:
            step -= self.encoder_steps
            return self.teachers.answer(self.batches.make(step, find_phase(self.train, step)))
        assert self.train.encoders is not None
        return self.teachers.answer(self.batches.make_lesson(step, self.train.encoders))

    def lessons(self, workers: int = 0) -> Iterable[Lesson]:
        """Make the lessons of all remaining steps ahead in ``workers`` processes. Their number changes no lesson."""
        return torch.utils.data.DataLoader(
            _Lessons(self), batch_size=None, sampler=range(self.step, self.steps), num_workers=workers
        )

    def run_step(self, lesson: Lesson | None = None) -> dict[str, float]:
        """Do one step, by default on its own lesson. Return the log values."""
        lesson = (self.lesson(self.step) if lesson is None else lesson).to(self.device)
        values = self._scenes_step(lesson) if isinstance(lesson, Batch) else self._encoders_step(lesson)
        self.step += 1
        return values

    def _encoders_step(self, lesson: Lesson) -> dict[str, float]:
        assert self.train.encoders is not None
        self.model.train()
        losses, _, _ = compute_encoder_losses(self.model, self.heads, lesson, train=self.train)
        peak = self.train.encoders.learning_rate
        return self._update(
            losses,
            compute_learning_rate(peak, warmup_steps=self.train.warmup_steps, step=self.step, steps=self.encoder_steps),
        )

    def _scenes_step(self, batch: Batch) -> dict[str, float]:
        step, steps = self.step - self.encoder_steps, self.steps - self.encoder_steps
        if step == 0:  # Adam's moments of the encoders' losses do not apply to the losses of the scenes
            self.optimizer = make_optimizer(
                self.model, self.heads, train=self.train, encoder_rate=self.train.encoder_rate
            )
        rate = compute_learning_rate(
            self.train.learning_rate, warmup_steps=self.train.warmup_steps, step=step, steps=steps
        )
        self.model.train()
        generator = torch.Generator().manual_seed(self.train.seed * 1_000_003 + step)
        losses, scores = compute_training_losses(self.model, self.heads, batch, train=self.train, generator=generator)
        return self._update(losses, rate) | compute_batch_scores(self.recipe, scores, batch)

    def _update(self, losses: dict[str, Tensor], rate: float) -> dict[str, float]:
        """Update the weights that the losses reach, and the average. Skip a step that is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.train.gradient_clip)
        if torch.isfinite(total) and torch.isfinite(norm):
            self.optimizer.step()
            self.average.update_parameters(self.model)
        values = {name: value.item() for name, value in losses.items()}
        return values | {"total": total.item(), "gradient_norm": norm.item(), "learning_rate": rate}


class _Lessons(torch.utils.data.Dataset[Lesson]):
    """The lessons of a trainer, by step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        return self._trainer.steps

    def __getitem__(self, step: int) -> Lesson:
        return self._trainer.lesson(step)


def train_model(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    embeddings: Mapping[str, NDArray[np.float32]],
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    save_every_steps: int = 100,
    start: Path | None = None,
    workers: int = 0,
    start_parts: Sequence[str] = START_PARTS,
    averaging: Averaging | None = None,
) -> Path:
    """Train a recipe on composed scenes of a media folder.

    Args:
        recipe: The recipe.
        data: The media folder.
        out: The folder of state, averaged weights, log and curves. An interrupted run continues from there, with the
            same result.
        embeddings: Word → (d_T,).
        device: The device of PyTorch. Default: "cpu".
        on_progress: Called after each step. Default: nothing.
        save_every_steps: Steps between two saved states. Default: 100.
        start: A checkpoint that replaces the encoders' phase. Parts that are not taken may be of another recipe.
            Default: none.
        workers: Processes that make scenes ahead, for a device that is faster than one core can make them.
            Default: 0, this process.
        start_parts: The parts to take from ``start``. Default: both encoders.
        averaging: Which weights to take from ``start`` if it has both trained and averaged ones.

    Returns:
        The path of the weights.
    """
    if recipe.train is None or not recipe.train.phases:
        raise RecipeError(f"recipe {recipe.name} says nothing about training: add [train] with phases")
    batches = SceneBatches(recipe, read_library(data, "train", hold_out=recipe.train.hold_out), embeddings)
    trainer = Trainer(recipe, batches, out, device=torch.device(device), teachers=load_teachers(recipe.train, data))
    if not trainer.resume() and start is not None:
        trainer.start_from(start, start_parts, averaging)
    out.mkdir(parents=True, exist_ok=True)
    log = out / LOG
    rows = read_log(log, trainer.step)
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with log.open("a") as lines:
        for lesson in trainer.lessons(workers):
            values = trainer.run_step(lesson)
            row = {"step": trainer.step, **{key: round(value, 6) for key, value in values.items()}}
            rows.append(row)
            lines.write(json.dumps(row) + "\n")
            on_progress(Progress(trainer.step, trainer.steps, values))
            if trainer.step % save_every_steps == 0 or trainer.step == trainer.steps:
                lines.flush()
                trainer.save()
                draw_curves(rows, out / CURVES)
    return out / WEIGHTS

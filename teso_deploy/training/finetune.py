"""Training on videos: the foundation is held, its adapters and everything new learn, each at its rate (section 4.1).

One process or several, on the CPU or on GPUs: `accelerate` shares out the frames and joins the
gradients. A run that was broken off goes on from its last saved step.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from teso_deploy.errors import CheckpointError, DataError, RecipeError
from teso_deploy.models import checkpoints
from teso_deploy.models.assembly import Assembly
from teso_deploy.models.teso import Teso
from teso_deploy.recipe import Recipe, TrainRecipe
from teso_deploy.training.batches import Batch
from teso_deploy.training.curves import draw_curves
from teso_deploy.training.loop import CURVES, LOG, STATE, WEIGHTS, Progress, batch_scores, learning_rate
from teso_deploy.training.losses import TrainingHeads, training_losses
from teso_deploy.training.states import load_state, read_log, save_state
from teso_deploy.training.videos import VideoBatches

#: Of the fusion, what a foundation gives: the learned mask queries are held with it.
_HELD = ("fusion.queries",)
#: Always new: what sounds is not what the foundation's classes were.
_NEW = ("fusion.", "decoder.classifier.")


def is_adapter(name: str) -> bool:
    """Whether a parameter is of an adapter inside of the foundation."""
    return ".adapter." in name or "_adapter." in name


def learnable(model: nn.Module, random: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the adapters' parameters, and of everything else that learns.

    ``random``: keys that no checkpoint gave; what nobody trained is not held.
    """
    unknown = set(random)
    adapters, new = [], []
    for name, _ in model.named_parameters():
        if is_adapter(name):
            adapters.append(name)
        elif name in unknown or (name.startswith(_NEW) and name not in _HELD):
            new.append(name)
    return adapters, new


class _Losses(nn.Module):
    """All terms of a batch: what several processes wrap, so that gradients are joined."""

    def __init__(self, model: Teso, heads: TrainingHeads, train: TrainRecipe) -> None:
        super().__init__()
        self.model, self.heads, self.train_recipe = model, heads, train

    def forward(self, batch: Batch, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return training_losses(self.model, self.heads, batch, self.train_recipe, generator)


class FineTuning:
    """A model that learns from videos, and where that is kept."""

    def __init__(self, built: Assembly, batches: VideoBatches, out: Path, device: str) -> None:
        """Raises :class:`RecipeError` for a recipe that can't be trained so."""
        recipe = built.model.recipe
        check_trainable(recipe)
        assert recipe.train is not None and recipe.train.videos is not None
        self.recipe, self.phase, self.batches, self.out = recipe, recipe.train.videos, batches, out
        self.accelerator = Accelerator(
            cpu=device == "cpu",
            # With no cue offered the fallback stands in, with some it does not: not every step reaches every weight.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        on_gpu = self.accelerator.device.type == "cuda"
        # On a CPU half precision is slower, and no memory is short.
        self.train = recipe.train.model_copy(update={"mixed_precision": recipe.train.mixed_precision and on_gpu})
        self.model = built.model
        adapters, new = learnable(self.model, built.random)
        self.learning = [*adapters, *new]
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in set(self.learning))
        named = dict(self.model.named_parameters())
        groups = []
        for names, rate in ((adapters, self.phase.adapter_learning_rate), (new, self.train.learning_rate)):
            matrices = [named[name] for name in names if named[name].ndim >= 2]
            others = [named[name] for name in names if named[name].ndim < 2]
            for parameters, decay in ((matrices, self.train.weight_decay), (others, 0.0)):
                groups += [{"params": parameters, "weight_decay": decay, "rate": rate}] if parameters else []
        heads = TrainingHeads(recipe, 1).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(groups, lr=self.train.learning_rate)
        losses = _Losses(self.model, heads, self.train)
        self.losses, self.prepared = self.accelerator.prepare(losses, self.optimizer)
        world = self.accelerator.num_processes
        each = self.phase.frames_per_batch * self.phase.accumulation_steps * world
        self.steps_per_epoch = -(-len(batches) // each)
        self.steps = self.phase.epochs * self.steps_per_epoch
        self.step = 0

    def numbers(self, step: int, part: int) -> list[int]:
        """Which frames this process learns from in a part of a step: an epoch's own order, from seed and number."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.train.seed, epoch)).permutation(len(self.batches))
        each, parts = self.phase.frames_per_batch, self.phase.accumulation_steps
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        start = ((place * parts + part) * processes + process) * each
        # The last step begins the order anew, so that every process has its share.
        return [int(order[i % len(order)]) for i in range(start, start + each)]

    def batch(self, step: int, part: int = 0) -> Batch:
        """The batch of a part of a step, the same whenever it is made."""
        rng = np.random.default_rng((self.train.seed, step, part, self.accelerator.process_index))
        return self.batches.make(self.numbers(step, part), rng).to(self.accelerator.device)

    def run_step(self) -> dict[str, float]:
        """Move the weights once, by the gradients of ``accumulation_steps`` batches; returns the values for the log."""
        rate = learning_rate(1.0, self.train.warmup_steps, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.losses.train()
        for module in self.model.modules():  # a sound encoder that is held keeps its statistics
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
                module.eval()
        parts = self.phase.accumulation_steps
        logged = [self._learn_from(part, is_last=part == parts - 1) for part in range(parts)]
        norm = self.accelerator.clip_grad_norm_(self.losses.parameters(), self.train.gradient_clip)
        if torch.isfinite(norm):  # weights that once are not a number never are one again
            self.prepared.step()
        self.prepared.zero_grad()
        self.step += 1
        values = {name: _mean([part[name] for part in logged if name in part]) for name in logged[0]}
        return values | {"gradient_norm": float(norm), "learning_rate": rate * self.train.learning_rate}

    def _learn_from(self, part: int, is_last: bool) -> dict[str, float]:
        """Add the gradients of one batch; several processes join theirs with the last."""
        batch = self.batch(self.step, part)
        seed = (self.train.seed * 1_000_003 + self.step) * 101 + part
        with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.losses):
            losses, class_logits, mask_logits = self.losses(batch, seed)
            total = torch.stack(list(losses.values())).sum()
            self.accelerator.backward(total / self.phase.accumulation_steps)
        values = {name: value.item() for name, value in losses.items()} | {"total": total.item()}
        return values | batch_scores(self.recipe, class_logits, mask_logits, batch)

    def save(self) -> None:
        """Write the state to go on from and the weights; the first of several processes does."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        named = self.model.state_dict()
        state = {
            "recipe": self.recipe.model_dump_json(),
            "step": self.step,
            "learning": {name: named[name] for name in self.learning},
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(state, self.out / STATE)
        metadata = {"recipe": self.recipe.model_dump_json(by_alias=True), "step": str(self.step)}
        checkpoints.save(self.model, self.out / WEIGHTS, metadata)

    def resume(self) -> bool:
        """Go on from a state in ``out``; False when there is none.

        Raises :class:`CheckpointError` when it is damaged, or belongs to another recipe or another set of weights that
        learn.
        """
        path = self.out / STATE
        if not path.is_file():
            return False
        state = load_state(path, self.accelerator.device, ("recipe", "step", "optimizer"))
        if state["recipe"] != self.recipe.model_dump_json() or list(state.get("learning", ())) != self.learning:
            raise CheckpointError(
                f"{path} was trained with another recipe or from other checkpoints: give another --out, or remove the "
                "folder to start again"
            )
        self.model.load_state_dict(state["learning"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return True


def _mean(values: Sequence[float]) -> float:
    """The mean of those that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def check_trainable(recipe: Recipe) -> None:
    """Raises :class:`RecipeError` for what training on videos can't do."""
    if recipe.train is None or recipe.train.videos is None:
        raise RecipeError(f"recipe {recipe.name} says nothing about training on videos: add [train.videos]")
    if recipe.foundation != "mask2former" or recipe.fusion.kind != "teso":
        raise RecipeError(
            f"recipe {recipe.name} can be exported, but not trained here: only Mask2Former with the paper's fusion can"
        )


def train_on_videos(
    built: Assembly,
    batches: VideoBatches,
    out: Path,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    save_every_steps: int = 100,
) -> Path:
    """Train a model on the labelled frames of a data set; returns the path of the weights.

    ``out`` keeps the state, the weights, the log and the curves; a run that was broken off goes
    on from there. Several GPUs: start the command with ``accelerate launch``. Raises
    :class:`RecipeError`, :class:`CheckpointError`, :class:`DataError`.
    """
    if not len(batches):
        raise DataError("no frame of the data set has a mask: name another split or subset")
    training = FineTuning(built, batches, out, device)
    training.resume()
    is_main = training.accelerator.is_main_process
    out.mkdir(parents=True, exist_ok=True)
    rows = read_log(out / LOG, training.step)
    if is_main:
        (out / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    while training.step < training.steps:
        values = training.run_step()
        row = {"step": training.step, **{key: round(value, 6) for key, value in values.items()}}
        rows.append(row)
        if is_main:
            with (out / LOG).open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        on_progress(Progress(training.step, training.steps, values))
        if training.step % save_every_steps == 0 or training.step == training.steps:
            training.save()
            if is_main:
                draw_curves(rows, out / CURVES)
    return out / WEIGHTS

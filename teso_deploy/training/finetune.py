"""Training on videos, as in section 4.1 of the paper.

The foundation is frozen. Its adapters and all new parts learn, each at its own rate. The paper gives 1e-4 for "visual"
adapters; here all adapters have it, those of the decoder's masked attention too (ours).

It runs in one process or several, on the CPU or on GPUs: `accelerate` distributes the frames and combines the
gradients. An interrupted run continues from its last saved step.
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
from teso_deploy.models.teso import Teso, require_teso
from teso_deploy.recipe import Recipe, TrainRecipe
from teso_deploy.training.batches import STRIDE, Batch
from teso_deploy.training.curves import draw_curves
from teso_deploy.training.loop import CURVES, LOG, STATE, WEIGHTS, Progress, compute_batch_scores, compute_learning_rate
from teso_deploy.training.losses import TrainingHeads, compute_training_losses
from teso_deploy.training.states import is_of_recipe, load_state, read_log, save_state
from teso_deploy.training.videos import VideoBatches

#: The foundation's part of the fusion: its learned mask queries are frozen too.
_HELD = ("fusion.queries",)
#: Parameters that always start from new values: the classes that sound are not the foundation's classes.
_NEW = ("fusion.", "decoder.classifier.")


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter inside the foundation."""
    return ".adapter." in name or "_adapter." in name


def list_learnable(model: nn.Module, random: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of the adapters' parameters, and of all other parameters that learn.

    ``random``: keys that no checkpoint contains. Untrained parameters are never frozen.
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
    """All loss terms of a batch, as the module that several processes wrap to combine gradients."""

    def __init__(self, model: Teso, heads: TrainingHeads, train: TrainRecipe) -> None:
        super().__init__()
        self.model, self.heads, self.train_recipe = model, heads, train

    def forward(self, batch: Batch, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return compute_training_losses(self.model, self.heads, batch, train=self.train_recipe, generator=generator)


class FineTuning:
    """The training of a model on videos, and the files of its run."""

    def __init__(self, built: Assembly, batches: VideoBatches, out: Path, *, device: str) -> None:
        """Raises :class:`RecipeError` for a recipe that can't be trained on videos."""
        recipe = built.model.recipe
        check_trainable(recipe)
        assert recipe.train is not None and recipe.train.videos is not None
        self.recipe, self.phase, self.batches, self.out = recipe, recipe.train.videos, batches, out
        self.accelerator = Accelerator(
            cpu=device == "cpu",
            # The fallback cue is used only if no cue is offered, so a step may not reach every weight.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        on_gpu = self.accelerator.device.type == "cuda"
        # On a CPU, half precision is slower, and there is enough memory without it.
        self.train = recipe.train.model_copy(update={"mixed_precision": recipe.train.mixed_precision and on_gpu})
        self.model = require_teso(built.model)
        adapters, new = list_learnable(self.model, built.random)
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
        heads = TrainingHeads(recipe, audio_words=1).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(groups, lr=self.train.learning_rate)
        losses = _Losses(self.model, heads, self.train)
        self.losses, self.prepared = self.accelerator.prepare(losses, self.optimizer)
        world = self.accelerator.num_processes
        each = self.phase.frames_per_batch * self.phase.accumulation_steps * world
        self.steps_per_epoch = -(-len(batches) // each)
        self.steps = self.phase.epochs * self.steps_per_epoch
        self.step = 0

    def numbers(self, step: int, part: int) -> list[int]:
        """Return the frames that this process uses in a part of a step.

        The order of the frames depends on the seed and on the number of the epoch.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.train.seed, epoch)).permutation(len(self.batches))
        each, parts = self.phase.frames_per_batch, self.phase.accumulation_steps
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        start = ((place * parts + part) * processes + process) * each
        # The last step wraps around to the start of the order, so that every process has frames.
        return [int(order[i % len(order)]) for i in range(start, start + each)]

    def batch(self, step: int, part: int = 0) -> Batch:
        """Make the batch of a part of a step. It is the same each time."""
        rng = np.random.default_rng((self.train.seed, step, part, self.accelerator.process_index))
        return self.batches.make(self.numbers(step, part), rng).to(self.accelerator.device)

    def run_step(self) -> dict[str, float]:
        """Update the weights once, by the gradients of ``accumulation_steps`` batches. Return the log values."""
        rate = compute_learning_rate(1.0, warmup_steps=self.train.warmup_steps, step=self.step, steps=self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.losses.train()
        for module in self.model.modules():  # a frozen audio encoder keeps its statistics
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
                module.eval()
        parts = self.phase.accumulation_steps
        logged = [self._learn_from(part, is_last=part == parts - 1) for part in range(parts)]
        norm = self.accelerator.clip_grad_norm_(self.losses.parameters(), self.train.gradient_clip)
        if torch.isfinite(norm):  # otherwise skip this step: a NaN gradient would make the weights NaN permanently
            self.prepared.step()
        self.prepared.zero_grad()
        self.step += 1
        values = {name: _compute_mean([part[name] for part in logged if name in part]) for name in logged[0]}
        return values | {"gradient_norm": float(norm), "learning_rate": rate * self.train.learning_rate}

    def _learn_from(self, part: int, is_last: bool) -> dict[str, float]:
        """Add the gradients of one batch. Processes combine their gradients at the last batch."""
        batch = self.batch(self.step, part)
        seed = (self.train.seed * 1_000_003 + self.step) * 101 + part
        with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.losses):
            losses, scores = self.losses(batch, seed)
            total = torch.stack(list(losses.values())).sum()
            self.accelerator.backward(total / self.phase.accumulation_steps)
        values = {name: value.item() for name, value in losses.items()} | {"total": total.item()}
        return values | compute_batch_scores(self.recipe, scores, batch)

    def save(self) -> None:
        """Write the state and the weights. Only the first of several processes writes."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        named = self.model.state_dict()
        state = {
            "recipe": self.recipe.model_dump_json(by_alias=True),
            "step": self.step,
            "learning": {name: named[name] for name in self.learning},
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(state, self.out / STATE)
        metadata = {"recipe": self.recipe.model_dump_json(by_alias=True), "step": str(self.step)}
        checkpoints.save(self.model, self.out / WEIGHTS, metadata)

    def resume(self) -> bool:
        """Continue from a state in ``out``. Return False if there is none.

        Raises :class:`CheckpointError` if the state is damaged, or is of another recipe or of another set of learning
        weights.
        """
        path = self.out / STATE
        if not path.is_file():
            return False
        state = load_state(path, self.accelerator.device, ("recipe", "step", "optimizer"))
        if not is_of_recipe(state["recipe"], self.recipe) or list(state.get("learning", ())) != self.learning:
            raise CheckpointError(
                f"{path} was trained with another recipe or from other checkpoints: give another --out, or remove the "
                "folder to start again"
            )
        self.model.load_state_dict(state["learning"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return True


def _compute_mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are numbers."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def check_trainable(recipe: Recipe) -> None:
    """Raise :class:`RecipeError` for a recipe that can't be trained on videos."""
    if recipe.train is None or recipe.train.videos is None:
        raise RecipeError(f"recipe {recipe.name} says nothing about training on videos: add [train.videos]")
    if recipe.fusion.kind != "teso":
        raise RecipeError(
            f"recipe {recipe.name} can be exported, but not trained here: only models with the paper's fusion can"
        )
    if recipe.foundation == "sam" and recipe.sam.patch != 4 * STRIDE:
        raise RecipeError(
            f"recipe {recipe.name} can't be trained: its masks have a stride of {recipe.sam.patch / 4:g} pixels, and "
            f"the targets {STRIDE}; set sam.patch = {4 * STRIDE}"
        )


def train_on_videos(
    built: Assembly,
    batches: VideoBatches,
    out: Path,
    *,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    save_every_steps: int = 100,
) -> Path:
    """Train a model on the labelled frames of a data set.

    To use several GPUs, start the command with ``accelerate launch``.

    Args:
        built: The model.
        batches: The frames.
        out: The folder of state, weights, log and curves. An interrupted run continues from there.
        device: The device of PyTorch. Default: "cpu".
        on_progress: Called after each step. Default: nothing.
        save_every_steps: Steps between two saved states. Default: 100.

    Returns:
        The path of the weights.

    Raises:
        RecipeError: The recipe can't be trained on videos.
        CheckpointError: The state in ``out`` is damaged or of another run.
        DataError: The data set has no mask.
    """
    if not len(batches):
        raise DataError("no frame of the data set has a mask: name another split or subset")
    training = FineTuning(built, batches, out, device=device)
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

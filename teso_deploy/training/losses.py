"""The losses: L = 5 BCE + 5 dice + 2 class + InfoNCE (section 3.5, eq. 10), and auxiliary terms of this project.

Masks are compared at points, as in Mask2Former, or at cells of stride 4 (``train.loss_sampling``).

One auxiliary term is the BCE on ξ ("does this cue sound?"), because the hard cue mask gives a rejected cue no gradient.
The others replace the paper's pre-trained foundations: tags of the sound, a dense map of all visible objects (for the
tagger), and the features of teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from teso_deploy.models.decoder import Memory
from teso_deploy.models.foundations.contracts import Decoded
from teso_deploy.models.teso import Teso
from teso_deploy.recipe import Recipe, TrainRecipe
from teso_deploy.training.batches import Batch, Lesson


def compute_pairwise_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean BCE of every query with every target: (N, Q, P), (N, T, P) → (N, Q, T)."""
    points = logits.shape[-1]
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return (positive @ targets.transpose(1, 2) + negative @ (1 - targets).transpose(1, 2)) / points


def compute_pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute 1 - dice of every query with every target: (N, Q, P), (N, T, P) → (N, Q, T)."""
    shares = logits.sigmoid()
    overlap = 2 * shares @ targets.transpose(1, 2)
    total = shares.sum(-1)[:, :, None] + targets.sum(-1)[:, None, :]
    return 1 - (overlap + 1) / (total + 1)


def match(cost: Tensor, present: Tensor) -> Tensor:
    """Assign queries to targets (Hungarian): cost (N, Q, T), present (N, T) bool → query of each target, or -1."""
    chosen = torch.full(present.shape, -1, dtype=torch.int64)
    costs, there = cost.detach().float().cpu().numpy(), present.cpu().numpy()
    for row, columns in enumerate(there):
        targets = columns.nonzero()[0]
        if len(targets):
            queries, order = linear_sum_assignment(costs[row][:, targets])
            chosen[row, torch.from_numpy(targets[order])] = torch.from_numpy(queries)
    return chosen.to(cost.device)


def compute_info_nce(latents: Tensor, temperature: float) -> Tensor:
    """Compute eq. 10 over the latents (B, N_L, d): each is its own positive (ours), all others are negatives.

    The paper has no temperature, so 1. With 0.1 the term is 0.0003 at the start of a training instead of 0.72: cosine
    similarities of 0 are then far below the 1 of the positive, and nothing is left to learn.
    """
    unit = F.normalize(latents, dim=-1)
    similarity = unit @ unit.transpose(1, 2) / temperature
    target = torch.arange(similarity.shape[1], device=similarity.device).expand(similarity.shape[:2])
    return F.cross_entropy(similarity.flatten(0, 1), target.flatten())


class TrainingHeads(nn.Module):
    """Heads that exist only in training. They predict tags of the sound from F_A, and the features of the teachers.

    ``picture_dims``, ``sound_dims``: channels of the teachers' features; empty without a teacher.
    """

    def __init__(
        self, recipe: Recipe, *, audio_words: int, picture_dims: Sequence[int] = (), sound_dims: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.ReLU(), nn.Linear(recipe.audio.dim, audio_words))
        # Tags are rare, so start with "nothing sounds".
        nn.init.constant_(self.audio[1].bias, -4.0)  # type: ignore[arg-type]
        # Combine the last two stages, at the stride of the finer one.
        widths = [recipe.swin.embed_dim * n for n in (1, 2, 4 + 8)]
        self.picture = nn.ModuleList(nn.Conv2d(*dims, 1) for dims in zip(widths, picture_dims, strict=False))
        self.sound = nn.ModuleList(nn.Conv2d(recipe.audio.dim, dim, 1) for dim in sound_dims)


def compute_imitation(found: Tensor, target: Tensor) -> Tensor:
    """Compute 1 - cosine to a teacher's features, both (B, C, h, w), standardised by channel over the batch.

    Standardising removes the part that all examples share, because it teaches nothing.
    """
    target = (target - target.mean((0, 2, 3), keepdim=True)) / (target.std((0, 2, 3), keepdim=True) + 1e-2)
    return 1 - F.cosine_similarity(found.float(), target, dim=1).mean()


def compute_audio_tag_loss(heads: TrainingHeads, audio: Tensor, tags: Tensor) -> Tensor:
    """Compute the BCE of the sound's tags, summed over words.

    In a mean over a hundred mostly absent tags, the gradient would be too small to learn from.

    Args:
        heads: The heads for training.
        audio: F_A, (N, d_A).
        tags: (N, A).

    Returns:
        The loss, a scalar.
    """
    return F.binary_cross_entropy_with_logits(heads.audio(audio), tags, reduction="none").sum(1).mean()


def compute_encoder_losses(
    model: Teso, heads: TrainingHeads, lesson: Lesson, *, train: TrainRecipe
) -> tuple[dict[str, Tensor], Memory | Tensor, Tensor]:
    """Compute the loss of each encoder separately: from labels, and from a teacher's features if it has a teacher.

    Args:
        model: The model.
        heads: The heads for training.
        lesson: Pictures and windows.
        train: The recipe's settings.

    Returns:
        The weighted terms, and the outputs of the encoders: the decoder's memory and F_A.
    """
    losses = {}
    with torch.autocast(lesson.image.device.type, torch.bfloat16, enabled=train.mixed_precision):
        encoded = model.foundation.encode(model.visual_encoder, lesson.image)
        audio = model.audio_encoder(lesson.waveform)
    tagger = getattr(model.visual_encoder, "tagger", None)
    if train.dense_tags and tagger is not None and encoded.mask_features is not None:
        losses["dense_tags"] = train.dense_tags * F.cross_entropy(
            tagger.logits(encoded.mask_features.float()), lesson.dense_tags
        )
    if train.audio_tags:
        losses["audio_tags"] = train.audio_tags * compute_audio_tag_loss(heads, audio.float(), lesson.audio_tags)
    if train.picture_teacher is not None and lesson.picture_features:
        one, two, three, four = (x.float() for x in encoded.maps)
        stages = (one, two, torch.cat((three, F.interpolate(four, size=three.shape[2:], mode="nearest")), dim=1))
        terms = [
            compute_imitation(F.adaptive_avg_pool2d(head(stage), (target.shape[2], target.shape[3])), target)
            for head, stage, target in zip(heads.picture, stages, lesson.picture_features, strict=True)
        ]
        losses["picture_teacher"] = train.picture_teacher.weight * torch.stack(terms).mean()
    if train.sound_teacher is not None and lesson.sound_features:
        terms = [
            compute_imitation(head(audio.float()[..., None, None]), target)
            for head, target in zip(heads.sound, lesson.sound_features, strict=True)
        ]
        losses["sound_teacher"] = train.sound_teacher.weight * torch.stack(terms).mean()
    return losses, encoded.memory, audio


def choose_cells(logits: Tensor, targets: Tensor, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the cells at which masks are compared: all, or random ones, the same for all rows of a step.

    Args:
        logits: (N, Q, cells).
        targets: (N, T, cells).
        count: The most cells.
        generator: Draws them.
    """
    cells = logits.shape[2]
    if count >= cells:
        return logits, targets
    points = torch.randperm(cells, generator=generator)[:count].to(logits.device)
    return logits[:, :, points], targets[:, :, points]


#: Mask2Former's sampling of points: this share of them are the most uncertain of this many times as many.
_UNCERTAIN_SHARE, _CANDIDATES_PER_POINT = 0.75, 3


def draw_points(extent: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw uniformly random points of each picture, never in its padding.

    Args:
        extent: (M, 2), see :class:`Batch`.
        count: Points per picture.
        generator: Draws them, on the CPU.

    Returns:
        (M, count, 2), x and y as shares of the width and the height with padding.
    """
    points = torch.rand(len(extent), count, 2, generator=generator, dtype=extent.dtype)
    return points.to(extent.device) * extent[:, None]


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Interpolate maps between cells: (M, C, h, w), (M, P, 2) → (M, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


@torch.no_grad()
def draw_uncertain_points(logits: Tensor, extent: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw points of each mask, most of them where the mask is uncertain: where its logit is near 0.

    Args:
        logits: (M, h, w).
        extent: (M, 2), see :class:`Batch`.
        count: Points per mask.
        generator: Draws them.

    Returns:
        (M, count, 2), the most uncertain first.
    """
    candidates = draw_points(extent, _CANDIDATES_PER_POINT * count, generator=generator)
    uncertainty = -sample_maps(logits[:, None], candidates)[:, 0].abs()
    chosen = uncertainty.topk(int(_UNCERTAIN_SHARE * count), dim=1).indices
    uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat((uncertain, draw_points(extent, count - chosen.shape[1], generator=generator)), dim=1)


def compare_at_points(
    logits: Tensor, targets: Tensor, extent: Tensor, *, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Compute BCE and dice of each mask with its target, at ``count`` points of its own.

    Args:
        logits: (M, h, w).
        targets: (M, H, W); their size may differ from that of the logits.
        extent: (M, 2), see :class:`Batch`.
        count: Points per mask.
        generator: Draws them.

    Returns:
        BCE and dice, (M,) each.
    """
    points = draw_uncertain_points(logits, extent, count, generator=generator)
    found, truth = sample_maps(logits[:, None], points), sample_maps(targets[:, None], points)
    return compute_pairwise_bce(found, truth).flatten(), compute_pairwise_dice(found, truth).flatten()


def _compare_cells(
    mask_logits: Tensor, batch: Batch, class_cost: Tensor, *, train: TrainRecipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Match and compare at cells; see :func:`mask_losses`. Return query, BCE and dice of each target present."""
    states = len(class_cost) // len(batch.classes)
    present = batch.classes.repeat(states, 1) >= 0
    logits, targets = mask_logits.flatten(2), batch.masks.flatten(2)
    logits, targets = choose_cells(logits, targets, train.loss_points, generator=generator)
    targets = targets.repeat(states, 1, 1)
    bce, dice = compute_pairwise_bce(logits, targets), compute_pairwise_dice(logits, targets)
    query = match(train.bce * bce + train.dice * dice + class_cost, present)
    row, column = present.nonzero(as_tuple=True)
    picked = query[row, column]
    return picked, bce[row, picked, column], dice[row, picked, column]


def _compare_points(
    mask_logits: Tensor, batch: Batch, class_cost: Tensor, *, train: TrainRecipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as :func:`_compare_cells`, at points.

    The matching draws uniform points, the same for all queries of a picture and state. It has no gradient, and goes
    state by state, so that its memory does not grow with the number of decoder layers.
    """
    rows = len(batch.classes)
    query = []
    with torch.no_grad():
        for logits, cost in zip(mask_logits.split(rows), class_cost.split(rows), strict=True):
            points = draw_points(batch.extent, train.loss_points, generator=generator)
            found, truth = sample_maps(logits, points), sample_maps(batch.masks, points)
            bce, dice = compute_pairwise_bce(found, truth), compute_pairwise_dice(found, truth)
            query.append(match(train.bce * bce + train.dice * dice + cost, batch.classes >= 0))
    row, column = (batch.classes.repeat(len(query), 1) >= 0).nonzero(as_tuple=True)
    picked = torch.cat(query)[row, column]
    picture = row % rows
    bce, dice = compare_at_points(
        mask_logits[row, picked],
        batch.masks[picture, column],
        batch.extent[picture],
        count=train.loss_points,
        generator=generator,
    )
    return picked, bce, dice


def mask_losses(
    class_logits: Tensor, mask_logits: Tensor, batch: Batch, *, train: TrainRecipe, generator: torch.Generator
) -> dict[str, Tensor]:
    """Compute the set losses of one or more decoder states, summed over states and averaged over targets.

    Args:
        class_logits: (S·N, Q, C+1), S states one after the other.
        mask_logits: (S·N, Q, h, w).
        batch: The batch.
        train: The recipe's settings.
        generator: Draws the cells or points of the mask losses.

    Returns:
        Name of the term → weighted loss.
    """
    states = len(class_logits) // len(batch.classes)
    classes = batch.classes.repeat(states, 1)
    shares = class_logits.softmax(-1)
    class_cost = -shares.gather(2, classes.clamp(min=0)[:, None, :].expand(-1, shares.shape[1], -1))
    compare = _compare_cells if train.loss_sampling == "cells" else _compare_points
    picked, bce, dice = compare(mask_logits, batch, train.class_ * class_cost, train=train, generator=generator)
    count = max(1, int((batch.classes >= 0).sum()))
    row, column = (classes >= 0).nonzero(as_tuple=True)
    nothing = class_logits.shape[-1] - 1
    wanted = torch.full(class_logits.shape[:2], nothing, dtype=torch.int64, device=class_logits.device)
    wanted[row, picked] = classes[row, column]
    weight = class_logits.new_ones(nothing + 1)
    weight[nothing] = train.no_object
    class_loss = F.cross_entropy(class_logits.flatten(0, 1), wanted.flatten(), weight)
    return {
        "bce": train.bce * bce.sum() / count,
        "dice": train.dice * dice.sum() / count,
        "class": train.class_ * states * class_loss,
    }


def compute_single_mask_losses(
    mask_logits: Tensor, batch: Batch, *, train: TrainRecipe, generator: torch.Generator
) -> dict[str, Tensor]:
    """Compute the losses of the one mask of a foundation without classes, such as SAM.

    Its target is all that sounds. Where nothing sounds, the target is a blank mask, because there is no class "no
    object" that could say so.

    Args:
        mask_logits: (N, 1, h, w).
        batch: The batch.
        train: The recipe's settings.
        generator: Draws the cells or points of the mask losses.
    """
    present = (batch.classes >= 0).to(batch.masks.dtype)[..., None, None]
    targets = (batch.masks * present).amax(dim=1)
    if train.loss_sampling == "points":
        bce, dice = compare_at_points(
            mask_logits[:, 0], targets, batch.extent, count=train.loss_points, generator=generator
        )
    else:
        logits, cells = choose_cells(
            mask_logits.flatten(2), targets.flatten(1)[:, None], train.loss_points, generator=generator
        )
        bce, dice = compute_pairwise_bce(logits, cells), compute_pairwise_dice(logits, cells)
    return {"bce": train.bce * bce.mean(), "dice": train.dice * dice.mean()}


def _repeat(memory: Memory | Tensor, times: int) -> Memory | Tensor:
    """Repeat each picture's memory ``times`` times in a row."""
    return memory.repeat(times) if isinstance(memory, Memory) else memory.repeat_interleave(times, dim=0)


def compute_training_losses(
    model: Teso, heads: TrainingHeads, batch: Batch, *, train: TrainRecipe, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute every weighted term of a batch, and the class probabilities of the last state for the log.

    Args:
        model: The model.
        heads: The heads for training.
        batch: The batch.
        train: The recipe's settings.
        generator: Draws the cells or points of the mask losses.

    Returns:
        The terms by name, and the probabilities (N, C, h, w) without gradient.
    """
    sounds = len(batch.waveform) // len(batch.image)
    terms, memory, audio = compute_encoder_losses(model, heads, batch, train=train)
    with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=train.mixed_precision):
        queries, gate, latents = model.fusion.fuse(audio, batch.cues, batch.cue_valid)
        decoded = model.foundation.decode_states(
            model.recipe, model.decoder, queries=queries, memory=_repeat(memory, sounds)
        )
    if decoded.class_logits is None:
        losses = terms | compute_single_mask_losses(decoded.mask_logits, batch, train=train, generator=generator)
    else:
        losses = terms | mask_losses(decoded.class_logits, decoded.mask_logits, batch, train=train, generator=generator)
    losses["info_nce"] = train.info_nce * compute_info_nce(latents.float(), train.info_nce_temperature)
    offered = batch.cue_sounds >= 0
    if offered.any():  # without any cue, the mean would be NaN
        losses["cue_gate"] = train.cue_gate * F.binary_cross_entropy_with_logits(
            gate.float()[offered], batch.cue_sounds[offered]
        )
    count = len(batch.classes)
    classes = None if decoded.class_logits is None else decoded.class_logits.detach()[-count:]
    last = Decoded(decoded.mask_logits.detach()[-count:], classes)
    return losses, model.foundation.score_logits(model.recipe, last)

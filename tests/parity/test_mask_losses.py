"""The losses at sampled points compared with Hugging Face's Mask2FormerLoss, at the same points.

Both draw from a generator with the same seed. Hugging Face draws from the global one: points of each picture for the
matching, then candidates of each matched mask, then the uniform rest. Ours draws in the same order.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss, sample_point

from teso_deploy.recipe import TrainRecipe
from teso_deploy.training.batches import Batch
from teso_deploy.training.losses import draw_uncertain_points, mask_losses, sample_maps

ROWS, QUERIES, TARGETS, CLASSES, SIZE = 3, 9, 3, 5, 64
TRAIN = TrainRecipe(loss_points=1000, loss_sampling="points")


def make_reference() -> Any:
    config = Mask2FormerConfig(train_num_points=TRAIN.loss_points, no_object_weight=TRAIN.no_object, num_labels=CLASSES)
    assert (config.oversample_ratio, config.importance_sample_ratio) == (3.0, 0.75), "Mask2Former's"
    reference = Mask2FormerLoss(config=config, weight_dict={})
    reference.matcher.cost_class, reference.matcher.cost_mask, reference.matcher.cost_dice = 2.0, 5.0, 5.0
    return reference


def make_case(seed: int) -> tuple[Tensor, Tensor, Batch]:
    """Make class logits, mask logits of stride 4, and a batch with 3, 2 and 1 targets.

    Query t + 2 is near target t, so that both programs list the matched masks, and so their points, in the same order.
    """
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.randn(ROWS, TARGETS, 5, 5, generator=generator)
    masks = (torch.nn.functional.interpolate(blobs, size=(SIZE, SIZE), mode="bicubic") > 0).float()
    classes = torch.randint(CLASSES, (ROWS, TARGETS), generator=generator)
    classes[1, 2] = classes[2, 1] = classes[2, 2] = -1
    mask_logits = torch.randn(ROWS, QUERIES, SIZE // 4, SIZE // 4, generator=generator)
    coarse = torch.nn.functional.avg_pool2d(masks, 4)
    mask_logits[:, 2 : 2 + TARGETS] += 3 * (coarse - 0.5)
    class_logits = torch.randn(ROWS, QUERIES, CLASSES + 1, generator=generator)
    unused: dict[str, Any] = dict.fromkeys(
        ("image", "photograph", "dense_tags", "waveform", "audio_tags", "cues", "cue_valid", "cue_sounds"),
        torch.zeros(ROWS),
    )
    return class_logits, mask_logits, Batch(**unused, masks=masks, classes=classes, extent=torch.ones(ROWS, 2))


@pytest.mark.parametrize("seed", range(3))
def test_losses_and_gradients_are_those_of_hugging_face(seed: int) -> None:
    class_logits, mask_logits, batch = make_case(seed)
    present = [row >= 0 for row in batch.classes]
    theirs, ours = mask_logits.clone().requires_grad_(), mask_logits.clone().requires_grad_()
    torch.manual_seed(seed)
    expected = make_reference()(
        theirs,
        class_logits,
        [masks[there] for masks, there in zip(batch.masks, present, strict=True)],
        [classes[there] for classes, there in zip(batch.classes, present, strict=True)],
    )
    found = mask_losses(class_logits, ours, batch, train=TRAIN, generator=torch.Generator().manual_seed(seed))
    names = {"bce": ("loss_mask", 5.0), "dice": ("loss_dice", 5.0), "class": ("loss_cross_entropy", 2.0)}
    for name, (their_name, weight) in names.items():
        assert found[name].item() == pytest.approx(weight * expected[their_name].item(), rel=1e-5)
    (found["bce"] + found["dice"]).backward()  # type: ignore[no-untyped-call]
    (5 * expected["loss_mask"] + 5 * expected["loss_dice"]).backward()
    assert ours.grad is not None and theirs.grad is not None and ours.grad.any()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_the_same_points_are_uncertain() -> None:
    logits = torch.randn(4, 20, 30, generator=torch.Generator().manual_seed(1))
    reference = make_reference()
    torch.manual_seed(7)
    expected = reference.sample_points_using_uncertainty(
        logits[:, None], reference.calculate_uncertainty, 1000, reference.oversample_ratio, 0.75
    )
    found = draw_uncertain_points(logits, torch.ones(4, 2), 1000, generator=torch.Generator().manual_seed(7))
    assert torch.equal(found, expected)
    theirs = sample_point(logits[:, None], expected, align_corners=False)
    assert torch.equal(sample_maps(logits[:, None], found), theirs)

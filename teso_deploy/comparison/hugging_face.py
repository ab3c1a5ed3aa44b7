"""Hugging Face's Mask2Former in PyTorch: eager, compiled, and in a plain export.

Imported in worker processes only, because it loads torch. Weights are random: no time depends on them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from teso_deploy.comparison.stock import masks_agree, pictures

SEED = 0


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Set weights scaled by fan-in, norms around 1, biases around 0, so that logits are as large as after training.

    With the library's own initialisation, logits stay at 1e-4, where each rounding flips a mask.
    """
    generator = torch.Generator().manual_seed(SEED)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim >= 2:
            value.copy_(noise / value[0].numel() ** 0.5)
        else:
            value.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))


def mask2former(sizes: dict[str, Any], size: tuple[int, int]) -> Any:
    """Build ``Mask2FormerForUniversalSegmentation`` from :func:`mask2former_sizes` for a picture (height, width)."""
    backbone = SwinConfig(
        image_size=size[0],
        embed_dim=sizes["embed_dim"],
        depths=sizes["depths"],
        num_heads=sizes["swin_heads"],
        window_size=sizes["window"],
        mlp_ratio=sizes["mlp_ratio"],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,  # type: ignore[arg-type]
        feature_size=sizes["dim"],
        mask_feature_size=sizes["mask_dim"],
        hidden_dim=sizes["dim"],
        encoder_feedforward_dim=sizes["pixel_ffn_dim"],
        encoder_layers=sizes["pixel_layers"],
        decoder_layers=sizes["layers"] + 1,  # the library counts the prediction before the first layer
        num_attention_heads=sizes["heads"],
        dim_feedforward=sizes["ffn_dim"],
        num_queries=sizes["queries"],
        num_labels=sizes["labels"],
    )
    model = Mask2FormerForUniversalSegmentation(config)
    _randomise(model)
    return model.eval()


class TorchSubject:
    """A PyTorch model. Its masks are compared with those of ``reference``, the model in eager mode."""

    stages = ("frame",)

    def __init__(self, model: Callable[..., Any], reference: Callable[..., Any], images: NDArray[np.float32]) -> None:
        self._model, self._reference = model, reference
        self._images = [torch.from_numpy(image[None]) for image in images]

    @torch.inference_mode()
    def run(self, stage: str, i: int) -> Tensor:
        """See :class:`Subject`."""
        return self._masks(self._model, self._images[i % len(self._images)])

    @staticmethod
    def _masks(model: Callable[..., Any], image: Tensor) -> Tensor:
        logits: Tensor = model(pixel_values=image).masks_queries_logits
        return logits

    @torch.inference_mode()
    def mask_iou(self) -> float:
        """See :class:`Subject`."""
        found, reference = (self._masks(model, self._images[0]) for model in (self._model, self._reference))
        return masks_agree(found.numpy(), reference.numpy())


def _model_and_images(settings: dict[str, Any]) -> tuple[Any, NDArray[np.float32]]:
    torch.set_num_threads(settings["threads"])
    height, width = settings["size"]
    return mask2former(settings["sizes"], (height, width)), pictures((height, width))


def build_eager(settings: dict[str, Any]) -> TorchSubject:
    """Build the unchanged model."""
    model, images = _model_and_images(settings)
    return TorchSubject(model, model, images)


def build_compiled(settings: dict[str, Any]) -> TorchSubject:
    """Build the model with the defaults of ``torch.compile``. It is compiled at its first run."""
    model, images = _model_and_images(settings)
    return TorchSubject(torch.compile(model), model, images)


def export(settings: dict[str, Any], folder: Path) -> None:
    """Write ``model.onnx`` by a plain call of PyTorch's exporter, and ``masks.npy``: logits of the first picture."""
    model, images = _model_and_images(settings)
    image = torch.from_numpy(images[:1])
    with torch.inference_mode():
        np.save(folder / "masks.npy", model(pixel_values=image).masks_queries_logits.numpy())
    with torch.no_grad():
        torch.onnx.export(model, (image,), folder / "model.onnx", dynamo=True)


if __name__ == "__main__":
    export(json.loads(sys.argv[1]), Path(sys.argv[2]))

"""Pictures are prepared as Hugging Face's image processors do it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from teso_deploy.conversion.captioners import describe_image_processor
from teso_deploy.cues.language.pictures import prepare_picture
from teso_deploy.errors import CheckpointError
from tests.support.language_models import photograph

SIZES = [(40, 60), (61, 33), (32, 32), (7, 200), (240, 320)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", [Image.Resampling(number) for number in range(4)])
def test_as_vit_and_clip(size: tuple[int, int], resample: Image.Resampling) -> None:
    from transformers import CLIPImageProcessor, ViTImageProcessor

    image = photograph(*size)
    crop = {"height": 32, "width": 32}
    for processor in (
        ViTImageProcessor(size={"height": 24, "width": 32}, resample=resample),
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop, resample=resample),
        ViTImageProcessor(size=crop, resample=resample, do_normalize=False),
    ):
        expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
        found = prepare_picture(image, describe_image_processor(processor))["pixel_values"]
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [*SIZES, (5, 3)])
def test_as_pix2struct(size: tuple[int, int]) -> None:
    from transformers import Pix2StructImageProcessor

    image = photograph(*size)
    processor = Pix2StructImageProcessor(max_patches=60, patch_size={"height": 4, "width": 4})
    expected = processor(Image.fromarray(image), return_tensors="np")
    found = prepare_picture(image, describe_image_processor(processor))
    np.testing.assert_array_equal(found["attention_mask"], expected["attention_mask"])
    np.testing.assert_allclose(found["flattened_patches"], expected["flattened_patches"], atol=2e-4)


def test_a_picture_of_one_grey() -> None:
    from transformers import Pix2StructImageProcessor

    image = np.full((20, 20, 3), 90, np.uint8)
    found = prepare_picture(
        image, describe_image_processor(Pix2StructImageProcessor(max_patches=8, patch_size={"height": 4, "width": 4}))
    )
    assert np.isfinite(found["flattened_patches"]).all()


def test_what_is_not_known_is_said() -> None:
    from transformers import CLIPImageProcessor, Pix2StructImageProcessor

    with pytest.raises(CheckpointError, match="not square"):
        describe_image_processor(Pix2StructImageProcessor(patch_size={"height": 4, "width": 8}))
    with pytest.raises(CheckpointError, match="unknown way"):
        describe_image_processor(CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False))
    with pytest.raises(CheckpointError, match="cropped"):
        describe_image_processor(CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}))

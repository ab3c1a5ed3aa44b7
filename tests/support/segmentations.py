"""Reads segmentations for tests."""

from __future__ import annotations

from teso_deploy.types import Cues, Segmentation


def read_cues(segmentation: Segmentation) -> Cues:
    """Return the cues of a segmentation whose method takes cues."""
    assert segmentation.cues is not None
    return segmentation.cues

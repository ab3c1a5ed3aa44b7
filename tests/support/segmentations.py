"""What tests read from segmentations."""

from __future__ import annotations

from teso_deploy.types import Cues, Segmentation


def read_cues(segmentation: Segmentation) -> Cues:
    """The cues of a segmentation by a method that takes cues."""
    assert segmentation.cues is not None
    return segmentation.cues

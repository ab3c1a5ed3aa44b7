"""The published measures of audio-visual segmentation, exact with their peculiarities.

Every accumulator here adds up sums and counts, so that a data set of any size is scored in constant memory.
"""

from teso_deploy.evaluation.metrics.binary import (
    BINARY_DEFINITIONS,
    BatchScore,
    BinaryDefinition,
    BinaryScores,
    score_batch,
)
from teso_deploy.evaluation.metrics.cue_precision import CuePrecision, compute_average_precision
from teso_deploy.evaluation.metrics.localisation import FslaScores
from teso_deploy.evaluation.metrics.masks import Mean, compute_iou, is_blank
from teso_deploy.evaluation.metrics.negatives import NegativeScores, PositiveIous, combine_auc
from teso_deploy.evaluation.metrics.semantic import SemanticScores

__all__ = [
    "BINARY_DEFINITIONS",
    "BatchScore",
    "BinaryDefinition",
    "BinaryScores",
    "CuePrecision",
    "FslaScores",
    "Mean",
    "NegativeScores",
    "PositiveIous",
    "SemanticScores",
    "combine_auc",
    "compute_average_precision",
    "compute_iou",
    "is_blank",
    "score_batch",
]

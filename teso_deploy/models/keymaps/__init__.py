"""Checkpoints of others: which of their keys is which of ours, format by format."""

from __future__ import annotations

from teso_deploy.models.keymaps.beats import BEATS
from teso_deploy.models.keymaps.clip_text import CLIP_TEXT_FORMATS
from teso_deploy.models.keymaps.mask2former import MASK2FORMER
from teso_deploy.models.keymaps.rules import Format
from teso_deploy.models.keymaps.sam import SAM_HUGGING_FACE, SAM_META
from teso_deploy.models.keymaps.segpref import SEGPREF
from teso_deploy.models.keymaps.vggish import VGGISH

#: Every kind of checkpoint that is known; the first that recognises a file has it.
FORMATS: tuple[Format, ...] = (SEGPREF, MASK2FORMER, SAM_HUGGING_FACE, SAM_META, VGGISH, BEATS, *CLIP_TEXT_FORMATS)

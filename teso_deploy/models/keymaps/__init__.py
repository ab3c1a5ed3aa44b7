"""Key maps: how the keys of other projects' checkpoints correspond to ours, format by format."""

from __future__ import annotations

from teso_deploy.models.keymaps.beats import BEATS
from teso_deploy.models.keymaps.clip_text import CLIP_TEXT_FORMATS
from teso_deploy.models.keymaps.mask2former import MASK2FORMER
from teso_deploy.models.keymaps.rules import Format
from teso_deploy.models.keymaps.sam import SAM_HUGGING_FACE, SAM_META
from teso_deploy.models.keymaps.segpref import SEGPREF
from teso_deploy.models.keymaps.vggish import VGGISH

#: Every known format. The first one that recognises a file is used.
FORMATS: tuple[Format, ...] = (SEGPREF, MASK2FORMER, SAM_HUGGING_FACE, SAM_META, VGGISH, BEATS, *CLIP_TEXT_FORMATS)

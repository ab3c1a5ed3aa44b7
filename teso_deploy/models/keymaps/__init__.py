"""Key maps for checkpoints of other projects: their keys and ours, with one module per format."""

from __future__ import annotations

from teso_deploy.architectures import list_format_names
from teso_deploy.models.keymaps.rules import Format
from teso_deploy.named_objects import load_object


def list_formats() -> list[Format]:
    """Import every known kind of checkpoint. A file belongs to the first kind that recognises it."""
    return [load_object(name) for name in list_format_names()]

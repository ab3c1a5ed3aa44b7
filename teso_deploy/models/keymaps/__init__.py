"""Checkpoints of others: which of their keys is which of ours, format by format."""

from __future__ import annotations

from teso_deploy.architectures import list_format_names
from teso_deploy.models.keymaps.rules import Format
from teso_deploy.named_objects import load_object


def list_formats() -> list[Format]:
    """Import every kind of checkpoint that is known. The first that recognises a file has it."""
    return [load_object(name) for name in list_format_names()]

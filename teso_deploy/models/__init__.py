"""The networks, as PyTorch modules (needs the extra ``export``)."""

from __future__ import annotations

from teso_deploy.models.teso import Teso, build

__all__ = ["Teso", "build"]

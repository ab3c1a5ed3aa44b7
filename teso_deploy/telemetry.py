"""Telemetry of the libraries that we use: off, unless the user switched it on.

The package switches it off when it is imported, because ONNX Runtime makes an identifier of this machine, a database in
the home folder and a thread that sends, all while it is imported; its own function to switch it off comes too late.
Processes that we start inherit the environment.
"""

from __future__ import annotations

import os
import sys

#: Variables that the libraries read, and the value that switches their telemetry off.
VARIABLES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off_telemetry() -> None:
    """Switch telemetry off for this process and those that it starts. A variable that the user set stays as it is."""
    for name, value in VARIABLES.items():
        if not os.environ.get(name):
            os.environ[name] = value
    # A program that imported ONNX Runtime before us: what it has begun is ended at least.
    disable = getattr(sys.modules.get("onnxruntime"), "disable_telemetry_events", None)
    if disable is not None and os.environ["ORT_DISABLE_TELEMETRY"] == "1":
        disable()

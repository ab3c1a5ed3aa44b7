"""Telemetry of the libraries that this package uses: off, unless the user switched it on.

The package switches it off on import. While ONNX Runtime is imported, it creates an identifier of this machine, a
database in the home folder and a thread that sends; its own function to switch this off comes too late. Child processes
inherit the environment.
"""

from __future__ import annotations

import os
import sys

#: The libraries' environment variables, and the values that switch telemetry off.
VARIABLES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off_telemetry() -> None:
    """Switch telemetry off for this process and its children. A variable that the user set keeps its value."""
    for name, value in VARIABLES.items():
        if not os.environ.get(name):
            os.environ[name] = value
    # If the program imported ONNX Runtime first, at least stop what has started.
    disable = getattr(sys.modules.get("onnxruntime"), "disable_telemetry_events", None)
    if disable is not None and os.environ["ORT_DISABLE_TELEMETRY"] == "1":
        disable()

"""A backend that is not part of the package: the one module that a new backend needs."""

from __future__ import annotations

from teso_deploy.backends.contracts import Backend, BackendRequest
from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.bundle import Bundle


class MadeUpEngine(OnnxRuntimeEngine):
    """The canonical graph in ONNX Runtime, under another name."""

    backend = "made-up"


def load_made_up(request: BackendRequest) -> Backend:
    """Load the backend. Its registry entry names this function."""

    def load_engine(bundle: Bundle, graph: str) -> MadeUpEngine:
        return MadeUpEngine(bundle.graph_path(graph), threads=request.threads, precision=request.precision)

    return Backend(load_engine)

"""A decoder with a cache of keys and values, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from teso_deploy.cues.model_bundle import DecoderEntry
from teso_deploy.errors import BundleError
from teso_deploy.text import to_one_line

_PAST, _PRESENT = "past_key_values.", "present."
_OPEN: WeakValueDictionary[tuple[Path, int, int], onnxruntime.InferenceSession] = WeakValueDictionary()


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU.

    All users of a graph share it. Raises :class:`BundleError` for a file that is not a graph.
    """
    key = (path.resolve(), threads, path.stat().st_mtime_ns if path.is_file() else 0)
    if (session := _OPEN.get(key)) is not None:  # a LLaVA model uses one graph to caption and to reason
        return session
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # lengths differ from step to step
    # See OnnxRuntimeEngine: without VNNI, products of uint8 and int8 overflow.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions share no base class
        raise BundleError(
            f"ONNX Runtime can't load {path} ({to_one_line(error)}); export the cue models again"
        ) from error
    _OPEN[key] = session
    return session


@dataclass(frozen=True, slots=True)
class Cache:
    """The keys and values of ``tokens`` tokens. They are never changed, so several answers may continue them."""

    tokens: int
    values: Mapping[str, onnxruntime.OrtValue]


class Decoder:
    """Decodes one sequence at a time. Keys and values stay in the memory of ONNX Runtime between steps."""

    def __init__(self, path: Path, entry: DecoderEntry, threads: int) -> None:
        self.entry = entry
        self._session = open_session(path, threads)
        self._shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._inputs = self._shapes.keys()
        self._given = "inputs_embeds" if "inputs_embeds" in self._inputs else "input_ids"
        self._outputs = [value.name for value in self._session.get_outputs() if value.name.startswith(_PRESENT)]
        # Only keys and values that the graph also returns. Those of a picture are inputs that never change.
        self._pasts = [_PAST + name.removeprefix(_PRESENT) for name in self._outputs]
        if not self._pasts or not self._inputs >= set(self._pasts):
            raise BundleError(f"{path} takes no keys and values: export the cue models again")

    def empty(self) -> Cache:
        """Return a cache of no tokens."""
        heads, head_dim = self.entry.heads, self.entry.head_dim
        nothing = {}
        for name in self._pasts:  # keys may be wider than values
            _, own_heads, _, own_dim = self._shapes[name]
            shape = (1, own_heads if isinstance(own_heads, int) else heads, 0,
                     own_dim if isinstance(own_dim, int) else head_dim)  # fmt: skip
            nothing[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        return Cache(0, nothing)

    def step(
        self,
        cache: Cache,
        tokens: NDArray[np.int64] | NDArray[np.float32],
        extras: Mapping[str, onnxruntime.OrtValue] = {},
    ) -> tuple[NDArray[np.float32], Cache]:
        """Run the decoder over some tokens.

        Args:
            cache: The keys and values of the tokens before.
            tokens: Ids (N,), or embeddings (N, d) if the graph takes those.
            extras: The graph's other inputs, which belong to a picture. Default: none.

        Returns:
            The logits (V,) after the last token, and the cache with the tokens added.
        """
        seen = cache.tokens + len(tokens)
        feeds: dict[str, NDArray[Any]] = {
            self._given: tokens[None],
            "attention_mask": np.ones((1, seen), np.int64),
            "position_ids": np.arange(cache.tokens, seen, dtype=np.int64)[None],
        }
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if name in self._inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in [*cache.values.items(), *extras.items()]:
            binding.bind_ortvalue_input(name, value)
        for name in ("logits", *self._outputs):
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        # Inputs that the graph does not return (keys and values of a picture) stay unchanged.
        values = {
            _PAST + name.removeprefix(_PRESENT): value for name, value in zip(self._outputs, present, strict=True)
        }
        last: NDArray[np.float32] = logits.numpy()[0, -1]
        return last, Cache(seen, {**cache.values, **values})

"""Heat maps of what sounds, as pictures and as arrays in a folder."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from teso_deploy.media.heat_map import VARIANTS, add_scale, describe_variant, draw_heat_map, make_color_map
from teso_deploy.media.numbered_folder import NumberedFolder
from teso_deploy.outputs import write_whole
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery

MARKER = "heatmaps.json"
SCHEMA_VERSION = 1
_FOLDER = NumberedFolder(
    what="heat maps",
    marker=MARKER,
    keys=frozenset({"schema_version", "variants", "arrays", "colors", "input", "bundle"}),
    pattern=rf"\d{{6,}}(\.npz|-({'|'.join(VARIANTS)})\.png)",
)
check_heat_map_folder = _FOLDER.check


def describe_heat_maps(source: str, bundle: str) -> dict[str, Any]:
    """Return the content of ``heatmaps.json``; ``source``: the file that was segmented, ``bundle``: its name."""
    return {
        "schema_version": SCHEMA_VERSION,
        "variants": list(VARIANTS),
        "arrays": {"dtype": "float16", "axes": ["height", "width"], "range": [0, 1]},
        "colors": ["#" + color.tobytes().hex() for color in make_color_map()],
        "input": source,
        "bundle": bundle,
    }


class HeatMapFolderSink(Sink):
    """Writes the heat maps of a file, whose folder is replaced when all are written.

    Each frame has a picture for each variant, and one file with an array for each variant. Raises
    :class:`OutputError`, also if the folder contains anything other than heat maps.
    """

    wants_variants = True

    def __init__(self, folder: Path, run: RunFacts) -> None:
        self.name, self._path, self._stack = folder.name, folder, ExitStack()
        marker = describe_heat_maps(run.inputs[0], run.bundle)
        self._folder = self._stack.enter_context(_FOLDER.open_staged(folder, marker))

    def append(self, delivery: Delivery) -> None:
        arrays = {}
        for name, found in delivery.variants.items():
            probability = found.sounding_probability
            arrays[name] = probability.astype(np.float16)
            drawn = add_scale(
                draw_heat_map(delivery.frame.image, probability, found.labels), describe_variant(name, found)
            )
            content = io.BytesIO()
            Image.fromarray(drawn).save(content, "PNG", compress_level=1)
            self._write(f"{delivery.frame.index:06d}-{name}.png", content)
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        self._write(f"{delivery.frame.index:06d}.npz", content)

    def _write(self, name: str, content: io.BytesIO) -> None:
        write_whole(self._folder / name, content.getvalue(), shown=self._path)

    def close(self) -> None:
        self._stack.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

"""From a plain export to ours, one optimisation at a time: time and parity at every rung.

    python -m benchmarks run ladder [--recipe teso-m2f-swin-b] [--threads 2] [--seconds 60] [--out benchmarks/results]

All rungs have the same random weights, Hugging Face's. They run the picture's half of the model, from the normalised
picture to the mask logits of every query. Adapters and sound are off, because Hugging Face's model has neither: equal
work for all. All rungs take turns in one process, and threads spin only during a run. Parity is measured against
Hugging Face's model in PyTorch.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.results_files import add_out, record
from teso_deploy.backends.huge_pages import huge_pages
from teso_deploy.backends.onnxruntime import SLOW_FUSIONS
from teso_deploy.comparison.contenders import mask2former_sizes
from teso_deploy.comparison.hugging_face import mask2former
from teso_deploy.comparison.report import environment_of, percentile_row
from teso_deploy.comparison.turns import Key, Turn, one_turn, take_turns
from teso_deploy.conversion.graphs import export_graph
from teso_deploy.conversion.onnxruntime_form import PASSES, derive_form
from teso_deploy.conversion.quantization import observe, quantize
from teso_deploy.models.assembly import WeightSource, fit_tensors
from teso_deploy.models.graphs import flatten_memory, list_memory_names, unflatten_memory
from teso_deploy.models.keymaps.mask2former import MASK2FORMER
from teso_deploy.models.methods import GraphSpec
from teso_deploy.models.pixel_decoder import LEVELS
from teso_deploy.models.teso import Teso, build
from teso_deploy.recipe import Recipe, load_recipe

# isort: split
import onnxruntime  # last, because the package switches its telemetry off first

Arrays = Mapping[str, NDArray[Any]]


class Whole(nn.Module):
    """Picture → mask logits in one graph, with optimisations undone.

    ``keeps_all``: class and mask logits of every layer are outputs. ``is_large``: the masks that steer attention are
    computed at stride 4, then resized and put through a sigmoid.
    """

    def __init__(self, model: Teso, keeps_all: bool, is_large: bool) -> None:
        super().__init__()
        self.visual_encoder, self.decoder, self.queries = model.visual_encoder, model.decoder, model.fusion.queries
        self.keeps_all, self.is_large = keeps_all, is_large

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → masks (B, Q, h, w), then the outputs that are not used."""
        encoder: Any = self.visual_encoder
        decoder: Any = self.decoder
        mask_features, maps = encoder.pixel_decoder(encoder.swin(image))
        memory = encoder.memory(mask_features, maps)
        states, kept = [self.queries.expand(image.shape[0], -1, -1)], []
        for i, layer in enumerate(decoder.layers):
            x, level = states[-1], memory.resized[i % LEVELS]
            if self.is_large:
                logits = decoder.mask_logits(x, mask_features)
                kept += [logits, decoder.classifier(decoder.norm(x))]
                small = F.interpolate(logits, size=level.shape[2:], mode="bilinear", align_corners=False)
                hidden = (torch.sigmoid(small) < 0.5).flatten(2)
            else:
                hidden = decoder.hidden(x, level)
            states.append(layer(x, decoder.query_positions, memory.keys[i], memory.values[i], hidden))
        last = decoder.mask_logits(states[-1], mask_features)
        return (last, *(kept if self.keeps_all else ()))


class Half(nn.Module):
    """The part after the split: prompted queries and the picture's tensors → mask logits."""

    def __init__(self, model: Teso) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, queries: Tensor, *memory: Tensor) -> Tensor:
        """(B, Q, d) → (B, Q, h, w)."""
        decoder: Any = self.decoder
        seen: Any = unflatten_memory(memory)
        logits: Tensor = decoder.mask_logits(decoder.refine(queries, seen)[-1], seen.mask_features)
        return logits


class Encoder(nn.Module):
    """The part before the split."""

    def __init__(self, model: Teso) -> None:
        super().__init__()
        self.visual_encoder = model.visual_encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, H, W) to everything that depends only on the picture."""
        return flatten_memory(self.visual_encoder(image))


@dataclass
class Rung:
    """One way to compute masks: ``whole`` for a new picture, ``again`` if only the queries have changed."""

    name: str
    whole: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    again: Callable[[], object] | None = None


def session(path: Path, threads: int, without: Sequence[str] = ()) -> onnxruntime.InferenceSession:
    """Open a graph in ONNX Runtime on the CPU, with all its own fusions except those named."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
    )


@torch.inference_mode()
def in_eager_mode(model: Any, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute mask logits with Hugging Face's library."""
    found: NDArray[np.float32] = model(pixel_values=torch.from_numpy(image)).masks_queries_logits.numpy()
    return found


def one_graph(name: str, path: Path, *, threads: int, output: int = 0) -> Rung:
    """Make a rung of a single graph, in which a new sound costs as much as a new picture."""
    opened = session(path, threads)
    wanted, given = [opened.get_outputs()[output].name], opened.get_inputs()[0].name

    def whole(image: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = opened.run(wanted, {given: image})[0]
        return found

    return Rung(name, whole)


def two_graphs(
    name: str,
    files: Sequence[Path],
    *,
    queries: NDArray[np.float32],
    threads: int,
    without: Sequence[str] = (),
    image: NDArray[np.float32] | None = None,
) -> Rung:
    """Make a rung that is split where the sound enters. With an ``image`` to begin with, it uses huge pages."""
    with huge_pages() if image is not None else nullcontext():
        first, second = (session(file, threads, without) for file in files)
    names = [value.name for value in first.get_outputs()]
    kept: dict[str, Any] = {}

    def again() -> NDArray[np.float32]:
        found: NDArray[np.float32] = second.run(None, kept | {"queries": queries})[0]
        return found

    def whole(image: NDArray[np.float32]) -> NDArray[np.float32]:
        kept.update(zip(names, first.run(names, {"image": image}), strict=True))
        return again()

    if image is not None:
        with huge_pages():
            whole(image)
    return Rung(name, whole, again)


def rewritten(source: Path, target: Path, *, passes: Sequence[str], calibration: Sequence[Arrays] = ()) -> Path:
    """Rewrite a graph with some passes of our form. With calibration frames, products are in int8."""
    model = ir.load(source)
    if calibration:
        quantize(model, observe(source, calibration))
    ir.save(derive_form(model, passes), target)
    return target


def build_rungs(recipe: Recipe, *, threads: int, folder: Path, images: NDArray[np.float32]) -> tuple[list[Rung], Any]:
    """Build all rungs, and the masks of Hugging Face's model in PyTorch for the first picture."""
    size = recipe.image.sizes[0]
    theirs = mask2former(mask2former_sizes(recipe), size)
    stock = folder / "stock.onnx"
    with torch.no_grad():
        expected = theirs(pixel_values=torch.from_numpy(images[:1])).masks_queries_logits.numpy()
        torch.onnx.export(theirs, (torch.from_numpy(images[:1]),), stock, dynamo=True)
    eager = partial(in_eager_mode, theirs)
    ours = build(recipe, 1)
    given, _ = fit_tensors(WeightSource(folder, theirs.state_dict(), MASK2FORMER), recipe, ours.state_dict(), seed=None)
    ours.load_state_dict(given, strict=False)
    rungs = [
        one_graph("a plain export", stock, threads=threads, output=1),
        Rung("Hugging Face in PyTorch, eager", eager),
    ]
    pair = torch.from_numpy(images[:2])
    for name, keeps_all, is_large in (
        ("our networks: tables are constants, the scale is folded", True, True),
        ("only the last layer's masks, no classes", False, True),
        ("attention's masks at its own size, without a sigmoid", False, False),
    ):
        module, path = Whole(ours, keeps_all, is_large), folder / f"whole-{keeps_all}-{is_large}.onnx"
        outputs = ["masks", *(f"kept_{i}" for i in range(2 * recipe.decoder.layers if keeps_all else 0))]
        export_graph(module, GraphSpec(("image",), tuple(outputs)), (pair,), path=path, metadata={})
        rungs.append(one_graph(name, path, threads=threads))
    names = list_memory_names(recipe)
    queries = ours.fusion.queries.detach()[None]
    with torch.no_grad():
        memory = Encoder(ours)(pair)
    files = folder / "encoder.onnx", folder / "decoder.onnx"
    export_graph(Encoder(ours), GraphSpec(("image",), names), (pair,), path=files[0], metadata={})
    spec = GraphSpec(("queries", *names), ("masks",))
    export_graph(Half(ours), spec, (queries.repeat(2, 1, 1), *memory), path=files[1], metadata={})
    fixed = queries.numpy()
    rungs.append(
        two_graphs("cut where the sound comes in: the canonical graphs", files, queries=fixed, threads=threads)
    )
    exact = tuple(PASSES)[:-1]  # the last pass is for int8
    for number, name in enumerate(exact, 1):
        formed = [rewritten(file, folder / f"{file.stem}-{number}.onnx", passes=exact[:number]) for file in files]
        rungs.append(two_graphs(name, formed, queries=fixed, threads=threads))
    rungs.append(two_graphs("no SkipLayerNormalization", formed, queries=fixed, threads=threads, without=SLOW_FUSIONS))
    rungs.append(
        two_graphs(
            "on huge pages: ours", formed, queries=fixed, threads=threads, without=SLOW_FUSIONS, image=images[:1]
        )
    )
    del ours
    gc.collect()
    frames: list[dict[str, NDArray[Any]]] = []
    first = session(files[0], threads)
    for image in images[2:]:
        feeds = {"image": image[None], "queries": fixed}
        frames.append(feeds | dict(zip(names, first.run(list(names), {"image": image[None]}), strict=True)))
    del first
    quantized = [
        rewritten(file, folder / f"{file.stem}-int8.onnx", passes=tuple(PASSES), calibration=frames) for file in files
    ]
    rungs.append(
        two_graphs(
            "int8 (not exact)", quantized, queries=fixed, threads=threads, without=SLOW_FUSIONS, image=images[:1]
        )
    )
    return rungs, expected


def agreement(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, float]:
    """Return the IoU of the positive mask logits of all queries together, and the largest error."""
    ours, theirs = found > 0, expected > 0
    iou = (ours & theirs).sum() / (ours | theirs).sum()
    return {"mask_iou": round(float(iou), 6), "max_abs_error": float(np.abs(found - expected).max())}


def measure(recipe: Recipe, threads: int, seconds: float) -> dict[str, Any]:
    """Measure the rungs, and return the report."""
    torch.set_num_threads(threads)
    # Read the load before anything runs: the exports raise it, and that would look like noise.
    environment = environment_of(threads, recipe=recipe.name, input_size=list(recipe.image.sizes[0]))
    images = np.random.default_rng(0).standard_normal((6, 3, *recipe.image.sizes[0]), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        rungs, expected = build_rungs(recipe, threads=threads, folder=Path(folder), images=images)
        parity = {rung.name: agreement(rung.whole(images[:1]), expected) for rung in rungs}
        turns: dict[Key, Turn] = {}
        for rung in rungs:
            turns[rung.name, "whole"] = partial(one_turn, partial(rung.whole, images[1:2]))
            if rung.again is not None:
                turns[rung.name, "again"] = partial(one_turn, rung.again)
        timings = take_turns(turns, seconds)
    medians = {key: float(np.median(times)) for key, times in timings.seconds.items()}
    stock, rows = medians[rungs[0].name, "whole"], []
    for rung in rungs:
        whole = medians[rung.name, "whole"]
        again = medians.get((rung.name, "again"), whole)
        rows.append(
            {
                **percentile_row(rung.name, timings.seconds[rung.name, "whole"]),
                "new_queries_ms": round(again * 1e3, 1),
                "times_faster": round(stock / whole, 3),
                **parity[rung.name],
            }
        )
    return {
        "schema_version": 1,
        "rows": rows,
        "bound_by": "Behind the first two, each line has everything that the lines above it have.",
        "environment": environment,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="teso-m2f-swin-b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    add_out(parser)
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe).model_copy(update={"adapters": ()})
    report = measure(recipe, options.threads, options.seconds)
    record("ladder-cpu", f"From a plain export to ours: {recipe.name}", report, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Targets: bundles, checkpoints, recipes and profiles."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.fuzz.cases import Case, Workshop
from tests.fuzz.containers import mutate_gzip, mutate_npz, mutate_onnx, mutate_safetensors, mutate_torch
from tests.fuzz.documents import mutate_json, mutate_toml
from tests.fuzz.mutations import mutate
from tests.fuzz.runs import ONE_THREAD, growing_outputs, make_run


def _seal(bundle: Path, names: list[str]) -> None:
    """Enter the hashes of changed files in the manifest, as an attacker would."""
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    for name in names:
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.write_text(json.dumps(manifest))


def _on_bundle(shop: Workshop, bundle: Path, what: str) -> Case:
    """Return a case with one of the commands that open a bundle."""
    draw = shop.draw
    roll = draw.random()
    if roll < 0.6:
        clip = shop.write("clip.mp4", shop.seeds.clip)
        cues = draw.choice(("auto", "dog", "none", "dog,cow"))
        options = ["--bundle", str(bundle), "--cues", cues, *draw.choice(([], ["--mode", "live"], ["--size", "auto"]))]
        return make_run(
            shop,
            [str(clip)],
            f"run on {what}",
            *options,
            names=("report.json", "masks"),
            may_remain=growing_outputs(options),
        )
    if roll < 0.9:
        arguments = ["verify", str(bundle), "--json", str(shop.out("report.json")), *ONE_THREAD]
        names = frozenset({"report.json"})
        return Case(arguments, f"verify {what}", names, frozenset({0, 1, 2}), may_remain=names)
    clip = shop.write("clip.mp4", shop.seeds.clip)
    arguments = ["cues", str(clip), "--bundle", str(bundle), "--out", str(shop.out("cues.json")), *ONE_THREAD]
    return Case(arguments, f"cues of {what}", frozenset({"cues.json"}))


def fuzz_manifest(shop: Workshop) -> Case:
    """A bundle with an odd manifest."""
    bundle = shop.copy_bundle()
    (bundle / "bundle.json").write_bytes(mutate_json(shop.draw, shop.seeds.manifest))
    return _on_bundle(shop, bundle, "an odd manifest")


def fuzz_npz(shop: Workshop) -> Case:
    """A bundle with odd arrays and right hashes."""
    bundle = shop.copy_bundle()
    name = shop.draw.choice(("cues.npz", "cues.npz", "reference.npz"))
    (bundle / name).write_bytes(mutate_npz(shop.draw, shop.seeds.bundle_files[name]))
    _seal(bundle, [name] if shop.draw.random() < 0.95 else [])
    return _on_bundle(shop, bundle, f"odd {name}")


def fuzz_onnx(shop: Workshop) -> Case:
    """A bundle with an odd graph or odd weights, and right hashes."""
    draw, bundle = shop.draw, shop.copy_bundle()
    name = draw.choice([name for name in shop.seeds.bundle_files if name.endswith((".onnx", ".onnx", ".weights"))])
    content = shop.seeds.bundle_files[name]
    (bundle / name).write_bytes(mutate_onnx(draw, content) if name.endswith(".onnx") else mutate(draw, content))
    _seal(bundle, [name])
    return _on_bundle(shop, bundle, f"odd {name}")


def _on_checkpoint(shop: Workshop, path: Path, what: str) -> Case:
    part = shop.draw.choice(("", "", "model=", "visual=", "audio=", "text="))
    arguments = ["verify", str(shop.seeds.bundle), "--checkpoint", f"{part}{path}", *ONE_THREAD]
    if shop.draw.random() < 0.5:
        arguments += ["--random-weights", "0"]
    return Case([*arguments, "--json", str(shop.out("report.json"))], what, frozenset({"report.json"}))


def fuzz_safetensors(shop: Workshop) -> Case:
    """An odd checkpoint in safetensors, alone or in a folder of Hugging Face."""
    draw, content = shop.draw, shop.seeds.checkpoints["model.safetensors"]
    roll = draw.random()
    if roll < 0.2:
        index = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
        path = shop.write("hub/model.safetensors.index.json", mutate_json(draw, index))
        shop.write("hub/model-1.safetensors", content)
        path = draw.choice((path, path.parent))
        return _on_checkpoint(shop, path, "odd index of shards")
    changed = mutate_gzip(draw, content) if roll < 0.3 else mutate_safetensors(draw, content)
    path = shop.write(draw.choice(("model.safetensors", "model.pth", "hub/model.safetensors")), changed)
    return _on_checkpoint(shop, path.parent if path.parent.name == "hub" else path, "odd safetensors")


def fuzz_pickle(shop: Workshop) -> Case:
    """An odd checkpoint of PyTorch. Some would run code."""
    draw = shop.draw
    name = draw.choice(("model.pth", "legacy.pt", "last.ckpt"))
    content = shop.seeds.checkpoints[name]
    changed = mutate_gzip(draw, content) if draw.random() < 0.1 else mutate_torch(draw, content)
    path = shop.write(draw.choice((name, "model.bin", "model.pkl", "model.safetensors", "x.pth.tar", "x")), changed)
    return _on_checkpoint(shop, path, f"odd {name}")


def fuzz_recipe(shop: Workshop) -> Case:
    """An odd recipe."""
    draw = shop.draw
    document = {**shop.seeds.recipe, **({"extends": "teso-nano"} if draw.random() < 0.3 else {})}
    path = shop.write("mine.toml", mutate_toml(draw, document))
    size = draw.choice(([], [], [], ["--size", draw.choice(("0", "33", "1e3", "64x", "999999999", "32x64", "x", "²"))]))
    arguments = ["export", str(path), "--dry-run", "--json", str(shop.out("report.json")), *size]
    return Case(arguments, "odd recipe", frozenset({"report.json"}))


def fuzz_profile(shop: Workshop) -> Case:
    """An odd profile of engines."""
    document = {"optimization_level": 1, "workspace_gib": 0.5, "tactics": ["a"], "batch": [1, 1, 2]}
    shipped = {"summary": "x", "builder_optimization_level": 0, **document}
    path = shop.write("mine.toml", mutate_toml(shop.draw, shipped))
    clip = shop.write("clip.mp4", shop.seeds.clip)
    options = ["--backend", "tensorrt-rtx", "--profile", str(path)]
    return make_run(shop, [str(clip)], "odd profile", *options, names=("report.json",))

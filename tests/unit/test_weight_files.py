"""Valid weights are read, whatever file, container and prefix a training code gave them."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from teso_deploy.errors import CheckpointError
from teso_deploy.models import weight_files
from teso_deploy.models.assembly import assemble, recognise_checkpoint
from tests.support.checkpoint_files import arrays, pickled, prefixed, saved, vggish_tensors
from tests.support.foundations import small_recipe

Tensors = dict[str, Tensor]
Make = Callable[[Tensors, Path], Path]


def check_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.float32 and torch.equal(found[key], value.float()), key


FILES: dict[str, Make] = {
    "torch.save": lambda t, d: saved(t, d / "a.pth"),
    "another ending": lambda t, d: saved(t, d / "model_best.pth.tar"),
    "no ending": lambda t, d: saved(t, d / "pkl"),
    "before PyTorch 1.6": lambda t, d: saved(t, d / "a.pth", _use_new_zipfile_serialization=False),
    "parameters": lambda t, d: saved({k: nn.Parameter(v) for k, v in t.items()}, d / "a.pth"),
    "half": lambda t, d: saved({k: v.half() for k, v in t.items()}, d / "a.pth"),
    "bfloat16": lambda t, d: saved({k: v.bfloat16() for k, v in t.items()}, d / "a.pth"),
    "float8": lambda t, d: saved({k: v.to(torch.float8_e4m3fn) for k, v in t.items()}, d / "a.pth"),
    "double, before 1.6": lambda t, d: saved(
        {k: v.double() for k, v in t.items()}, d / "a.pth", _use_new_zipfile_serialization=False
    ),
    "not contiguous": lambda t, d: saved({k: v.flip(0).mT.contiguous().mT.flip(0) if v.ndim == 2 else v
                                          for k, v in t.items()}, d / "a.pth"),
    "NumPy": lambda t, d: pickled({"model": arrays(t), "__author__": "somebody"}, d / "model_final_f07440.pkl"),
    "NumPy, protocol 2": lambda t, d: pickled(arrays(t), d / "a.pkl", protocol=2),
    "NumPy, protocol 5": lambda t, d: pickled(arrays(t), d / "a.pkl", protocol=5),
    "NumPy, Fortran": lambda t, d: pickled({k: np.asfortranarray(v) for k, v in arrays(t).items()}, d / "a.pkl"),
    "NumPy, big-endian": lambda t, d: pickled({k: v.astype(">f4") for k, v in arrays(t).items()}, d / "a.pkl"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_by_its_content(name: str, tmp_path: Path) -> None:
    tensors = vggish_tensors()
    kind = {"half": torch.float16, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}.get(name)
    expected = tensors if kind is None else {key: value.to(kind) for key, value in tensors.items()}
    source = recognise_checkpoint(FILES[name](tensors, tmp_path))
    assert source.part == "audio"
    check_equal(source.tensors, expected)


def test_safetensors_by_another_name(tmp_path: Path) -> None:
    tensors = vggish_tensors()
    save_file(tensors, tmp_path / "pytorch_model.bin")
    check_equal(weight_files.read(tmp_path)[0], tensors)


def _lightning(t: Tensors) -> Any:
    return {
        "epoch": 3, "pytorch-lightning_version": "2.4.0", "loops": {}, "callbacks": {"best": {"score": torch.ones(())}},
        "state_dict": {**prefixed(t, "model.audio."), "criterion.empty_weight": torch.ones(3),
                       "val_iou.confmat": torch.ones(2, 2, dtype=torch.long), "loss_scale": torch.ones(())},
        "hyper_parameters": argparse.Namespace(lr=1e-4, out=Path("runs"), at=datetime.datetime(2026, 1, 2)),
    }  # fmt: skip


CONTAINERS: dict[str, Callable[[Tensors], Any]] = {
    "module.": lambda t: prefixed(t, "module."),
    "_orig_mod.": lambda t: prefixed(t, "_orig_mod."),
    "several": lambda t: prefixed(t, "module._orig_mod.model.module."),
    "inside of the keys": lambda t: {k.replace("features.", "features._orig_mod."): v for k, v in t.items()},
    "net.": lambda t: {"model": prefixed(t, "net.")},
    "a loss's weights beside": lambda t: {**t, "criterion.empty_weight": torch.ones(3)},
    "Lightning": _lightning,
    "DeepSpeed": lambda t: {"module": t, "ds_version": "0.14", "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "a lone loss": lambda t: {"epoch": 3, "model_state_dict": t, "loss": torch.tensor(0.3)},
    "NumPy scalars": lambda t: {"state_dict": t, "best": np.float64(0.5), "rng": np.random.default_rng(0)},
    "nested": lambda t: {"state": {"network": {"generator": t}}},
    "an optimizer of the same names": lambda t: {"net": t, "optimizer": {"exp_avg": t, "step": 3}},
    "shared tensors twice": lambda t: {"model": t, "best": t},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_weights_are_found_where_training_codes_put_them(name: str, tmp_path: Path) -> None:
    tensors = vggish_tensors()
    check_equal(recognise_checkpoint(saved(CONTAINERS[name](tensors), tmp_path / "a.pth")).tensors, tensors)


def test_an_unknown_class_beside_the_weights_does_not_hinder(tmp_path: Path) -> None:
    tensors = vggish_tensors()
    path = pickled({"model": arrays(tensors), "config": argparse.Namespace(lr=1)}, tmp_path / "a.pkl", protocol=2)
    path.write_bytes(path.read_bytes().replace(b"argparse\nNamespace\n", b"gonefrom\nElsewhere\n"))
    check_equal(recognise_checkpoint(path).tensors, tensors)


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    tensors = vggish_tensors()
    content = {"model": tensors, "optimizer": {"exp_avg": torch.ones(100_000)}}
    path, read, plain = saved(content, tmp_path / "a.pth"), [], zipfile.ZipFile.open

    def spy(self: Any, name: Any, *more: Any, **options: Any) -> Any:
        read.append(getattr(name, "file_size", 0))
        return plain(self, name, *more, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", spy)
    weight_files.read(path)
    assert read and max(read) < 400_000


def _averaged(t: Tensors) -> Tensors:
    return {key: value + 1 for key, value in t.items()}


class _Holder(nn.Module):
    """The keys of VGGish that an averaged model needs."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for key, value in tensors.items():
            *path, last = key.split(".")
            inner: nn.Module = self
            for name in path:
                if name not in dict(inner.named_children()):
                    inner.add_module(name, nn.Module())
                inner = dict(inner.named_children())[name]
            inner.register_parameter(last, nn.Parameter(value))


BOTH: dict[str, Callable[[Tensors], Any]] = {
    "containers": lambda t: {"state_dict": t, "state_dict_ema": _averaged(t)},
    "ema": lambda t: {"model": t, "ema": {"module": _averaged(t), "decay": 0.9}},
    "averaged_model": lambda t: {"model": t, "averaged_model": _averaged(t)},
    "prefixes": lambda t: {"state_dict": {**prefixed(t, "model."), **prefixed(_averaged(t), "ema_model.module."),
                                          "ema_model.n_averaged": torch.tensor(3)}},
    "beside the keys": lambda t: {**t, **prefixed(_averaged(t), "module_ema.")},
    "swa_utils": lambda t: {"model": t, "swa": AveragedModel(_Holder(_averaged(t))).state_dict()},
    "student and teacher": lambda t: {"student": prefixed(t, "net."), "teacher": prefixed(_averaged(t), "net.")},
}  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_an_average_beside_the_weights_needs_a_choice(name: str, tmp_path: Path) -> None:
    tensors = vggish_tensors()
    path = saved(BOTH[name](tensors), tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"holds trained weights \(.*their average \(.*--weights raw or --weights ema"
    ):
        recognise_checkpoint(path)
    raw, ema = recognise_checkpoint(path, averaging="raw"), recognise_checkpoint(path, averaging="ema")
    check_equal(raw.tensors, tensors)
    check_equal(ema.tensors, _averaged(tensors))
    assert (raw.is_averaged, ema.is_averaged) == (False, True)


def test_an_average_alone_is_taken(tmp_path: Path) -> None:
    tensors = vggish_tensors()
    source = recognise_checkpoint(saved({"ema_state_dict": tensors, "epoch": 3}, tmp_path / "a.pth"))
    check_equal(source.tensors, tensors)
    assert source.is_averaged
    averaged = AveragedModel(_Holder(tensors)).state_dict()
    check_equal(recognise_checkpoint(saved(averaged, tmp_path / "b.pth")).tensors, tensors)


def test_the_choice_is_of_some_checkpoint(tmp_path: Path) -> None:
    tensors = vggish_tensors()
    plain = saved(tensors, tmp_path / "a.pth")
    both = saved({"model": tensors, "ema": _averaged(tensors)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"no checkpoint holds the average.*omit --weights ema"):
        assemble(small_recipe(), [("audio", plain)], random_weights_seed=0, averaging="ema")
    built = assemble(small_recipe(), [("audio", both)], random_weights_seed=0, averaging="ema")
    assert torch.equal(built.model.audio_encoder.features[0].weight, _averaged(tensors)["features.0.weight"])
    assert "audio from b.pth (averaged)" in str(built)


def test_several_sets_are_named(tmp_path: Path) -> None:
    tensors = vggish_tensors()
    path = saved({"first": tensors, "second": _averaged(tensors)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r'holds several sets of weights \("first", "second"\)'):
        recognise_checkpoint(path)


def test_what_stands_beside_and_is_not_known_is_an_error(tmp_path: Path) -> None:
    path = saved({**prefixed(vggish_tensors(), "model."), "neck.weight": torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(neck\.weight\)"):
        assemble(small_recipe(), [("audio", path)], random_weights_seed=0)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write a folder of two shards and their index."""
    tensors, folder = vggish_tensors(), tmp_path / "model"
    folder.mkdir()
    keys = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, part in halves.items():
        save_file({key: tensors[key] for key in part}, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in halves.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("named", ["", "model-00002-of-00002.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("with_index", [True, False])
def test_a_folder_of_shards_a_shard_and_an_index(shards: Path, named: str, with_index: bool) -> None:
    if not with_index:
        (shards / "model.safetensors.index.json").unlink()
    if with_index or not named.endswith("json"):
        check_equal(recognise_checkpoint(shards / named).tensors, vggish_tensors())


def test_shards_that_are_missing_are_named(shards: Path) -> None:
    (shards / "model-00001-of-00002.safetensors").unlink()
    for named in ("", "model-00002-of-00002.safetensors"):
        with pytest.raises(CheckpointError, match=r"missing.*model-00001-of-00002\.safetensors"):
            recognise_checkpoint(shards / named)
    (shards / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"missing: model-00001-of-00002\.safetensors"):
        recognise_checkpoint(shards / "model-00002-of-00002.safetensors")


def test_a_key_that_no_shard_has_is_named(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"says that lost\.weight is in model-00001-of-00002\.safetensors"):
        recognise_checkpoint(shards)


def in_cache(folder: Path, cache: Path) -> Path:
    """Store a folder as Hugging Face's cache does: every file is a link to a blob. Returns the snapshot."""
    snapshot, blobs = cache / "snapshots" / "abc123", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(os.path.join("../../blobs", str(number)))
    return snapshot


def test_a_models_folder_in_a_cache(shards: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--me--audio"
    snapshot = in_cache(shards, cache)
    for named in (cache, cache / "snapshots", snapshot, snapshot / "model-00001-of-00002.safetensors"):
        source = recognise_checkpoint(named)
        check_equal(source.tensors, vggish_tensors())
        assert source.beside == snapshot
    (cache / "snapshots" / "other").mkdir()
    with pytest.raises(CheckpointError, match="no snapshot, or several"):
        recognise_checkpoint(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc123")
    check_equal(recognise_checkpoint(cache).tensors, vggish_tensors())
    (cache / "blobs" / "0").unlink()
    with pytest.raises(FileNotFoundError, match="is a link to a file that is not there"):
        recognise_checkpoint(cache)


def test_a_folder_with_one_file_of_weights(tmp_path: Path) -> None:
    saved(vggish_tensors(), tmp_path / "vggish.pth")
    (tmp_path / "README.md").write_text("words")
    check_equal(recognise_checkpoint(tmp_path).tensors, vggish_tensors())
    saved({}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"several files of weights \(other\.pth, vggish\.pth\)"):
        recognise_checkpoint(tmp_path)

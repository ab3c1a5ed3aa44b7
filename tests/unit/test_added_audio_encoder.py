"""An audio encoder is added by one module and one entry of the registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teso_deploy.architectures import AUDIO_ENCODERS, FOUNDATIONS, AudioEncoderEntry
from teso_deploy.errors import RecipeError
from teso_deploy.models.assembly import assemble
from teso_deploy.models.graphs import list_graph_specs
from teso_deploy.models.keymaps import list_formats
from teso_deploy.recipe import parse_recipe
from tests.support.foundations import small_recipe

MODULE = '''
from torch import nn

from teso_deploy.models.keymaps.rules import Format, layer
from teso_deploy.types import WINDOW_SAMPLES


class Loudness(nn.Module):
    """Sixteen bands of a window through one layer."""

    def __init__(self, dim):
        super().__init__()
        self.layer = nn.Linear(16, dim)

    def forward(self, waveform):
        bands = waveform[:, : WINDOW_SAMPLES // 16 * 16].unflatten(1, (16, -1))
        return self.layer(bands.abs().mean(dim=2))


def make_loudness(recipe):
    return Loudness(recipe.audio.dim)


LOUDNESS = Format(
    name="a loudness meter",
    part="audio",
    recognises=lambda keys: "meter.weight" in keys,
    rules=lambda recipe, tensors: layer("meter", "layer"),
)
'''


@pytest.fixture
def loudness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    sys.modules.pop("loudness_encoder", None)
    (tmp_path / "loudness_encoder.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    entry = AudioEncoderEntry("loudness_encoder:make_loudness", "loudness", formats=("loudness_encoder:LOUDNESS",))
    monkeypatch.setitem(AUDIO_ENCODERS, "loudness", entry)
    return "loudness"


def test_an_added_encoder_is_built_and_filled_from_its_checkpoint(loudness: str, tmp_path: Path) -> None:
    recipe = small_recipe(audio={"encoder": loudness, "dim": 12})
    weight = torch.arange(192, dtype=torch.float32).reshape(12, 16)
    save_file({"meter.weight": weight, "meter.bias": torch.ones(12)}, tmp_path / "meter.safetensors")
    built = assemble(recipe, [(None, tmp_path / "meter.safetensors")], random_weights_seed=0)
    assert built.sources == {"audio": tmp_path / "meter.safetensors"}
    assert torch.equal(built.model.audio_encoder.layer.weight, weight)  # type: ignore[union-attr, arg-type]
    assert built.model.audio_encoder(torch.zeros(2, 15_600)).tolist() == [[1.0] * 12] * 2
    assert "audio_encoder" in list_graph_specs(recipe) and "fusion" in str(built)


def test_a_recipe_with_an_unknown_name_lists_those_that_there_are(loudness: str) -> None:
    for text, names in (
        ('name = "a"\n[audio]\nencoder = "whistle"', ", ".join(AUDIO_ENCODERS)),
        ('name = "a"\nfoundation = "whistle"', ", ".join(FOUNDATIONS)),
    ):
        with pytest.raises(RecipeError, match=f"unknown name: choose one of {names}$"):
            parse_recipe(text)


def test_every_entry_names_what_there_is() -> None:
    names = [kind.name for kind in list_formats()]
    assert len(set(names)) == len(names) >= 9
    recipe = small_recipe()
    for entry in AUDIO_ENCODERS.values():
        assert not entry.table or hasattr(recipe, entry.table)
    assert all(hasattr(recipe, table) for entry in FOUNDATIONS.values() for table in entry.tables)


def test_recipes_are_read_without_torch() -> None:
    program = "import sys, teso_deploy.recipe; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert "torch" not in done.stdout

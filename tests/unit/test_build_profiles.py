"""Profiles of engines: the shipped ones, files of a user, and bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from teso_deploy.backends.tensorrt.profiles import Batch, BuildProfile, list_profiles, load_profile
from teso_deploy.errors import EngineError, InputNotFoundError
from teso_deploy.program import TESO, Program, Stage


def test_every_shipped_profile_can_be_read() -> None:
    assert {"live", "throughput"} <= set(list_profiles())
    for name in list_profiles():
        profile = load_profile(name)
        assert profile.name == name and profile.summary
    assert load_profile("throughput").batch_of("decoder@288x512").max == 32


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("summary = ", "is not TOML"),
        ("a = " + "[" * 50_000, "nested too deeply"),
        ("batch = {}", "summary: Field required"),
        ('summary = "x"\nworkspce_mib = 1', "workspce_mib: Extra inputs"),
        ('summary = "x"\n[batch]\nmin = 4', "min <= opt <= max does not hold"),
    ],
)
def test_a_bad_profile_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(EngineError, match=says):
        load_profile(str(path))


def test_a_missing_profile_is_named() -> None:
    with pytest.raises(InputNotFoundError, match="one of fast-build, live, throughput"):
        load_profile("fastest")


def test_a_graph_may_have_its_own_batches() -> None:
    profile = BuildProfile(name="x", summary="x", batches={"decoder": Batch(opt=4, max=16)})
    assert profile.batch_of("decoder@64x96").max == 16 and profile.batch_of("fusion").max == 1
    profile.check_stages(TESO)
    with pytest.raises(EngineError, match="batches of decoder, which is not a stage of this bundle: name one of only"):
        profile.check_stages(Program(stages=(Stage(name="only", inputs=("image",)),)))

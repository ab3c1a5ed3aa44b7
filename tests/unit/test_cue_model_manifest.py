"""The manifest of cue models, by its name and by the name that earlier versions gave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from teso_deploy.cues.model_bundle import KIND, CueModels, CueModelsManifest
from teso_deploy.errors import BundleError, OutputError
from tests.support.commands import names_in

NEW, OLD = "cue_models.json", "cues.json"


def write_models(out: Path) -> Path:
    """Write a folder of cue models that has one file and no model."""
    with KIND.staging(out) as folder:
        (folder / "notes.txt").write_text("x")
        KIND.write(folder, CueModelsManifest(files=KIND.hash_files(folder)))
    return out


def test_new_exports_have_the_new_name(tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models")
    assert names_in(folder) == [NEW, "notes.txt"]
    assert CueModels.open(folder).manifest.files.keys() == {"notes.txt"}


def test_the_old_name_still_opens_and_is_replaced(tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models")
    (folder / NEW).rename(folder / OLD)
    assert CueModels.open(folder).manifest.files.keys() == {"notes.txt"}
    (folder / "notes.txt").write_text("y")
    with pytest.raises(BundleError, match=r"notes\.txt is not the file that was exported"):
        CueModels.open(folder)
    assert names_in(write_models(folder)) == [NEW, "notes.txt"]


def test_the_new_name_wins(tmp_path: Path) -> None:
    folder = write_models(tmp_path / "models")
    (folder / OLD).write_text('{"schema_version": 1, "videos": {}}')
    assert CueModels.open(folder).manifest.files.keys() == {"notes.txt"}
    with pytest.raises(OutputError, match=r"holds cues\.json, which does not belong to the bundle"):
        KIND.check_target(folder)


def test_neither_name_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as raised:
        CueModels.open(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} has no cue_models.json, nor cues.json of earlier versions: give the folder that "
        "`teso-deploy export-cues` wrote"
    )

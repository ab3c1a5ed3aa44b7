"""A program as data: the connections of its stages, what follows from them, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from teso_deploy.program import TESO, Program, Stage, group_inputs, merge_tensors, run_program


def program(**stages: tuple[str, ...]) -> Program:
    return Program(stages=tuple(Stage(name=name, inputs=inputs) for name, inputs in stages.items()))


def test_what_a_stage_depends_on_follows_from_its_inputs() -> None:
    depends = {name: set(TESO.dependencies(name)) for name in TESO.names}
    assert depends == {
        "visual_encoder": {"image"},
        "audio_encoder": {"audio_window"},
        "fusion": {"audio_window", "cues"},
        "decoder": {"image", "audio_window", "cues"},
    }
    groups = TESO.picture_stages, TESO.sound_stages, TESO.query_stages, TESO.mask_stages
    assert [[stage.name for stage in group] for group in groups] == [[name] for name in TESO.names]
    assert TESO.takes("cues") and not program(masks=("image",)).takes("cues")


def test_every_stage_is_in_one_group() -> None:
    found = program(
        eye=("image",),
        mouth=("cues",),
        ear=("audio_window",),
        look=("eye", "image"),
        both=("ear", "mouth"),
        all=("both", "look"),
    )
    groups = found.picture_stages, found.sound_stages, found.query_stages, found.mask_stages
    names = [[stage.name for stage in group] for group in groups]
    assert names == [["eye", "look"], ["ear"], ["mouth", "both"], ["all"]]


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([("a", ["image"]), ("a", ["image"])], "a is the name of two stages"),
        ([("image", ["image"])], "image is the name of two stages, or of a stage and an external input"),
        ([("a", ["picture"])], "a takes picture, which is neither a stage nor one of image, audio_window, cues"),
        ([("a", ["b"]), ("b", ["a"])], "a takes b, which does not run before it"),
        ([("a", ["a"])], "a takes a, which does not run before it"),
        ([("a@32x32", ["image"])], "its name must not have @"),
        ([("a", [])], "at least 1 item"),
        ([], "at least 1 item"),
    ],
)
def test_what_can_t_be_a_program(stages: list[tuple[str, list[str]]], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Program.model_validate({"stages": [{"name": name, "inputs": inputs} for name, inputs in stages]})


def test_a_program_is_read_back_as_it_was_written() -> None:
    assert Program.model_validate_json(TESO.model_dump_json()) == TESO


class Noting:
    """An engine that records its inputs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self.name} of": sorted(feeds)}


def test_each_stage_is_given_the_tensors_of_its_inputs() -> None:
    engines = {name: Noting(name) for name in TESO.names}
    tensors = dict.fromkeys(("image", "waveform", "cues", "cue_valid", "labels"))
    inputs = group_inputs(tensors)
    assert "labels" not in merge_tensors(inputs)
    found = run_program(TESO, engines, inputs)
    assert merge_tensors(found, inputs) == {
        "visual_encoder of": ["image"],
        "audio_encoder of": ["waveform"],
        "fusion of": ["audio_encoder of", "cue_valid", "cues"],
        "decoder of": ["fusion of", "visual_encoder of"],
    }
    with_picture = {**inputs, "visual_encoder": found["visual_encoder"]}
    again = run_program(TESO, engines, with_picture, stages=TESO.stages[1:])
    assert again == found

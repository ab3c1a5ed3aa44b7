"""Whatever a model prefers to write, its answer is an object."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.conversion.cue_decoders import write_tokenizer
from teso_deploy.cues.answers import read_answer
from teso_deploy.cues.language.constraint import MAX_NAMES, RESERVE_TOKENS, ObjectConstraint, Shape
from teso_deploy.cues.language.decoder import Cache
from teso_deploy.cues.language.generation import generate
from teso_deploy.cues.tokens import Tokens
from tests.support.language_models import byte_tokenizer, sentencepiece_tokenizer

WHOLE = [
    '{"objects": [], "sounding": []}',
    '{"objects": ["dog"], "sounding": []}',
    '{"objects": ["dog", "electric guitar", "merry-go-round", "dog\'s bowl"], "sounding": ["dog", "büro 3"]}',
    '{"objects": ["dog", "dog"], "sounding": ["dog"]}',
]
WRONG = [
    "x", "{'", '{"objects": [[', '{"objects": [""', '{"objects": ["9', '{"objects": [" dog', '{"objects": ["dog "]',
    '{"objects": ["dog\\', '{"objects": ["do\ng', '{"objects": ["dog"]}', '{"objects": ["a  b', '{"objects": ["a", ]',
    '{"objects": ["a", "a", "', '{"objects": ["one two three four five', '{"objects": ["' + 41 * "a",
    '{"objects": [], "sounding": []} and', '{"objects": [' + ", ".join(f'"{c}"' for c in "abcdefghijklm"),
]  # fmt: skip


@pytest.mark.parametrize("text", WHOLE)
def test_what_is_such_an_object(text: str) -> None:
    for end in range(len(text)):
        shape = Shape().after(text[:end])
        assert shape is not None and not shape.is_whole, text[:end]
    shape = Shape().after(text)
    assert shape is not None and shape.is_whole
    assert set(json.loads(text)) == {"objects", "sounding"}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_none(text: str) -> None:
    assert Shape().after(text) is None


class Wishes:
    """A model whose preferred tokens are preset. Everything else is real."""

    def __init__(self, tokens: Tokens, wants: str = "", seed: int = 0, ends_after: int | None = None) -> None:
        self.tokens, self.rng, self.ends_after = tokens, np.random.default_rng(seed), ends_after
        self.size = len(tokens.pieces())
        self.wanted = tokens.ids(wants) if wants else []
        self.calls = 0

    def logits(self) -> NDArray[np.float32]:
        found = self.rng.standard_normal(self.size).astype(np.float32)
        if self.calls < len(self.wanted):
            found[self.wanted[self.calls]] = 100
        elif self.wanted and self.ends_after is None:
            found[2] = 100
        self.calls += 1
        return found

    def step(self, cache: Cache, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float32], Cache]:
        return self.logits(), cache

    def says(self, constraint: ObjectConstraint, limit: int) -> str:
        ids = generate(self.step, self.logits(), Cache(0, {}), end=(2,), max_new_tokens=limit, constraint=constraint)
        assert len(ids) <= limit
        return self.tokens.text(ids)


@pytest.fixture(params=["byte-level", "sentencepiece"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path) -> Tokens:
    write_tokenizer(byte_tokenizer() if request.param == "byte-level" else sentencepiece_tokenizer(), tmp_path)
    return Tokens(tmp_path / "tokenizer.json")


def constraint(tokens: Tokens, *, reasons: bool) -> ObjectConstraint:
    return ObjectConstraint(tokens.pieces(), (2,), reasons, tokens.ids("\n"))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("reasons", [False, True])
def test_noise_becomes_an_object(tokens: Tokens, seed: int, reasons: bool) -> None:
    said = Wishes(tokens, seed=seed).says(constraint(tokens, reasons=reasons), 600)
    found = json.loads(said[said.index('{"objects"') :])
    assert list(found) == ["objects", "sounding"] and all(len(names) <= MAX_NAMES for names in found.values())
    assert all(isinstance(name, str) and name for names in found.values() for name in names)
    assert read_answer(said).is_valid


def test_what_a_model_says_well_is_not_touched(tokens: Tokens) -> None:
    text = '{"objects": ["dog", "guitar"], "sounding": ["dog"]}'
    assert Wishes(tokens, text).says(constraint(tokens, reasons=False), 400).strip() == text
    aloud = "a dog is there\nit sings\n" + text
    assert Wishes(tokens, aloud).says(constraint(tokens, reasons=True), 400).strip() == aloud


def test_an_answer_that_ends_without_an_object_gets_one(tokens: Tokens) -> None:
    said = Wishes(tokens, "a dog barks").says(constraint(tokens, reasons=True), 500)
    assert said.strip().startswith("a dog barks") and "\n{" in said and read_answer(said).is_valid


def test_a_loop_is_cut_short(tokens: Tokens) -> None:
    said = Wishes(tokens, "dog " * 400).says(constraint(tokens, reasons=True), 1000)
    assert read_answer(said).is_valid
    assert len(tokens.ids(said)) < 500


def test_a_ramble_leaves_room_for_the_object(tokens: Tokens) -> None:
    ramble = " ".join(f"a{k}" for k in range(500))
    limit = 2 * RESERVE_TOKENS
    said = Wishes(tokens, ramble).says(constraint(tokens, reasons=True), limit)
    assert read_answer(said).is_valid and '{"objects"' in said


def test_an_object_closes_before_the_last_token(tokens: Tokens) -> None:
    """A model that would list names without an end."""
    for limit in (100, 140, 200):
        said = Wishes(tokens, seed=3, ends_after=0).says(constraint(tokens, reasons=False), limit)
        assert read_answer(said).is_valid, said


def test_a_brace_that_begins_something_else(tokens: Tokens) -> None:
    said = Wishes(tokens, "dog {'a': 1}").says(constraint(tokens, reasons=True), 400)
    assert read_answer(said).is_valid and '{"objects": [' in said


def test_a_table_of_words_that_is_padded(tokens: Tokens) -> None:
    """Some models have more logits than their tokenizer has tokens."""
    constraint_ = constraint(tokens, reasons=True)
    logits = np.zeros(len(tokens.pieces()) + 60, np.float32)
    logits[-1] = 9.0
    assert constraint_.choose(logits, 300) == len(logits) - 1

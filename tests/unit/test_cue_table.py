"""Cue words to embeddings: spelling, padding, the limit of slots, and the message about an unknown word."""

from __future__ import annotations

import numpy as np
import pytest

from teso_deploy.bundle import TaggerEntry
from teso_deploy.cues.table import CueTable, list_variants
from teso_deploy.errors import BundleError, CueError

NAMES = ("airplane", "church bell", "cow", "dog", "fly", "horse", "wolf")


@pytest.fixture
def table() -> CueTable:
    return CueTable(NAMES, np.arange(len(NAMES) * 3, dtype=np.float32).reshape(-1, 3) + 1, max_cues=4)


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("dog", "dog"),
        ("Dogs", "dog"),
        ("  DOG ", "dog"),
        ("horses", "horse"),
        ("flies", "fly"),
        ("wolves", "wolf"),
        ("church_bell", "church bell"),
        ("church  bells", "church bell"),
        ("aeroplane", "airplane"),
        ("planes", "airplane"),
    ],
)
def test_words_are_folded_to_the_tables_spelling(table: CueTable, word: str, known: str) -> None:
    assert table.require(word) == known


def test_a_word_of_the_table_is_never_folded_away() -> None:
    table = CueTable(("dog", "dogs", "plane", "airplane"), np.eye(4, dtype=np.float32), max_cues=4)
    assert table.require("dogs") == "dogs"
    assert table.require("plane") == "plane"


def test_short_words_keep_their_s() -> None:
    assert list_variants("s") == ["s"]


def test_rows_in_order_then_zeros(table: CueTable) -> None:
    cues = table.lookup(["dog", "airplane"])
    assert cues.names == ("dog", "airplane") and cues.source == "manual"
    assert cues.valid.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(cues.embeddings[:2], [[10, 11, 12], [1, 2, 3]])
    assert not cues.embeddings[2:].any()


def test_repeated_words_count_once_and_more_than_the_model_takes_are_cut(table: CueTable) -> None:
    cues = table.lookup(["dog", "dogs", "cow", "wolf", "fly", "horse"])
    assert cues.names == ("dog", "cow", "wolf", "fly")
    assert cues.valid.all()


@pytest.mark.parametrize("words", [[], [""], ["  ", ""]])
def test_no_word_is_no_cue(table: CueTable, words: list[str]) -> None:
    for cues in (table.lookup(words), table.none()):
        assert cues.names == () and cues.source == "none"
        assert cues.embeddings.shape == (4, 3) and not cues.embeddings.any() and not cues.valid.any()


def test_each_call_gives_arrays_of_its_own(table: CueTable) -> None:
    table.lookup(["dog"]).embeddings[:] = 99
    np.testing.assert_array_equal(table.lookup(["dog"]).embeddings[0], [10, 11, 12])


def test_an_unknown_word_names_the_closest(table: CueTable) -> None:
    with pytest.raises(CueError, match=r"'hrose'.*did you mean 'horse'"):
        table.lookup(["dog", "hrose"])


def test_an_unknown_word_with_nothing_close_names_what_there_is(table: CueTable) -> None:
    with pytest.raises(CueError, match="airplane, church bell"):
        table.lookup(["xylophonist"])


def test_an_unknown_word_beyond_the_cut_is_still_an_error(table: CueTable) -> None:
    with pytest.raises(CueError):
        table.lookup(["dog", "cow", "wolf", "fly", "qqq"])


def test_a_bundle_without_a_table_says_so() -> None:
    table = CueTable((), np.zeros((0, 3), np.float32), max_cues=4)
    assert table.lookup([]).embeddings.shape == (4, 3)
    with pytest.raises(CueError, match="it knows no words"):
        table.lookup(["dog"])


def test_the_surest_tags_above_the_threshold_are_the_cues(table: CueTable) -> None:
    tagger = TaggerEntry(words=("dog", "cow", "horse", "wolf", "fly", "airplane"), threshold=0.3)
    cues = table.select_tags(np.array([0.1, 0.9, 0.3, 0.2, 0.95, 0.0], np.float32), tagger)
    assert cues.names == ("fly", "cow", "horse") and cues.source == "tagger"
    assert table.select_tags(np.full(6, 0.5, np.float32), tagger).names == ("dog", "cow", "horse", "wolf")
    nothing = table.select_tags(np.full(6, 0.29, np.float32), tagger)
    assert nothing.names == () and nothing.source == "none" and not nothing.valid.any()


def test_a_table_may_pad_with_the_word_none() -> None:
    """As in the released code, every slot is valid, and ``names`` has the offered cues."""
    vectors = np.arange(9, dtype=np.float32).reshape(3, 3) + 1
    table = CueTable(("dog", "none", "cow"), vectors, max_cues=3, pads=True)
    cues = table.lookup(["cow"])
    assert cues.names == ("cow",) and cues.source == "manual" and cues.valid.all()
    np.testing.assert_array_equal(cues.embeddings, vectors[[2, 1, 1]])
    nothing = table.none()
    assert nothing.names == () and nothing.source == "none" and nothing.valid.all()
    np.testing.assert_array_equal(nothing.embeddings, vectors[[1, 1, 1]])
    with pytest.raises(BundleError, match="no 'none' to pad with"):
        CueTable(("dog",), vectors[:1], max_cues=3, pads=True)


def test_a_table_that_keeps_repeats_gives_each_its_slot() -> None:
    vectors = np.eye(3, dtype=np.float32)
    table = CueTable(("man", "none", "dog"), vectors, max_cues=4, pads=True, keeps_repeats=True)
    cues = table.lookup(["man", "man"])
    assert cues.names == ("man", "man") and cues.valid.all(), "two slots, and two of padding"
    np.testing.assert_array_equal(cues.embeddings, vectors[[0, 0, 1, 1]])
    assert table.lookup(["dog", "man", "dog", "man", "dog"]).names == ("dog", "man", "dog", "man")

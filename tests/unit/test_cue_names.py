"""From names to F_T: singulars, synonyms, duplicates, the most certain first, and words that no table has."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.conversion.vocabulary import read_shipped_nouns
from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.names import CueNames
from teso_deploy.cues.singulars import make_singular
from teso_deploy.cues.table import CueTable
from teso_deploy.cues.text_encoder import TextEncoder
from teso_deploy.errors import CueError
from teso_deploy.resources import find_shipped_path

NAMES = ("bus", "chicken", "dog", "fire truck", "glass", "maracas", "person", "saxophone", "truck", "violin")
MAX_CUES = 3


def vocabulary() -> list[str]:
    """Return all words of the shipped lists."""
    classes = find_shipped_path("export/vocabulary/avss70.txt").read_text(encoding="utf-8").splitlines()
    return sorted({*read_shipped_nouns(), *(name for name in classes if name and not name.startswith("#"))})


class Letters(TextEncoder):
    """A text encoder whose embedding of a word encodes the word. It records the words that it embeds."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, word: str) -> NDArray[np.float32]:
        self.asked.append(word)
        return np.array([len(word), ord(word[0]), ord(word[-1])], np.float32)


@pytest.fixture
def table() -> CueTable:
    return CueTable(NAMES, np.arange(len(NAMES) * 3, dtype=np.float32).reshape(-1, 3) + 1, max_cues=MAX_CUES)


def row(table: CueTable, name: str) -> NDArray[np.float32]:
    return np.arange(3, dtype=np.float32) + 1 + 3 * table.names.index(name)


def answer(*names: str, confidences: tuple[float, ...] = ()) -> CueAnswer:
    return CueAnswer(names, "llm", confidences=confidences)


#: Plurals of last words that are not formed with "s".
IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "goose": "geese", "mouse": "mice",
    "foot": "feet", "tooth": "teeth", "ox": "oxen", "wolf": "wolves", "calf": "calves", "knife": "knives",
    "shelf": "shelves", "leaf": "leaves", "policeman": "policemen",
}  # fmt: skip
#: Words in "o" and "ch" that take "es". English has no rule for these.
IN_O = {"tomato", "potato", "volcano", "mango", "buffalo", "torpedo", "mosquito", "echo"}


def plural(name: str) -> str:
    """Form a plural by the school rules."""
    before, blank, word = name.rpartition(" ")
    if word in IRREGULAR:
        made = IRREGULAR[word]
    elif word.endswith(("s", "x", "z", "ch", "sh")) or word in IN_O:
        made = word + "es"
    elif word.endswith("y") and word[-2:-1] not in "aeiou":
        made = word[:-1] + "ies"
    else:
        made = word + "s"
    return f"{before}{blank}{made}"


def is_plural(name: str) -> bool:
    return name == "skis" or (name.endswith("s") and not name.endswith(("ss", "us", "is", "rhinoceros")))


def test_the_plural_of_every_word_finds_it() -> None:
    words = vocabulary()
    table = CueTable(words, np.zeros((len(words), 2), np.float32), max_cues=MAX_CUES)
    assert len(words) > 850
    wrong = {
        (name, plural(name), table.find(plural(name)))
        for name in words
        if not is_plural(name) and plural(name) not in words and table.find(plural(name)) != name
    }
    assert not wrong


def test_no_word_of_the_list_is_taken_for_another() -> None:
    words = vocabulary()
    table = CueTable(words, np.zeros((len(words), 2), np.float32), max_cues=MAX_CUES)
    assert [table.find(name) for name in words] == words
    ones = {name: make_singular(name) for name in words if make_singular(name) != name}
    assert 10 < len(ones) < 20
    assert all(plural(one) == name for name, one in ones.items()), "plurals alone are taken for plurals"


@pytest.mark.parametrize(
    ("name", "one"),
    [
        *((word, word) for word in ("bus", "glass", "bass", "scissors", "gas", "walrus", "news", "tennis", "s", "as")),
        ("glasses", "glass"),
        ("buses", "bus"),
        ("minibuses", "minibus"),
        ("houses", "house"),
        ("lenses", "lens"),
        ("watches", "watch"),
        ("avalanches", "avalanche"),
        ("horses", "horse"),
        ("boxes", "box"),
        ("axes", "axe"),
        ("stoves", "stove"),
        ("olives", "olive"),
        ("bookshelves", "bookshelf"),
        ("roofs", "roof"),
        ("policewomen", "policewoman"),
        ("specimen", "specimen"),
        ("babies", "baby"),
        ("magpies", "magpie"),
        ("monkeys", "monkey"),
        ("pianos", "piano"),
        ("tomatoes", "tomato"),
        ("horseshoes", "horseshoe"),
        ("computer mice", "computer mouse"),
        ("flocks of geese", "flock of goose"),
        ("baby's", "baby's"),
    ],
)
def test_singulars(name: str, one: str) -> None:
    assert make_singular(name) == one
    assert make_singular(one) == one


def test_what_a_table_has_in_the_plural_is_found_by_one(table: CueTable) -> None:
    assert table.find("Maraca") == table.find("maracas") == "maracas"
    assert table.find("glasses") == "glass" and table.find("buses") == "bus"
    assert table.find("gla") is table.find("bu") is table.find("") is None


def test_typed_words_are_looked_up_or_refused(table: CueTable) -> None:
    names = CueNames(table)
    cues = names.look_up_words(["Violins", "sax", "violin", " "])
    assert cues.names == ("violin", "saxophone") and cues.source == "manual" and cues.age_seconds == 0
    assert cues.valid.tolist() == [True, True, False]
    np.testing.assert_array_equal(
        cues.embeddings, [row(table, "violin"), row(table, "saxophone"), np.zeros(3, np.float32)]
    )
    with pytest.raises(CueError, match=r"'hviolin'.*did you mean 'violin'"):
        names.look_up_words(["dog", "hviolin"])
    with pytest.raises(CueError, match="'red fire truck'"):
        names.look_up_words(["red fire truck"])
    assert names.look_up_words([]).source == "none" and not names.look_up_words(["", " "]).valid.any()


def test_an_answer_is_taken_as_far_as_it_goes(table: CueTable) -> None:
    names = CueNames(table)
    cues = names.look_up_answer(answer("red fire truck", "quartz", "two old people"))
    assert cues.names == ("fire truck", "person") and cues.source == "llm"
    np.testing.assert_array_equal(cues.embeddings[:2], [row(table, "fire truck"), row(table, "person")])
    assert names.look_up_answer(answer("Red_Truck")).names == ("truck",)
    for nothing in (answer(), answer("quartz", "", " ")):
        assert names.look_up_answer(nothing).names == () and not names.look_up_answer(nothing).valid.any()


def test_more_than_the_model_takes_go_by_confidence(table: CueTable) -> None:
    names = CueNames(table)
    spoken = ("bus", "dog", "glass", "violin", "person")
    assert names.look_up_answer(answer(*spoken)).names == ("bus", "dog", "glass")
    sure = names.look_up_answer(answer(*spoken, confidences=(0.1, 0.9, 0.9, 0.3, 1.0)))
    assert sure.names == ("person", "dog", "glass"), "of equal ones the first"
    np.testing.assert_array_equal(sure.embeddings[1], row(table, "dog"))


def test_names_that_come_to_one_are_merged_before_the_cut(table: CueTable) -> None:
    """Without merging, or with the cut first, the violin would be lost.

    With the first confidence, the dog would lead.
    """
    spoken = ("hens", "dog", "chicken", "hen", "big chicken", "violin")
    cues = CueNames(table).look_up_answer(answer(*spoken, confidences=(0.2, 0.7, 0.6, 0.9, 0.8, 0.1)))
    assert cues.names == ("chicken", "dog", "violin") and cues.valid.all()


def test_what_the_table_has_not_goes_to_the_encoder(table: CueTable) -> None:
    encoder = Letters()
    cues = CueNames(table, encoder).look_up_words(["Dogs", "Red  Kazoos", "red kazoo", "hviolin"])
    assert cues.names == ("dog", "red kazoo", "hviolin")
    assert set(encoder.asked) == {"red kazoo", "hviolin"}
    np.testing.assert_array_equal(cues.embeddings[1], [9, ord("r"), ord("o")])
    np.testing.assert_array_equal(cues.embeddings[0], row(table, "dog"))


def test_answers_go_to_the_encoder_too_as_far_as_there_is_room(table: CueTable) -> None:
    encoder = Letters()
    spoken = ("dulcimer", "kazoos", "fire truck", "zither", "kazoo")
    cues = CueNames(table, encoder).look_up_answer(answer(*spoken, confidences=(0.1, 0.2, 0.9, 0.4, 0.8)))
    assert cues.names == ("fire truck", "kazoo", "zither") and cues.source == "llm"
    assert encoder.asked == ["kazoo", "zither"], "none for what is cut"
    assert CueNames(table, encoder).look_up_answer(answer(" ", "")).names == ()


def test_slots_that_are_left_are_padded_as_the_bundle_pads(table: CueTable) -> None:
    padded = CueTable(("dog", "none"), np.eye(2, dtype=np.float32), max_cues=2, pads=True)
    cues = CueNames(padded).look_up_answer(answer("dogs"))
    assert cues.names == ("dog",) and cues.valid.all()
    np.testing.assert_array_equal(cues.embeddings, np.eye(2))


def test_raw_words_keep_spelling_and_slots() -> None:
    raw = CueTable(("man", "none"), np.eye(2, 3, dtype=np.float32), max_cues=4, pads=True, keeps_repeats=True)
    encoder = Letters()
    assert CueNames(raw, encoder).look_up_answer(answer("man", "Men", "men")).names == ("man", "men", "men")
    assert encoder.asked == ["men", "men"], "not the singular that the table has"
    assert CueNames(raw).look_up_words(["men", "man"]).names == ("man", "man"), "without an encoder the nearest"

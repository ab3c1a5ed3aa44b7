"""The words of a video, and the broad class of each word that an evaluation can meet."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from teso_deploy.bundle import Bundle
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.evaluation.datasets.registry import Layout
from teso_deploy.evaluation.datasets.s4 import CATEGORY_WORDS
from teso_deploy.evaluation.datasets.words import find_broad_class, list_class_words
from teso_deploy.resources import find_shipped_path


def make_sample(category: str, subset: str = "v1m") -> VideoSample:
    return VideoSample("a", subset, "test", (Path("0.jpg"),), (Path("0.png"),), Path("a.wav"), category)


def test_every_word_that_can_be_met_has_one_broad_class() -> None:
    lists = tomllib.loads(find_shipped_path("export/vocabulary/broad_classes.toml").read_text(encoding="utf-8"))
    assert list(lists) == ["music", "human", "animal", "device"]
    assert max(Counter(word for words in lists.values() for word in words).values()) == 1
    assert all(words == sorted(words) for words in lists.values())
    bundle = Bundle.open(find_shipped_path("engines/bundles/teso-nano"))
    assert bundle.manifest.tagger is not None
    words = {*list_avss_classes(), *CATEGORY_WORDS, *bundle.manifest.classes, *bundle.manifest.tagger.words}
    assert len(words) > 140 and not [word for word in words if find_broad_class(word) is None]


@pytest.mark.parametrize(("word", "broad"), [
    # AVSBench-Robust's choices where they could be disputed.
    ("playing_glockenspiel", "music"), ("marimba", "music"), ("baby_laughter", "human"), ("coyote_howling", "animal"),
    ("horse_clip-clop", "animal"), ("cap_gun_shooting", "device"), ("emergency-car", "device"), ("keyboard", "device"),
    ("typing_on_computer_keyboard", "device"), ("helicopter", "device"),
    ("Electric  guitar", "music"), ("off-the-screen", None), ("", None),
])  # fmt: skip
def test_broad_class_of_a_word(word: str, broad: str | None) -> None:
    assert find_broad_class(word) == broad


def test_categories_of_s4_have_a_class_of_avss_each() -> None:
    assert len(CATEGORY_WORDS) == len(set(CATEGORY_WORDS.values())) == 23
    assert set(CATEGORY_WORDS.values()) <= set(list_avss_classes())


@pytest.mark.parametrize(("layout", "category", "words"), [
    ("avss", "man_ukulele", ("man", "ukulele")),
    ("avss", "guitar_guitar_emergency-car", ("guitar", "emergency car")),
    ("avss", "background_missile-rocket_off-the-screen_h orse", ("missile rocket", "horse")),
    ("avss", "", ()),
    ("s4", "dog_barking", ("dog",)),
    ("s4", "playing_a_kazoo", ("playing a kazoo",)),
    ("s4", "", ()),
    ("ms3", "", ()),
])  # fmt: skip
def test_words_of_a_video(layout: Layout, category: str, words: tuple[str, ...]) -> None:
    assert list_class_words(make_sample(category), layout) == words

"""What a video is labelled with, as words, and the broad class of a word."""

from __future__ import annotations

import tomllib
from functools import cache
from typing import Literal

from teso_deploy.errors import InputNotFoundError
from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.evaluation.datasets.registry import Layout, load_layout
from teso_deploy.evaluation.datasets.s4 import CATEGORY_WORDS
from teso_deploy.resources import find_shipped_path

BroadClass = Literal["music", "human", "animal", "device"]

_LISTS = "export/vocabulary/broad_classes.toml"


@cache
def _read_broad_classes() -> dict[str, BroadClass]:
    path = find_shipped_path(_LISTS)
    if not path.is_file():
        raise InputNotFoundError(f"no word lists {path}: install the package again")
    lists: dict[BroadClass, list[str]] = tomllib.loads(path.read_text(encoding="utf-8"))  # type: ignore[assignment]
    return {word: name for name, words in lists.items() for word in words}


def find_broad_class(word: str) -> BroadClass | None:
    """Return the broad class of a word, of a category of S4, or of a name with hyphens; None if it is in no list.

    Raises :class:`InputNotFoundError` if the installation lacks ``export/vocabulary/broad_classes.toml``.

    >>> find_broad_class("emergency-car"), find_broad_class("dog_barking"), find_broad_class("pebble")
    ('device', 'animal', None)
    """
    plain = CATEGORY_WORDS.get(word) or " ".join(word.lower().replace("-", " ").replace("_", " ").split())
    return _read_broad_classes().get(plain)


def list_class_words(sample: VideoSample, layout: Layout) -> tuple[str, ...]:
    """Return the words that a video is labelled with, in the data set's order, each once.

    Args:
        sample: The video.
        layout: The layout of its data set.

    Returns:
        avss and v3: the classes in ``a_obj``, without what is not a class, as ``background``. s4: the class of AVSS
        that its category has there (``dog_barking`` → ``dog``), or the category as words if it is unknown. Folders of
        clips: the words in ``clips.toml``. ms3: nothing, as it has no labels.
    """
    return load_layout(layout).split_category(sample.category)

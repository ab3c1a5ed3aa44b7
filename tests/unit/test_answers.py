"""From whatever a language model writes, names are read or none; no exception is raised."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teso_deploy.cues.answers import MAX_CHARACTERS, MAX_NAME_CHARACTERS, MAX_NAMES, as_name, read_answer

GOOD = '{"objects": ["dog", "sofa"], "sounding": ["dog"]}'
DOG = ("dog",)

#: An answer, and what sounds by it; None: it can't be read.
ANSWERS: list[tuple[str, tuple[str, ...] | None]] = [
    # As requested.
    (GOOD, DOG),
    ('{"objects": ["dog"], "sounding": []}', ()),
    ('{"objects": [], "sounding": []}', ()),
    ('{"sounding": ["dog"], "objects": ["dog"]}', DOG),
    ('{"sounding": ["dog"]}', DOG),
    (f"  \n\n{GOOD}\n\n  ", DOG),
    (json.dumps(json.loads(GOOD), indent=4), DOG),
    (GOOD.replace(" ", ""), DOG),
    # With text around it.
    (f"Sure! Here is the answer:\n{GOOD}\nI hope that helps.", DOG),
    (f"```json\n{GOOD}\n```", DOG),
    (f"```\n{GOOD}\n```", DOG),
    (f"<think>It may be the sofa.</think>{GOOD}", DOG),
    (f"Objects: dog, sofa.\nCategory animals (dog): could sound.\nTogether: dog, 0.90, because it barks.\n{GOOD}", DOG),
    (f'First I thought {{"objects": ["sofa"], "sounding": ["sofa"]}} but no: {GOOD}', DOG),
    (f"{GOOD} {{}}", DOG),
    (f"{GOOD} {{not an answer}}", DOG),
    (f"[{GOOD}]", DOG),
    (f'{{"answer": {GOOD}}}', DOG),
    (f"{GOOD}<|im_end|><|im_start|>user", DOG),
    (f"{GOOD}{GOOD}{GOOD}", DOG),
    (f"assistant: {GOOD}", DOG),
    # Common mistakes of models.
    ("{'objects': ['dog', 'sofa'], 'sounding': ['dog']}", DOG),
    ("{'objects': [\"dog's bowl\"], 'sounding': [\"dog's bowl\"]}", ("dog's bowl",)),
    ('{"objects": ["dog",], "sounding": ["dog",],}', DOG),
    ('{"objects": ["dog"], "sounding": ["dog"]', DOG),
    ('{"objects": ["dog"], "sounding": ["dog"', DOG),
    ('{"objects": ["dog", "cat"], "sounding": ["dog", "ca', DOG),
    ('{"objects": ["dog"], "sounding": ["do', None),
    ('{"objects": ["dog"], "sounding": [', None),
    ('{"objects": ["dog"], "sound', None),
    ('{"objects": ["dog"', None),
    ('{"Objects": ["dog"], "Sounding": ["dog"]}', DOG),
    ('{"objects": ["dog"], "sounding_objects": ["dog"]}', DOG),
    ('{"objects": ["dog"], "sounding object": "dog"}', DOG),
    ('{"objects": "dog, sofa", "sounding": "dog"}', DOG),
    ('{"objects": ["dog"], "sounding": "dog and cat"}', ("dog", "cat")),
    ('{"objects": ["dog"], "sounding": null}', ()),
    ('{"objects": ["dog"], "sounding": "none"}', ()),
    ('{"objects": ["dog"], "sounding": ["None"]}', ()),
    ('{"objects": ["dog"], "sounding": ""}', ()),
    ('{"objects": null, "sounding": ["dog"]}', DOG),
    ('{"objects": 7, "sounding": ["dog"]}', DOG),
    ('{"objects": ["dog"], "sounding": 7}', None),
    ('{"objects": ["dog"], "sounding": true}', None),
    ('{"objects": ["dog"], "sounding": [1, 2]}', None),
    ('{"objects": ["dog"], "sounding": [["dog"]]}', None),
    ('{"objects": ["dog"], "sounding": ["dog", 3, null, ["x"]]}', DOG),
    # Names as models spell them.
    ('{"objects": [], "sounding": ["The Dog", "a dog", "DOG", "dog."]}', DOG),
    ('{"objects": [], "sounding": ["electric_guitar", "Fire Truck (red)"]}', ("electric guitar", "fire truck")),
    ('{"objects": [], "sounding": ["**dog**", "`cat`", "\'cow\'"]}', ("dog", "cat", "cow")),
    ('{"objects": [], "sounding": ["merry-go-round", "dog\'s bowl"]}', ("merry-go-round", "dog's bowl")),
    ('{"objects": [], "sounding": ["It is hard to say what sounds here"]}', None),
    ('{"objects": [], "sounding": ["dog", "It is hard to say what sounds here"]}', DOG),
    ('{"objects": [], "sounding": ["🐕"]}', None),
    ('{"objects": [], "sounding": ["犬", "chien", "гитара", "Hündchen"]}', ("犬", "chien", "гитара", "hündchen")),
    ('{"objects": [], "sounding": ["' + "dog" * 40 + '"]}', None),
    ('{"objects": [], "sounding": ["x\\u0000y"]}', None),
    # With confidences.
    ('{"sounding": [{"name": "dog", "confidence": 0.9}, {"name": "cat", "score": 30}]}', ("dog", "cat")),
    ('{"sounding": [{"object": "dog"}]}', DOG),
    ('{"sounding": {"dog": 0.9, "cat": 0.2}}', ("dog", "cat")),
    ('{"sounding": {"dog": "loud"}}', None),
    ('{"sounding": {}}', ()),
    # On lines.
    ("Sounding: dog, cat", ("dog", "cat")),
    ("The answer is a mess.\nSounding objects: dog and cat", ("dog", "cat")),
    ("**Sounding objects:** dog", DOG),
    ("Answer: none", ()),
    ("Final answer: dog.", DOG),
    ("Sounding objects are: dog; cat / cow", ("dog", "cat", "cow")),
    ("Sounding:\n- dog\n- cat\n\nThat is all.", ("dog", "cat")),
    ("Sounding objects:\n1. dog\n2) cat", ("dog", "cat")),
    ("Sounding: cat\nAnswer: dog", DOG),
    ("Answer: 犬、猫", ("犬", "猫")),
    ("Answer：dog，cat", ("dog", "cat")),
    # Prose, junk, empty.
    ("", None),
    (" \n\t ", None),
    ("A dog barks at the moon.", None),
    ("Ich sehe einen Hund, der bellt, und ein Sofa.", None),
    ("我看到一只狗在叫。", None),
    ("I'm sorry, but I can't help with that.", None),
    ("{", None),
    ("}{", None),
    ("{}", None),
    ("[]", None),
    ("null", None),
    ('["dog"]', None),
    ("\x00\x01\x02\ufffe", None),
    ("{" * 5000, None),
    ('{"a":' * 3000, None),
    ("[" * 100_000, None),
    ("{'a': " * 2000 + "1" + "}" * 2000, None),
    ("dog " * 10_000, None),
    ("Sounding: " + "dog, " * 10_000, DOG),
    ("so " * 10_000 + GOOD, DOG),
    (GOOD + " so" * 10_000, DOG),
    (GOOD + " so" * 2_000, DOG),
    ('{"objects": ["dog"], "sounding": [' + '"dog", ' * 4000 + "]}", DOG),
    ('{"sounding": [' + ", ".join(f'"thing {chr(97 + k % 26)}{chr(97 + k // 26)}"' for k in range(60)) + "]}", None),
    ("__import__('os').system('touch /tmp/x')", None),
    ('{"objects": ["dog"], "sounding": [__import__("os").getcwd()]}', None),
    ('{"objects": ["dog"], "sounding": ["dog" * 3]}', None),
    ("9" * 10_000, None),
    ('{"sounding": ' + "9" * 5000 + "}", None),
]


@pytest.mark.parametrize(("text", "sounding"), ANSWERS, ids=range(len(ANSWERS)))
def test_answers_of_every_shape(text: str, sounding: tuple[str, ...] | None) -> None:
    began = time.thread_time()
    found = read_answer(text)
    assert found.sounding == sounding
    assert found.is_valid == (sounding is not None)
    assert time.thread_time() - began < 2, "a ramble must not cost time"


def test_there_are_enough_of_them() -> None:
    assert len(ANSWERS) >= 70


def test_how_sure_it_is() -> None:
    assert read_answer(
        '{"sounding": [{"name": "dog", "confidence": 0.9}, {"name": "cat", "score": 30}]}'
    ).confidences == (
        0.9,
        0.3,
    )
    assert read_answer('{"sounding": {"dog": 0.9, "cat": 0.2}}').confidences == (0.9, 0.2)
    for one_only in ('{"sounding": [{"name": "dog", "confidence": 0.9}, "cat"]}', GOOD):
        assert read_answer(one_only).confidences == ()
    for nonsense in ("-1", "true", '"high"', "1000", "NaN"):
        assert read_answer(f'{{"sounding": [{{"name": "dog", "confidence": {nonsense}}}]}}').confidences == ()


def test_objects_are_read_too() -> None:
    assert read_answer(GOOD).objects == ("dog", "sofa")
    assert read_answer('{"sounding": ["dog"]}').objects == DOG


@pytest.mark.parametrize(
    ("text", "name"),
    [("Dogs", "dogs"), ("the  big\tdog", "big dog"), ("no", ""), ("", ""), ("***", None), ("123", None), ("a1", "a1")],
)
def test_names(text: str, name: str | None) -> None:
    assert as_name(text) == name


_PIECES = st.sampled_from(
    ['{"objects": [', '"dog"', ", ", "]", "}", "{", '"sounding": [', "'", '"', "\\", ":", "\n", "Sounding:", "- cat",
     "null", "NaN", "\u2028", "\x00", "犬", "Answer:", "[", "1e999", "{'sounding': ('dog',)}"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=300), st.lists(_PIECES, max_size=40).map("".join)))
def test_junk_gives_names_or_none(text: str) -> None:
    found = read_answer(text)
    for names in (found.objects, found.sounding or ()):
        assert len(set(names)) == len(names) <= MAX_NAMES
        assert all(0 < len(name) <= MAX_NAME_CHARACTERS and name == name.lower().strip() for name in names)
    assert found.sounding is None or not found.confidences or len(found.confidences) == len(found.sounding)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200).filter(lambda text: "{" not in text and ":" not in text))
def test_an_answer_is_found_behind_anything(before: str, behind: str) -> None:
    """The last answer counts, whatever stands before it."""
    if "{" not in before:
        assert read_answer(f"{before}\n{GOOD}\n{behind[:100]}").sounding == DOG


def test_of_a_long_text_both_ends_are_looked_at() -> None:
    assert read_answer(GOOD + "x" * (3 * MAX_CHARACTERS)).sounding == DOG
    assert read_answer("x" * (3 * MAX_CHARACTERS) + GOOD).sounding == DOG

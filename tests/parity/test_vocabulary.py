"""The cue table: its words, CLIP's tokens, and our sentence encoder compared with transformers."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teso_deploy.conversion import vocabulary
from teso_deploy.conversion.clip_tokens import END, START, WORDS, clip_token_rows
from teso_deploy.errors import CheckpointError, CueError, MissingExtraError, RecipeError
from teso_deploy.models.clip_text import ClipText
from teso_deploy.recipe import ClipTextRecipe, Recipe, load_recipe, parse_recipe
from tests.support.foundations import randomise, small_recipe


def hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else real(name))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("teso-nano")


def test_word_list_is_sorted_unique_and_holds_every_class(recipe: Recipe) -> None:
    nouns = vocabulary.read_shipped_nouns()
    assert nouns == sorted(set(nouns))
    assert len(nouns) >= 500
    assert all(noun == noun.lower().strip() for noun in nouns)
    assert set(recipe.head.classes) <= set(nouns)


def test_names_are_folded_and_rows_have_length_one(recipe: Recipe) -> None:
    names, embeddings = vocabulary.build_cue_table(recipe, ["Dog", "church  bell", "dog", " "])
    assert names == sorted({"church bell", *recipe.head.classes, *recipe.tagger.words})
    assert embeddings.shape == (len(names), 384)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_related_words_are_closer_than_unrelated_ones(recipe: Recipe) -> None:
    names, embeddings = vocabulary.build_cue_table(recipe, ["dog", "puppy", "bell", "helicopter"])
    closeness = dict(zip(names, embeddings @ embeddings[names.index("dog")], strict=True))
    assert closeness["puppy"] > max(closeness["bell"], closeness["helicopter"])


def test_another_width_is_refused(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="width 384"):
        vocabulary.build_cue_table(parse_recipe('name = "wide"\n[text]\ndim = 1024\n'), ["dog"])


def test_a_template_without_a_place_for_the_cue_is_refused() -> None:
    with pytest.raises(RecipeError, match="no place for the cue"):
        vocabulary.build_cue_table(parse_recipe('name = "mute"\n[text]\ndim = 384\ntemplate = "a dog"\n'), ["dog"])


def test_a_missing_package_names_the_extra(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tokenizers")
    with pytest.raises(MissingExtraError, match=r"needs tokenizers: .*teso-deploy\[export\]"):
        vocabulary.build_cue_table(recipe, ["dog"])


def test_embeddings_equal_those_of_transformers(recipe: Recipe) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers (extra: cues) is not installed")
    sentences = [recipe.text.template.format(cue=noun) for noun in vocabulary.read_shipped_nouns()[::10]]
    folder = str(vocabulary.find_minilm_folder())
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**encoded).last_hidden_state
    counted = encoded["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * counted).sum(1) / counted.sum(1), dim=-1).numpy()

    encoder = vocabulary.MiniLM()
    ours = encoder.embed(sentences)
    assert (ours * expected).sum(axis=1).min() > 0.999999
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    alone = np.concatenate([encoder.embed([sentence]) for sentence in sentences[:5]])
    np.testing.assert_allclose(ours[:5], alone, atol=1e-6)


def test_the_word_none_is_in_the_table_that_pads_with_it() -> None:
    tables = {"head": {"classes": ["Sounding  object"]}, "tagger": {"words": ["dog"]}}
    masks = small_recipe(**tables)
    assert vocabulary.list_cue_words(masks, ["Cat", "dog", " "]) == ["cat", "dog", "sounding object"]
    pads = small_recipe(**tables, text={"padding": "none-embedding"})
    assert vocabulary.list_cue_words(pads, ["Cat", "dog"]) == ["cat", "dog", "none", "sounding object"]
    assert set(vocabulary.read_shipped_nouns()) <= set(vocabulary.list_cue_words(masks))


def test_sentences_are_embedded_by_what_is_given() -> None:
    recipe = small_recipe(text={"dim": 3, "template": "Hear {cue}!"})
    asked: list[str] = []

    def embed(sentences: list[str]) -> Any:
        asked.extend(sentences)
        return np.ones((len(sentences), 3), np.float32)

    words, rows = vocabulary.build_cue_table(recipe, ["dog", "bell"], embed)
    assert words == ["bell", "dog", "sounding object"] and rows.shape == (3, 3)
    assert asked == ["Hear bell!", "Hear dog!", "Hear sounding object!"]
    with pytest.raises(RecipeError, match=r"text\.dim is 4, but embeddings have width 3"):
        vocabulary.build_cue_table(small_recipe(text={"dim": 4}), ["dog"], embed)


def test_clip_s_cues_are_not_embedded_by_minilm() -> None:
    recipe = small_recipe(text={"encoder": "clip", "dim": 384})
    with pytest.raises(RecipeError, match="text tower of CLIP"):
        vocabulary.build_cue_table(recipe, ["dog"])


#: Ids by OpenCLIP's SimpleTokenizer, with ftfy.
OPEN_CLIP_IDS = {
    "This is a dog.": [589, 533, 320, 1929, 269],
    "This is a  church bell.": [589, 533, 320, 2735, 3718, 269],
    "A person riding a motorcycle": [320, 2533, 6765, 320, 10297],
    "None": [8906],
    "": [],
    "piano's keys, 3 of 88!": [7894, 568, 6355, 267, 274, 539, 279, 279, 256],
    "dog’s “bark”": [1929, 568, 257, 16560, 257],
    "&amp; cat": [261, 2368],
    "日本語 犬": [39121, 44353, 34002, 508, 163, 232, 361],
    "e\u0301te": [3459, 756],
}


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="instant-clip-tokenizer has no wheels for Python 3.13")
def test_the_package_s_tokens_are_those_of_open_clip(tmp_path: Path) -> None:
    recipe = ClipTextRecipe()
    for folder in (None, tmp_path, tmp_path / "imagebind_huge.pth"):
        rows = clip_token_rows(list(OPEN_CLIP_IDS), recipe, folder)
        assert rows.shape == (len(OPEN_CLIP_IDS), 77) and rows.dtype == np.int64
        for row, ids in zip(rows, OPEN_CLIP_IDS.values(), strict=True):
            assert row.tolist() == [49406, *ids, 49407] + [0] * (75 - len(ids))
    (cut,) = clip_token_rows(["dog " * 99], recipe, None)
    assert cut.tolist() == [49406, *[1929] * 75, 49407]
    with pytest.raises(CueError, match="can't spell"):
        clip_token_rows(["a <end_of_text> dog"], recipe, None)
    with pytest.raises(RecipeError, match=r"clip_text\.vocabulary is 99"):
        clip_token_rows(["a dog"], ClipTextRecipe(vocabulary=99), None)


MERGES = [
    ("t", "h"), ("i", "s</w>"), ("th", "is</w>"), ("o", "g</w>"), ("d", "og</w>"), ("th", "e</w>"), ("a", "r"),
    ("b", "ar"), ("'", "s</w>"), ("ar", "k</w>"), ("b", "ark</w>"), ("bar", "k"),
]  # fmt: skip
SENTENCES = ["This is the  DOG’s bark.", "bark barks 12", "d'og thth", "caf\u00e9 is isis!?", "", "the " * 20]


def byte_characters() -> dict[int, str]:
    """Return the character for each byte: itself if it is printable, otherwise one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(unseen)}


def small_vocabulary() -> dict[str, int]:
    single = list(byte_characters().values())
    tokens = [*single, *(f"{character}</w>" for character in single), *map("".join, MERGES), START, END]
    return {token: i for i, token in enumerate(tokens)}


def spelt(sentence: str) -> list[int]:
    """Apply byte pairs by their definition: of a word's pairs, the one learnt first is joined, repeatedly."""
    tokens, known, found = small_vocabulary(), byte_characters(), []
    text = " ".join(sentence.replace("’", "'").split()).lower()
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+", text):
        parts = [known[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while learnt := [pair for pair in MERGES if pair in pairwise(parts)]:
            first, second = learnt[0]
            joined: list[str] = []
            for part in parts:
                if joined and joined[-1] == first and part == second:
                    joined[-1] = first + second
                else:
                    joined.append(part)
            parts = joined
        found += [tokens[part] for part in parts]
    return found


def write_vocabulary(folder: Path, whole: bool) -> None:
    """Write ``vocab.json`` and ``merges.txt``, or transformers' ``tokenizer.json``."""
    if not whole:
        (folder / "vocab.json").write_text(json.dumps(small_vocabulary()), encoding="utf-8")
        lines = ["#version: 0.2", *map(" ".join, MERGES), ""]
        (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        return
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = small_vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=MERGES, end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.post_processor = processors.RobertaProcessing((END, tokens[END]), (START, tokens[START]))
    tokenizer.add_special_tokens([START, END])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))


def small_clip() -> Recipe:
    return small_recipe(clip_text={"vocabulary": len(small_vocabulary()), "context": 20})


@pytest.mark.parametrize("whole", [False, True], ids=["vocab.json and merges.txt", "tokenizer.json"])
def test_the_vocabulary_beside_a_checkpoint_is_used(whole: bool, tmp_path: Path) -> None:
    recipe = small_clip().clip_text
    write_vocabulary(tmp_path, whole)
    start, end = recipe.vocabulary - 2, recipe.vocabulary - 1
    for folder in (tmp_path, tmp_path / "model.safetensors"):
        rows = clip_token_rows(SENTENCES, recipe, folder)
        for row, sentence in zip(rows, SENTENCES, strict=True):
            ids = [start, *spelt(sentence)[:18], end]
            assert row.tolist() == ids + [0] * (20 - len(ids))
    assert len(spelt(SENTENCES[0])) == 8, "words are joined, most of them wholly"


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    recipe = small_clip().clip_text
    write_vocabulary(tmp_path, whole=False)
    with pytest.raises(CheckpointError, match="does not fit a CLIP with 99 tokens"):
        clip_token_rows(["dog"], ClipTextRecipe(vocabulary=99), tmp_path)
    lacking = {token if token != "z" else "zz": i for token, i in small_vocabulary().items()}
    (tmp_path / "vocab.json").write_text(json.dumps(lacking), encoding="utf-8")
    with pytest.raises(CueError, match="can't spell 'zoo'"):
        clip_token_rows(["dog", "zoo"], recipe, tmp_path)
    (tmp_path / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a vocabulary of CLIP"):
        clip_token_rows(["dog"], recipe, tmp_path)
    write_vocabulary(tmp_path, whole=True)
    with pytest.raises(CueError, match="can't spell 'a <|endoftext|> dog'".replace("|", r"\|")):
        clip_token_rows([f"a {END} dog"], recipe, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        clip_token_rows(["dog"], recipe, tmp_path)


def test_a_missing_tokenizer_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_clip()
    model = ClipText(recipe.clip_text, recipe.text.dim)
    hide(monkeypatch, "instant_clip_tokenizer")
    with pytest.raises(MissingExtraError, match=r"needs instant-clip-tokenizer: .*teso-deploy\[export\].*3\.13"):
        vocabulary.clip_embedder(model, recipe, tmp_path)
    write_vocabulary(tmp_path, whole=True)
    vocabulary.clip_embedder(model, recipe, tmp_path)
    hide(monkeypatch, "tokenizers")
    with pytest.raises(MissingExtraError, match="needs tokenizers: "):
        vocabulary.clip_embedder(model, recipe, tmp_path)


@torch.no_grad()
def test_the_cue_table_of_a_text_tower(tmp_path: Path) -> None:
    recipe = small_clip()
    write_vocabulary(tmp_path, whole=True)
    model = ClipText(recipe.clip_text, recipe.text.dim).eval()
    randomise(model)
    nouns = [f"{first}{second}" for first in "abcdef" for second in ("", "ark", "'s th", " dog is the bark", "9 " * 30)]
    words, rows = vocabulary.build_cue_table(
        recipe, [*nouns, "dog", "this"], vocabulary.clip_embedder(model, recipe, tmp_path)
    )
    assert len(words) == len(nouns) + 3 > vocabulary.CLIP_BATCH
    assert rows.shape == (len(words), recipe.text.dim) and rows.dtype == np.float32
    assert rows.std(axis=0).min() > 1e-3, "words differ"
    for word, row in zip(words, rows, strict=True):
        sentence = recipe.text.template.replace("{cue}", word)
        ids = torch.from_numpy(clip_token_rows([sentence], recipe.clip_text, tmp_path))
        np.testing.assert_allclose(row, model(ids)[0].numpy(), atol=1e-5)

"""The cue table: its words, and our text encoder held to the one of transformers."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from teso_deploy.errors import MissingExtraError, RecipeError
from teso_deploy.exporting import vocabulary
from teso_deploy.recipe import Recipe, load_recipe, parse_recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("teso-nano")


def test_word_list_is_sorted_unique_and_holds_every_class(recipe: Recipe) -> None:
    nouns = vocabulary.shipped_nouns()
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
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tokenizers" else real(name))
    with pytest.raises(MissingExtraError, match=r"needs tokenizers: .*teso-deploy\[export\]"):
        vocabulary.build_cue_table(recipe, ["dog"])


def test_embeddings_equal_those_of_transformers(recipe: Recipe) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers (extra: cues) is not installed")
    import torch

    sentences = [recipe.text.template.format(cue=noun) for noun in vocabulary.shipped_nouns()[::10]]
    folder = str(vocabulary.minilm_folder())
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**encoded).last_hidden_state
    counted = encoded["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * counted).sum(1) / counted.sum(1), dim=-1).numpy()

    encoder = vocabulary.MiniLM()
    ours = np.stack([encoder.embed(sentence) for sentence in sentences])
    assert (ours * expected).sum(axis=1).min() > 0.999999
    np.testing.assert_allclose(ours, expected, atol=1e-5)

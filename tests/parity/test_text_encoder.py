"""A bundle's text encoder at run time, compared with transformers: MiniLM, and CLIP's tower with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from teso_deploy.bundle import (
    CUE_TABLE,
    KIND,
    REFERENCE,
    Bundle,
    BundleManifest,
    CueEntry,
    Postprocessing,
    Preprocessing,
    write_manifest,
)
from teso_deploy.conversion.bundle_export import export_bundle
from teso_deploy.conversion.derive import derive_bundle
from teso_deploy.conversion.text_encoder import find_text_graph, write_text_encoder
from teso_deploy.conversion.vocabulary import find_minilm_folder
from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.names import CueNames
from teso_deploy.cues.table import CueTable
from teso_deploy.cues.text_encoder import TextEncoder
from teso_deploy.errors import CheckpointError, RecipeError
from teso_deploy.models.assembly import recognise_checkpoint
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.recipe import Recipe
from tests.parity.test_clip_text import hugging_face
from tests.parity.test_vocabulary import small_vocabulary, spelt, write_vocabulary
from tests.support.foundations import SHALLOW, small_recipe
from tests.support.graph_files import one_graph
from tests.support.sharing import made_once

#: Words of few tokens, and one with more than the encoder takes.
WORDS = ["kazoo", "glass armonica", "old hurdy-gurdy from the village", "ocarina", "didgeridoo " * 60]
TEMPLATE = "You hear a {cue}!"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a separate cache for the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def with_minilm(tiny_bundle: Path, shared: Path) -> Path:
    """Derive the tiny bundle with its text encoder."""
    return made_once(
        shared / "tiny-minilm", lambda out: derive_bundle(Bundle.open(tiny_bundle), out, text_encoder=True)
    )


def by_transformers(sentences: list[str]) -> NDArray[np.float32]:
    """Embed as MiniLM's model card says: the mean over the tokens, scaled to length one."""
    transformers = pytest.importorskip("transformers", reason="transformers (extra: cues) is not installed")
    folder = str(find_minilm_folder())
    model = transformers.BertModel.from_pretrained(folder).eval()
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(
        sentences, padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    with torch.inference_mode():
        states = model(**encoded).last_hidden_state
    counted = encoded["attention_mask"][..., None]
    pooled: NDArray[np.float32] = F.normalize((states * counted).sum(1) / counted.sum(1), dim=-1).numpy()
    return pooled


def test_minilm_from_a_bundle_is_that_of_transformers(with_minilm: Path) -> None:
    bundle = Bundle.open(with_minilm)
    encoder, cue = TextEncoder.open(bundle), bundle.manifest.cue
    assert cue is not None
    assert encoder is not None
    found = np.stack([encoder.embed(word) for word in WORDS])
    expected = by_transformers([cue.template.replace("{cue}", word) for word in WORDS])
    assert found.shape == (len(WORDS), cue.dim) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - by_transformers(WORDS)).max() > 1e-2, "the template shows"


def test_its_words_reach_the_fusion(with_minilm: Path, tiny_bundle: Path) -> None:
    pipeline = Pipeline.load(with_minilm, threads=1)
    cues = pipeline.cues_of("dogs, Kazoos")
    assert cues.names == ("dog", "kazoo") and cues.valid.tolist() == [True, True, False, False]
    cue = pipeline.bundle.manifest.cue
    assert cue is not None
    (expected,) = by_transformers([cue.template.replace("{cue}", "kazoo")])
    np.testing.assert_allclose(cues.embeddings[1], expected, atol=1e-4)
    np.testing.assert_array_equal(cues.embeddings[0], pipeline.cue_table.lookup(["dog"]).embeddings[0])
    image, sound = np.full((48, 64, 3), 90, np.uint8), np.sin(np.arange(15_600, dtype=np.float32) / 9)
    kazoo, dog = (pipeline.segment(image, sound, [word]).cue_gate for word in ("kazoo", "dog"))
    assert abs(kazoo[0] - dog[0]) > 1e-4, "what the encoder gives goes into the network"
    plain = Pipeline.load(tiny_bundle, threads=1).segment(image, sound, ["dog"])
    np.testing.assert_array_equal(dog, plain.cue_gate)


def test_embeddings_are_kept_by_text_and_encoder(
    with_minilm: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(with_minilm)
    first = TextEncoder.open(bundle)
    assert first is not None
    found = first.embed("kazoo")
    assert first.computed == 1 and any(cache.rglob("*.f32"))

    second = TextEncoder.open(bundle)
    assert second is not None
    np.testing.assert_array_equal(second.embed("kazoo"), found)
    assert second.computed == 0 and "_engine" not in vars(second), "no session was opened"

    (kept,) = cache.rglob("*.f32")
    kept.write_bytes(b"\0" * kept.stat().st_size)
    np.testing.assert_array_equal(second.embed("kazoo"), found)
    assert second.computed == 1, "what was changed is not taken"

    files = bundle.manifest.files
    cue = bundle.manifest.cue
    assert cue is not None and cue.encoder is not None
    entry = cue.encoder
    changed = files[entry.weights].model_copy(update={"sha256": "0" * 64})
    other = bundle.manifest.model_copy(update={"files": files | {entry.weights: changed}})
    third = TextEncoder.open(Bundle(bundle.folder, other))
    assert third is not None
    third.embed("kazoo")
    assert third.computed == 1, "that of another encoder is not taken"
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundle.folder / "bundle.json"))  # not a folder
    fourth = TextEncoder.open(bundle)
    assert fourth is not None
    np.testing.assert_array_equal(fourth.embed("kazoo"), found)


def test_a_derived_bundle_keeps_its_encoder(with_minilm: Path, tmp_path: Path) -> None:
    bundle, _ = derive_bundle(Bundle.open(with_minilm), tmp_path / "again")
    encoder, source = TextEncoder.open(Bundle.open(bundle.folder)), TextEncoder.open(Bundle.open(with_minilm))
    assert encoder is not None and source is not None
    np.testing.assert_array_equal(encoder.embed("kazoo"), source.embed("kazoo"))


def clip_folder(folder: Path, recipe: Recipe) -> Any:
    """Save a random tower with ``save_pretrained``, and its vocabulary."""
    pytest.importorskip("transformers", reason="transformers (extra: cues) is not installed")
    reference = hugging_face(recipe, eos=recipe.clip_text.vocabulary - 1)
    reference.save_pretrained(folder)
    write_vocabulary(folder, whole=True)
    return reference


def small_clip(**text: Any) -> Recipe:
    return small_recipe(
        clip_text={"vocabulary": len(small_vocabulary()), "context": 24},
        text={"template": TEMPLATE, **text},
        **SHALLOW,
    )


def reference_of(model: Any, recipe: Recipe, sentence: str) -> NDArray[np.float32]:
    """Embed one sentence, with byte pairs by their definition."""
    start, end = recipe.clip_text.vocabulary - 2, recipe.clip_text.vocabulary - 1
    ids = torch.tensor([[start, *spelt(sentence)[: recipe.clip_text.context - 2], end]])
    with torch.inference_mode():
        found: NDArray[np.float32] = F.normalize(model(input_ids=ids).text_embeds, dim=1)[0].numpy()
    return found


def test_clip_from_a_bundle_is_that_of_transformers(tmp_path: Path) -> None:
    recipe = small_clip()
    reference = clip_folder(tmp_path, recipe)
    words = ("bark", "dog", "none")
    rows = np.stack([reference_of(reference, recipe, TEMPLATE.replace("{cue}", word)) for word in words])
    table = CueTable(words, rows, max_cues=recipe.text.max_cues)
    manifest = BundleManifest(
        name="small",
        trained=False,
        recipe=recipe.model_dump(mode="json", by_alias=True),
        **one_graph("text_encoder.onnx"),
        preprocessing=Preprocessing(sizes=recipe.image.sizes, mean=(0, 0, 0), std=(1, 1, 1)),
        postprocessing=Postprocessing(threshold=0.5),
        classes=recipe.head.classes,
        cue=CueEntry(template=TEMPLATE, max_cues=recipe.text.max_cues, dim=recipe.text.dim, table=CUE_TABLE),
        provenance={},
        licence="none",
    )
    with KIND.staging(tmp_path / "bundle") as folder:
        np.savez(folder / REFERENCE, nothing=np.zeros(1))
        np.savez(folder / CUE_TABLE, names=np.array(words), embeddings=rows.astype(np.float16))
        entry = write_text_encoder(
            folder, find_text_graph(recipe, recognise_checkpoint(tmp_path, "text")), recipe, table=table
        )
        assert manifest.cue is not None
        cue = manifest.cue.model_copy(update={"encoder": entry})
        write_manifest(folder, manifest.model_copy(update={"cue": cue}))
    bundle = Bundle.open(tmp_path / "bundle")
    encoder = TextEncoder.open(bundle)
    assert encoder is not None
    found = {}
    for word in [*WORDS, "the  bark", "caf\u00e9"]:
        found[word] = encoder.embed(word)
        expected = reference_of(reference, recipe, TEMPLATE.replace("{cue}", word))
        np.testing.assert_allclose(found[word], expected, atol=1e-4)
    assert np.stack(list(found.values())).std(axis=0).min() > 1e-3, "words differ"
    cues = CueNames.open(bundle).look_up_answer(CueAnswer(("kazoos", "Barks"), "llm", confidences=(0.2, 0.8)))
    assert cues.names == ("bark", "kazoo")
    np.testing.assert_array_equal(cues.embeddings[0], rows[0].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(cues.embeddings[1], found["kazoo"])


def test_the_encoder_of_another_table_is_refused(tmp_path: Path) -> None:
    recipe = small_clip()
    reference = clip_folder(tmp_path, recipe)
    words = ("bark", "dog")
    rows = np.stack([reference_of(reference, recipe, TEMPLATE.replace("{cue}", word)) for word in words])
    graph = find_text_graph(recipe, recognise_checkpoint(tmp_path, "text"))
    with pytest.raises(CheckpointError, match="gives 'bark' another embedding than the bundle's table has"):
        write_text_encoder(tmp_path, graph, recipe, table=CueTable(words, rows[::-1], max_cues=2))
    other = recipe.model_copy(update={"text": recipe.text.model_copy(update={"template": "{cue}"})})
    with pytest.raises(CheckpointError, match="another embedding"):
        write_text_encoder(tmp_path, graph, other, table=CueTable(words, rows, max_cues=2))


def test_an_encoder_that_can_not_be_written_out_is_refused_first(tmp_path: Path) -> None:
    recipe = small_clip()
    with pytest.raises(RecipeError, match="--checkpoint text=FILE"):
        export_bundle(recipe, tmp_path / "out", random_weights_seed=0, text_encoder=True)
    with pytest.raises(RecipeError, match=r"text\.dim is 24, .*MiniLM-L6 has width 384"):
        find_text_graph(small_recipe(text={"encoder": "minilm"}), None)
    clip_folder(tmp_path, recipe)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no vocabulary of CLIP beside"):
        export_bundle(recipe, tmp_path / "out", [("text", tmp_path)], random_weights_seed=0, text_encoder=True)
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_encoder_has_none(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert TextEncoder.open(bundle) is None
    assert CueNames.open(bundle).look_up_answer(CueAnswer(("kazoo",), "llm")).names == ()


def test_vocab_and_merges_make_the_same_tokenizer(tmp_path: Path) -> None:
    recipe = small_clip()
    found = []
    for whole in (True, False):
        folder = tmp_path / str(whole)
        folder.mkdir()
        clip_folder(folder, recipe)
        if not whole:
            (folder / "tokenizer.json").unlink()
            write_vocabulary(folder, whole=False)
        tokenizer = find_text_graph(recipe, recognise_checkpoint(folder, "text")).tokenizer
        found.append([tokenizer.encode(sentence).ids for sentence in ("the dog’s bark", "  The  BARK 9", *WORDS)])
    assert found[0] == found[1]

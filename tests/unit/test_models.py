"""The networks with random weights at a tiny size: shapes, guards and the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.models import build, checkpoints
from teso_deploy.models.assembly import assemble
from teso_deploy.models.decoder import Memory, compute_scores
from teso_deploy.models.fusion import MeanPrompt
from teso_deploy.models.graphs import flatten_memory, list_graph_specs, make_graph_modules, unflatten_memory
from teso_deploy.models.layers import Adapter
from teso_deploy.models.tagger import Tagger
from teso_deploy.program import EXTERNAL_TENSORS, TESO
from teso_deploy.recipe import Recipe, TaggerRecipe, list_shipped_recipes, load_recipe, parse_recipe
from tests.support.foundations import small_recipe


def inputs(recipe: Recipe, batch: int, size: tuple[int, int] = (64, 64)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(batch, 3, *size, generator=generator),
        "waveform": torch.randn(batch, 15_600, generator=generator) * 0.1,
        "cues": torch.randn(batch, recipe.text.max_cues, recipe.text.dim, generator=generator),
    }


def test_the_small_model_keeps_its_limits() -> None:
    model = build(load_recipe("teso-nano"))
    assert sum(p.numel() for p in model.parameters()) <= 6_500_000


def test_full_size_comes_from_the_recipe_alone() -> None:
    recipe = parse_recipe('name = "swin-b"')  # the defaults are the paper's sizes
    with torch.device("meta"):
        from teso_deploy.models.teso import Teso

        model = Teso(recipe)
    visual = sum(p.numel() for n, p in model.visual_encoder.named_parameters() if "adapter" not in n)
    # Swin-B (87 M) and pixel decoder, with the decoder's keys and values. By the paper it has 92 M without the latter.
    assert 91e6 < visual < 95e6
    assert model.visual_encoder.swin.dims == [128, 256, 512, 1024]


@pytest.mark.parametrize("valid", [[False] * 4, [True, False, False, False], [True] * 4])
def test_guards_keep_every_number_finite(tiny_recipe: Recipe, valid: list[bool]) -> None:
    model, given = build(tiny_recipe, 0), inputs(tiny_recipe, 2)
    cue_valid = torch.tensor([valid, valid])
    with torch.no_grad():
        scores, gate = model(**given, cue_valid=cue_valid)
    assert scores.isfinite().all() and gate.isfinite().all()
    offered = cue_valid.any(1, keepdim=True)
    assert (gate[offered.expand_as(gate) & ~cue_valid] == 0).all()
    if not any(valid):
        assert (gate[:, 0] != 0).all(), "the fallback cue's gate stands in slot 0"


def force_gates(model: torch.nn.Module, sign: float) -> None:
    """Make ξ of every cue positive or negative, whatever the sound is."""
    last = model.fusion.sedam.attentions[-1]  # type: ignore[union-attr, index]
    with torch.no_grad():
        last.query.weight.zero_()
        last.key.weight.zero_()
        last.query.bias.fill_(1.0)
        last.key.bias.fill_(sign)


def test_all_cues_rejected_leave_the_queries_as_they_are(tiny_recipe: Recipe) -> None:
    model, given = build(tiny_recipe, 0), inputs(tiny_recipe, 2)
    force_gates(model, -1.0)
    valid = torch.ones(2, 4, dtype=torch.bool)
    with torch.no_grad():
        queries, gate = model.fusion(model.audio_encoder(given["waveform"]), given["cues"], valid)
    assert (gate < 0).all()
    assert torch.equal(queries, model.fusion.queries.expand(2, -1, -1))


def test_a_rejected_cue_has_no_say(tiny_recipe: Recipe) -> None:
    model, given = build(tiny_recipe, 0), inputs(tiny_recipe, 1)
    force_gates(model, 1.0)
    audio = model.audio_encoder(given["waveform"])
    other = given["cues"].clone()
    other[:, 1:] = 7.0
    valid = torch.tensor([[True, False, False, False]])
    with torch.no_grad():
        alone, _ = model.fusion(audio, given["cues"], valid)
        beside, _ = model.fusion(audio, other, valid)
        accepted, _ = model.fusion(audio, other, torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(alone, beside)
    assert not torch.allclose(alone, accepted)


def test_the_fallback_cue_stands_in_only_where_none_is_offered(tiny_recipe: Recipe) -> None:
    fusion: Any = build(tiny_recipe, 0).fusion
    cues = inputs(tiny_recipe, 2)["cues"]
    offered, valid = fusion.fill_cues(cues, torch.tensor([[False] * 4, [False, True, False, False]]))
    assert torch.equal(offered[0, 0], fusion.fallback_cue) and not offered[0, 1:].any()
    assert torch.equal(offered[1, 1], cues[1, 1]) and not offered[1, 0].any()
    assert valid.tolist() == [[True, False, False, False], [False, True, False, False]]


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_convolutions_are_the_recipe_s_choice(tiny_recipe: Recipe, size: tuple[int, int]) -> None:
    swin = tiny_recipe.swin.model_copy(update={"convolutions": True})
    recipe = tiny_recipe.model_copy(update={"swin": swin})
    names = {name for name, _ in build(recipe).named_parameters()}
    assert any("depthwise" in name for name in names)
    assert not any("depthwise" in name for name, _ in build(tiny_recipe).named_parameters())
    scores, _ = build(recipe, 0)(**inputs(recipe, 2, size), cue_valid=torch.ones(2, 4, dtype=torch.bool))
    assert scores.shape[2:] == (size[0] // 4, size[1] // 4) and scores.isfinite().all()


def test_a_row_that_hides_everything_attends_everywhere(tiny_recipe: Recipe) -> None:
    layer = build(tiny_recipe, 0).decoder.layers[0]
    dim, heads = tiny_recipe.pixel_decoder.dim, tiny_recipe.decoder.heads
    x, positions = torch.randn(1, 3, dim), torch.randn(3, dim)
    keys, values = torch.randn(1, heads, 5, dim // heads), torch.randn(1, heads, 5, dim // heads)
    with torch.no_grad():
        hidden = layer(x, positions, keys, values, torch.ones(1, 3, 5, dtype=torch.bool))
        free = layer(x, positions, keys, values, torch.zeros(1, 3, 5, dtype=torch.bool))
    assert torch.equal(hidden, free)


def test_adapters_start_as_the_identity() -> None:
    x = torch.randn(3, 8)
    assert torch.equal(Adapter(8)(x), x)


def test_adapters_stand_where_the_recipe_says(tiny_recipe: Recipe) -> None:
    bare = build(tiny_recipe.model_copy(update={"adapters": ()}))
    assert not [name for name, _ in bare.named_parameters() if "adapter" in name]
    some = build(tiny_recipe.model_copy(update={"adapters": ("self_attention",)}))
    named = {name.split(".adapter")[0] for name, _ in some.named_parameters() if "adapter" in name}
    assert named and all("decoder.layers" in name for name in named)


@pytest.mark.parametrize("kind", ["semantic", "binary"])
def test_heads(tiny_recipe: Recipe, kind: str) -> None:
    head = tiny_recipe.head if kind == "semantic" else {"kind": "binary", "classes": ["sounding object"]}
    recipe = Recipe.model_validate({**tiny_recipe.model_dump(by_alias=True), "head": head})
    scores, _ = build(recipe, 0)(**inputs(recipe, 2), cue_valid=torch.ones(2, 4, dtype=torch.bool))
    assert scores.shape == (2, len(recipe.head.classes), 16, 16)


def test_eq_7_by_einsum(tiny_recipe: Recipe) -> None:
    classes = len(tiny_recipe.head.classes)
    class_logits, mask_logits = torch.randn(2, 5, classes + 1), torch.randn(2, 5, 4, 6)
    expected = torch.einsum("bqc,bqhw->bchw", class_logits.softmax(-1)[..., :-1], mask_logits.sigmoid())
    assert torch.allclose(compute_scores(class_logits, mask_logits, tiny_recipe.head), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_the_split_graphs_are_the_model(tiny_recipe: Recipe, size: tuple[int, int]) -> None:
    model, given = build(tiny_recipe, 0), inputs(tiny_recipe, 2, size)
    valid = torch.tensor([[True, True, False, False], [False] * 4])
    modules, specs = make_graph_modules(model), list_graph_specs(tiny_recipe)
    with torch.no_grad():
        *memory, tags = modules["visual_encoder"](given["image"])
        (audio,) = (modules["audio_encoder"](given["waveform"]),)
        queries, gate = modules["fusion"](audio, given["cues"], valid)
        masks = modules["decoder"](queries, *memory)
        expected, expected_gate = model(**given, cue_valid=valid)
    assert specs["visual_encoder"].outputs == (*specs["decoder"].inputs[1:], "tags")
    assert len(memory) == len(specs["decoder"].inputs) - 1 and tags.shape == (2, 3)
    assert torch.equal(masks, expected) and torch.equal(gate, expected_gate)


def test_memory_survives_flattening(tiny_recipe: Recipe) -> None:
    memory = build(tiny_recipe, 0).visual_encoder(inputs(tiny_recipe, 1)["image"])
    again = unflatten_memory(flatten_memory(memory))
    assert isinstance(again, Memory)
    assert all(a is b for a, b in zip(flatten_memory(memory), flatten_memory(again), strict=True))


def test_resizing_mask_features_first_is_exact(tiny_recipe: Recipe) -> None:
    model = build(tiny_recipe, 0)
    memory = model.visual_encoder(inputs(tiny_recipe, 1)["image"])
    queries = torch.randn(1, tiny_recipe.decoder.queries, tiny_recipe.pixel_decoder.dim)
    for features in memory.resized:
        small = model.decoder.mask_logits(queries, features)
        large = model.decoder.mask_logits(queries, memory.mask_features)
        resized = torch.nn.functional.interpolate(large, size=features.shape[2:], mode="bilinear", align_corners=False)
        assert torch.allclose(small, resized, atol=1e-5)


def test_a_tag_is_the_mean_of_the_cells_that_look_most_like_it() -> None:
    torch.manual_seed(0)
    tagger = Tagger(5, 3)
    features = torch.randn(2, 5, 16, 20)
    weight, bias = tagger.classifier.weight[:, :, 0, 0].double(), tagger.classifier.bias.double()
    logits = torch.einsum("kd,bdhw->bkhw", weight, features.double()) + bias[:, None, None]
    share = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    expected = share[:, 1:].flatten(2).sort(dim=2, descending=True).values[:, :, :3].mean(2)  # 1 % of 320 cells
    assert torch.allclose(tagger(features).double(), expected, atol=1e-6)
    assert tagger(torch.randn(1, 5, 2, 2)).shape == (1, 3), "at least one cell"


def test_without_words_there_is_no_tagger(tiny_recipe: Recipe) -> None:
    plain = tiny_recipe.model_copy(update={"tagger": TaggerRecipe()})
    assert build(plain).visual_encoder.tagger is None
    assert (
        list_graph_specs(plain)["visual_encoder"].outputs
        == list_graph_specs(tiny_recipe)["visual_encoder"].outputs[:-1]
    )
    assert list_graph_specs(plain)["decoder"] == list_graph_specs(tiny_recipe)["decoder"]


@pytest.mark.parametrize("part", ["sedam", "pmqs", "dynamic_mask", "text", "audio"])
def test_without_a_part_what_it_carried_is_gone_and_the_rest_still_works(tiny_recipe: Recipe, part: str) -> None:
    fusion = tiny_recipe.fusion.model_copy(update={"without": (part,)})
    ablated = tiny_recipe.model_copy(update={"fusion": fusion})
    given = inputs(tiny_recipe, 2)
    valid = torch.tensor([[True, True, False, False], [True, False, False, False]])
    no_cue = torch.zeros_like(valid)
    generator = torch.Generator().manual_seed(2)
    audio, other = torch.randn(2, 12, generator=generator), torch.randn(2, 12, generator=generator)
    for seed in range(200):  # random weights that accept every cue; otherwise nothing would reach the queries
        model = build(ablated, seed).fusion
        with torch.no_grad():
            queries, gate = model(audio, given["cues"], valid)
            other_sound, gate_of_sound = model(other, given["cues"], valid)
            other_cues, gate_of_cues = model(audio, given["cues"].flip(0), valid)
            none_offered, gate_of_none = model(audio, given["cues"], no_cue)
        offered = no_cue if part == "text" else valid
        alive = all((g[offered] > 0).all() for g in (gate, gate_of_sound, gate_of_cues))
        if alive and (gate_of_none[:, 0] > 0).all() and (gate[:, 0] > 0).all():
            break
    else:
        pytest.fail("no random weights let every cue live")
    assert queries.isfinite().all() and gate.shape == (2, 4)
    assert torch.equal(queries, other_sound) == (part == "audio")
    assert torch.equal(queries, other_cues) == (part == "text")
    assert torch.equal(queries, none_offered) == (part == "text")
    if part == "sedam":
        assert (gate == valid.float()).all()
    if part in ("sedam", "dynamic_mask", "text"):
        plain = model.queries.expand_as(queries)
        assert not torch.equal(queries[0], plain[0]) and not torch.equal(queries[1], plain[1]), "always prompted"


def test_the_mean_prompt_is_of_the_cues_that_are_alive() -> None:
    queries, prompts = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    alive = torch.tensor([[True, False, True, False], [False] * 4])
    found = MeanPrompt()(queries, prompts, alive)
    assert torch.allclose(found[0], queries[0] + (prompts[0, 0] + prompts[0, 2]) / 2, atol=1e-6)
    assert torch.equal(found[1], queries[1])


FAMILIES: dict[str, Any] = {
    "mask2former": {},
    "raw masks": {"head": {"masks": "raw", "resize_chain": (64, 40)}, "fusion": {"kind": "segpref", "ffn_dim": 24}},
    "sam": {
        "foundation": "sam",
        "sam": {"embed_dim": 16, "layers": 2, "heads": 2, "mlp_dim": 24, "window": 3, "dim": 16, "decoder_heads": 2},
        "adapters": ["sam_encoder", "sam_decoder"],
    },
    "beats": {
        "audio": {"encoder": "beats", "dim": 12},
        "beats": {"embed_dim": 8, "dim": 12, "layers": 1, "heads": 2, "ffn_dim": 16, "position_groups": 2},
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_ours_gives_the_same_model_back(family: str, tmp_path: Path) -> None:
    recipe = small_recipe(**FAMILIES[family])
    model = build(recipe, 3)
    path = tmp_path / "model.safetensors"
    checkpoints.save(model, path, {"recipe": recipe.model_dump_json(by_alias=True)})
    built = assemble(recipe, [(None, path)])
    own, given = model.state_dict(), built.model.state_dict()
    assert built.is_trained and own.keys() == given.keys()
    assert all(torch.equal(own[key], given[key]) for key in own)
    assert checkpoints.read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"audio": {"encoder": "beats", "dim": 12}}, "audio.dim 12 is not the width of BEATs"),
        ({"foundation": "sam", "image": {"sizes": [[64, 96]]}}, "must be one square"),
        ({"foundation": "sam", "head": {"kind": "semantic", "classes": ["a", "b"]}}, "it names nothing"),
        ({"foundation": "sam", "sam": {"mask_token": 4}}, "there are 4, from 0"),
        ({"head": {"resize_chain": [64]}}, "only raw masks are resized"),
    ],
)
def test_parts_that_do_not_go_together(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        small_recipe(**tables)


def test_every_shipped_recipe_can_be_built() -> None:
    for name in list_shipped_recipes():
        recipe = load_recipe(name)
        with torch.device("meta"):
            model = build(recipe)
        assert recipe.name == name and sum(parameter.numel() for parameter in model.parameters()) > 5e6
    seventy = load_recipe("teso-m2f-swin-b-semantic-70").head
    assert seventy.kind == "semantic" and seventy.classes == list_avss_classes()


def test_a_recipe_says_only_what_is_other_than_in_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nextends = "teso-m2f-swin-t"\n[fusion]\nwithout = ["pmqs"]\n[train]\ninfo_nce = 0.0\n'
    )
    mine, tiny, base = (load_recipe(name) for name in (tmp_path / "mine.toml", "teso-m2f-swin-t", "teso-m2f-swin-b"))
    assert mine.swin == tiny.swin != base.swin and mine.pixel_decoder == base.pixel_decoder
    assert mine.fusion.without == ("pmqs",) and mine.fusion.latents == base.fusion.latents
    assert mine.train is not None and base.train is not None
    assert mine.train.info_nce == 0 and mine.train.videos == base.train.videos
    (tmp_path / "yours.toml").write_text('name = "yours"\nextends = "mine.toml"\n')
    assert load_recipe(tmp_path / "yours.toml").fusion == mine.fusion, "a file beside it"


def test_the_program_gives_every_graph_its_inputs(tiny_recipe: Recipe) -> None:
    specs = list_graph_specs(tiny_recipe)
    assert tuple(specs) == TESO.names
    given = {name: set(tensors) for name, tensors in EXTERNAL_TENSORS.items()}
    given |= {name: set(spec.outputs) for name, spec in specs.items()}
    for stage in TESO.stages:
        assert set(specs[stage.name].inputs) <= set[str]().union(*(given[source] for source in stage.inputs))

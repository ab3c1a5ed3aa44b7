"""Recipes with any content: one sentence that names what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from teso_deploy.conversion.plan import check_memory
from teso_deploy.errors import InputNotFoundError, RecipeError, TesoError
from teso_deploy.recipe import Recipe, load_recipe, parse_recipe
from tests.support.commands import refused


def sentence(path: Path | str, kind: type[TesoError] = RecipeError) -> str:
    with pytest.raises(kind) as caught:
        load_recipe(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff", "is not UTF-8"),
        ("name = 'a'".encode("utf-16"), "is UTF-16"),
        (b"a = " + b"[" * 50_000, "nested too deeply"),
        (b"a = " + b"9" * 6000, "is not TOML"),
        (b"a = 1\na = 2", "is not TOML"),
        (b"name = 3", "name: "),
        (b'name = "a\\nb"', "name: "),
        (b'name = "a"\n"\\u001b[2J" = 1', "is not a field of a recipe"),
        (b'name = "a"\nextends = 3', "name one recipe"),
        (b'name = "a"\nextends = "../../etc/passwd"', "unknown recipe '../../etc/passwd'"),
        (b'name = "a"\n[fusion]\ngate_threshold = nan', "fusion.gate_threshold: Input should be a finite number"),
        (b'name = "a"\n[image]\nstd = [0.0, 1.0, 1.0]', "image.std.0"),
        (b'name = "a"\n[image]\nsizes = [[1000000000, 32]]', "image.sizes.0.0"),
        (b'name = "a"\n[image]\nsizes = []', "image.sizes"),
        (b'name = "a"\n[swin]\nembed_dim = 1000000000', "swin.embed_dim"),
        (b'name = "a"\n[swin]\ndepths = [2, 2, 1000000000, 2]', "swin.depths.2"),
        (b'name = "a"\n[swin]\nwindow = 100000', "swin.window"),
        (b'name = "a"\n[swin]\nmlp_ratio = inf', "swin.mlp_ratio"),
        (b'name = "a"\n[decoder]\nlayers = 1000000000', "decoder.layers"),
        (b'name = "a"\n[text]\nmax_cues = 1000000000', "text.max_cues"),
        (b'name = "a"\n[text]\ndim = 1000000000', "text.dim"),
        (b'name = "a"\n[head]\nclasses = []', "classes must be 1 to 255"),
        (b'name = "a"\n[head]\nclasses = ["a\\u001b[31m"]', "characters that can't be printed"),
        (b'name = "a"\nimage = 3', "image: "),
    ],
)
def test_a_file_with_something_else_in_it(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    text = sentence(path)
    assert says in text and text.count(str(path)) == 1


def test_recipes_that_extend_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    loop = tmp_path / "loop.toml"
    loop.write_text('name = "a"\nextends = "sub/../loop.toml"\n')
    assert "which is a circle" in sentence(loop)
    (folder / "a.toml").write_text('name = "a"\nextends = "link.toml"\n')
    (folder / "link.toml").symlink_to("a.toml")
    assert "which is a circle" in sentence(folder / "a.toml")
    (tmp_path / "lost.toml").write_text('name = "a"\nextends = "nowhere.toml"\n')
    assert "nowhere.toml can't be read (it does not exist)" in sentence(tmp_path / "lost.toml", InputNotFoundError)
    for number in range(40):
        (folder / f"{number}.toml").write_text(f'name = "a"\nextends = "{number + 1}.toml"\n')
    assert "more than 32 recipes" in sentence(folder / "0.toml")


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    assert "is a pipe" in sentence(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    assert "is a device" in sentence(tmp_path / "zero.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "is a folder" in sentence(tmp_path / "folder.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (5 << 20))
    assert "more than 4,194,304 bytes" in sentence(tmp_path / "large.toml")
    sentence(f"{'a' * 300}.toml", RecipeError)
    sentence("a\0.toml", InputNotFoundError)
    sentence("a\n\x1b[2J")


def test_text_without_a_file() -> None:
    for text in ("a = " + "[" * 50_000, "a = " + "9" * 6000):
        with pytest.raises(RecipeError, match="the recipe is not TOML"):
            parse_recipe(text)


def test_by_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff")
    refused("export", path, "--dry-run", names="is not UTF-8")


def test_a_model_that_is_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe) -> None:
    check_memory(tiny_recipe)
    wide = tiny_recipe.audio.model_copy(update={"hidden": (65_536, 65_536)})
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 16 << 30)
    with pytest.raises(RecipeError, match=r"has \d+ GB of weights, but this machine has 17 GB of memory"):
        check_memory(tiny_recipe.model_copy(update={"audio": wide}))

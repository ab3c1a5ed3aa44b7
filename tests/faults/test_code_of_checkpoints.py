"""A checkpoint's folder may contain Python code: it never runs, and the user is not asked about it."""

from __future__ import annotations

import ast
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import teso_deploy
from tests.support.commands import names_in, refused
from tests.support.language_models import save_llava, save_reasoner, save_vision_encoder_decoder

ROOT = Path(teso_deploy.__file__).parent.parent
_OWN_CLASSES = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForCausalLM": "evil.EvilModel",
    "AutoImageProcessor": "evil.EvilProcessor",
}


def calls_of_loaders(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """Yield every call of ``from_pretrained`` and ``from_config``, also if it is passed to another function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            for of in (node.func, *node.args):
                if isinstance(of, ast.Attribute) and of.attr in ("from_pretrained", "from_config"):
                    yield node.lineno, of.attr, node


def is_safe(name: str, call: ast.Call) -> bool:
    given = {word.arg: word.value for word in call.keywords}
    wanted = {"trust_remote_code": False, **({"local_files_only": True} if name == "from_pretrained" else {})}
    return all(
        isinstance(value := given.get(option), ast.Constant) and value.value is expected
        for option, expected in wanted.items()
    )


def test_every_loader_is_told_to_run_no_code_and_to_download_nothing() -> None:
    paths = [*(ROOT / "teso_deploy").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    found = [(path, *call) for path in paths for call in calls_of_loaders(path)]
    assert len(found) >= 6, "the calls that there are"
    assert [f"{path}:{line}" for path, line, name, call in found if not is_safe(name, call)] == []


def test_the_check_of_loaders_finds_what_is_missing() -> None:
    calls = [
        "f.from_pretrained(x, local_files_only=True)",
        "f.from_pretrained(x, trust_remote_code=False)",
        "quietly(f.from_pretrained, x, trust_remote_code=True, local_files_only=True)",
        "f.from_pretrained(x, **arguments)",
    ]
    for text in calls:
        call = ast.parse(text).body[0].value  # type: ignore[attr-defined]
        assert not is_safe("from_pretrained", call)


class _Asked(io.StringIO):
    """Standard input that answers yes to everything, and records that it was read."""

    was_asked = False

    def readline(self, *_: Any) -> str:  # type: ignore[override]
        self.was_asked = True
        return "y\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Asked:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    stdin = _Asked()
    monkeypatch.setattr(sys, "stdin", stdin)
    return stdin


def with_code(folder: Path, trace: Path, **files: dict[str, Any]) -> Path:
    """Write a model's folder with Python code that would create a file. ``files``: changes of its JSON files."""
    (folder / "evil.py").write_text(
        f"open({str(trace)!r}, 'w').write('ran')\n"
        + "".join(f"class Evil{name}: pass\n" for name in ("Config", "Model", "Processor", "Tokenizer"))
    )
    for name, change in files.items():
        path = folder / f"{name}.json"
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(content | change))
    return folder


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reasoner"
    save_reasoner(folder, "llama")
    return folder


def test_a_tokenizer_of_its_own(tmp_path: Path, reasoner: Path, asked: _Asked) -> None:
    shutil.copytree(reasoner, tmp_path / "m")
    own = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    folder = with_code(tmp_path / "m", tmp_path / "trace", config={"auto_map": _OWN_CLASSES}, tokenizer_config=own)
    sentence = refused("export-cues", "--reasoner", folder, "--out", tmp_path / "out", names="needs its own code")
    assert "trust_remote_code" not in sentence and not asked.was_asked
    assert not (tmp_path / "trace").exists() and "out" not in names_in(tmp_path)


@pytest.mark.parametrize("kind", ["captioner", "llava"])
def test_a_processor_of_its_own(kind: str, tmp_path: Path, asked: _Asked) -> None:
    (save_llava if kind == "llava" else save_vision_encoder_decoder)(tmp_path / "m")
    own = {"image_processor_type": "EvilProcessor", "auto_map": {"AutoImageProcessor": "evil.EvilProcessor"}}
    folder = with_code(tmp_path / "m", tmp_path / "trace", config={"auto_map": _OWN_CLASSES}, preprocessor_config=own)
    refused("export-cues", "--captioner", folder, "--out", tmp_path / "out", names="needs its own code")
    assert not asked.was_asked and not (tmp_path / "trace").exists()


def test_a_part_of_a_model_of_its_own(tmp_path: Path, asked: _Asked) -> None:
    save_vision_encoder_decoder(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    # A model type that is known, but not as a decoder: the library would look for the class that the checkpoint names.
    decoder = {"model_type": "vit", "is_decoder": True, "auto_map": _OWN_CLASSES, "_name_or_path": str(tmp_path / "m")}
    folder = with_code(tmp_path / "m", tmp_path / "trace", config={**config, "decoder": decoder})
    refused("export-cues", "--captioner", folder, "--out", tmp_path / "out", names="m")
    assert not asked.was_asked and not (tmp_path / "trace").exists()

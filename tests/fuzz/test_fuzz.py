"""A few hundred odd inputs, the same in every run: each is processed, refused in a sentence, or fails a check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.cases import Case
from tests.fuzz.dataset_targets import write_dataset
from tests.fuzz.harness import Fuzzer
from tests.fuzz.seeds import Seeds
from tests.fuzz.targets import TARGETS
from tests.fuzz.usage_targets import write_media_folder

SEED = 1
CASES = 14


@pytest.fixture(scope="module")
def fuzzer(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    with Fuzzer(Seeds(tiny_bundle), tmp_path_factory.mktemp("fuzz")) as fuzzer:
        yield fuzzer


@pytest.mark.parametrize("target", TARGETS)
def test_odd_inputs_end_well(target: str, fuzzer: Fuzzer) -> None:
    tried = [fuzzer.try_case(target, SEED, number) for number in range(CASES)]
    found = [f"{one.command}: {', '.join(map(str, one.findings))}" for one in tried if one.findings]
    assert not found, "\n".join(found)


def test_right_inputs_are_taken(fuzzer: Fuzzer) -> None:
    """The targets' inputs are valid before they are damaged. Otherwise all would be refused for the same reason."""
    seeds = fuzzer.seeds
    bundle, report = ["--bundle", str(seeds.bundle)], frozenset({"report.json"})
    for name, content in seeds.media.items():
        shop = fuzzer.make_workshop(name)
        given = str(shop.write(name, content))
        clip = str(shop.write("clip.mp4", seeds.clip))
        inputs = [clip, "--sound-from", given] if name.startswith("tone") else [given]
        arguments = ["run", *inputs, *bundle, "--json", str(shop.out("report.json"))]
        assert_good(fuzzer, shop.folder, Case(arguments, name, report, frozenset({0})))
    for name, content in seeds.checkpoints.items():
        shop = fuzzer.make_workshop(name)
        arguments = ["verify", str(seeds.bundle), "--checkpoint", str(shop.write(name, content))]
        assert_good(fuzzer, shop.folder, Case(arguments, name, codes=frozenset({0})))
    shop = fuzzer.make_workshop("data")
    arguments = [
        "eval",
        str(write_media_folder(shop)),
        *bundle,
        "--scenes",
        "1",
        "--json",
        str(shop.out("report.json")),
    ]
    assert_good(fuzzer, shop.folder, Case(arguments, "data", report, frozenset({0})))
    for kind in ("avss", "clips"):
        shop = fuzzer.make_workshop(kind)
        arguments = ["check-data", write_dataset(shop, kind), "--json", str(shop.out("report.json"))]
        assert_good(fuzzer, shop.folder, Case(arguments, kind, report, frozenset({0})))


def assert_good(fuzzer: Fuzzer, folder: Path, case: Case) -> None:
    tried = fuzzer.run(case, folder, 1)
    assert not tried.findings, (tried, tried.stderr.decode("utf-8", "replace"))


def test_a_case_is_the_same_each_time(fuzzer: Fuzzer) -> None:
    for target in TARGETS:
        first, second = (fuzzer.make_case(target, 3, 0) for _ in range(2))
        ports = (case.arguments for case in (first, second))
        assert len({tuple(text for text in arguments if "127.0.0.1" not in text) for arguments in ports}) == 1

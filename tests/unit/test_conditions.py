"""The sounds of audio control: their levels, and the clips that other sounds are taken from."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.errors import DataError
from teso_deploy.evaluation.conditions import Condition, Partners, list_conditions, make_windows
from teso_deploy.evaluation.datasets.words import find_broad_class


@pytest.fixture
def tone() -> NDArray[np.float32]:
    """Five windows of different loudness."""
    times = np.arange(15_600) / 16_000
    levels = np.array([0.02, 0.04, 0.05, 0.03, 0.01])[:, None]
    return (levels * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def measure_db(samples: NDArray[np.float32]) -> float:
    return 10 * float(np.log10(np.mean(samples.astype(np.float64) ** 2)))


@pytest.mark.parametrize("unit", ["dBFS", "dBW"])
def test_noise_in_place_of_the_sound_has_its_level(tone: NDArray[np.float32], unit: str) -> None:
    noise = make_windows(Condition("noise", -25, unit), "a", tone)  # type: ignore[arg-type]
    assert noise.shape == tone.shape and noise.dtype == np.float32
    assert measure_db(noise) == pytest.approx(-25, abs=0.05)
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.03 and abs(np.corrcoef(noise[0], tone[0])[0, 1]) < 0.03


def test_noise_beyond_full_scale_is_clipped(tone: NDArray[np.float32]) -> None:
    loud = make_windows(Condition("noise", 40, "dBW"), "a", tone)
    assert np.abs(loud).max() == 1 and np.mean(np.abs(loud) == 1) > 0.98 and abs(loud.mean()) < 0.02


def test_added_noise_has_its_ratio_to_the_sound_of_the_clip(tone: NDArray[np.float32]) -> None:
    mixed = make_windows(Condition("mixed noise", 10, "dB SNR"), "a", tone)
    assert measure_db(tone) - measure_db(mixed - tone) == pytest.approx(10, abs=0.05)
    silent = np.zeros_like(tone)
    assert not make_windows(Condition("mixed noise", 10, "dB SNR"), "a", silent).any()


def test_noise_depends_on_the_clip_and_the_condition_alone(tone: NDArray[np.float32]) -> None:
    condition = Condition("noise", -25, "dBFS")
    first = make_windows(condition, "a", tone)
    assert np.array_equal(first, make_windows(condition, "a", tone * 2))
    assert not np.array_equal(first, make_windows(condition, "b", tone))
    assert not np.array_equal(first, make_windows(Condition("noise", -25, "dBW"), "a", tone))


def test_silence_and_shifted_sound(tone: NDArray[np.float32]) -> None:
    assert not make_windows(Condition("muted"), "a", tone).any()
    shifted = make_windows(Condition("shifted"), "a", tone)
    assert np.array_equal(shifted, tone[[2, 3, 4, 0, 1]])
    assert np.array_equal(make_windows(Condition("normal"), "a", tone), tone)


def test_which_conditions_a_user_names() -> None:
    assert [one.name for one in list_conditions()] == ["normal"]
    named = list_conditions(["swapped", "muted"], noise_dbfs=[-25, -40], noise_dbw=[10], noise_snr=[0])
    assert [one.name for one in named] == [
        "normal", "muted", "noise -25 dBFS", "noise -40 dBFS", "noise 10 dBW", "noise 0 dB SNR", "swapped"
    ]  # fmt: skip
    every = [one.name for one in list_conditions(["all"])]
    assert every[:5] == ["normal", "muted", "noise -25 dBFS", "noise 10 dBW", "noise 40 dBW"]
    assert every[5:] == ["off-screen", "off-screen same kind", "shifted", "swapped"]
    assert [one.is_negative for one in list_conditions(["all"], noise_snr=[5])] == [
        False, True, False, True, True, False, False
    ]  # fmt: skip
    with pytest.raises(DataError, match="unknown condition 'silent': name one of normal, muted"):
        list_conditions(["silent"])


WORDS = {"a": ["dog"], "b": ["cat"], "c": ["piano"], "d": ["dog", "man"], "e": []}


def test_partners_for_off_screen_sounds() -> None:
    partners = Partners(WORDS, find_broad_class)
    off_screen, same_kind = Condition("off-screen"), Condition("off-screen same kind")
    assert partners.choose(off_screen, "a") == "c"
    assert partners.choose(same_kind, "a") == "b" and partners.choose(same_kind, "b") == "a"
    assert partners.choose(off_screen, "c") in ("a", "b", "d")
    assert partners.choose(same_kind, "c") is None  # no other music
    assert partners.choose(same_kind, "d") == "b" and partners.choose(off_screen, "d") == "c"
    assert partners.choose(off_screen, "e") is None  # its words are not known
    assert partners.choose(Condition("swapped"), "e") in ("a", "b", "c", "d")


def test_a_partner_is_never_the_clip_itself_and_is_stable() -> None:
    words = {f"clip {k}": ["dog"] for k in range(50)}
    chosen = {uid: Partners(words, find_broad_class).choose(Condition("swapped"), uid) for uid in words}
    assert all(other not in (None, uid) for uid, other in chosen.items())
    assert len(set(chosen.values())) > 20
    again = Partners(dict(words), find_broad_class)
    assert all(again.choose(Condition("swapped"), uid) == other for uid, other in chosen.items())

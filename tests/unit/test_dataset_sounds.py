"""The sound of one second of a data set: the right samples, channels and rate."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teso_deploy.errors import InputNotFoundError, MediaError
from teso_deploy.evaluation.datasets.sounds import read_second, read_windows
from tests.support.avs_layouts import (
    THINGS,
    sounding,
    write_wav,
)


def test_a_second_starts_at_its_second(tmp_path: Path) -> None:
    seconds = [sounding(0, second) for second in range(5)]
    write_wav(tmp_path / "a.wav", seconds)
    with wave.open(str(tmp_path / "a.wav")) as file:
        whole = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)[:, 0] / 32768
    together = read_windows(tmp_path / "a.wav", 5)
    assert together.shape == (5, 15_600) and together.dtype == np.float32
    for k in range(5):
        window = read_second(tmp_path / "a.wav", k)
        assert window.shape == (15_600,) and window.dtype == np.float32
        assert np.array_equal(window, together[k])
        assert np.abs(window - whole[k * 16_000 : k * 16_000 + 15_600]).max() < 1e-4
        spectrum = np.abs(np.fft.rfft(window, 16_000))
        heard = {word for word, (_, hertz) in THINGS.items() if spectrum[round(hertz)] > 0.1 * 15_600 / 2}
        assert heard == set(seconds[k])
    contiguous = read_windows(tmp_path / "a.wav", 5, hop_seconds=0.96)
    for k in range(5):
        assert np.abs(contiguous[k] - whole[k * 15_360 : k * 15_360 + 15_600]).max() < 1e-4


def test_what_a_short_wav_does_not_reach_is_zero(tmp_path: Path) -> None:
    write_wav(tmp_path / "short.wav", [["dog"], ["dog"]])
    with wave.open(str(tmp_path / "short.wav")) as file:
        frames = file.readframes(24_000)
    with wave.open(str(tmp_path / "short.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(frames)
    windows = read_windows(tmp_path / "short.wav", 4)
    assert np.abs(windows[1][:8000]).max() > 0.2 and not windows[1][8000:].any()
    assert not windows[2:].any()


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = 0.8 * np.sin(np.arange(16_000) / 5), 0.9 * np.cos(np.arange(16_000) / 9)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.stack([left, right], axis=1) * 32767).astype("<i2").tobytes())
    assert np.abs(read_second(tmp_path / "a.wav", 0) - ((left + right) / 2)[:15_600]).max() < 1e-4


def test_other_rates_become_16_khz(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", [["dog"], ["piano"]], rate_hz=44_100)
    for k, hertz in enumerate((500, 2000)):
        spectrum = np.abs(np.fft.rfft(read_second(tmp_path / "a.wav", k), 16_000))
        assert int(spectrum.argmax()) == hertz


def test_sound_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="negative"):
        read_second(tmp_path / "a.wav", -1)
    with pytest.raises(InputNotFoundError):
        read_second(tmp_path / "a.wav", 0)
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(MediaError):
        read_second(tmp_path / "a.wav", 0)
    write_wav(tmp_path / "a.wav", [])
    with pytest.raises(MediaError):
        read_second(tmp_path / "a.wav", 0)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="no audio track"):
        read_second(tmp_path / "a.png", 0)

"""Published protocols on data sets of clips, with made-up models that hear well, badly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import DataError
from teso_deploy.evaluation.clip_trials import ClipTrial
from teso_deploy.evaluation.contracts import Prediction, Score
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.metrics import BINARY_DEFINITIONS
from teso_deploy.evaluation.prediction_files import pair_files, score_pairs
from teso_deploy.evaluation.protocols.clips import compute_drop
from teso_deploy.evaluation.protocols.registry import OpenProtocol, ProtocolOptions, open_protocol
from teso_deploy.evaluation.scoring import score_protocol
from teso_deploy.options.clips import ClipOptions
from tests.support.avs_layouts import THINGS, write_avss, write_ms3, write_s4, write_wav

CLASSES = ("dog", "car", "piano")


@pytest.fixture(scope="module")
def avss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avss(tmp_path_factory.mktemp("avss"), videos=6)


def open_clips(protocol: str, root: Path, **options: object) -> OpenProtocol:
    clips = ClipOptions(**options)  # type: ignore[arg-type]
    return open_protocol(protocol, root, ProtocolOptions(CLASSES, clips=clips))


def find_tones(samples: NDArray[np.float32]) -> set[str]:
    """Return the objects whose tones are in a window."""
    spectrum = np.abs(np.fft.rfft(samples)) / len(samples)
    bins = {word: round(hertz * len(samples) / 16_000) for word, (_, hertz) in THINGS.items()}
    return {word for word, place in bins.items() if spectrum[place] > 0.05}


def look_for(image: NDArray[np.uint8], word: str) -> NDArray[np.bool_]:
    return np.abs(image.astype(int) - THINGS[word][0]).max(axis=2) < 60


def make_model(size: tuple[int, int] | None, *, hears: bool = True) -> Callable[[ClipTrial], Prediction]:
    """Make a model that finds objects by their colours, and sounds by their tones."""

    def predict(trial: ClipTrial) -> Prediction:
        heard = find_tones(trial.samples) if hears else set(THINGS)
        labels = np.zeros(trial.image.shape[:2], np.uint8)
        for word in heard:
            labels[look_for(trial.image, word)] = 1 + list_avss_classes().index(word)
        if size is None:
            return Prediction(labels)
        rows, columns = (np.arange(side) * labels.shape[axis] // side for axis, side in enumerate(size))
        return Prediction(labels, (labels[np.ix_(rows, columns)] > 0)[None].astype(np.float32))

    return predict


def score_all(protocol: OpenProtocol, *, hears: bool = True, jobs: int = 1) -> dict[str, Score]:
    definition = BINARY_DEFINITIONS.get(protocol.name)
    model = make_model(None if definition is None else definition.size, hears=hears)
    return {score.condition: score for score in protocol.complete(score_protocol(protocol, model, jobs=jobs))}


@pytest.mark.parametrize("name", BINARY_DEFINITIONS)
def test_a_model_that_hears_loses_everything_without_its_sound(avss: Path, name: str) -> None:
    protocol = open_clips(name, avss, condition=("muted", "swapped"), noise_dbfs=(-30.0,))
    scores = score_all(protocol)
    assert list(scores) == ["normal", "muted", "noise -30 dBFS", "swapped"]
    normal, muted = scores["normal"].values, scores["muted"].values
    assert normal["miou"] is not None and normal["miou"] > 0.9
    assert muted["fpr"] == muted["s"] == 0 and muted["auc_n"] == muted["blank_rate"] == 1
    # A frame without a truth scores 1 if nothing is predicted, and one of five seconds of each clip has none.
    assert muted["miou"] == pytest.approx(0 if name == "dataset-micro" else 0.2, abs=1e-6)
    assert muted["miou_drop"] == pytest.approx((normal["miou"] - (muted["miou"] or 0)) / normal["miou"])
    assert normal["miou_drop"] is None and "fpr" not in normal
    assert scores["normal"].samples == 6 and scores["normal"].frames == 30


def test_a_deaf_model_is_found_out(tmp_path: Path) -> None:
    root = write_s4(tmp_path, videos=3)
    scores = score_all(open_clips("avsbench", root, condition=("all",)), hears=False)
    muted = scores["muted"].values
    assert muted["miou_drop"] == 0 and muted["f_score_drop"] == 0
    assert muted["fpr"] is not None and muted["fpr"] > 0.05 and muted["blank_rate"] == 0
    assert scores["muted"].values == scores["noise 40 dBW"].values
    f_auc = scores["normal"].values["f_auc"]
    hearing = score_all(open_clips("avsbench", root, condition=("all",)))["normal"].values["f_auc"]
    assert f_auc is not None and hearing is not None and hearing > f_auc > 0


def test_sounds_of_avsbench_robust_measure_false_masks(tmp_path: Path) -> None:
    root = write_s4(tmp_path, videos=3)
    write_wav(root / "silent.wav", [()] * 5)
    hearing, deaf = (score_all(open_clips("avsbench", root, layout="robust-silence"), hears=h) for h in (True, False))
    silent, labelled = hearing["normal"].values, deaf["normal"].values
    assert silent["miou"] == pytest.approx(1) and silent["fpr"] == 0 and silent["auc_n"] == 1
    assert labelled["fpr"] is not None and labelled["fpr"] > 0.05 and labelled["auc_n"] != 1
    assert labelled["miou"] == pytest.approx(1 - labelled["fpr"], abs=1e-3), "the truth is blank"


def test_avss_scores_classes(avss: Path) -> None:
    scores = score_all(open_clips("avss", avss, condition=("muted",), unbiased=True, mistakes=True))
    normal, muted = scores["normal"], scores["muted"]
    assert normal.class_values["miou"].keys() == {"background", *THINGS}
    assert all(value > 0.85 for value in normal.class_values["miou"].values())
    # Classes that occur in no frame count as 0 in the published mean, and not at all in the unbiased one.
    assert normal.values["miou"] == pytest.approx(sum(normal.class_values["miou"].values()) / 71)
    assert normal.values["unbiased_miou"] == pytest.approx(np.mean(list(normal.class_values["miou"].values())))
    assert normal.values["miou_no_bg"] is not None
    assert muted.values["fsla_n"] == 1 and "fsla_n" not in open_clips("avsbench", avss).figures
    assert normal.values["fsla_s"] is not None and normal.values["fsla_s"] > 0.7


@pytest.mark.parametrize("name", ["avsbench", "gewu"])
def test_the_numbers_are_those_of_the_command_score(tmp_path: Path, name: str) -> None:
    """Both read the same masks in their own way: `score` from files, and in batches of the protocol."""
    root = write_avss(tmp_path / "data", videos=6)
    protocol = open_clips(name, root)
    size, rng = BINARY_DEFINITIONS[name].size, np.random.default_rng(0)
    answers: dict[tuple[str, int], NDArray[np.float32]] = {}

    def guess(trial: ClipTrial) -> Prediction:
        probabilities = rng.random(size, np.float32)
        answers[trial.clip.uid, trial.frame] = probabilities
        return Prediction((probabilities > 0.5).astype(np.uint8), probabilities[None])

    (score,) = score_protocol(protocol, guess)
    for order, sample in enumerate(protocol.samples()):
        for frame, mask in enumerate(sample.content.masks):
            folder = tmp_path / "truth" / f"{order}"
            folder.mkdir(parents=True, exist_ok=True)
            truth = np.asarray(Image.open(mask).resize(size[::-1], Image.Resampling.NEAREST)) > 0
            Image.fromarray(truth.astype(np.uint8) * 255).save(folder / f"{frame}.png")
            (tmp_path / "predicted" / f"{order}").mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "predicted" / f"{order}" / f"{frame}.npy", answers[sample.name, frame])
    pairs, problems = pair_files(tmp_path / "predicted", tmp_path / "truth")
    found = score_pairs(pairs, name, values="probabilities")
    assert not problems and found.frames == 30
    assert score.values["miou"] == pytest.approx(found.values["miou"], abs=1e-12)
    assert score.values["f_score"] == pytest.approx(found.values["f_score"], abs=1e-12)


def test_jobs_do_not_change_the_scores(avss: Path) -> None:
    protocol = open_clips("gewu", avss, condition=("all",))
    assert score_all(protocol, jobs=1) == score_all(protocol, jobs=3)


def test_all_sounds_of_a_frame_come_one_after_another(avss: Path) -> None:
    protocol = open_clips("avsbench", avss, condition=("muted", "swapped"))
    trials = list(protocol.trials(next(iter(protocol.samples()))))
    assert [trial.condition for trial in trials[:4]] == ["normal", "muted", "swapped", "normal"]
    assert trials[0].image is trials[2].image and len(trials) == 15
    assert [trial.start_seconds for trial in trials[::3]] == [0, 1, 2, 3, 4]


def test_contiguous_windows(avss: Path) -> None:
    options = ProtocolOptions(CLASSES, framing="contiguous")
    protocol = open_protocol("avsbench", avss, options)
    trials = list(protocol.trials(next(iter(protocol.samples()))))
    assert [trial.start_seconds for trial in trials] == pytest.approx([0, 0.96, 1.92, 2.88, 3.84])
    chosen = replace(options, clips=ClipOptions(framing="per_second"))
    trials = list(open_protocol("avsbench", avss, chosen).trials(next(iter(protocol.samples()))))
    assert [trial.start_seconds for trial in trials] == [0, 1, 2, 3, 4]


def test_what_a_data_set_without_labels_can_not_do(tmp_path: Path) -> None:
    root = write_ms3(tmp_path)
    with pytest.raises(DataError, match="'off-screen' can't be made, because ms3 does not say what sounds in a clip"):
        open_clips("avsbench", root, condition=("off-screen",))
    protocol = open_clips("avsbench", root, condition=("all",))
    assert [note.split(",")[0] for note in protocol.notes] == [
        "without the condition 'off-screen'", "without the condition 'off-screen same kind'"
    ]  # fmt: skip
    assert "off-screen" not in score_all(protocol)
    with pytest.raises(DataError, match="ms3 has binary masks, only avss has classes"):
        open_clips("avss", root)


def test_a_sound_that_only_some_clips_have_a_partner_for(tmp_path: Path) -> None:
    root = write_avss(tmp_path, videos=3)  # dog and car, car and piano, piano and dog: the last becomes a dog
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace(",piano_dog,", ",dog,"))
    protocol = open_clips("avsbench", root, condition=("off-screen",))
    assert [note.split(":")[0] for note in protocol.notes] == [
        "only 2 of 3 clips have a partner for the condition 'off-screen'"
    ]
    scores, every = score_all(protocol), list(protocol.samples())
    assert scores["off-screen"].samples == 2 and scores["normal"].samples == 3
    # The drops compare the two clips alone, which are scored here without the third.
    kept = [sample for sample in every if "test-0" not in sample.name]
    protocol.samples = lambda: iter(kept)  # type: ignore[method-assign]
    fewer = score_all(protocol)
    assert fewer["normal"].samples == fewer["off-screen"].samples == 2
    assert fewer["normal"].values["miou"] != scores["normal"].values["miou"]
    for name in ("miou", "f_score"):
        drop = compute_drop(fewer["normal"].values[name], scores["off-screen"].values[name])
        assert scores["off-screen"].values[f"{name}_drop"] == pytest.approx(drop)
    assert not any(":" in name for score in scores.values() for name in score.values)


def test_the_fingerprint_covers_the_sounds_of_all_clips(tmp_path: Path) -> None:
    root = write_avss(tmp_path, videos=4)
    before = open_clips("avsbench", root, clips=1).details["fingerprint"]
    (scored,) = open_clips("avsbench", root, clips=1).samples()
    other = next(path for path in sorted(root.glob("v1m/test-*/audio.wav")) if path != scored.content.audio)
    other.write_bytes(other.read_bytes()[:-2000])
    assert open_clips("avsbench", root, clips=1).details["fingerprint"] != before


def test_a_few_clips_are_spread_over_the_data_set(avss: Path) -> None:
    every = [sample.name for sample in open_clips("avsbench", avss).samples()]
    assert [sample.name for sample in open_clips("avsbench", avss, clips=3).samples()] == every[::2]
    assert open_clips("avsbench", avss, clips=99).count_samples() == 6


def test_words_of_categories_have_scores_in_binary_protocols(tmp_path: Path) -> None:
    scores = score_all(open_clips("avsbench", write_s4(tmp_path, videos=3)))
    assert scores["normal"].class_values["miou"].keys() == {"dog", "car", "piano"}


def test_equal_details_mean_equal_trials(avss: Path, tmp_path: Path) -> None:
    details = open_clips("avsbench", avss).details
    assert details == open_clips("avsbench", avss).details
    assert details != open_clips("avsbench", avss, condition=("muted",)).details
    other = write_avss(tmp_path, videos=6, size=72)
    assert details["fingerprint"] != open_clips("avsbench", other).details["fingerprint"]


def test_drops() -> None:
    assert compute_drop(0.8, 0.2) == pytest.approx(0.75) and compute_drop(0.5, 0.6) == pytest.approx(-0.2)
    assert compute_drop(0.0, 0.1) is None and compute_drop(None, 0.1) is None

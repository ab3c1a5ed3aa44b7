"""Options as dataclasses: validated once, and equal in Python and on the command line."""

from __future__ import annotations

import ast
import inspect
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

import teso_deploy
from teso_deploy.cli import COMMANDS, app
from teso_deploy.cli.options import Given, adapt, refuse_given, with_options
from teso_deploy.options.cues import CueOptions
from teso_deploy.options.engine import BuildOptions, EngineKeywords, EngineOptions
from teso_deploy.options.fields import OptionError, Options, combine_options, describe_field, option
from teso_deploy.options.forms import FormOptions
from teso_deploy.options.media import FrameOptions, SoundOptions
from teso_deploy.options.output import OutputOptions
from teso_deploy.options.scenes import SceneOptions
from teso_deploy.options.stream import StreamOptions
from teso_deploy.options.training import TrainingOptions
from teso_deploy.options.weights import StartOptions, WeightOptions
from teso_deploy.pipeline.pipeline import Pipeline

KINDS = (
    BuildOptions, CueOptions, EngineOptions, FormOptions, FrameOptions, OutputOptions, SceneOptions, SoundOptions,
    StartOptions, StreamOptions, TrainingOptions, WeightOptions,
)  # fmt: skip
PACKAGE = Path(teso_deploy.__file__).parent


def fields_by_name(kind: type[Options]) -> dict[str, Any]:
    return {one.name: describe_field(one) for one in fields(kind)}


def parse(kind: Any, *arguments: str) -> Options:
    """Return what a command with these options receives. Raises :class:`AssertionError` with the printed error."""
    received: list[Options] = []

    def command(*, group: Options) -> None:
        received.append(group)

    command.__annotations__ = {"group": kind}
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command()(with_options(command))
    done = CliRunner().invoke(single, list(arguments))
    assert done.exit_code == 0, done.output
    return received[0]


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_the_same_from_python_and_from_the_command_line(kind: type[Options]) -> None:
    assert parse(kind) == kind()


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_documented_and_has_a_help_text(kind: type[Options]) -> None:
    text = inspect.getdoc(kind) or ""
    for base in kind.__mro__:
        text += (base.__doc__ or "") if isinstance(base, type) and issubclass(base, Options) else ""
    for one in fields(kind):
        assert f"{one.name}:" in text, f"{kind.__name__}.{one.name} is not documented"
        assert describe_field(one).help


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (
            EngineOptions(
                backend="tensorrt", precision="fp16", size=(288, 512), threads=2, still_threshold=3.5, profile="live",
                rebuild_engines=True,
            ),
            "--backend tensorrt --precision fp16 --size 288x512 --threads 2 --still-threshold 3.5 --profile live "
            "--rebuild-engines",
        ),
        (EngineOptions(size="auto"), "--size auto"),
        (EngineOptions(size=(384, 384)), "--size 384"),
        (SoundOptions(noise_dbfs=-30, video_track=1), "--noise-dbfs -30 --video-track 1"),
        (SoundOptions(sound_from=Path("a.wav"), audio_track=2), "--sound-from a.wav --audio-track 2"),
        (FrameOptions(fps=4, decoder="nvdec"), "--fps 4 --decoder nvdec"),
        (FrameOptions(framing="contiguous"), "--framing contiguous"),
        (
            StreamOptions(
                audio="rtsp://h/a", timeout_seconds=3, staleness_seconds=1, corrupt="drop", reconnect=False, seconds=5,
                metrics=":9090",
            ),
            "--audio rtsp://h/a --timeout 3 --staleness 1 --corrupt drop --no-reconnect --seconds 5 --metrics :9090",
        ),
        (
            OutputOptions(out=Path("o.mp4"), masks=Path("m"), events=Path("e.jsonl"), json_out=Path("-")),
            "--out o.mp4 --masks m --events e.jsonl --json -",
        ),
        (
            CueOptions(
                source="openai", models=Path("m"), server="http://h", server_model="x", every_seconds=None,
                ttl_seconds=3, budget_per_minute=2, timeout_seconds=4, prompt="p.toml", frames=2,
            ),
            "--cue-source openai --models m --server http://h --server-model x --cue-every 0 --cue-ttl 3 "
            "--cue-budget 2 --cue-timeout 4 --cue-prompt p.toml --cue-frames 2",
        ),
        (CueOptions(cues="dog, cow"), "--cues dog,\xa0cow"),
        (
            WeightOptions(checkpoint=("a", "visual=b"), random_weights=3, averaging="ema"),
            "--checkpoint a --checkpoint visual=b --random-weights 3 --weights ema",
        ),
        (StartOptions(start=Path("s"), averaging="raw"), "--start s --weights raw"),
        (
            FormOptions(
                precision=("int8", "fp16"), size=("64",), calibrate_on=(Path("v.mp4"),), target=("tensorrt",),
                arch="sm86", profile="live", text_encoder=True, licence="MIT",
            ),
            "--precision int8 --precision fp16 --size 64 --calibrate-on v.mp4 --target tensorrt --arch sm86 "
            "--profile live --text-encoder --licence MIT",
        ),
        (
            TrainingOptions(
                layout="s4", cues_file=Path("c"), framing="contiguous", device="cuda", workers=2, save_every_steps=5
            ),
            "--layout s4 --cues-file c --framing contiguous --device cuda --workers 2 --save-every-steps 5",
        ),
        (SceneOptions(scenes=5, seed=3, seeds=2), "--scenes 5 --seed 3 --seeds 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_values_are_the_same_from_python_and_from_the_command_line(options: Options, arguments: str) -> None:
    assert parse(type(options), *(word.replace("\xa0", " ") for word in arguments.split(" "))) == options


@pytest.mark.parametrize(
    ("kind", "values", "arguments", "python", "spelled"),
    [
        (EngineOptions, {"threads": 0}, "--threads 0", "threads is 0: give a value from 1", "--threads"),
        (EngineOptions, {"still_threshold": 256}, "--still-threshold 256", "give grey levels from 0 to 255",
         "--still-threshold"),
        (EngineOptions, {"still_threshold": float("nan")}, "--still-threshold nan", "grey levels", "--still-threshold"),
        (EngineOptions, {"profile": "live"}, "--profile live", "profile: only backend tensorrt and tensorrt-rtx build",
         "--profile: only --backend tensorrt and tensorrt-rtx build engines"),
        (EngineOptions, {"rebuild_engines": True}, "--rebuild-engines", "rebuild_engines: only backend",
         "--rebuild-engines: only --backend"),
        (SoundOptions, {"mute": True, "noise_dbfs": -3}, "--mute --noise-dbfs -3",
         "mute, noise_dbfs, noise_dbw, noise_snr and sound_from",
         "--mute, --noise-dbfs, --noise-dbw, --noise-snr and --sound-from exclude each other: give one"),
        (SoundOptions, {"noise_dbw": 40, "audio_track": 1}, "--noise-dbw 40 --audio-track 1", "omit audio_track",
         "omit --audio-track"),
        (SoundOptions, {"mute": True, "audio_track": 1}, "--mute --audio-track 1", "omit audio_track",
         "omit --audio-track"),
        (SoundOptions, {"noise_dbfs": 1}, "--noise-dbfs 1", "give dBFS from -200 to 0", "--noise-dbfs"),
        (CueOptions, {"cues": "dog", "source": "tagger"}, "--cues dog --cue-source tagger",
         "cues excludes cues_file and source", "--cues excludes --cues-file and --cue-source: give one"),
        (CueOptions, {"server": "http://h"}, "--server http://h", "add source", "add --cue-source"),
        (CueOptions, {"budget_per_minute": 3}, "--cue-budget 3", "no effect: budget_per_minute",
         "no effect: --cue-budget; add --cue-source, or omit it"),
        (CueOptions, {"ttl_seconds": 3}, "--cue-ttl 3", "ttl_seconds needs cues", "--cue-ttl needs cues"),
        (StreamOptions, {"timeout_seconds": 0}, "--timeout 0", "give seconds from 0.2", "--timeout"),
        (StreamOptions, {"timeout_seconds": math.inf}, "--timeout inf", "to 86400", "--timeout"),
        (StreamOptions, {"seconds": math.inf}, "--seconds inf", "to 1e+08", "--seconds"),
        (CueOptions, {"source": "openai", "timeout_seconds": 1e9}, "--cue-source openai --cue-timeout 1e9", "to 86400",
         "--cue-timeout"),
        (WeightOptions, {"averaging": "ema"}, "--weights ema", "needs checkpoint",
         "--weights: needs --checkpoint, from which it chooses weights"),
        (SceneOptions, {"seeds": 0}, "--seeds 0", "seeds is 0", "--seeds"),
        (SceneOptions, {"seed": -1}, "--seed -1", "seed is -1", "--seed"),
        (WeightOptions, {"random_weights": -1}, "--random-weights -1", "random_weights is -1", "--random-weights"),
        (EngineOptions, {"threads": 100_000}, "--threads 100000", "to 1024", "--threads"),
    ],
)  # fmt: skip
def test_what_is_refused_in_python_is_refused_on_the_command_line(
    kind: type[Options], values: dict[str, Any], arguments: str, python: str, spelled: str
) -> None:
    with pytest.raises(OptionError) as refused:
        kind(**values)
    assert python in str(refused.value) and isinstance(refused.value, ValueError)
    with pytest.raises(AssertionError) as printed:
        parse(kind, *arguments.split())
    assert spelled in " ".join(str(printed.value).split())


def test_the_longest_run_fits_a_timer() -> None:
    assert fields_by_name(StreamOptions)["seconds"].maximum < threading.TIMEOUT_MAX


def test_a_size_that_is_none() -> None:
    with pytest.raises(AssertionError, match="--size big: give height x width"):
        parse(EngineOptions, "--size", "big")


def test_a_message_keeps_braces_of_what_it_quotes() -> None:
    error = OptionError("{mute} is {value}", value="{audio_track}")
    assert error.spell(lambda name: f"--{name}") == "--mute is {audio_track}"


def test_keyword_arguments_replace_options() -> None:
    given = EngineOptions(threads=3, precision="int8")
    assert combine_options(EngineOptions, given, {"threads": 1}) == EngineOptions(threads=1, precision="int8")
    assert combine_options(EngineOptions, None, {}) == EngineOptions()
    with pytest.raises(TypeError, match="thread"):
        Pipeline.load(thread=1)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="threads is 0"):
        teso_deploy.load(threads=0)


def test_keywords_for_type_checkers_are_the_fields() -> None:
    assert get_type_hints(EngineKeywords) == {
        one.name: get_type_hints(EngineOptions)[one.name] for one in fields(EngineOptions)
    }


def test_loading_with_options(tiny_bundle: Path) -> None:
    pipeline = teso_deploy.load(tiny_bundle, teso_deploy.EngineOptions(threads=1, still_threshold=4), size="auto")
    assert pipeline.size == "auto" and pipeline.still_threshold == 4
    assert Pipeline.load(pipeline.bundle, threads=1).bundle is pipeline.bundle


def test_public_names() -> None:
    assert all(getattr(teso_deploy, name) is not None for name in teso_deploy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'loader'"):
        _ = teso_deploy.loader  # type: ignore[attr-defined]


def test_two_options_of_one_name_are_an_error_of_the_program() -> None:
    def command(*, one: SceneOptions, two: SceneOptions) -> None: ...

    with pytest.raises(TypeError, match="two options of the same name"):
        with_options(command)

    def adapted(
        *, one: SceneOptions, two: Annotated[SceneOptions, adapt(only=("seed",), flags={"seed": "--other"})]
    ) -> None: ...

    with_options(adapted)


def test_what_was_given_is_known_by_command_and_field() -> None:
    seen: list[Given] = []

    @with_options
    def command(*, stream: StreamOptions, cues: CueOptions, plain: int = 3, given: Given) -> None:
        seen.append(given)
        refuse_given(given, ("stream.timeout_seconds", "stream.corrupt"), "for streams", instead="use `live`")

    single = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command()(command)
    done = CliRunner().invoke(single, ["--cue-source", "openai", "--cue-timeout", "120", "--plain", "3"])
    assert done.exit_code == 0 and seen == [Given({"cues.source", "cues.timeout_seconds", "plain"})]
    done = CliRunner().invoke(single, ["--timeout", "10"])
    assert done.exit_code == 2 and "--timeout is for streams: use `live`, or omit it" in done.output
    done = CliRunner().invoke(single, ["--timeout", "10", "--corrupt", "keep"])
    assert "--timeout and --corrupt are for streams: use `live`, or omit them" in " ".join(done.output.split())


def functions(*folders: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yield module:function of all functions in these folders, and whether it is a method."""
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    name = f"{path.relative_to(PACKAGE.parent).with_suffix('').as_posix()}:{child.name}"
                    static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in child.decorator_list)
                    yield name, child, isinstance(node, ast.ClassDef) and not static


def test_no_function_has_more_than_20_parameters() -> None:
    for name, function, is_method in functions(PACKAGE):
        given = function.args
        count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs) - is_method
        assert count <= 20, f"{name} has {count} parameters: give it an options dataclass"


def is_called_by_a_library(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether PyTorch or Python sets the order of the arguments: ``forward``, and special methods such as ``__exit__``.

    Our own code calls ``__init__`` and ``__call__``.
    """
    is_special = function.name.startswith("__") and function.name not in ("__init__", "__call__")
    return function.name == "forward" or is_special


def test_no_function_takes_more_than_three_positional_arguments() -> None:
    """Arguments that a function ignores (``_name``) do not count: they come from a library that calls it."""
    for name, function, is_method in functions(PACKAGE, PACKAGE.parent / "benchmarks"):
        given = [*function.args.posonlyargs, *function.args.args][is_method:]
        count = sum(not argument.arg.startswith("_") for argument in given)
        if not is_called_by_a_library(function):
            assert count <= 3, f"{name} takes {count} positional arguments: put * before the fourth"


def test_every_command_has_its_parameters_by_name() -> None:
    group = typer.main.get_command(app)
    for name in COMMANDS:
        command = group.get_command(None, name)  # type: ignore[attr-defined,arg-type]
        assert command is not None
        for one in command.params:
            assert one.param_type_name == "argument" or all(flag.startswith("--") for flag in one.opts), (name, one)


def test_options_that_may_be_repeated() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Names(Options):
        names: tuple[str, ...] = option((), "Names.", flag="--name")

    assert parse(Names, "--name", "a", "--name", "b") == Names(names=("a", "b")) and parse(Names) == Names()

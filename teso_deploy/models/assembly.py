"""A model put together from checkpoints of others: each gives its part, the rest stays as it was built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from teso_deploy.errors import CheckpointError
from teso_deploy.models import checkpoints, weight_files
from teso_deploy.models.checkpoints import KeyReport
from teso_deploy.models.clip_text import ClipText
from teso_deploy.models.keymaps import FORMATS
from teso_deploy.models.keymaps.rules import Format, Part
from teso_deploy.models.state_dicts import Averaging
from teso_deploy.models.teso import Teso, build
from teso_deploy.recipe import Recipe
from teso_deploy.text import to_one_line

#: How a file is handed over: ``visual=FILE``; without a name the file itself says what it is.
PARTS: tuple[Part, ...] = ("visual", "audio", "text", "model")
#: Where a part's own keys lie in the whole model.
_PLACES: dict[Part, str] = {"visual": "", "audio": "audio_encoder.", "text": "", "model": ""}


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A checkpoint and what it was recognised as.

    Args:
        path: As the user named it.
        tensors: By the keys of its format.
        format: None for one of our own.
        folder: Where its files lie; default: ``path``.
        is_averaged: True for an average over training.
    """

    path: Path
    tensors: dict[str, Tensor]
    format: Format | None
    folder: Path | None = None
    is_averaged: bool = False

    @property
    def beside(self) -> Path:
        """Where files that belong to it lie: that folder, or a file in it."""
        return self.folder or self.path

    @property
    def part(self) -> Part:
        """What it gives a model."""
        return self.format.part if self.format else "model"


@dataclass(frozen=True, slots=True)
class Assembly:
    """A model, the file of each of its parts, the keys that none gave, and the text tower where one was given."""

    model: Teso
    sources: dict[Part, Path]
    random: tuple[str, ...]
    text: WeightSource | None = None
    averaged: tuple[Part, ...] = ()

    @property
    def is_trained(self) -> bool:
        """True when every weight is from a file."""
        return not self.random

    def __str__(self) -> str:
        given = [
            f"{part} from {path.name}{' (averaged)' if part in self.averaged else ''}"
            for part, path in self.sources.items()
        ]
        return ", ".join([*given, *([f"random: {grouped(self.random)}"] if self.random else [])])


def grouped(keys: Sequence[str]) -> str:
    """Keys by the module that they are in: "fusion.sedam (64), fusion.pmqs (52)"; adapters by themselves."""

    def module(key: str) -> str:
        return "adapters" if ".adapter." in key or "_adapter." in key else ".".join(key.split(".")[:2])

    return ", ".join(f"{name} ({count})" for name, count in Counter(map(module, keys)).items())


def recognised(path: Path, part: str | None = None, averaging: Averaging | None = None) -> WeightSource:
    """Read a checkpoint and say what it is.

    Args:
        path: What :func:`weight_files.read_weights` takes.
        part: What it must give a model; default: anything.
        averaging: Which of two sets of weights, where it holds an average beside the trained ones.

    Raises:
        CheckpointError: A file of no known kind, or of another part; and what ``read_weights`` raises.
    """
    found = weight_files.read_weights(path, averaging, part)
    if found.format is None and not found.is_own:
        names = ", ".join(sorted({kind.name for kind in FORMATS}))
        raise CheckpointError(
            f"{path} is of no known kind (its first keys: {to_one_line(', '.join(list(found.tensors)[:3]))}): "
            f"give a checkpoint of our own, or one of {names}"
        )
    source = WeightSource(path, found.tensors, found.format, found.folder, found.is_averaged)
    if part is not None and source.part != part:
        what = source.format.name if source.format else "a whole model of ours"
        raise CheckpointError(f"{path} is {what}, not a {part} checkpoint: give it as {source.part}={path}")
    return source


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def mapped(source: WeightSource, recipe: Recipe, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], KeyReport]:
    """Tensors for our keys from a file's, by its key map.

    ``own``: keys and tensors of the module that the map speaks of. The report names keys as the
    file does, and of a wrong shape both.
    """
    assert source.format is not None
    given: dict[str, Tensor] = {}
    used: set[str] = set()
    missing, misshaped = [], []
    for rule in source.format.rules(recipe, source.tensors):
        absent = [key for key in rule.sources if key not in source.tensors]
        if absent:
            missing += [] if rule.optional else absent
            continue
        used |= set(rule.sources)
        theirs = tuple(source.tensors[name] for name in rule.sources)
        try:
            pairs = list(zip(rule.targets, rule.convert(theirs), strict=True))
        except (RuntimeError, ValueError, IndexError):  # a shape that the conversion was not made for
            misshaped.append(f"{rule.sources[0]} {_shape(theirs[0])} ({rule.targets[0]})")
            continue
        for key, value in pairs:
            if key not in own or own[key].shape != value.shape:
                wanted = _shape(own[key]) if key in own else "nothing"
                misshaped.append(f"{rule.sources[0]} {_shape(value)} for {wanted} ({key})")
            elif own[key].is_floating_point() and not value.is_floating_point():
                raise CheckpointError(
                    f"{source.path} has {str(value.dtype).removeprefix('torch.')} in {rule.sources[0]}, as quantised "
                    "weights have: give the checkpoint before quantisation"
                )
            given[key] = value
    unexpected = [key for key in source.tensors if key not in used and not source.format.ignored(key)]
    return given, KeyReport(tuple(used), tuple(missing), tuple(unexpected), tuple(misshaped))


def _other_sizes(source: WeightSource, recipe: Recipe) -> str:
    """What sizes the file has that the recipe has not, in words; nothing where they agree or can't be read."""
    assert source.format is not None
    try:
        theirs = source.format.sized(recipe, source.tensors).model_dump()
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError):
        return ""
    ours = recipe.model_dump()
    differing = [
        f"{table}.{name} {theirs[table][name]} (recipe: {value})"
        for table in ("swin", "pixel_decoder", "decoder", "sam", "audio", "beats", "clip_text")
        for name, value in ours[table].items()
        if theirs[table][name] != value
    ]
    return ", ".join(differing)


def fitted(
    source: WeightSource, recipe: Recipe, own: Mapping[str, Tensor], seed: int | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors for our keys, and our keys whose tensor in the file has other classes and was left out.

    Raises :class:`CheckpointError` that names the keys which do not fit.
    """
    assert source.format is not None
    given, report = mapped(source, recipe, own)
    other = [key for key in source.format.replaceable if key in given and given[key].shape != own[key].shape]
    misshaped = [text for text in report.misshaped if not any(text.endswith(f"({key})") for key in other)]
    if report.missing or report.unexpected or misshaped:
        report = KeyReport(report.loaded, report.missing, report.unexpected, tuple(misshaped))
        sentence = f"{source.path} ({source.format.name}) does not fit recipe {recipe.name}: "
        if sizes := _other_sizes(source, recipe):
            first = (*misshaped, *(f"{key}, missing" for key in report.missing), *report.unexpected)[0]
            raise CheckpointError(f"{sentence}it has {sizes}, as in {first}; use a recipe with its sizes")
        raise CheckpointError(f"{sentence}{report}; give the checkpoint that the recipe is of")
    if other and seed is None:
        classes = len(recipe.head.classes)
        raise CheckpointError(
            f"{source.path} has other classes than recipe {recipe.name} with its {classes} and no object "
            f"({report.misshaped[0]}): name its classes in the recipe, or begin a new head with --random-weights SEED"
        )
    for key in other:
        del given[key]
    return given, other


def _whole(source: WeightSource, recipe: Recipe) -> Teso:
    """A model of our own checkpoint, with the thresholds that it was calibrated to."""
    model = build(checkpoints.calibrated(recipe, source.path))
    checkpoints.fill(model, source.tensors, source.path)
    return model


def _sized(source: WeightSource, recipe: Recipe) -> Recipe:
    """The recipe with the sizes that a file has. Raises :class:`CheckpointError` where they make no model."""
    assert source.format is not None
    try:
        return Recipe.model_validate(source.format.sized(recipe, source.tensors).model_dump(by_alias=True))
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{source.path} ({source.format.name}) has sizes that make no model: give the whole state_dict"
        ) from error


def _check_averaging(sources: Iterable[WeightSource], averaging: Averaging | None) -> None:
    """Refuse a choice that no file has (:class:`CheckpointError`)."""
    if averaging is not None and not any(source.is_averaged == (averaging == "ema") for source in sources):
        what = "the average of its weights" if averaging == "ema" else "weights that are not an average"
        raise CheckpointError(f"no checkpoint holds {what}: omit --weights {averaging}")


def assemble(
    recipe: Recipe,
    checkpoint_files: Sequence[tuple[str | None, Path]] = (),
    random_weights_seed: int | None = None,
    averaging: Averaging | None = None,
) -> Assembly:
    """Build a recipe's model and fill it from checkpoints.

    Args:
        recipe: What is built.
        checkpoint_files: (part or None, file) of each.
        random_weights_seed: Of what no file gives; default: all must be given.
        averaging: Which weights of files that hold an average beside the trained ones; default: such are refused.

    Raises:
        CheckpointError: A file of no known kind, keys that do not fit, two files of one part, a part whose encoder
            the recipe does not have, or keys that no file gives without a seed for them.
    """
    sources: dict[Part, WeightSource] = {}
    for part, path in checkpoint_files:
        source = recognised(path, part, averaging)
        if source.part in sources:
            raise CheckpointError(f"{sources[source.part].path} and {path} both are {source.part}: give one of them")
        sources[source.part] = source
    _check_averaging(sources.values(), averaging)
    averaged = tuple(part for part, source in sources.items() if source.is_averaged)
    text = sources.pop("text", None)
    if text is not None and recipe.text.encoder != "clip":
        raise CheckpointError(
            f"{text.path} is a text tower of CLIP, but recipe {recipe.name} embeds its cues with "
            f'{recipe.text.encoder}: leave it out, or set text.encoder = "clip"'
        )
    paths: dict[Part, Path] = {part: source.path for part, source in sources.items()}
    whole = sources.get("model")
    if whole is not None and whole.format is None:
        if other := [part for part in sources if part != "model"]:
            raise CheckpointError(f"{whole.path} is a whole model: leave {sources[other[0]].path} out")
        return Assembly(_whole(whole, recipe), paths, (), text, averaged)
    if whole is not None and whole.format is not None:
        if recipe.fusion.kind != "segpref":
            raise CheckpointError(
                f"{whole.path} is {whole.format.name}, whose network is not that of recipe {recipe.name}: "
                "use recipe segpref"
            )
        recipe = _sized(whole, recipe)
    model = build(recipe, random_weights_seed)
    own = model.state_dict()
    kept = dict.fromkeys(own)  # in order: what no file gives
    for part, source in sources.items():
        place = _PLACES[part]
        inside = {key.removeprefix(place): value for key, value in own.items() if key.startswith(place)}
        given, _ = fitted(source, recipe, inside, random_weights_seed)
        model.load_state_dict({place + key: value for key, value in given.items()}, strict=False)
        for key in given:
            kept.pop(place + key, None)
    random = tuple(kept)
    if random and random_weights_seed is None:
        raise CheckpointError(
            f"no checkpoint gives recipe {recipe.name} its {grouped(random)}: give them by --checkpoint PART=FILE, "
            "or let them be random with --random-weights SEED (a model that is only good for timing, or for training)"
        )
    return Assembly(model, paths, random, text, averaged)


def text_tower(source: WeightSource, recipe: Recipe) -> ClipText:
    """The text tower of a checkpoint. Raises :class:`CheckpointError` when its keys do not fit the recipe."""
    tower: nn.Module = ClipText(recipe.clip_text, recipe.text.dim).eval()
    given, _ = fitted(source, recipe, tower.state_dict(), None)
    with torch.no_grad():
        tower.load_state_dict(given, strict=False)
    return tower  # type: ignore[return-value]

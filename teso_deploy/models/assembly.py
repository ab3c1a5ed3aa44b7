"""Assembling a model from checkpoints of other projects: each gives one part, the rest keeps its initial weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from teso_deploy.architectures import list_size_tables
from teso_deploy.errors import CheckpointError
from teso_deploy.models import checkpoints, weight_files
from teso_deploy.models.checkpoints import KeyReport
from teso_deploy.models.clip_text import ClipText
from teso_deploy.models.keymaps import list_formats
from teso_deploy.models.keymaps.rules import Format, Part
from teso_deploy.models.methods import Model, build_model
from teso_deploy.models.state_dicts import Averaging
from teso_deploy.recipe import Recipe
from teso_deploy.text import to_one_line

#: The parts of ``--checkpoint visual=FILE``. Without a part, the content of the file decides.
PARTS: tuple[Part, ...] = ("visual", "audio", "text", "model")
#: The prefix of a part's own keys in the whole model.
_PLACES: dict[Part, str] = {"visual": "", "audio": "audio_encoder.", "text": "", "model": ""}


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A checkpoint and the format that was recognised.

    Args:
        path: The path as the user named it.
        tensors: Tensors by the keys of the format.
        format: The recognised format; None for a checkpoint of this package.
        folder: The folder of its files. Default: ``path``.
        is_averaged: Whether the weights are an average over training.
    """

    path: Path
    tensors: dict[str, Tensor]
    format: Format | None
    folder: Path | None = None
    is_averaged: bool = False

    @property
    def beside(self) -> Path:
        """The folder, or a file in the folder, with the other files of the checkpoint."""
        return self.folder or self.path

    @property
    def part(self) -> Part:
        """The part of a model that the checkpoint contains."""
        return self.format.part if self.format else "model"


@dataclass(frozen=True, slots=True)
class Assembly:
    """A model, the file of each part, the keys that no file gave, and the text tower if a file gave one."""

    model: Model
    sources: dict[Part, Path]
    random: tuple[str, ...]
    text: WeightSource | None = None
    averaged: tuple[Part, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether every weight is from a file."""
        return not self.random

    def __str__(self) -> str:
        given = [
            f"{part} from {path.name}{' (averaged)' if part in self.averaged else ''}"
            for part, path in self.sources.items()
        ]
        return ", ".join([*given, *([f"random: {group_keys(self.random)}"] if self.random else [])])


def group_keys(keys: Sequence[str]) -> str:
    """Group keys by module: "fusion.sedam (64), fusion.pmqs (52)". Adapters are listed separately."""

    def module(key: str) -> str:
        return "adapters" if ".adapter." in key or "_adapter." in key else ".".join(key.split(".")[:2])

    return ", ".join(f"{name} ({count})" for name, count in Counter(map(module, keys)).items())


def recognise_checkpoint(path: Path, part: str | None = None, averaging: Averaging | None = None) -> WeightSource:
    """Read a checkpoint and recognise its format.

    Args:
        path: Any path that :func:`weight_files.read_weights` accepts.
        part: The part of a model that the weights must be for. Default: any.
        averaging: Which set of weights to take if the file has both trained and averaged ones.

    Raises:
        CheckpointError: The format is unknown, or the file is another part; and the errors of ``read_weights``.
    """
    found = weight_files.read_weights(path, averaging, part)
    if found.format is None and not found.is_own:
        names = ", ".join(sorted({kind.name for kind in list_formats()}))
        raise CheckpointError(
            f"{path} is a checkpoint of an unknown kind (its first keys: "
            f"{to_one_line(', '.join(list(found.tensors)[:3]))}): "
            f"give a checkpoint of this package, or one of {names}"
        )
    source = WeightSource(path, found.tensors, found.format, found.folder, found.is_averaged)
    if part is not None and source.part != part:
        what = source.format.name if source.format else "a whole model of this package"
        raise CheckpointError(f"{path} is {what}, not a {part} checkpoint: give it as {source.part}={path}")
    return source


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def map_keys(source: WeightSource, recipe: Recipe, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], KeyReport]:
    """Convert the tensors of a file to our keys, by the key map of its format.

    Args:
        source: The file.
        recipe: The recipe of the model.
        own: Keys and tensors of the module that the key map describes.

    Returns:
        Tensors by our keys, and a report. The report uses the file's keys; for a wrong shape it names both keys.
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
        except (RuntimeError, ValueError, IndexError):  # a shape that the conversion does not support
            misshaped.append(f"{rule.sources[0]} {_shape(theirs[0])} ({rule.targets[0]})")
            continue
        for key, value in pairs:
            if key not in own or own[key].shape != value.shape:
                wanted = _shape(own[key]) if key in own else "nothing"
                misshaped.append(f"{rule.sources[0]} {_shape(value)} for {wanted} ({key})")
            elif own[key].is_floating_point() and not value.is_floating_point():
                raise CheckpointError(
                    f"{source.path} has {str(value.dtype).removeprefix('torch.')} in {rule.sources[0]}, as in "
                    "quantised "
                    "weights: give the checkpoint before quantisation"
                )
            given[key] = value
    unexpected = [key for key in source.tensors if key not in used and not source.format.ignored(key)]
    return given, KeyReport(tuple(used), tuple(missing), tuple(unexpected), tuple(misshaped))


def _describe_other_sizes(source: WeightSource, recipe: Recipe) -> str:
    """Describe the file's sizes that differ from the recipe; empty if none differ or they can't be read."""
    assert source.format is not None
    try:
        theirs = source.format.sized(recipe, source.tensors).model_dump()
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError):
        return ""
    ours = recipe.model_dump()
    differing = [
        f"{table}.{name} {theirs[table][name]} (recipe: {value})"
        for table in list_size_tables()
        for name, value in ours[table].items()
        if theirs[table][name] != value
    ]
    return ", ".join(differing)


def fit_tensors(
    source: WeightSource, recipe: Recipe, own: Mapping[str, Tensor], *, seed: int | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert the tensors of a file to our keys, and require that they fit.

    Args:
        source: The file.
        recipe: The recipe of the model.
        own: Keys and tensors of the module that the key map describes.
        seed: Seed for weights that no file gives. None: tensors for other classes are an error.

    Returns:
        Tensors by our keys, and our keys that were skipped because the file has other classes.

    Raises:
        CheckpointError: Names the keys that do not fit.
    """
    assert source.format is not None
    given, report = map_keys(source, recipe, own)
    other = [key for key in source.format.replaceable if key in given and given[key].shape != own[key].shape]
    misshaped = [text for text in report.misshaped if not any(text.endswith(f"({key})") for key in other)]
    if report.missing or report.unexpected or misshaped:
        report = KeyReport(report.loaded, report.missing, report.unexpected, tuple(misshaped))
        sentence = f"{source.path} ({source.format.name}) does not fit recipe {recipe.name}: "
        if sizes := _describe_other_sizes(source, recipe):
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


def _build_whole(source: WeightSource, recipe: Recipe) -> Model:
    """Build a model from a checkpoint of this package, with its calibrated thresholds and its framing of the sound."""
    recipe = checkpoints.apply_framing(checkpoints.apply_calibration(recipe, source.path), source.path)
    model = build_model(recipe)
    checkpoints.fill(model, source.tensors, path=source.path)
    return model


def _adapt_recipe(source: WeightSource, recipe: Recipe) -> Recipe:
    """Return the recipe with the sizes of the file's tensors. Raises :class:`CheckpointError` if no model has them."""
    assert source.format is not None
    try:
        return Recipe.model_validate(source.format.sized(recipe, source.tensors).model_dump(by_alias=True))
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{source.path} ({source.format.name}) has sizes that make no model: give the whole state_dict"
        ) from error


def _check_averaging(sources: Iterable[WeightSource], averaging: Averaging | None) -> None:
    """Raise :class:`CheckpointError` if no file offers the requested choice."""
    if averaging is not None and not any(source.is_averaged == (averaging == "ema") for source in sources):
        what = "the average of its weights" if averaging == "ema" else "weights that are not an average"
        raise CheckpointError(f"no checkpoint holds {what}: omit --weights {averaging}")


def assemble(
    recipe: Recipe,
    checkpoint_files: Sequence[tuple[str | None, Path]] = (),
    *,
    random_weights_seed: int | None = None,
    averaging: Averaging | None = None,
) -> Assembly:
    """Build the model of a recipe and fill it from checkpoints.

    Args:
        recipe: The recipe.
        checkpoint_files: (part or None, file) for each checkpoint.
        random_weights_seed: Seed for weights that no file gives. Default: every weight must be given.
        averaging: Which weights to take from files with both trained and averaged ones. Default: refuse such files.

    Raises:
        CheckpointError: A file of unknown format, keys that do not fit, two files for one part, a part that the
            recipe does not have, or keys that no file gives while no seed is given.
    """
    sources: dict[Part, WeightSource] = {}
    for part, path in checkpoint_files:
        source = recognise_checkpoint(path, part, averaging)
        if source.part in sources:
            raise CheckpointError(f"{sources[source.part].path} and {path} both are {source.part}: give one of them")
        sources[source.part] = source
    _check_averaging(sources.values(), averaging)
    averaged = tuple(part for part, source in sources.items() if source.is_averaged)
    text = sources.pop("text", None)
    if text is not None and recipe.text.encoder != "clip":
        raise CheckpointError(
            f"{text.path} is a text tower of CLIP, but recipe {recipe.name} embeds its cues with "
            f'{recipe.text.encoder}: omit it, or set text.encoder = "clip"'
        )
    paths: dict[Part, Path] = {part: source.path for part, source in sources.items()}
    whole = sources.get("model")
    if whole is not None and whole.format is None:
        if other := [part for part in sources if part != "model"]:
            raise CheckpointError(f"{whole.path} is a whole model: omit {sources[other[0]].path}")
        return Assembly(_build_whole(whole, recipe), paths, (), text, averaged)
    if whole is not None and whole.format is not None:
        if recipe.method == "teso" and recipe.fusion.kind != "segpref":
            raise CheckpointError(
                f"{whole.path} is {whole.format.name}, which has another network than recipe {recipe.name}: "
                "use recipe segpref"
            )
        recipe = _adapt_recipe(whole, recipe)
    model = build_model(recipe, random_weights_seed)
    own = model.state_dict()
    kept = dict.fromkeys(own)  # in order: the keys that no file gives
    for part, source in sources.items():
        place = _PLACES[part]
        inside = {key.removeprefix(place): value for key, value in own.items() if key.startswith(place)}
        given, _ = fit_tensors(source, recipe, inside, seed=random_weights_seed)
        model.load_state_dict({place + key: value for key, value in given.items()}, strict=False)
        for key in given:
            kept.pop(place + key, None)
    random = tuple(kept)
    if random and random_weights_seed is None:
        raise CheckpointError(
            f"no checkpoint gives recipe {recipe.name} its {group_keys(random)}: give them by --checkpoint PART=FILE, "
            "or let them be random with --random-weights SEED (a model that is only good for timing, or for training)"
        )
    return Assembly(model, paths, random, text, averaged)


def build_text_tower(source: WeightSource, recipe: Recipe) -> ClipText:
    """Build the text tower of a checkpoint. Raises :class:`CheckpointError` if its keys do not fit the recipe."""
    tower: nn.Module = ClipText(recipe.clip_text, recipe.text.dim).eval()
    given, _ = fit_tensors(source, recipe, tower.state_dict(), seed=None)
    with torch.no_grad():
        tower.load_state_dict(given, strict=False)
    return tower  # type: ignore[return-value]

"""A model put together from checkpoints of others: each gives its part, the rest stays as it was built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
from teso_deploy.models.teso import Teso, build
from teso_deploy.recipe import Recipe

#: How a file is handed over: ``visual=FILE``; without a name the file itself says what it is.
PARTS: tuple[Part, ...] = ("visual", "audio", "text", "model")
#: Where a part's own keys lie in the whole model.
_PLACES: dict[Part, str] = {"visual": "", "audio": "audio_encoder.", "text": "", "model": ""}


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint and what it was recognised as; ``format`` is None for one of our own."""

    path: Path
    tensors: dict[str, Tensor]
    format: Format | None

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
    text: Source | None = None

    @property
    def is_trained(self) -> bool:
        """True when every weight is from a file."""
        return not self.random

    def __str__(self) -> str:
        given = [f"{part} from {path.name}" for part, path in self.sources.items()]
        return ", ".join([*given, *([f"random: {grouped(self.random)}"] if self.random else [])])


def grouped(keys: Sequence[str]) -> str:
    """Keys by the module that they are in: "fusion.sedam (64), fusion.pmqs (52)"; adapters by themselves."""

    def module(key: str) -> str:
        return "adapters" if ".adapter." in key or "_adapter." in key else ".".join(key.split(".")[:2])

    return ", ".join(f"{name} ({count})" for name, count in Counter(map(module, keys)).items())


def recognised(path: Path, part: str | None = None) -> Source:
    """Read a checkpoint and say what it is.

    Raises what :func:`weight_files.read` raises, and :class:`CheckpointError` for a file of no known
    kind, or of another part than ``part``.
    """
    tensors, metadata = weight_files.read(path)
    if "recipe" in metadata or any(key.startswith("fusion.") for key in tensors):
        found = Source(path, tensors, None)
    else:
        kind = next((kind for kind in FORMATS if kind.recognises(tensors.keys())), None)
        if kind is None:
            names = ", ".join(sorted({kind.name for kind in FORMATS}))
            raise CheckpointError(
                f"{path} is of no known kind (its first keys: {', '.join(list(tensors)[:3])}): "
                f"give a checkpoint of our own, or one of {names}"
            )
        found = Source(path, tensors, kind)
    if part is not None and found.part != part:
        what = found.format.name if found.format else "a whole model of ours"
        raise CheckpointError(f"{path} is {what}, not a {part} checkpoint: give it as {found.part}={path}")
    return found


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def mapped(source: Source, recipe: Recipe, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], KeyReport]:
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
        for key, value in zip(
            rule.targets, rule.convert(tuple(source.tensors[name] for name in rule.sources)), strict=True
        ):
            if key not in own or own[key].shape != value.shape:
                wanted = _shape(own[key]) if key in own else "nothing"
                misshaped.append(f"{rule.sources[0]} {_shape(value)} for {wanted} ({key})")
            given[key] = value
    unexpected = [key for key in source.tensors if key not in used and not source.format.ignored(key)]
    return given, KeyReport(tuple(used), tuple(missing), tuple(unexpected), tuple(misshaped))


def _other_sizes(source: Source, recipe: Recipe) -> str:
    """What sizes the file has that the recipe has not, in words; nothing where they agree or can't be read."""
    assert source.format is not None
    try:
        theirs = source.format.sized(recipe, source.tensors).model_dump()
    except (KeyError, IndexError, ValueError):
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
    source: Source, recipe: Recipe, own: Mapping[str, Tensor], seed: int | None
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


def _whole(source: Source, recipe: Recipe) -> Teso:
    """A model of our own checkpoint, with the thresholds that it was calibrated to."""
    model = build(checkpoints.calibrated(recipe, source.path))
    checkpoints.load(model, source.path)
    return model


def assemble(
    recipe: Recipe, checkpoint_files: Sequence[tuple[str | None, Path]] = (), random_weights_seed: int | None = None
) -> Assembly:
    """Build a recipe's model and fill it from checkpoints (part or None, file).

    Raises :class:`CheckpointError`: a file of no known kind, keys that do not fit, two files of one
    part, a part whose encoder the recipe has not, or keys that no file gives without a seed for them.
    """
    sources: dict[Part, Source] = {}
    for part, path in checkpoint_files:
        source = recognised(path, part)
        if source.part in sources:
            raise CheckpointError(f"{sources[source.part].path} and {path} both are {source.part}: give one of them")
        sources[source.part] = source
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
        return Assembly(_whole(whole, recipe), paths, (), text)
    if whole is not None and whole.format is not None:
        if recipe.fusion.kind != "segpref":
            raise CheckpointError(
                f"{whole.path} is {whole.format.name}, whose network is not that of recipe {recipe.name}: "
                "use recipe segpref"
            )
        recipe = whole.format.sized(recipe, whole.tensors)
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
    return Assembly(model, paths, random, text)


def text_tower(source: Source, recipe: Recipe) -> ClipText:
    """The text tower of a checkpoint. Raises :class:`CheckpointError` when its keys do not fit the recipe."""
    tower: nn.Module = ClipText(recipe.clip_text, recipe.text.dim).eval()
    given, _ = fitted(source, recipe, tower.state_dict(), None)
    with torch.no_grad():
        tower.load_state_dict(given, strict=False)
    return tower  # type: ignore[return-value]

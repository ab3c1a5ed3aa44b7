"""Command-line parameters made from dataclasses of options.

A command names dataclasses among its parameters, and :func:`with_options` gives it an option for each of their fields::

    @with_options
    def demo(*, engine: Annotated[EngineOptions, adapt(only=("threads",))], json_out: JsonOption = None) -> None: ...

The command receives instances of the dataclasses. If one refuses a value, the error names the command-line option.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

import typer

from teso_deploy.options.fields import OptionError, Options, describe_field, spell_flag

_CONTEXT = "context"


class Given(frozenset[str]):
    """Names of the options on the command line: parameters of the command, and fields as ``parameter.field``."""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """A command's changes to the options of a dataclass, see :func:`adapt`."""

    only: tuple[str, ...] | None = None
    omit: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    helps: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


def adapt(
    *,
    only: tuple[str, ...] | None = None,
    omit: tuple[str, ...] = (),
    flags: Mapping[str, str] | None = None,
    helps: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Adaptation:
    """Change the options that a command takes from a dataclass. The result stands next to the class in ``Annotated``.

    Args:
        only: the fields to take, in this order; None: all.
        omit: fields that are not taken. They keep their default.
        flags: field → its name on the command line.
        helps: field → its help text.
        defaults: field → its default, as it is given on the command line.
    """
    return Adaptation(only, omit, flags or {}, helps or {}, defaults or {})


@dataclass(frozen=True, slots=True)
class _Group:
    """The options of one dataclass in one command. ``name`` is the command's parameter."""

    name: str
    kind: type[Options]
    adaptation: Adaptation

    @property
    def fields(self) -> list[Field[Any]]:
        by_name = {one.name: one for one in fields(self.kind)}
        names = by_name if self.adaptation.only is None else self.adaptation.only
        return [by_name[name] for name in names if name not in self.adaptation.omit]

    def key(self, one: Field[Any]) -> str:
        """The parameter's name for typer. Two dataclasses may have fields of the same name."""
        return f"{self.name}_{one.name}"

    def flag(self, one: Field[Any]) -> str:
        """The flag that the user types, or both flags of a switch that has two."""
        return self.adaptation.flags.get(one.name) or spell_flag(one)

    def flags(self) -> dict[str, str]:
        """Field → its name in messages. For a switch with two flags, the one that changes the default."""
        return {one.name: self.flag(one).rpartition("/")[2] for one in self.fields}

    def parameters(self) -> list[inspect.Parameter]:
        """The parameters from which typer makes options."""
        hints = get_type_hints(self.kind)
        return [self._parameter(one, hints[one.name]) for one in self.fields]

    def _parameter(self, one: Field[Any], hint: Any) -> inspect.Parameter:
        described = describe_field(one)
        default: Any = one.default
        if get_origin(hint) is tuple and described.given_as is None:  # an option that may be repeated
            hint, default = list[get_args(hint)[0]] | None, None  # type: ignore[misc]
        hint = described.given_as or hint
        if one.name in self.adaptation.defaults:
            default = self.adaptation.defaults[one.name]
        if default is MISSING:
            default = inspect.Parameter.empty
        details: dict[str, Any] = {"help": self.adaptation.helps.get(one.name, described.help)}
        number = _number_of(hint)
        for name, bound in (("min", described.minimum), ("max", described.maximum)):
            if bound is not None and number is not None:
                details[name] = number(bound)
        details |= {"metavar": described.metavar, "envvar": described.envvar}
        information = typer.Option(self.flag(one), **details)
        return inspect.Parameter(
            self.key(one), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, information]
        )

    def build(self, values: dict[str, Any]) -> Options:
        """Remove the group's values from a command's, and make the dataclass. Raises :class:`OptionError`."""
        taken: dict[str, Any] = {}
        for one in self.fields:
            value, read = values.pop(self.key(one)), describe_field(one).read
            if read is not None:
                value = read(value)
            elif isinstance(value, list) or (
                value is None and get_origin(get_type_hints(self.kind)[one.name]) is tuple
            ):
                value = tuple(value or ())
            taken[one.name] = value
        return self.kind(**taken)


def _number_of(hint: Any) -> type[int] | type[float] | None:
    """Return the type of numbers in a hint such as ``int | None``; None if it has none."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((kind for kind in (int, float) if kind in kinds), None)


def _find_group(name: str, hint: Any) -> _Group | None:
    """Return the group that a command's parameter stands for; None for an ordinary parameter."""
    base, *extra = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if not (inspect.isclass(base) and issubclass(base, Options)):
        return None
    return _Group(name, base, next((one for one in extra if isinstance(one, Adaptation)), Adaptation()))


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command function an option for each field of the dataclasses among its parameters.

    A parameter of type :class:`Given` receives the names of the options that are on the command line.

    Raises:
        TypeError: two options have the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: list[_Group] = []
    parameters: list[inspect.Parameter] = []
    fields_given: dict[str, str] = {}  # typer's name of a parameter → its name in `Given`
    flags: dict[str, str] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if hints[name] is Given:
            continue
        if (group := _find_group(name, hints[name])) is None:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            fields_given[name], flags[name] = name, _flag_of(name, hints[name])
            continue
        groups.append(group)
        parameters += group.parameters()
        fields_given |= {group.key(one): f"{name}.{one.name}" for one in group.fields}
        flags |= {f"{name}.{key}": flag for key, flag in group.flags().items()}
        flags = group.flags() | flags  # by the field's name alone, which belongs to the first group that has it
    context = inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    wants_given = [name for name, hint in hints.items() if hint is Given]
    if len({*flags.values()}) < len(parameters):
        raise TypeError(f"{command.__name__} has two options of the same name")

    @functools.wraps(command)
    def run(**values: Any) -> None:
        source = values.pop(_CONTEXT)
        given = Given(known for name, known in fields_given.items() if _was_given(source, name))
        built = {group.name: _build(group, values) for group in groups}
        with _spelling_errors(flags):
            command(**values, **built, **dict.fromkeys(wants_given, given))

    everything = [*parameters, context]
    run.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in everything}
    return run


def _build(group: _Group, values: dict[str, Any]) -> Options:
    with _spelling_errors(group.flags()):
        return group.build(values)


@contextmanager
def _spelling_errors(flags: Mapping[str, str]) -> Iterator[None]:
    """Turn an :class:`OptionError` of the block into a usage error with the names of the command line."""

    def name_option(name: str) -> str:
        return flags.get(name, "--" + name.rpartition(".")[2].replace("_", "-"))

    try:
        yield
    except OptionError as error:
        hint = None if error.field is None else name_option(error.field)
        raise typer.BadParameter(error.spell(name_option), param_hint=hint) from error


def _flag_of(name: str, hint: Any) -> str:
    """Return how the command line spells a command's own parameter."""
    for extra in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        names = [extra.default, *(extra.param_decls or ())] if hasattr(extra, "param_decls") else []
        if named := [one for one in names if isinstance(one, str) and one.startswith("--")]:
            return named[0]
        if type(extra).__name__ == "ArgumentInfo":
            return cast(str, extra.metavar or name.upper())
    return "--" + name.replace("_", "-")


def _was_given(context: Any, name: str) -> bool:
    # Compare by name: the enumeration is from the click that typer uses, or from typer's own copy.
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_given(given: Given, names: Sequence[str], owner: str, *, instead: str = "") -> None:
    """Refuse options that would have no effect.

    Args:
        given: what the command line gave.
        names: the options, as :class:`Given` names them.
        owner: the purpose of the options, to follow "is": "for streams".
        instead: an alternative to omitting them. Default: none.

    Raises:
        OptionError: one of them was given.
    """
    if lost := [name for name in names if name in given]:
        *first, last = (f"{{{name}}}" for name in lost)
        listed = f"{', '.join(first)} and {last} are" if first else f"{last} is"
        remedy = (f"{instead}, or " if instead else "") + ("omit them" if first else "omit it")
        raise OptionError(f"{listed} {{owner}}: {{remedy}}", owner=owner, remedy=remedy)


#: ``--json`` of every command that makes a report.
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the report to a file, or - for stdout.")]
#: ``--bundle`` of the commands that run one.
BundleOption = Annotated[Path | None, typer.Option(help="Default: the shipped bundle.")]

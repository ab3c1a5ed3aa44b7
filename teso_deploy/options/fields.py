"""Fields of options: a default, a help text, a range, and how the command line spells them.

A dataclass of options derives from :class:`Options` and makes its fields with :func:`option`. The command line builds
its parameters from these fields (``cli/options.py``). So an option is described and validated in one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, TypeVar, cast

#: The longest time that a run may be given, in seconds: three years. Python's timers refuse infinite ones.
LONGEST_RUN_SECONDS = 1e8
#: The longest time that may be waited for an answer, in seconds: a day. Sockets refuse 25 days and more.
LONGEST_WAIT_SECONDS = 86_400.0
_IN_BRACES = re.compile(r"\{([\w.]+)\}")


class OptionError(ValueError):
    """Options that exclude each other, have no effect, or are out of range.

    The message names options in braces, as in ``"{mute} excludes {sound_from}"``. In Python they have the names of
    the dataclass' fields; the command line spells them as it takes them (``--mute``).

    Attributes:
        field: the option that the message is about; None: the message says it.
    """

    def __init__(self, template: str, *, field: str | None = None, **values: object) -> None:
        self.template, self.field, self.values = template, field, values
        message = self.spell(lambda name: name)
        super().__init__(message if field is None else f"{field}: {message}")

    def spell(self, name_option: Callable[[str], str]) -> str:
        """Return the message, with each option spelled by ``name_option``."""

        def replace_name(found: re.Match[str]) -> str:
            return str(self.values[found[1]]) if found[1] in self.values else name_option(found[1])

        return _IN_BRACES.sub(replace_name, self.template)


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is described and spelled.

    Attributes:
        help: what the option is for.
        minimum: lowest value; None: no bound.
        maximum: highest value; None: no bound.
        unit: unit of the value, for messages, as in "grey levels".
        flag: the name on the command line; None: ``--`` and the field's name.
        metavar: the placeholder of the value in the help; None: the type.
        given_as: the type on the command line, if it differs from the field's.
        read: makes the field's value from the value on the command line; None: they are equal.
        envvar: environment variable that is read if the option is not given.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    flag: str | None = None
    metavar: str | None = None
    given_as: Any = None
    read: Callable[[Any], Any] | None = None
    envvar: str | None = None


def option(default: Any, help: str, **details: Any) -> Any:
    """Return a dataclass field that becomes an option of the command line.

    Args:
        default: the field's default.
        help: what the option is for.
        details: the other attributes of :class:`Option`.
    """
    return field(default=default, metadata={"option": Option(help, **details)})


def describe_field(one: Field[Any]) -> Option:
    """Return what :func:`option` was given for a field."""
    return cast(Option, one.metadata["option"])


def spell_flag(one: Field[Any]) -> str:
    """Return the name of a field on the command line; both names of a switch that has two."""
    return describe_field(one).flag or "--" + one.name.replace("_", "-")


@dataclass(frozen=True)
class Options:
    """Base of all options. It checks ranges, then the rules of the class itself."""

    def __post_init__(self) -> None:
        """Raise :class:`OptionError` for values that are out of range or that exclude each other."""
        for one in fields(self):
            described, value = describe_field(one), getattr(self, one.name)
            if value is None or (described.minimum is None and described.maximum is None):
                continue
            low, high = described.minimum, described.maximum
            for number in value if isinstance(value, tuple) else (value,):
                # This form also refuses NaN.
                if not ((low is None or number >= low) and (high is None or number <= high)):
                    bounds = " ".join(
                        f"{word} {bound:g}" for word, bound in (("from", low), ("to", high)) if bound is not None
                    )
                    unit = f"{described.unit} " if described.unit else "a value "
                    raise OptionError(f"{{{one.name}}} is {{value}}: give {unit}{bounds}", value=number)
        self.check()

    def check(self) -> None:
        """Raise :class:`OptionError` for values that exclude each other. Subclasses override this."""

    def changed(self) -> Iterator[str]:
        """Yield the names of the fields that do not have their default."""
        for one in fields(self):
            if getattr(self, one.name) != one.default:
                yield one.name

    def as_keywords(self) -> dict[str, Any]:
        """Return the values by name, for a function that takes them as keyword arguments."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


O = TypeVar("O", bound=Options)  # noqa: E741


def combine_options(kind: type[O], given: O | None, keywords: dict[str, Any]) -> O:
    """Return options with some of them replaced by keyword arguments.

    Args:
        kind: the dataclass.
        given: options to begin with; None: the defaults.
        keywords: values by field name.

    Raises:
        TypeError: a keyword is not the name of a field.
        OptionError: see :class:`Options`.
    """
    return kind(**keywords) if given is None else replace(given, **keywords)

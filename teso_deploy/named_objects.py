"""Objects that a registry names as "module:object", and the packages that they need."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from teso_deploy.errors import MissingExtraError
from teso_deploy.requirements import write_install_command


def load_object(name: str) -> Any:
    """Import the object that a registry's entry names.

    >>> load_object("math:sqrt")(9.0)
    3.0
    """
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def check_installed(what: str, modules: Sequence[str], extra: str) -> None:
    """Refuse what needs packages that are not installed. Nothing is imported.

    Args:
        what: The thing that needs the packages, as the first words of the message: "the source nouns".
        modules: The modules that it imports.
        extra: The extra of this package that installs them.

    Raises:
        MissingExtraError: One of the modules can't be found; the message has the command that installs the extra.
    """
    if absent := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise MissingExtraError(f"{what} needs {', '.join(absent)}: {write_install_command(extra)}")

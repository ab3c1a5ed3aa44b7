"""The requirements of this package, read from its metadata, and the commands that install them."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

#: Torch is installed first and with this exact version. Otherwise pip would also install gigabytes of CUDA packages.
TORCH = "torch==2.13.0"
#: Extras that need torch, or need a package that needs torch.
TORCH_EXTRAS = ("export", "train", "cues", "bench")
_LOWER_BOUND = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*(?:[<=~!][^;]*?)?>=\s*([0-9][0-9.]*)")


def write_install_command(extra: str, options: str = "") -> str:
    """Return the shell command that installs an extra.

    Args:
        extra: One of this package's extras.
        options: Options of ``pip install``, such as ``--upgrade``.

    Returns:
        The command. If the extra needs torch and torch is missing, a first step installs torch for the CPU.
    """
    command = f"pip install {options + ' ' if options else ''}'teso-deploy[{extra}]'"
    needs_torch = extra in TORCH_EXTRAS and importlib.util.find_spec("torch") is None
    return f"pip install {TORCH} && {command}" if needs_torch else command


def write_upgrade_command(package: str, bound: str) -> str:
    """Return the shell command that upgrades a package to at least its lowest allowed version."""
    return f"pip install {TORCH}" if package == "torch" else f"pip install --upgrade '{package}>={bound}'"


def read_requirements() -> list[str]:
    """Return the requirements of the base install and of all extras but ``dev``; empty without metadata."""
    description = Path(__file__).parents[1] / "pyproject.toml"
    if description.is_file():  # in a checkout, because an editable install's metadata may be out of date
        project = tomllib.loads(description.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        return [*project["dependencies"], *(one for extra, several in extras if extra != "dev" for one in several)]
    try:
        found = metadata.requires("teso-deploy") or []
    except metadata.PackageNotFoundError:
        return []
    return [one for one in found if not re.search(r"extra\s*==\s*['\"]dev['\"]", one)]


def find_lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """Return package → lowest allowed version; of several bounds the highest.

    >>> find_lower_bounds(["numpy>=2.0", "onnxruntime-gpu[cuda]>=1.25; extra == 'x'", "transformers<5,>=4.57", "av==1"])
    {'numpy': '2.0', 'onnxruntime-gpu': '1.25', 'transformers': '4.57'}
    """
    bounds: dict[str, str] = {}
    for requirement in requirements:
        if found := _LOWER_BOUND.match(requirement):
            package, bound = found.groups()
            if package not in bounds or is_older(bounds[package], bound):
                bounds[package] = bound
    return bounds


def find_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_outdated(version_of: Callable[[str], str | None] = find_version) -> dict[str, tuple[str, str]]:
    """List the installed packages that are too old: package → its version and the lowest allowed one."""
    bounds = find_lower_bounds(read_requirements())
    versions = {package: version_of(package) for package in bounds}
    return {
        package: (version, bounds[package])
        for package, version in versions.items()
        if version is not None and is_older(version, bounds[package])
    }


def is_older(version: str, bound: str) -> bool:
    """Whether a version is below a numeric bound.

    >>> is_older("1.9.2", "1.25"), is_older("2.13.0+cpu", "2.13"), is_older("16", "16.0.0")
    (True, False, False)
    """
    release = [int(part) for part in re.findall(r"\d+", re.split(r"[^0-9.]", version)[0])]
    wanted = [int(part) for part in bound.split(".") if part]
    length = max(len(release), len(wanted))
    return release + [0] * (length - len(release)) < wanted + [0] * (length - len(wanted))

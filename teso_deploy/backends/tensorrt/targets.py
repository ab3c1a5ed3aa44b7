"""The libraries that engines are built for, and the GPUs that TensorRT-RTX runs on, as data.

Each target is also a backend of the same name in :mod:`teso_deploy.backends.registry`, where its module and its extra
are named.
"""

from __future__ import annotations

from dataclasses import dataclass

#: (major, minor): of a compute capability, or the beginning of a version.
Numbers = tuple[int, int]
#: A target's name.
Target = str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTarget:
    """One library that builds engines.

    Attributes:
        first_version: The oldest version whose API this package was checked against.
        end_version: The version whose API is no longer known to fit.
        is_portable: Whether engines are built without a GPU, for other GPUs than the one in this machine.
    """

    first_version: Numbers
    end_version: Numbers
    is_portable: bool = False


TARGETS: dict[Target, EngineTarget] = {
    "tensorrt": EngineTarget(first_version=(10, 13), end_version=(12, 0)),
    "tensorrt-rtx": EngineTarget(first_version=(1, 4), end_version=(2, 0), is_portable=True),
}

#: In place of a GPU generation such as ``sm89``, these stand for an engine of TensorRT-RTX for every GPU of
#: :func:`runs_portable`, and for an engine of TensorRT for Ampere and later.
PORTABLE, AMPERE_PLUS = "portable", "ampere-plus"
#: Compute capabilities that NVIDIA lists for TensorRT-RTX, besides all from :data:`RTX_FROM` on. Its documents list no
#: data-centre GPU after Ampere (9.0, 10.0).
RTX_CAPABILITIES: tuple[Numbers, ...] = ((7, 5), (8, 0), (8, 6), (8, 9))
RTX_FROM: Numbers = (12, 0)
#: GPUs with these compute capabilities run no portable engines, only engines that were built for exactly their
#: generation.
NOT_PORTABLE: tuple[Numbers, ...] = ((7, 5),)


def format_capability(capability: Numbers) -> str:
    """Write ``9.0`` for (9, 0)."""
    return f"{capability[0]}.{capability[1]}"


def runs_rtx(capability: Numbers) -> bool:
    """Whether NVIDIA lists a GPU of this compute capability for TensorRT-RTX."""
    return capability in RTX_CAPABILITIES or capability >= RTX_FROM


def runs_portable(capability: Numbers) -> bool:
    """Whether a portable engine of TensorRT-RTX runs on a GPU of this compute capability."""
    return runs_rtx(capability) and capability not in NOT_PORTABLE


def list_capabilities(portable: bool = False) -> str:
    """List the GPUs that TensorRT-RTX runs on, for messages; ``portable``: only those that run portable engines.

    >>> list_capabilities(portable=True)
    '8.0, 8.6, 8.9, 12.0 and later'
    """
    listed = [one for one in RTX_CAPABILITIES if not portable or one not in NOT_PORTABLE]
    return ", ".join(map(format_capability, (*listed, RTX_FROM))) + " and later"

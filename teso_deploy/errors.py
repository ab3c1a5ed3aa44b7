"""What can go wrong, as classes.

Every error of ours is a :class:`TesoError` and also the builtin that fits, so that a
caller may catch either. A message says what is wrong and what to do about it, in one
sentence; the command line prints it alone and exits with ``exit_code``.
"""

from __future__ import annotations


class TesoError(Exception):
    """Base of every error that the user can mend; ``exit_code`` is the command line's."""

    exit_code = 2


class InputNotFoundError(TesoError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class MediaError(TesoError, ValueError):
    """A file is there but holds no usable video or sound (wrong kind, truncated, no frames)."""


class OutputError(TesoError, OSError):
    """An output can't be written: no such folder, no permission, it exists and is in use."""


class RecipeError(TesoError, ValueError):
    """A recipe is unknown, or says something that can't be built."""


class BundleError(TesoError, ValueError):
    """A bundle is incomplete, of another schema, tampered with, or leaves its folder."""


class PrecisionError(TesoError, ValueError):
    """A graph can't be held in the precision that was asked for, or is not in it."""


class CueError(TesoError, ValueError):
    """A cue word that the bundle has no embedding for."""


class CueSourceError(TesoError, RuntimeError):
    """A source of cues gave no answer: a server that can't be reached or refuses, a model's process that ended.

    ``retry_after_seconds``: when it may be asked again, where it says so.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NoCueAnswerError(CueSourceError):
    """A source was asked and answered nothing about this picture: empty, refused, or not to be read as an answer."""


class CheckpointError(TesoError, ValueError):
    """A checkpoint has missing, unexpected or mis-shaped keys, or is not a checkpoint."""


class DataError(TesoError, ValueError):
    """A data folder is not laid out as documented."""


class MissingExtraError(TesoError, ImportError):
    """An optional dependency is absent; the message names the extra to install."""


class DeviceError(TesoError, RuntimeError):
    """There is no GPU that can be used, its driver is too old, or it refused what was asked of it."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The GPU's memory does not suffice; the message says what is free and what would fit."""


class EngineError(TesoError, ValueError):
    """An engine can't be built or must not be loaded: of another GPU or version, changed, without its sidecar."""


class CheckFailedError(TesoError, AssertionError):
    """A check (parity, audio control) ran and failed."""

    exit_code = 1


class StreamFailedError(TesoError, RuntimeError):
    """A stream or an output of a live run failed on the way; the others went on to their end."""

    exit_code = 1

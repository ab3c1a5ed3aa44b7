"""The classes of errors.

Each error of this package is a :class:`TesoError` and also the builtin that fits, so a caller may catch either. A
message says in one sentence what is wrong and what to do. The command line prints only the message and exits with
``exit_code``.
"""

from __future__ import annotations


class TesoError(Exception):
    """Base of all errors that the user can fix. ``exit_code`` is the exit code of the command line."""

    exit_code = 2


class InputNotFoundError(TesoError, FileNotFoundError):
    """An input file or folder does not exist."""


class MediaError(TesoError, ValueError):
    """A file exists but has no usable video or sound (wrong kind, truncated, no frames)."""


class OutputError(TesoError, OSError):
    """An output can't be written: the folder is missing, permission is missing, or it exists and is in use."""


class RecipeError(TesoError, ValueError):
    """A recipe is unknown, or describes a model that can't be built."""


class BundleError(TesoError, ValueError):
    """A bundle is incomplete, has another schema, was changed, or refers to files outside of its folder."""


class PrecisionError(TesoError, ValueError):
    """A graph can't be converted to the requested precision, or was not."""


class CueError(TesoError, ValueError):
    """The bundle has no embedding for a cue word."""


class CueSourceError(TesoError, RuntimeError):
    """A cue source gave no answer: a server can't be reached or refuses, or a model's process ended.

    ``retry_after_seconds``: when the next request is allowed, if the server says so.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NoCueAnswerError(CueSourceError):
    """A cue source answered, but without cues for this picture: empty, refused, or unreadable."""


class CheckpointError(TesoError, ValueError):
    """A checkpoint has missing, unexpected or mis-shaped keys, or is not a checkpoint."""


class DataError(TesoError, ValueError):
    """A data folder does not have the documented layout."""


class MissingExtraError(TesoError, ImportError):
    """An optional dependency is absent; the message names the extra to install."""


class DeviceError(TesoError, RuntimeError):
    """No usable GPU exists, its driver is too old, or it refused a request."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The GPU has too little memory; the message says what is free and what would fit."""


class EngineError(TesoError, ValueError):
    """An engine can't be built, or must not be loaded: for example, it is for another GPU, or has no sidecar."""


class CheckFailedError(TesoError, AssertionError):
    """A check (parity, audio control) ran and failed."""

    exit_code = 1


class StreamFailedError(TesoError, RuntimeError):
    """One stream or output of a live run failed; the others continued to their end."""

    exit_code = 1

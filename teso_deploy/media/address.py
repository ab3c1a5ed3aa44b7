"""The address of a video: a file, a pipe or a server. Credentials are never printed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from teso_deploy.errors import MediaError
from teso_deploy.redaction import RedactedUrl
from teso_deploy.text import to_one_line

Kind = Literal["file", "pipe", "http", "rtsp", "rtmp", "mpegts"]
SCHEMES: dict[str, Kind] = {
    "file": "file",
    "http": "http",
    "https": "http",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "rtmp",
    "rtmps": "rtmp",
    "tcp": "mpegts",
    "udp": "mpegts",
}
STDIN = "-"
_HAS_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
#: Without this check, ``USER@PASSWORD:HOST`` (signs swapped) would show the password as if it were a host.
_HOST_AND_PORT = re.compile(r"(?:\[[^\[\]]*\]|[^\[\]:]*)(?::\d+)?")
_HOW_TO_PIPE = "read it with another program and pipe it: ffmpeg -i URL -c copy -f mpegts - | teso-deploy run -"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of an input.

    Attributes:
        kind: What the address names, such as ``file``, ``pipe``, ``rtsp`` or ``http``.
        url: The address as FFmpeg takes it. It contains the credentials, so never print it.
        shown: The same address without credentials, for printing.
        path: The path of a file; None for anything else.
    """

    kind: Kind
    url: str = field(repr=False)
    shown: str
    path: Path | None = None
    _redacted: RedactedUrl | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str | Path) -> Address:
        """Parse a path, a URL, or ``-`` for standard input.

        This does not check whether the file or the server exists.

        Raises:
            MediaError: The scheme can't be read, or the URL has no host.
        """
        given = str(text)
        if given == STDIN:
            return cls("pipe", "pipe:0", STDIN)
        match = _HAS_SCHEME.match(given)
        if match is None:
            return cls("file", given, given, Path(given))
        scheme = match[1].lower()
        kind = SCHEMES.get(scheme)
        if kind is None:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            how = f"; {_HOW_TO_PIPE}" if scheme in ("srt", "rist", "rtp") else ""
            raise MediaError(f"{scheme}:// can't be read: give a file, - for standard input, or one of {known}{how}")
        try:
            parts = urlsplit(given)
            host, _ = parts.hostname, parts.port
            is_well_formed = _HOST_AND_PORT.fullmatch(parts.netloc.rpartition("@")[2]) is not None
        except ValueError:
            is_well_formed = False
        if not is_well_formed:
            raise MediaError(f"the {scheme}:// address is malformed: write {scheme}://HOST[:PORT]/PATH")
        if kind == "file":
            if parts.netloc.lower() not in ("", "localhost"):
                raise MediaError("the file:// address names a host: write file:///PATH, or the path alone")
            path = unquote(parts.path)
            return cls("file", path, path, Path(path))
        if not host and kind != "mpegts":  # udp://:1234 listens on every address
            raise MediaError(f"the {scheme}:// address names no host: write {scheme}://HOST[:PORT]/PATH")
        redacted = RedactedUrl.parse(given)
        return cls(kind, given, redacted.shown, None, redacted)

    @property
    def is_live(self) -> bool:
        """Whether data arrive at their own time, instead of when the program reads them."""
        return self.kind != "file"

    def clean(self, message: str) -> str:
        """Return a foreign message as one printable line, without the secrets of this address."""
        return to_one_line(message) if self._redacted is None else self._redacted.clean(message)


def open_options(address: Address) -> dict[str, str]:
    """Return the options with which FFmpeg opens an address.

    Probing of a stream is kept short, because everything that is probed arrives late. The probed packets are kept:
    they begin with a key frame, and the next key frame may be seconds away.
    """
    if address.kind == "file":
        return {}
    options = {"probesize": "1000000", "analyzeduration": "1500000"}
    # The content may be a playlist. FFmpeg lets a playlist from a pipe or from TCP name any local file.
    if address.kind in ("pipe", "mpegts"):
        options["protocol_whitelist"] = "pipe" if address.kind == "pipe" else "tcp,udp"
    if address.kind == "rtsp":
        options |= {"rtsp_transport": "tcp", "max_delay": "200000"}
    elif address.kind == "mpegts" and address.url.lower().startswith("udp"):
        # Buffer packets while the decoder is busy. An overrun loses packets, but must not end the stream.
        options |= {"fifo_size": "50000", "overrun_nonfatal": "1", "buffer_size": "2097152"}
    return options

"""Where a video comes from: a file, a pipe, a server. Its credentials are never printed."""

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
#: In ``USER@PASSWORD:HOST``, where the signs are swapped, the password would be shown as a host.
_HOST_AND_PORT = re.compile(r"(?:\[[^\[\]]*\]|[^\[\]:]*)(?::\d+)?")
_HOW_TO_PIPE = "read it with another program and pipe it: ffmpeg -i URL -c copy -f mpegts - | teso-deploy run -"


@dataclass(frozen=True, slots=True)
class Address:
    """``url``: as FFmpeg takes it, with credentials, and so not for printing; ``shown``: the same without them.

    ``path``: of a file, None of anything else.
    """

    kind: Kind
    url: str = field(repr=False)
    shown: str
    path: Path | None = None
    _redacted: RedactedUrl | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str | Path) -> Address:
        """What an input names: a path, a URL, or ``-`` for standard input.

        Whether there is such a file or server is not looked at. Raises :class:`MediaError` for a scheme that can't
        be read, or a URL without a host.
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
        """Whether it comes when it comes, rather than when it is asked for."""
        return self.kind != "file"

    def cleaned(self, message: str) -> str:
        """Return a message of someone else without this address's secrets, as one printable line."""
        return to_one_line(message) if self._redacted is None else self._redacted.clean(message)


def open_options(address: Address) -> dict[str, str]:
    """What FFmpeg is told when it opens an address.

    A stream is looked into for no longer than it needs to show itself: what is probed is late. What was looked at is
    kept all the same: it begins with a key frame, and the next one may be seconds away.
    """
    if address.kind == "file":
        return {}
    options = {"probesize": "1000000", "analyzeduration": "1500000"}
    # What comes may be a playlist. FFmpeg lets one that came by a pipe or by TCP name any local file.
    if address.kind in ("pipe", "mpegts"):
        options["protocol_whitelist"] = "pipe" if address.kind == "pipe" else "tcp,udp"
    if address.kind == "rtsp":
        options |= {"rtsp_transport": "tcp", "max_delay": "200000"}
    elif address.kind == "mpegts" and address.url.lower().startswith("udp"):
        # Room for what comes while a decoder is busy; an overrun loses packets, which is no end.
        options |= {"fifo_size": "50000", "overrun_nonfatal": "1", "buffer_size": "2097152"}
    return options

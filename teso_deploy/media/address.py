"""Where a video comes from: a file, a pipe, a server. Its credentials are never printed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from teso_deploy.errors import MediaError

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
HIDDEN = "***"
_HAS_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
#: Parameters whose values open doors; cameras take them in the path, too.
_SECRET = re.compile(
    r"([^=&;#/?]*(?:key|token|secret|pass|pwd|auth|sig|credential|session)[^=&;#/?]*=)([^&;#/?]+)", re.IGNORECASE
)
#: Shorter ones would blank out half of every message.
_LEAST_SECRET = 3
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
        except ValueError:
            raise MediaError(f"the {scheme}:// address is malformed: write {scheme}://HOST[:PORT]/PATH") from None
        if kind == "file":
            path = unquote(parts.path)
            return cls("file", path, path, Path(path))
        if not host and kind != "mpegts":  # udp://:1234 listens on every address
            raise MediaError(f"the {scheme}:// address names no host: write {scheme}://HOST[:PORT]/PATH")
        return cls(kind, given, _without_secrets(parts))

    @property
    def is_live(self) -> bool:
        """Whether it comes when it comes, rather than when it is asked for."""
        return self.kind != "file"

    def cleaned(self, message: str) -> str:
        """A message of someone else without this address's credentials, however they are written in it."""
        cleaned = message.replace(self.url, self.shown)
        for secret in sorted(self._secrets(), key=len, reverse=True):
            cleaned = cleaned.replace(secret, HIDDEN)
        return cleaned

    def _secrets(self) -> set[str]:
        if self.kind in ("file", "pipe"):
            return set()
        parts = urlsplit(self.url)
        found = {parts.password or "", parts.username or "", parts.netloc.rpartition("@")[0]}
        found |= {match[2] for match in _SECRET.finditer(urlunsplit(("", "", *parts[2:])))}
        written = {form for secret in found for form in (secret, unquote(secret), quote(unquote(secret), safe=""))}
        return {secret for secret in written if len(secret) >= _LEAST_SECRET}


def _without_secrets(parts: SplitResult) -> str:
    _, at, host = parts.netloc.rpartition("@")
    path, query = (_SECRET.sub(rf"\1{HIDDEN}", part) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, f"{HIDDEN}@{host}" if at else host, path, query, ""))


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

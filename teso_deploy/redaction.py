"""Removing secrets from addresses, and from the environment of child processes.

An address has passwords in many places: before the host, as values of a query, as a camera's parameters in the path, as
the last part of an RTMP path. So only parts that are known to be harmless are shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

from teso_deploy.text import to_one_line

HIDDEN = "***"
#: Names in queries and paths whose values describe a picture or a request, and give no access.
_HARMLESS = {
    "width", "height", "w", "h", "fps", "framerate", "rate", "channel", "channels", "subtype", "stream", "streamtype",
    "resolution", "codec", "videocodec", "audiocodec", "transport", "rtsp_transport", "protocol", "proto", "unicast",
    "multicast", "profile", "quality", "bitrate", "format", "video", "audio", "compression", "camera", "track", "lang",
    "timeout", "buffer_size", "fifo_size", "pkt_size", "overrun_nonfatal", "listen", "ttl", "reuse", "api-version",
}  # fmt: skip
#: In a path, the user name is harmless too. Cameras have it before the password.
_HARMLESS_IN_PATHS = _HARMLESS | {"user"}
#: Values that are too short to be a secret.
_SWITCH = re.compile(r"\d{1,2}|true|false|yes|no|on|off|tcp|udp", re.IGNORECASE)
_PAIR = re.compile(r"(?:^|[_&,])(?P<name>[^=_&,]+)=")
#: Panels of TV servers put user and password before a number: /live/USER/PASSWORD/12.ts.
_PANEL = re.compile(
    r"/(?P<kind>(?:live|movie|series|timeshift)/)?(?!streaming/)[^/]+/[^/]+/(?:\d+(?:\.\w+)?|(?(kind)\d+/.*|(?!)))$",
    re.IGNORECASE,
)
#: A part of an address with this form is a word, not a secret: LIVE, Live, live, liveStream.
_WORDS = re.compile(r"(?:[A-Z]{1,8}|[A-Z]?[a-z]{1,16}){1,3}")
_LEAST_RANDOM, _MOST_DIGITS, _MOST_WORD = 8, 14, 24
#: A shorter secret is replaced only between the same characters as in the address.
_LEAST_SECRET = 3
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?|AUTH)(?:_|$)|APIKEY|PASSWORD", re.IGNORECASE
)


def make_child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process: the current one without keys, tokens and passwords."""
    environment = os.environ if environment is None else environment
    return {name: value for name, value in environment.items() if not _SECRET_VARIABLE.search(name)}


@dataclass(frozen=True, slots=True)
class RedactedUrl:
    """An address without its secrets.

    Attributes:
        shown: The address in a form that may be printed and stored.
    """

    shown: str
    _forms: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> RedactedUrl:
        """Find the secrets of a URL. Raises :class:`ValueError` for a malformed one."""
        found = _find_secrets(url)
        return cls(found.shown, tuple(_yield_forms(url, found)))

    def clean(self, message: str) -> str:
        """Return a foreign message as one printable line, without the secrets in any of their spellings."""
        for secret, shown in self._forms:
            message = message.replace(secret, shown)
        return to_one_line(message)

    def __repr__(self) -> str:
        return f"RedactedUrl({self.shown!r})"


@dataclass(frozen=True, slots=True)
class _Found:
    """The secrets of a URL. ``beside``: short secrets, with the characters before and after them in the URL."""

    shown: str
    secrets: set[str]
    beside: set[tuple[str, str, str]]


def _find_secrets(url: str, depth: int = 2) -> _Found:
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    user_info, at, host = parts.netloc.rpartition("@")
    path, secrets = _redact_path(parts.path, scheme)
    query, values = _redact_query(parts.query)
    shown = f"{scheme}://{(HIDDEN if user_info else '') + at}{host}{path}" + (f"?{query}" if parts.query else "")
    secrets |= {*values, parts.fragment, user_info, *user_info.split(":", 1)}
    secrets |= {value for _, value in _split_pairs(parts.fragment)}  # a fragment is neither sent nor shown
    beside = {("=", value, "") for value in values} | ({("", user_info, "@")} if user_info else set())
    for value in values if depth else ():
        with suppress(ValueError):
            if "://" in (inner := unquote_plus(value)):
                secrets |= _find_secrets(inner, depth - 1).secrets
    return _Found(shown, secrets, beside)


def _yield_forms(url: str, found: _Found) -> Iterator[tuple[str, str]]:
    """Yield the texts to replace in messages, longest first, each with its replacement."""
    bare, bare_shown = url.split("://", 1)[-1], found.shown.split("://", 1)[-1]
    host = urlsplit(url).netloc.rpartition("@")[2]
    tail, tail_shown = bare[bare.find(host) :], bare_shown.split("@", 1)[-1]
    pairs = ((url, found.shown), (bare, bare_shown), (tail, tail_shown))
    forms = {form: stands for text, stands in pairs if text != stands for form in _list_spellings(text)}
    forms |= {
        form: HIDDEN for secret in found.secrets for form in _list_spellings(secret) if len(form) >= _LEAST_SECRET
    }
    for before, secret, after in found.beside:
        forms |= {f"{before}{form}{after}": f"{before}{HIDDEN}{after}" for form in _list_spellings(secret)}
    yield from sorted(forms.items(), key=lambda item: -len(item[0]))


def _list_spellings(text: str) -> set[str]:
    """Return a text as it is, decoded, and encoded in each way that a library may use."""
    plain = {text, unquote(text), unquote_plus(text)}
    found = plain | {encode(one, safe) for one in plain for encode in (quote, quote_plus) for safe in ("", "/")}
    found |= {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), one) for one in found}
    return {one for one in found if one}


def _redact_path(path: str, scheme: str) -> tuple[str, set[str]]:
    """Return a path without its secrets, and the secrets."""
    segments, secrets = path.split("/"), set[str]()

    def hide(number: int) -> None:
        if segments[number] not in ("", HIDDEN):
            secrets.add(segments[number])
            segments[number] = HIDDEN

    if scheme in ("rtmp", "rtmps"):  # /APP/KEY
        for number in range(2, len(segments)):
            hide(number)
    if scheme.startswith("http") and (panel := _PANEL.match(path)):
        first = 2 if panel["kind"] else 1
        hide(first)
        hide(first + 1)
    for number, segment in enumerate(segments):
        if segment == HIDDEN:
            continue
        name, *parameters = segment.split(";")
        kept = [_redact_pairs(name, secrets), *(_redact_pairs(text, secrets) for text in parameters)]
        segments[number] = ";".join(kept)
    return "/".join(segments), secrets


def _redact_pairs(text: str, secrets: set[str]) -> str:
    """Return ``user=me_password=x_channel=1`` up to the first value that may be secret; else the name."""
    start = 0
    for match in _PAIR.finditer(text):
        name, value = unquote(match["name"]).lower().strip(), re.split(r"[_&,](?=[^=_&,]+=)", text[match.end() :])[0]
        if name not in _HARMLESS_IN_PATHS and not _SWITCH.fullmatch(value):
            secrets |= {text[match.end() :], value}
            return text[: match.end()] + HIDDEN
        start = match.end()
    if not start and looks_random(text):
        secrets.add(text)
        return HIDDEN
    return text


def _redact_query(query: str) -> tuple[str, set[str]]:
    """Return a query without its secrets, and the secrets."""
    shown, secrets = [], set[str]()
    for sign, part in re.findall(r"(^|[&;])([^&;]*)", query):
        name, equals, value = part.partition("=")
        plain, content = unquote_plus(name).lower().strip(), unquote_plus(value)
        is_known = plain in _HARMLESS and not looks_random(content) and "://" not in content and "@" not in content
        if not equals:
            is_hidden = bool(part) and plain not in _HARMLESS and not _SWITCH.fullmatch(part)
            shown.append(sign + (HIDDEN if is_hidden else part))
            secrets |= {part} if is_hidden else set()
            continue
        is_hidden = bool(value) and not is_known and not _SWITCH.fullmatch(content)
        secrets |= {value, content} if is_hidden else set()
        if looks_random(name):
            secrets.add(name)
            name = HIDDEN
        shown.append(f"{sign}{name}={HIDDEN if is_hidden else value}")
    return "".join(shown), secrets


def _split_pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"[&;]", text):
        name, equals, value = part.partition("=")
        if equals and value:
            yield name, value


def looks_random(text: str) -> bool:
    """Whether a part of a path may be a key: long, and neither words nor a number.

    >>> [looks_random(text) for text in ("h264Preview_01_main", "playlist2.m3u8", "CANARYs3cr3tQ7", "8f14e45fceea167a")]
    [False, False, True, True]
    """
    text = unquote(text)
    stem = re.sub(r"\.[A-Za-z][A-Za-z0-9]{0,4}$", "", text)
    if len(stem) < _LEAST_RANDOM:
        return False
    pieces = re.split(r"[-_.~+ :,()]+", stem)
    if len(pieces) >= 4 and all(len(piece) == 4 for piece in pieces):  # abcd-efgh-ijkl-mnop
        return True
    return any(_is_random(piece) for piece in pieces)


def _is_random(piece: str) -> bool:
    runs = re.findall(r"[A-Za-z]+|\d+|[^A-Za-z\d]+", piece)
    if len(runs) > 3:
        return True
    if any(len(run) > (_MOST_DIGITS if run.isdigit() else _MOST_WORD) for run in runs):
        return True
    # Letters of other alphabets count as words; punctuation does not.
    return any(
        not (run.isdigit() or run.isalpha()) or (run.isascii() and run.isalpha() and not _WORDS.fullmatch(run))
        for run in runs
    )

"""A tokenizer's file, and the text of each token. Only this module needs the library ``tokenizers``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teso_deploy.errors import BundleError, MissingExtraError
from teso_deploy.requirements import write_install_command
from teso_deploy.text import to_one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer as _Library

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _import_library() -> type[_Library]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"models of language need the package tokenizers: {write_install_command('cues')}"
        ) from error
    return Tokenizer


class Tokens:
    """A tokenizer. Raises :class:`MissingExtraError`, :class:`BundleError` (not a tokenizer's file)."""

    def __init__(self, path: Path) -> None:
        library = _import_library()
        try:
            self._tokenizer = library.from_file(str(path))
            content = json.loads(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare exceptions
            raise BundleError(f"{path} is not a tokenizer ({to_one_line(error)}): export the model again") from error
        self._is_bytes = "ByteLevel" in _collect_types(content.get("decoder"))
        added = self._tokenizer.get_added_tokens_decoder()
        #: Texts that are one token wherever they occur.
        self.added = tuple(token.content for token in added.values() if len(token.content.strip()) > 1)
        self._special = {number for number, token in added.items() if token.special}

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text. Added tokens are recognised in it, and no token is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def sentence(self, text: str) -> list[int]:
        """Return the ids of a text, with the tokens that the tokenizer adds before and after it."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def token(self, number: int) -> str:
        """Return the text of a token."""
        return self._tokenizer.id_to_token(number) or ""

    def plain(self, text: str) -> str:
        """Break up the added tokens in a text, so that the text is only data."""
        while found := next((token for token in self.added if token in text), None):
            text = text.replace(found, f"{found[0]} {found[1:]}")
        return text

    def text(self, ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def pieces(self) -> list[str]:
        """Return the text of every token by id, as it occurs within a sentence.

        It is "" for special tokens and for parts of letters.
        """
        unicode_bytes = _map_letters_to_bytes()
        found = []
        for number in range(self._tokenizer.get_vocab_size(with_added_tokens=True)):
            token = self._tokenizer.id_to_token(number)
            if token is None or number in self._special:
                found.append("")
            elif self._is_bytes:
                try:
                    found.append(bytes(unicode_bytes[c] for c in token).decode())
                except (KeyError, UnicodeDecodeError):
                    found.append("")
            else:
                byte = _BYTE_TOKEN.fullmatch(token)
                found.append(bytes([int(byte[1], 16)]).decode("ascii", "ignore") if byte else token.replace("▁", " "))
        return found


def _collect_types(part: Any) -> set[str]:
    """Collect the types in a nested part of a tokenizer's file."""
    if not isinstance(part, dict):
        return set()
    inner = [name for step in part.get("decoders", []) for name in _collect_types(step)]
    return {str(part.get("type")), *inner}


def _map_letters_to_bytes() -> dict[str, int]:
    """Return GPT-2's mapping from letters to bytes (byte-level BPE). Printable characters stand for themselves."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{chr(byte): byte for byte in shown}, **{chr(256 + n): byte for n, byte in enumerate(hidden)}}

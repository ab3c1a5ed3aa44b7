"""Damage to bytes by a seeded generator, which is the same on every Python version."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

#: Numbers at which length fields and counters overflow.
ODD_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
ODD_BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\r\n", b"%s%n", b"\x1b[31m", b"\xed\xa0\x80", b"\xf0\x9f\x90\xb6")


def _place(draw: random.Random, content: bytes, length: int = 1) -> int:
    """Choose a place in the content. Half of the time it is near the beginning, where headers are."""
    last = max(len(content) - length, 0)
    return draw.randint(0, min(last, 512)) if draw.random() < 0.5 else draw.randint(0, last)


def _span(draw: random.Random, content: bytes) -> tuple[int, int]:
    length = min(len(content), 1 << draw.randint(0, 12))
    start = _place(draw, content, length)
    return start, start + length


def flip_bits(draw: random.Random, content: bytes) -> bytes:
    """Flip one to sixteen bits."""
    found = bytearray(content)
    for _ in range(1 << draw.randint(0, 4)):
        if found:
            found[_place(draw, content)] ^= 1 << draw.randint(0, 7)
    return bytes(found)


def truncate(draw: random.Random, content: bytes) -> bytes:
    """Cut off the end, from one byte to all of it."""
    return content[: draw.randint(0, max(len(content) - 1, 0))]


def cut_out(draw: random.Random, content: bytes) -> bytes:
    """Remove a piece."""
    start, end = _span(draw, content)
    return content[:start] + content[end:]


def repeat_piece(draw: random.Random, content: bytes) -> bytes:
    """Write a piece twice or more."""
    start, end = _span(draw, content)
    return content[:end] + content[start:end] * (1 << draw.randint(0, 6)) + content[end:]


def insert_bytes(draw: random.Random, content: bytes) -> bytes:
    """Insert noise, or a piece that many parsers do not accept."""
    at = _place(draw, content)
    piece = draw.choice(ODD_BYTES) if draw.random() < 0.5 else draw.randbytes(1 << draw.randint(0, 9))
    return content[:at] + piece + content[at:]


def overwrite(draw: random.Random, content: bytes) -> bytes:
    """Write zeros, ones or noise over a piece."""
    start, end = _span(draw, content)
    piece = draw.choice((bytes(end - start), b"\xff" * (end - start), draw.randbytes(end - start)))
    return content[:start] + piece + content[end:]


def swap_pieces(draw: random.Random, content: bytes) -> bytes:
    """Exchange two pieces of one length."""
    length = 1 << draw.randint(0, 8)
    if len(content) < 2 * length:
        return content[::-1]
    first, second = sorted((_place(draw, content, length), _place(draw, content, length)))
    if second - first < length:
        return content[:first] + content[first + length :]
    return b"".join(
        (
            content[:first], content[second : second + length], content[first + length : second],
            content[first : first + length], content[second + length :],
        )
    )  # fmt: skip


def set_number(draw: random.Random, content: bytes) -> bytes:
    """Write an odd number of two, four or eight bytes, in either order, over what may be a length."""
    code, length = draw.choice((("H", 2), ("I", 4), ("Q", 8)))
    value = draw.choice(ODD_NUMBERS) % (1 << 8 * length)
    at = _place(draw, content, length)
    piece = struct.pack(draw.choice("<>") + code, value)
    return content[:at] + piece + content[at + length :]


Mutation = Callable[[random.Random, bytes], bytes]
BYTE_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, truncate, cut_out, repeat_piece, insert_bytes, overwrite, swap_pieces, set_number,
)  # fmt: skip


def mutate(draw: random.Random, content: bytes, mutations: Sequence[Mutation] = BYTE_MUTATIONS) -> bytes:
    """Apply one to four kinds of damage, one after the other."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        content = draw.choice(mutations)(draw, content)
    return content

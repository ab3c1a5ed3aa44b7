"""Reads and changes the packets of a transport stream: their tracks and their time stamps."""

from __future__ import annotations

import struct
from collections.abc import Iterator

PACKET_BYTES = 188
TICKS_HZ = 90_000
_WRAP = 1 << 33


def packets_of(block: bytes) -> Iterator[bytearray]:
    """Yield the packets of a block."""
    for start in range(0, len(block), PACKET_BYTES):
        yield bytearray(block[start : start + PACKET_BYTES])


def track_of(packet: bytes | bytearray) -> int:
    """Return the packet's PID."""
    return (packet[1] & 0x1F) << 8 | packet[2]


def payload_start(packet: bytes | bytearray) -> int:
    """Return where its payload begins; after its end if it has none."""
    if not packet[3] & 0x10:
        return PACKET_BYTES
    return 5 + packet[4] if packet[3] & 0x20 else 4


def begins_picture(packet: bytes | bytearray) -> bool:
    """Return whether a picture's data begin in the packet."""
    start = payload_start(packet)
    is_first = bool(packet[1] & 0x40) and bytes(packet[start : start + 3]) == b"\0\0\1"
    return is_first and packet[start + 3] & 0xF0 == 0xE0


class Restamper:
    """Moves the stamps of a stream. Packet counters continue without a break, so that no packet seems lost."""

    def __init__(self) -> None:
        self._counters: dict[int, int] = {}

    def moved(self, block: bytes, ticks: int) -> bytes:
        """Return the block with all its stamps (PTS, DTS, PCR) ``ticks`` of 90 kHz later, in 33 bits."""
        return b"".join(self._moved(packet, ticks) for packet in packets_of(block))

    def _moved(self, packet: bytearray, ticks: int) -> bytearray:
        if packet[3] & 0x10:
            number = self._counters.get(track_of(packet), (packet[3] & 0x0F) - 1) + 1 & 0x0F
            self._counters[track_of(packet)] = number
            packet[3] = packet[3] & 0xF0 | number
        if packet[3] & 0x20 and packet[4] >= 7 and packet[5] & 0x10:
            clock = int.from_bytes(packet[6:12], "big")  # 33 bits, 6 reserved, 9 of 27 MHz
            base = ((clock >> 15) + ticks) % _WRAP
            packet[6:12] = (base << 15 | clock & 0x7FFF).to_bytes(6, "big")
        start = payload_start(packet)
        # Only tracks of sound (110x xxxx) and of pictures (1110 xxxx) have stamps in their headers.
        if packet[1] & 0x40 and packet[start : start + 3] == b"\0\0\1" and 0xC0 <= packet[start + 3] <= 0xEF:
            for number in range((packet[start + 7] >> 6).bit_count()):
                place = start + 9 + 5 * number
                packet[place : place + 5] = _later(packet[place : place + 5], ticks)
        return packet


def _later(stamp: bytearray, ticks: int) -> bytes:
    """Move a stamp of 33 bits in five bytes. Four bits before it and three between its parts do not belong to it."""
    value = (stamp[0] >> 1 & 7) << 30 | (stamp[1] << 8 | stamp[2]) >> 1 << 15 | (stamp[3] << 8 | stamp[4]) >> 1
    value = (value + ticks) % _WRAP
    high, middle, low = value >> 30, value >> 15 & 0x7FFF, value & 0x7FFF
    return struct.pack(">BHH", stamp[0] & 0xF0 | high << 1 | 1, middle << 1 | 1, low << 1 | 1)


def merge_programmes(*streams: bytes) -> bytes:
    """Interleave transport streams of one programme each, with separate PIDs, into one of several programmes."""
    entries = b""
    queues = []
    for stream in streams:
        packets = list(packets_of(stream))
        table = next(packet for packet in packets if track_of(packet) == 0)
        begin = payload_start(table) + 1  # after the pointer
        entries += table[begin + 8 : begin + 12]  # of the only programme: its number, and the PID of its table
        queues.append([packet for packet in packets if track_of(packet) not in (0, 0x11)])
    section = struct.pack(">BHHBBB", 0, 0xB000 | (5 + len(entries) + 4), 1, 0xC1, 0, 0) + entries
    section += _crc(section).to_bytes(4, "big")
    first = b"\x47\x40\x00\x10\x00" + section
    merged = [first + b"\xff" * (PACKET_BYTES - len(first))]
    total = sum(map(len, queues))
    done = [0] * len(queues)
    for _ in range(total):  # each stream advances in proportion to its length
        behind = min(
            (i for i in range(len(queues)) if done[i] < len(queues[i])), key=lambda i: done[i] / len(queues[i])
        )
        merged.append(bytes(queues[behind][done[behind]]))
        done[behind] += 1
    return b"".join(merged)


def _crc(data: bytes) -> int:
    """Return the checksum of a table's section: CRC-32/MPEG-2."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value

"""Codes of 1 to 8 bits, packed without gaps.

Code i takes bits i·b to i·b + b − 1, counted from the lowest bit of the first byte.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

ByteArray = NDArray[np.uint8]
BLOCK = 1 << 16  # codes worked on at a time, so that the data between two passes stay in the cache


def packed_nbytes(count: int, bits: int) -> int:
    """Return ⌈count·bits/8⌉."""
    return (count * bits + 7) // 8


def pack(codes: ByteArray, bits: int) -> ByteArray:
    """Pack (n,) codes below 2^bits into ⌈n·bits/8⌉ bytes; the bits after the last code are 0."""
    if bits == 8:
        return codes
    if bits == 1:
        return np.packbits(codes, bitorder="little")
    out = np.empty(packed_nbytes(len(codes), bits), np.uint8)
    whole = len(codes) - len(codes) % 8
    for start in range(0, whole, BLOCK):
        block = codes[start : min(start + BLOCK, whole)]
        at = start // 8 * bits
        out[at : at + len(block) // 8 * bits].reshape(-1, bits)[:] = _fold(block, bits)
    if whole < len(codes):
        rest = np.zeros(8, np.uint8)
        rest[: len(codes) - whole] = codes[whole:]
        out[whole // 8 * bits :] = _fold(rest, bits)[0, : len(out) - whole // 8 * bits]
    return out


def _fold(codes: ByteArray, bits: int) -> ByteArray:
    """Pack (8·n,) codes into (n, bits) bytes: two neighbours move together, then four, then a 64-bit word's eight."""
    if bits == 2:  # four codes meet in the highest byte of a product
        return (codes.view("<u4") * np.uint32(0x01041040)).view(np.uint8)[3::4].reshape(-1, bits)
    if bits == 4:
        return (codes.view("<u2") * np.uint16(0x0110)).view(np.uint8)[1::2].reshape(-1, bits)
    words = codes.view("<u8")
    for lane, low in _lanes(bits):
        gap = np.uint64(lane - lane * bits // 8)
        words = (words & low) | ((words >> gap) & (low << np.uint64(lane * bits // 8)))
    return words.view(np.uint8).reshape(-1, 8)[:, :bits]


@cache
def _lanes(bits: int) -> tuple[tuple[int, np.uint64], ...]:
    """Return, for lanes of 8, 16 and 32 bits, the mask of the used bits in every second lane."""
    steps = []
    for lane in (8, 16, 32):
        used = (1 << lane * bits // 8) - 1
        steps.append((lane, np.uint64(sum(used << at for at in range(0, 64, 2 * lane)))))
    return tuple(steps)


@cache
def _codes_of_byte(bits: int) -> NDArray[np.unsignedinteger[Any]]:
    """Return the 4 or 2 codes of each byte, as one word."""
    codes = np.stack([np.arange(256) >> at & (1 << bits) - 1 for at in range(0, 8, bits)], axis=1)
    return codes.astype(np.uint8).view("<u4" if bits == 2 else "<u2").reshape(-1)


def unpack(data: ByteArray, bits: int, count: int) -> ByteArray:
    """Return the first `count` codes that `pack` packed; there may be more bytes."""
    data = data[: packed_nbytes(count, bits)]
    if bits == 8:
        return data[:count]
    if bits == 1:
        return np.unpackbits(data, count=count, bitorder="little")
    if bits in (2, 4):
        return np.take(_codes_of_byte(bits), data, mode="clip").view(np.uint8)[:count]
    groups = -(-count // 8)
    padded = np.zeros((groups, 8), np.uint8)
    whole = len(data) // bits
    padded[:whole, :bits] = data[: whole * bits].reshape(-1, bits)
    if whole < groups:
        padded[whole, : len(data) - whole * bits] = data[whole * bits :]
    words = padded.view("<u8")
    for lane, low in reversed(_lanes(bits)):
        used, gap = np.uint64(lane * bits // 8), np.uint64(lane - lane * bits // 8)
        words = (words & low) | ((words & (low << used)) << gap)
    return words.view(np.uint8).reshape(-1)[:count]

"""Damage done to files, the same for the same seed: what stands in for a fuzzer where there is none."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Sequence

PNG = b"\x89PNG\r\n\x1a\n"


def mutated(data: bytes, seed: int, dictionary: Sequence[bytes] = ()) -> bytes:
    """A few bytes changed, lost, repeated or added; a PNG's checksums mended, so that the change gets through.

    Args:
        data: To start from.
        seed: Decides everything.
        dictionary: What the format is made of; some of it is put in.
    """
    chance = random.Random(seed)
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(min(len(out), chance.choice([32, 128, len(out)])))
        change = chance.randrange(6 + bool(dictionary))
        if change <= 1:
            out[place] ^= 1 << chance.randrange(8)
        elif change == 2:
            out[place : place + 4] = chance.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", chance.randbytes(4)])
        elif change == 3:
            del out[place : place + chance.randint(1, 16)]
        elif change == 4:
            out[place:place] = chance.randbytes(chance.randint(1, 16))
        elif change == 5:
            out[place:place] = out[place : place + chance.randint(1, 64)] * chance.choice([1, 2, 50])
        else:
            out[place:place] = chance.choice(dictionary)
        out = out or bytearray(1)
    return mended(bytes(out))


def mended(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have; anything else as it is."""
    if not data.startswith(PNG):
        return data
    out = bytearray(data)
    start = len(PNG)
    while start + 12 <= len(out):
        end = start + 8 + struct.unpack_from(">I", out, start)[0]
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[start + 4 : end]))
        start = end + 4
    return bytes(out)

"""Damage, as disks and networks do it."""

import random


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Other bytes: with up to four flipped bits, up to 64 replaced bytes, cut short, or with bytes added."""
    changed, kind = bytearray(data), rng.randrange(4)
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        start, count = rng.randrange(len(data)), rng.randint(1, 64)
        changed[start:start + count] = rng.randbytes(len(changed[start:start + count]))
    elif kind == 2:
        del changed[rng.randrange(len(data)):]
    else:
        changed += rng.randbytes(rng.randint(1, 500))
    return bytes(changed) if changed != data else mutated(data, rng)

"""Random damage to files: bytes in, other bytes out."""

from collections.abc import Callable
from random import Random


def cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))]


def one_bit(data: bytes, rng: Random) -> bytes:
    return changed(data, rng, 1, len(data), lambda old: old ^ 1 << rng.randrange(8))


def some_bytes(data: bytes, rng: Random) -> bytes:
    return changed(data, rng, 8, len(data), lambda old: rng.randrange(256))


def head(data: bytes, rng: Random) -> bytes:
    return changed(data, rng, 3, 64, lambda old: rng.randrange(256))


def changed(data: bytes, rng: Random, count: int, end: int, change: Callable[[int], int]) -> bytes:
    out = bytearray(data)
    for _ in range(count):
        at = rng.randrange(min(end, len(data)))
        out[at] = change(out[at])
    return bytes(out)


def huge(data: bytes, rng: Random) -> bytes:
    """Makes a number in the header very large."""
    at = rng.randrange(min(60, max(1, len(data) - 4)))
    return data[:at] + rng.choice([b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\xff\xff", b"\0\0\1\0"]) + data[at + 4 :]


def zeros(data: bytes, rng: Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + bytes(end - begin) + data[end:]


def hole(data: bytes, rng: Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + data[end:]


DAMAGE: dict[str, Callable[[bytes, Random], bytes]] = {
    "whole": lambda data, rng: data,
    "empty": lambda data, rng: b"",
    "cut": cut,
    "one bit": one_bit,
    "some bytes": some_bytes,
    "head": head,
    "huge": huge,
    "zeros": zeros,
    "hole": hole,
    "doubled": lambda data, rng: data + data,
    "junk behind": lambda data, rng: data + rng.randbytes(100),
    "junk before": lambda data, rng: rng.randbytes(5) + data,
    "junk": lambda data, rng: rng.randbytes(200),
    "all zeros": lambda data, rng: bytes(len(data)),
    "invalid UTF-8": lambda data, rng: data[: len(data) // 2] + b"\xff\xfe\x80" + data[len(data) // 2 :],
}

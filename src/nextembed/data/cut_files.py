"""How much of a sound or video file is missing, according to its header; a decoder would play the rest without an
error."""

import re
import struct

WHOLE = 0.9  # of the size in the header; codecs pad a little, and headers are often off by a few bytes
UNKNOWN = (0, 2**32 - 1, 2**64 - 1)  # sizes of files that were written as they came
W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")  # the name of the outer chunk of Sony's Wave64


def is_cut(data: bytes) -> bool:
    """Whether a tenth or more of a file is missing at its end, or an Ogg file ends within a page."""
    return missing_share(data) > 1 - WHOLE or cut_ogg(data)


def missing_share(data: bytes) -> float:
    """The missing share of a WAV, AVI, RF64, Wave64, CAF or MP3 file, by its header; 0 if unknown."""
    said = said_bytes(data)
    return max(0.0, 1 - len(data) / said) if said else 0.0


def said_bytes(data: bytes) -> int:
    """The size of a file according to its header; 0 if unknown."""
    try:
        if data[:4] == b"RIFF":
            return _known(struct.unpack_from("<I", data, 4)[0], 8)
        if data[:4] == b"RF64" and data[12:16] == b"ds64":
            return _known(struct.unpack_from("<Q", data, 20)[0], 8)
        if data.startswith(W64):
            return _known(struct.unpack_from("<Q", data, 16)[0], 0)
        if data[:4] == b"caff" and (found := re.search(b"data(........)", data[: 2**16], re.DOTALL)):
            return _known(int.from_bytes(found[1]), found.end())
        return _of_mp3(data)
    except struct.error:
        return 0


def _known(size: int, more: int) -> int:
    return 0 if size in UNKNOWN else size + more


def _of_mp3(data: bytes) -> int:
    """The size in the first frame of an MP3 file, if an encoder wrote it ("Xing", or "Info" for a constant rate)."""
    at = 0
    while data[at : at + 3] == b"ID3":  # tags, whose sizes have seven bits a byte
        at += 10 + sum(byte << shift for byte, shift in zip(data[at + 6 : at + 10], (21, 14, 7, 0)))
    if data[at : at + 1] != b"\xff":
        return 0
    found = re.search(rb"(?:Xing|Info)(....)", data[at : at + 64], re.DOTALL)
    if found is None or not (flags := int.from_bytes(found[1])) & 2:
        return 0
    place = at + found.end() + 4 * (flags & 1)
    return at + int.from_bytes(data[place : place + 4])


def cut_ogg(data: bytes) -> bool:
    """Whether the last page of an Ogg file is not whole."""
    if data[:4] != b"OggS":
        return False
    at = data.rfind(b"OggS")
    sizes = data[at + 27 : at + 27 + data[at + 26]] if at + 26 < len(data) else b""
    return at + 27 > len(data) or len(sizes) < data[at + 26] or at + 27 + len(sizes) + sum(sizes) > len(data)

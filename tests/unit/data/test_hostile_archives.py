"""Malicious or damaged archives: one-line errors, little memory, nothing is unpacked, intact members are used."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import warnings
import zipfile

import pytest
from PIL import Image

from nextembed import ImageData
from nextembed.data.transforms import Unreadable
from nextembed.errors import ConfigError, DataError

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def png() -> bytes:
    made = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((16, 16)).save(made, "png")
    return made.getvalue()


GOOD = {"cat/1.png": png(), "dog/2.png": png()}


def zipped(folder, more=(), method=zipfile.ZIP_DEFLATED):
    file = folder / "a.zip"
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in [*GOOD.items(), *more]:
            archive.writestr(name, data)
    return file


def tarred(folder, more=()):
    file = folder / "a.tar"
    with tarfile.open(file, "w") as archive:
        for name, data in GOOD.items():
            add(archive, tarfile.TarInfo(name), data)
        for member, data in more:
            add(archive, member, data)
    return file


def add(archive, member, data):
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def patched(file, mark, place, value, last=False):
    """Overwrites four bytes in a record of a zip archive."""
    data = bytearray(file.read_bytes())
    struct.pack_into("<I", data, (data.rfind if last else data.find)(mark) + place, value)
    file.write_bytes(data)
    return file


def read(file) -> tuple[dict[str, str], str]:
    """The error for each image ("" if it is readable), and the summary."""
    before = {path for path in file.parents[1].rglob("*") if "hf_cache" not in path.parts}
    data = ImageData(source=str(file))
    reader, found = data.reader(3), {}
    for row in data.rows("train"):
        try:
            found[row["key"]] = "" if reader.read(row["image"]).shape == (3, 16, 16) else "another"
        except Unreadable as err:
            assert "\n" not in str(err)
            found[row["key"]] = str(err)
    assert {path for path in file.parents[1].rglob("*") if "hf_cache" not in path.parts} == before
    return found, " / ".join(data.summary("train").lines())


def test_a_decompression_bomb_is_not_unpacked(tmp_path):
    file = zipped(tmp_path)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("cat/bomb.png", "w") as member:
        for _ in range(150):
            member.write(bytes(2**20))
    assert file.stat().st_size < 200_000
    tracemalloc.start()
    found, _ = read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["a.zip/cat/bomb.png"] == "157286400 bytes, more than max_bytes=100000000"
    assert [found[f"a.zip/{name}"] for name in GOOD] == ["", ""] and peak < 2**24


def test_nested_archives_are_not_opened_but_noted(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("3.png", png())
    found, said = read(zipped(tmp_path, [("in.zip", inner.getvalue())]))
    assert len(found) == 2 and "other files: 1 of .zip" in said


@pytest.mark.parametrize("name", ["../evil/3.png", "cat/../../3.png", "..\\3.png"])
def test_names_that_point_outside(tmp_path, name):
    (tmp_path / "in").mkdir()
    for file in (zipped(tmp_path / "in", [(name, png())]), tarred(tmp_path / "in", [(tarfile.TarInfo(name), png())])):
        found, said = read(file)
        assert len(found) == 2 and "1 x its name leads out of the archive" in said and name in said
        assert "2 classes: cat, dog" in said


def test_absolute_names_are_relative_to_the_archive(tmp_path):
    for file in (zipped(tmp_path, [("/etc/3.png", png())]), tarred(tmp_path, [(tarfile.TarInfo("/etc/3.png"), png())])):
        found, said = read(file)
        assert list(found.values()) == ["", "", ""] and "3 classes: cat, dog, etc" in said


def test_links_in_archives(tmp_path):
    """A hard link is read as its target member; other links are not followed."""
    more = [
        link("cat/hard.png", "cat/1.png", tarfile.LNKTYPE),
        link("cat/soft.png", "1.png"),
        link("cat/out.png", "/etc/hostname"),
        link("cat/lost.png", "cat/no.png", tarfile.LNKTYPE),
        link("cat/pipe.png", "", tarfile.FIFOTYPE),
    ]
    found, said = read(tarred(tmp_path, more))
    assert set(found) == {"a.tar/cat/1", "a.tar/dog/2", "a.tar/cat/hard"} and set(found.values()) == {""}
    assert "2 x a link, which is not followed in archives: left out (first: cat/soft.png)" in said
    assert "1 x a broken link" in said and "1 x not a regular file (a pipe or device)" in said
    linked = zipfile.ZipInfo("cat/link.png")
    linked.create_system, linked.external_attr = 3, 0o120777 << 16
    found, said = read(zipped(tmp_path, [(linked, "/etc/hostname")]))
    assert len(found) == 2 and "1 x a link, which is not followed in archives (first: cat/link.png)" in said


def test_a_sparse_member_is_reported(tmp_path):
    """A 50 GB file in a 10 kB archive, as written by `tar --sparse`."""
    member = tarfile.TarInfo("cat/3.png")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "cat/3.png",
                          "GNU.sparse.realsize": "50000000000"}  # fmt: skip
    blocks = b"1\n49999999999\n1\n"
    file = tarred(tmp_path, [(member, blocks.ljust(512, b"\0") + b"x")])
    found, said = read(file)
    assert list(found.values()) == ["", ""] and "1 x stored with holes (tar --sparse): left out" in said


def test_two_members_with_the_same_name(tmp_path):
    with pytest.raises(ConfigError, match=r"a.zip' as zip: two members are 'cat/1.png'"):
        read(zipped(tmp_path, [("cat/1.png", b"other")]))
    with pytest.raises(DataError, match=r"two members are 'cat/1.png'"):
        read(tarred(tmp_path, [(tarfile.TarInfo("cat/1.png"), b"other")]))


def test_an_encrypted_zip(tmp_path):
    data = bytearray(zipped(tmp_path).read_bytes())
    for mark, place in ((LOCAL, 6), (CENTRAL, 8)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + place] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ConfigError, match=r"no images that can be used: cat/1.png \(encrypted with a password\)"):
        read(tmp_path / "a.zip")


@pytest.mark.parametrize("left", [10, 100, -30])
def test_truncated_archives(tmp_path, left):
    for file in (zipped(tmp_path), tarred(tmp_path)):
        file.write_bytes(file.read_bytes()[: left if file.suffix == ".zip" or left > 0 else 700])
        with pytest.raises((ConfigError, DataError), match=rf"cannot read '.*{file.name}'") as caught:
            read(file)
        assert "\n" not in str(caught.value)


def test_compressed_tar_archives_are_reported(tmp_path):
    file = tarred(tmp_path)
    for data in (gzip.compress(file.read_bytes()), gzip.compress(file.read_bytes())[:-40]):
        file.write_bytes(data)
        with pytest.raises(DataError, match=r"it is compressed, .* unpack it with gunzip"):
            read(file)
    file.rename(tmp_path / "a.tar.gz")
    with pytest.raises(ConfigError, match=r"compressed archives are not read; unpack them"):
        ImageData(source=str(tmp_path)).rows("train")


@pytest.mark.parametrize(
    ("mark", "place", "value", "reason"),
    [
        (CENTRAL, 24, 20, "Bad CRC-32"),
        (CENTRAL, 24, 0xFFFFFFF0, "4294967280 bytes, more than max_bytes"),
        (CENTRAL, 20, 10, ""),
        (CENTRAL, 42, 7, "Bad magic number"),
        (LOCAL, 46, 0xFFFFFFFF, "cannot be read"),
    ],
)
def test_wrong_sizes_offsets_and_content(tmp_path, mark, place, value, reason):
    found, _ = read(patched(zipped(tmp_path), mark, place, value))
    assert reason in found["a.zip/cat/1.png"] and found["a.zip/cat/1.png"] and found["a.zip/dog/2.png"] == ""


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_broken_content_with_any_compression(tmp_path, method):
    data = bytearray(zipped(tmp_path, method=method).read_bytes())
    for at in range(60, 90):
        data[at] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    found, _ = read(tmp_path / "a.zip")
    assert "a member of an archive cannot be read" in found["a.zip/cat/1.png"] and found["a.zip/dog/2.png"] == ""


def test_a_wrong_end_record_of_a_zip(tmp_path):
    with pytest.raises(ConfigError, match="as zip: Truncated central directory"):
        read(patched(zipped(tmp_path), END, 12, 5))

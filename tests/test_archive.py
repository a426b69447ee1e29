"""Test the unpacker: hostile, damaged and unusual archives, limits, and random changes."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterable, Iterator, NamedTuple
from unittest import mock

import pytest
import sample_archive
from cm_home import ROOT, clean_env
from command import NO_COVERAGE, read_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagenet_aux import FetchError, fetch, gunzip
from imagenet_aux import archive as unpacker
from imagenet_aux.errors import ContentError, SourceError, TruncatedError
from imagenet_aux.manifest import MANIFEST
from imagenet_aux.streams import LocalFile

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 512
END = bytes(2 * BLOCK)
OUTSIDE = Path(tempfile.gettempdir()) / "imagenet-aux-outside"
WANTED = MANIFEST.files.keys()
CONTENT = {
    "val.txt": b"ILSVRC2012_val_00000001.JPEG 65\nILSVRC2012_val_00000002.JPEG 970\n",
    "synsets.txt": b"n01440764\n" * 60,  # more than a block
    "imagenet_mean.binaryproto": bytes(range(256)) * 4,  # whole blocks
    "test.txt": b"",
}

# Patterns of messages that several rows expect
UNSAFE_NAME = r"unsafe entry name .*"
TAR_TRUNCATED = r"truncated: the data ends in the middle of the tar"
GZIP_TRUNCATED = r"truncated: the data ends before the gzip trailer"
NOT_GZIP = r"not gzip: expected a \.tar\.gz archive, got "
NOT_TAR = r"not a tar"
DAMAGED_GZIP = r"damaged: .*"
DUPLICATE = r"duplicate entry train\.txt"
NAME_OF_A_FILE = r"folder '[^']*': expected a regular file with this name"
BAD_PAX_HEADER = r"invalid pax header"
NO_FILES = r"contains none of the expected files: .*"
TOO_LARGE = r"larger than 200 MiB in total"
UNPACKS_TO_TOO_MUCH = r"unpacks to more than 200 MiB"
TOO_MANY_ENTRIES = r"more than 1000 entries"
TOO_MANY_GZIP_MEMBERS = r"more than 10000 gzip members"


try:
    from isal import isal_zlib

    ZLIB_MODULES = [zlib, isal_zlib]
except ImportError:
    ZLIB_MODULES = [zlib]


# Building archives


def tar_entry(name: str, data: bytes = b"hi\n", form: int = tarfile.GNU_FORMAT, **fields: Any) -> bytes:
    """Build a tar entry with these header fields; the size defaults to that of *data*."""
    info = sample_archive.tar_info(name, **{"size": len(data), **fields})
    return info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % BLOCK)


def patch_header(entry: bytes, offset: int, field: bytes) -> bytes:
    """Overwrite bytes of the entry's header and update the header's checksum."""
    header = bytearray(entry[:BLOCK])
    header[offset : offset + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + entry[BLOCK:]


def pax_header(*records: bytes, kind: bytes = b"x") -> bytes:
    """Build a pax header."""
    return tar_entry("PaxHeader", b"".join(records), type=kind)


def pax_record(key: str, value: str) -> bytes:
    """Build a pax record: its own length, a key and a value."""
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def plain_files(folder: str = "", **fields: Any) -> bytes:
    """Build an entry for each file in CONTENT."""
    return b"".join(tar_entry(folder + name, data, **fields) for name, data in CONTENT.items())


def folder_entry(name: str, data: bytes = b"", **fields: Any) -> bytes:
    """Build an entry for a folder."""
    return tar_entry(name, data, type=b"5", **fields)


def compress_repeated(start: bytes, block: bytes, times: int) -> Iterator[bytes]:
    """Compress *start* and *times* copies of *block* quickly; there is no gzip trailer."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    yield GZIP_HEADER + deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    compressed = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    yield from itertools.repeat(compressed, times)


def write_chunks(path: Path, chunks: Iterable[bytes]) -> Path:
    """Write the chunks to a file."""
    with path.open("wb") as file:
        file.writelines(chunks)
    return path


TAR = plain_files() + END
GOOD = gzip.compress(TAR, mtime=0)
GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


# Hostile archives

LONG_ENTRY = r"entry '\./\./@LongLink': expected a regular file or a folder, "


class Hostile(NamedTuple):
    """Entries that must be rejected, and a pattern for the error."""

    name: str
    entries: bytes
    error: str


def bad_name(name: str, **fields: Any) -> Hostile:
    """Make a row whose entry has an unsafe name."""
    return Hostile(f"name {name!r}", tar_entry(name, **fields), UNSAFE_NAME)


def bad_type(description: str, name: str, kind: bytes, **fields: Any) -> Hostile:
    """Make a row whose entry has a type other than file or folder."""
    error = rf"entry '{re.escape(name)}': expected a regular file or a folder, got type {re.escape(repr(kind))}"
    return Hostile(description, tar_entry(name, b"", type=kind, **fields), error)


def bad_size(description: str, field: bytes, error: str) -> Hostile:
    """Make a row whose entry has this value in its size field."""
    return Hostile(f"size: {description}", patch_header(tar_entry("train.txt"), 124, field), error)


def pax_override(key: str, value: str, kind: bytes) -> Hostile:
    """Make a row with a pax record that overrides a field of the next entry."""
    name = f"{'global ' if kind == b'g' else ''}pax header that overrides {key}"
    entries = pax_header(pax_record(key, value), kind=kind) + tar_entry("train.txt")
    return Hostile(name, entries, overrides(key))


def bad_pax(description: str, records: bytes) -> Hostile:
    """Make a row with a pax header that cannot be parsed."""
    return Hostile(f"pax header: {description}", pax_header(records) + tar_entry("train.txt"), BAD_PAX_HEADER)


def overrides(key: str) -> str:
    """Return a pattern for the message about a pax override."""
    return rf"pax header overrides {re.escape(key)}"


HOSTILE = [
    # Names outside the folder
    bad_name("../train.txt"),
    bad_name("a/../../train.txt"),
    bad_name("a/../train.txt"),
    bad_name("train.txt/.."),
    bad_name(".."),
    bad_name("../", type=b"5", data=b""),
    bad_name("/train.txt"),
    bad_name("//host/train.txt"),
    bad_name("/", type=b"5", data=b""),
    bad_name(f"{OUTSIDE}/train.txt"),
    bad_name("\\train.txt"),
    bad_name("..\\train.txt"),
    bad_name("a\\train.txt"),
    bad_name("\\\\host\\share\\train.txt"),
    bad_name("C:/train.txt"),
    bad_name("C:\\train.txt"),
    bad_name("C:train.txt"),
    bad_name("train.txt:stream"),
    Hostile("prefix ..", patch_header(tar_entry("train.txt", form=tarfile.USTAR_FORMAT), 345, b".."), UNSAFE_NAME),
    Hostile("prefix /tmp", patch_header(tar_entry("train.txt", form=tarfile.USTAR_FORMAT), 345, b"/tmp"), UNSAFE_NAME),
    # Empty and unprintable names
    bad_name(""),
    bad_name("", type=b"5", data=b""),
    bad_name("\n"),
    bad_name("train.txt\n"),
    bad_name("train.txt\r"),
    bad_name("train\x01.txt"),
    bad_name("\x1b[2Jtrain.txt"),
    bad_name("\x7f"),
    bad_name("\u202etxt.niart"),
    bad_name("\udcfftrain.txt"),
    # Links
    bad_type("symlink to a path outside the folder", "train.txt", b"2", linkname="../val.txt"),
    bad_type("symlink to an absolute path", "train.txt", b"2", linkname="/etc/passwd"),
    bad_type("symlink to itself", "train.txt", b"2", linkname="train.txt"),
    bad_type("symlink with the name of an earlier file", "val.txt", b"2", linkname="synsets.txt"),
    bad_type("symlink with an unwanted name", "extra", b"2", linkname="val.txt"),
    Hostile(
        "file below a symlink",
        tar_entry("a", b"", type=b"2", linkname="..") + tar_entry("a/train.txt"),
        r"entry 'a': expected a regular file or a folder, got type b'2'",
    ),
    bad_type("hard link to a path outside the folder", "train.txt", b"1", linkname="../val.txt"),
    bad_type("hard link to an absolute path", "train.txt", b"1", linkname="/etc/passwd"),
    bad_type("hard link to another entry", "train.txt", b"1", linkname="val.txt"),
    bad_type("hard link with the name of an earlier file", "val.txt", b"1", linkname="val.txt"),
    # Other types
    bad_type("character device", "train.txt", b"3", devmajor=1, devminor=5),
    bad_type("block device", "train.txt", b"4", devmajor=8, devminor=0),
    bad_type("FIFO", "train.txt", b"6"),
    bad_type("FIFO with the name of an earlier file", "val.txt", b"6"),
    bad_type("regular file with a folder's name", "train.txt/", b"0"),
    bad_type("regular file named .", ".", b"0"),
    bad_type("reserved type", "train.txt", b"8"),
    bad_type("unknown upper-case type", "train.txt", b"Z"),
    bad_type("unknown lower-case type", "train.txt", b"a"),
    bad_type("unknown binary type", "train.txt", b"\xff"),
    bad_type("GNU sparse file", "train.txt", b"S"),
    bad_type("GNU long name", "././@LongLink", b"L"),
    bad_type("GNU long link name", "././@LongLink", b"K"),
    bad_type("GNU multi-volume continuation", "train.txt", b"M"),
    bad_type("GNU volume label", "backup", b"V"),
    bad_type("GNU directory listing", "train.txt", b"D"),
    bad_type("GNU old long name", "train.txt", b"N"),
    bad_type("Solaris pax header", "train.txt", b"X"),
    Hostile("GNU long name, as tar writes it", tar_entry("a/" * 99 + "train.txt"), LONG_ENTRY + r"got type b'L'"),
    Hostile(
        "GNU long link name, as tar writes it",
        tar_entry("x", b"", type=b"2", linkname="a" * 200),
        LONG_ENTRY + r"got type b'K'",
    ),
    # Folders with a file's name
    Hostile("folder val.txt/", folder_entry("val.txt/"), NAME_OF_A_FILE),
    Hostile("folder train.txt/", folder_entry("train.txt/"), NAME_OF_A_FILE),
    Hostile("folder ./train.txt/", folder_entry("./train.txt/"), NAME_OF_A_FILE),
    Hostile("folder top/train.txt/", folder_entry("top/train.txt/"), NAME_OF_A_FILE),
    Hostile("folder train.txt/a/", folder_entry("train.txt/a/"), NAME_OF_A_FILE),
    Hostile("folder train.txt/ in v7 format", tar_entry("train.txt/", b"", type=b"\0"), NAME_OF_A_FILE),
    Hostile("file train.txt/a", tar_entry("train.txt/a"), NAME_OF_A_FILE),
    Hostile("file train.txt/train.txt", tar_entry("train.txt/train.txt"), NAME_OF_A_FILE),
    Hostile("file top/train.txt/a", tar_entry("top/train.txt/a"), NAME_OF_A_FILE),
    Hostile("folder with content", folder_entry("a/", b"hi"), r"folder 'a': expected no data, got 2 bytes"),
    # Duplicates
    Hostile("same file twice", tar_entry("train.txt") * 2, DUPLICATE),
    Hostile("same name, different content", tar_entry("train.txt") + tar_entry("train.txt", b"other"), DUPLICATE),
    Hostile("./train.txt, then train.txt", tar_entry("./train.txt") + tar_entry("train.txt"), DUPLICATE),
    Hostile("train.txt, then ./train.txt", tar_entry("train.txt") + tar_entry("./train.txt"), DUPLICATE),
    Hostile("top/train.txt, then train.txt", tar_entry("top/train.txt") + tar_entry("train.txt"), DUPLICATE),
    Hostile("a/train.txt, then b/train.txt", tar_entry("a/train.txt") + tar_entry("b/train.txt"), DUPLICATE),
    Hostile("train.txt, then a//train.txt", tar_entry("train.txt") + tar_entry("a//train.txt"), DUPLICATE),
    # Pax headers that override the next entry
    *[
        pax_override(key, value, kind)
        for kind in (b"x", b"g")
        for key, value in (
            ("path", "../train.txt"),
            ("size", "1"),
            ("linkpath", "/etc/passwd"),
            ("charset", "BINARY"),
            ("hdrcharset", "BINARY"),
            ("SCHILY.realsize", "1"),
            ("GNU.sparse.name", "../train.txt"),
            ("GNU.sparse.size", "99"),
            ("GNU.sparse.realsize", "99"),
            ("GNU.sparse.map", "0,1"),
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.numblocks", "1"),
        )
    ],
    Hostile(
        "pax override after other records",
        pax_header(pax_record("mtime", "1"), pax_record("path", "x")),
        overrides("path"),
    ),
    Hostile(
        "pax override with the same name",
        pax_header(pax_record("path", "train.txt")) + tar_entry("train.txt"),
        overrides("path"),
    ),
    Hostile(
        "pax override, zero-padded length", pax_header(b"0013 path=xx\n") + tar_entry("train.txt"), overrides("path")
    ),
    Hostile(
        "pax override after nine pax headers",
        pax_header(pax_record("a", "b")) * 9 + pax_header(pax_record("size", "1")),
        overrides("size"),
    ),
    Hostile("pax key that is not UTF-8", pax_header(b"18 GNU.sparse.\xff=1\n"), overrides("GNU.sparse.\\xff")),
    Hostile("pax key with an escape", pax_header(b"21 GNU.sparse.\x1b[2J=1\n"), overrides("GNU.sparse.\\x1b[2J")),
    bad_pax("length 0", b"0 path=x\n"),
    bad_pax("length shorter than the key", b"4 path=x\n"),
    bad_pax("length beyond the header", b"99 mtime=1\n"),
    bad_pax("no value or line feed", b"8 mtime="),
    bad_pax("negative length", b"-9 path=x\n"),
    bad_pax("length of 5000 digits", b"9" * 5000 + b" path=x\n"),
    bad_pax("no key", b"5 =x\n"),
    bad_pax("no equals sign", b"7 path\n"),
    bad_pax("garbage", b"\xff\0 garbage"),
    bad_pax("gap between records", pax_record("mtime", "1") + b"\0\0" + pax_record("path", "x")),
    Hostile(
        "pax header of 1 MiB",
        pax_header(pax_record("comment", "x" * MIB)),
        r"pax header of 10485\d\d bytes: expected at most 65536",
    ),
    # Sizes and numbers
    bad_size("negative", b"\xff" * 12, r"entry 'train\.txt': expected 0 to 200 MiB, got -1 bytes"),
    bad_size("minus one block", b"\xff" * 10 + b"\xfe\0", r"entry 'train\.txt': expected 0 to 200 MiB, got -512 bytes"),
    bad_size("negative in octal", b"-0000000001\0", r"entry 'train\.txt': expected 0 to 200 MiB, got -1 bytes"),
    bad_size("27 digits", b"\x80" + b"\x7f" * 11, r"entry 'train\.txt': expected 0 to 200 MiB, got \d{27} bytes"),
    bad_size("largest in octal", b"77777777777\0", r"entry 'train\.txt': expected 0 to 200 MiB, got 8589934591 bytes"),
    bad_size("2 GiB", b"20000000000\0", r"entry 'train\.txt': expected 0 to 200 MiB, got 2147483648 bytes"),
    bad_size("not a number", b"many bytes\0\0", r"not a tar, or damaged: invalid header"),
    bad_size("beyond the end", b"00000777777\0", TAR_TRUNCATED),
    Hostile(
        "negative pax header",
        patch_header(pax_header(), 124, b"\xff" * 12),
        r"entry 'PaxHeader': expected 0 to 200 MiB, got -1 bytes",
    ),
    Hostile(
        "folder of 2 GiB",
        patch_header(folder_entry("a/"), 124, b"20000000000\0"),
        r"entry 'a': expected 0 to 200 MiB, got 2147483648 bytes",
    ),
    Hostile(
        "wrong header checksum",
        tar_entry("train.txt").replace(b"train", b"trail", 1),
        r"not a tar, or damaged: bad checksum",
    ),
    Hostile(
        "non-numeric mode",
        patch_header(tar_entry("train.txt"), 100, b"rw-r--r"),
        r"not a tar, or damaged: invalid header",
    ),
]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Make an empty folder whose parent folders contain files that must not change."""
    target = tmp_path / "parent" / "target"
    target.mkdir(parents=True)
    for folder in (tmp_path, target.parent):
        for name in (*CONTENT, "train.txt", "data"):
            (folder / name).write_bytes(b"mine")
    return target


def take_snapshot(folder: Path) -> dict[str, object]:
    """Return the metadata and content of everything below a folder."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (stat.st_mode, stat.st_ino, stat.st_nlink, path.is_file() and stat.st_mtime_ns, data)
    return found


def assert_rejected(target: Path, archive: Path, pattern: str) -> None:
    """Fetch an archive, and check that the error matches the pattern and that nothing was written anywhere."""
    before = take_snapshot(target.parent.parent)
    with pytest.raises(FetchError) as caught:
        fetch(archive, target / "data")
    address, message = str(archive), str(caught.value)
    assert re.fullmatch(f"{re.escape(address)}: {pattern}", message)
    assert re.fullmatch(r"[\x20-\x7e]*", message[len(address) :]), "control characters on the terminal"
    assert not os.listdir(target) and take_snapshot(target.parent.parent) == before
    assert not os.path.lexists(OUTSIDE) and not os.path.lexists("/train.txt")


@pytest.mark.parametrize("row", HOSTILE, ids=lambda row: ascii(row.name))
def test_rejects_a_hostile_archive(row: Hostile, target: Path, tmp_path: Path) -> None:
    tar = plain_files() + row.entries + tar_entry("synset_words.txt") + END
    assert_rejected(target, write_chunks(tmp_path / "a.tar.gz", [gzip.compress(tar)]), row.error)


# Damaged archives and other formats


class Damaged(NamedTuple):
    """A file that must be rejected, and a pattern for the error."""

    name: str
    data: bytes
    error: str


def zip_archive() -> bytes:
    """Pack CONTENT into a zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in CONTENT.items():
            archive.writestr(name, data)
    return packed.getvalue()


STORED = gzip.compress(TAR, 0, mtime=0)
ADVICE = r"\. Unpack it and pass the folder"
DAMAGED = [
    # Other formats
    Damaged("empty file", b"", r"empty: expected a \.tar\.gz archive"),
    Damaged("zeros", bytes(2048), NOT_GZIP + r"bytes that start with b'(\\x00){16}'"),
    Damaged("garbage", b"garbage" * 99, NOT_GZIP + r"bytes that start with b'garbagegarbagega'"),
    Damaged("first byte of a gzip file", GOOD[:1], NOT_GZIP + r"bytes that start with b'\\x1f'"),
    Damaged("uncompressed tar", TAR, NOT_GZIP + "an uncompressed tar" + ADVICE),
    Damaged("uncompressed pax tar", pax_header() + TAR, NOT_GZIP + "an uncompressed tar" + ADVICE),
    Damaged("zip", zip_archive(), NOT_GZIP + "a zip archive" + ADVICE),
    Damaged("tar.xz", lzma.compress(TAR), NOT_GZIP + "an xz archive" + ADVICE),
    Damaged("tar.bz2", bz2.compress(TAR), NOT_GZIP + "a bzip2 archive" + ADVICE),
    Damaged("tar.zst", b"\x28\xb5\x2f\xfd\x04\x58" + bytes(600), NOT_GZIP + "a zstd archive" + ADVICE),
    Damaged("HTML comments", b"<!---->" * 140, r"HTML or XML instead of the file: .*"),
    # Gzip files that do not contain a tar
    Damaged("gzipped text", gzip.compress(b"no tar\n" * 999), NOT_TAR + r", or damaged: .*"),
    Damaged("gzipped empty file", gzip.compress(b""), NOT_TAR + r": it unpacks to 0 bytes"),
    Damaged("gzipped line", gzip.compress(b"no tar\n"), NOT_TAR + r": it unpacks to 7 bytes"),
    Damaged("gzipped 10240 zeros", gzip.compress(bytes(10240)), NO_FILES),
    Damaged("gzipped 512 zeros", gzip.compress(bytes(512)), NO_FILES),
    # Truncated tars
    Damaged("tar with half of the end-of-archive marker", gzip.compress(TAR[:-513]), TAR_TRUNCATED),
    Damaged("tar truncated in a header", gzip.compress(plain_files()[:-1]), TAR_TRUNCATED),
    Damaged("tar truncated in a file", gzip.compress(plain_files()[: BLOCK + 9]), TAR_TRUNCATED),
    Damaged("tar truncated in the padding after a file", gzip.compress(plain_files()[: 2 * BLOCK - 1]), TAR_TRUNCATED),
    Damaged("tar that ends with a pax header", gzip.compress(plain_files() + pax_header()), TAR_TRUNCATED),
    Damaged(
        "no end-of-archive marker, bytes after the gzip trailer",
        gzip.compress(plain_files()) + b"garbage",
        r"truncated: expected an end-of-archive block in the tar, got trailing data",
    ),
    # Damaged gzip files
    Damaged("no gzip trailer", GOOD[:-8], GZIP_TRUNCATED),
    Damaged("half of a gzip trailer", GOOD[:-4], GZIP_TRUNCATED),
    Damaged("half of a gzip header", GOOD[:5], GZIP_TRUNCATED),
    Damaged("gzip header only", GOOD[:10], GZIP_TRUNCATED),
    Damaged("second gzip member truncated", GOOD + GOOD[:99], GZIP_TRUNCATED),
    Damaged("second gzip header truncated", GOOD + GOOD[:5], GZIP_TRUNCATED),
    Damaged("wrong CRC", GOOD[:-8] + b"\0\0\0\0" + GOOD[-4:], DAMAGED_GZIP),
    Damaged("wrong length in the gzip trailer", GOOD[:-4] + b"\0\0\0\0", DAMAGED_GZIP),
    Damaged("flipped bit in a file", STORED[:600] + bytes([STORED[600] ^ 1]) + STORED[601:], DAMAGED_GZIP),
    Damaged("unknown compression method", GOOD[:2] + b"\7" + GOOD[3:], DAMAGED_GZIP),
    Damaged("garbage in the second gzip member", GOOD + GZIP_HEADER + b"garbage" * 99, DAMAGED_GZIP),
    Damaged("unsafe name, no gzip trailer", gzip.compress(tar_entry("../val.txt") + END)[:-8], UNSAFE_NAME),
    Damaged("wrong CRC, bytes after the gzip trailer", GOOD[:-8] + b"\0\0\0\0" + GOOD[-4:] + b"text", DAMAGED_GZIP),
]


@pytest.mark.parametrize("row", DAMAGED, ids=lambda row: row.name)
def test_rejects_a_damaged_archive(row: Damaged, target: Path, tmp_path: Path) -> None:
    assert_rejected(target, write_chunks(tmp_path / "a.tar.gz", [row.data]), row.error)


# Decompression bombs


class Bomb(NamedTuple):
    """A decompression bomb, and a pattern for the error."""

    name: str
    chunks: Callable[[], Iterable[bytes]]
    error: str


def sized(name: str, size: int) -> bytes:
    """Build the header for a file of this size."""
    return tar_entry(name, b"", size=size)


def two_large_files() -> Iterator[bytes]:
    """Yield two files, each below the limit, that together exceed it."""
    for name in ("train.txt", "val.txt"):
        yield from [sized(name, 150 * MIB), *[bytes(MIB)] * 150]


def many_empty_gzip_members() -> Iterator[bytes]:
    """Yield a good archive and 3,000,000 empty gzip members."""
    yield GOOD
    empty = gzip.compress(b"", mtime=0)
    yield from [empty * 1000] * 3000


def sized_pax_header(size: int) -> bytes:
    """Build the first block of a pax header of this size."""
    return patch_header(pax_header(), 124, b"%011o\0" % size)


def numbered(template: str, **fields: Any) -> bytes:
    """Build 100 empty entries with different names."""
    return b"".join(tar_entry(template.format(n), b"", **fields) for n in range(100))


LONG_NAME = b"\x1f\x8b\x08\x08\0\0\0\0\0\xff"
BOMBS = [
    Bomb(
        "file of 2 GiB",
        lambda: compress_repeated(sized("train.txt", 2 * GIB), bytes(MIB), 2048),
        r"entry 'train\.txt': expected 0 to 200 MiB, got 2147483648 bytes",
    ),
    Bomb(
        "300 MiB of files, each below the limit",
        lambda: [gzip.compress(b"".join(two_large_files()), 1)],
        UNPACKS_TO_TOO_MUCH,
    ),
    Bomb(
        "2 GiB of unwanted files",
        lambda: compress_repeated(b"", sized("x", MIB) + bytes(MIB), 2048),
        UNPACKS_TO_TOO_MUCH,
    ),
    Bomb("2 GiB after the end of the tar", lambda: compress_repeated(TAR, bytes(MIB), 2048), UNPACKS_TO_TOO_MUCH),
    Bomb("2 GiB of zeros", lambda: compress_repeated(b"", bytes(MIB), 2048), UNPACKS_TO_TOO_MUCH),
    Bomb("2 GiB in gzip members of 100 MiB", lambda: [gzip.compress(bytes(100 * MIB), 1)] * 20, UNPACKS_TO_TOO_MUCH),
    Bomb(
        "pax header of 2 GiB",
        lambda: compress_repeated(sized_pax_header(2 * GIB), bytes(MIB), 2048),
        r"entry 'PaxHeader': expected 0 to 200 MiB, got 2147483648 bytes",
    ),
    Bomb(
        "pax header of 199 MiB",
        lambda: compress_repeated(sized_pax_header(199 * MIB), bytes(MIB), 2048),
        r"pax header of 208666624 bytes: expected at most 65536",
    ),
    Bomb(
        "2 GiB of pax headers of 1 MiB",
        lambda: compress_repeated(b"", pax_header(pax_record("a", "b" * (MIB - 99))), 2048),
        r"pax header of 1048\d* bytes: expected at most 65536",
    ),
    Bomb(
        "GNU long name of 2 GiB",
        lambda: compress_repeated(sized("././@LongLink", 2 * GIB), b"a" * MIB, 2048),
        r"entry '\./\./@LongLink': expected 0 to 200 MiB, got 2147483648 bytes",
    ),
    Bomb("200,000 files", lambda: compress_repeated(plain_files(), numbered("{}"), 2000), TOO_MANY_ENTRIES),
    Bomb(
        "200,000 folders", lambda: compress_repeated(plain_files(), numbered("{}/", type=b"5"), 2000), TOO_MANY_ENTRIES
    ),
    Bomb(
        "200,000 pax headers",
        lambda: compress_repeated(plain_files(), pax_header(pax_record("a", "b")) * 100, 2000),
        TOO_MANY_ENTRIES,
    ),
    Bomb(
        "200,000 empty pax headers",
        lambda: compress_repeated(plain_files(), pax_header(b"") * 100, 2000),
        TOO_MANY_ENTRIES,
    ),
    Bomb("3,000,000 empty gzip members", many_empty_gzip_members, TOO_MANY_GZIP_MEMBERS),
    Bomb(
        "file name of 300 MiB in a gzip header",
        lambda: [GOOD, LONG_NAME, *[b"a" * MIB] * 300],
        TOO_LARGE,
    ),
    Bomb(
        "300 MiB of empty deflate blocks",
        lambda: [GZIP_HEADER, *[b"\0\0\0\xff\xff" * (MIB // 5)] * 300],
        TOO_LARGE,
    ),
    Bomb("300 MiB of zeros after the gzip trailer", lambda: [GOOD, *[bytes(MIB)] * 300], TOO_LARGE),
    Bomb("300 MiB of text after the gzip trailer", lambda: [GOOD, *[b"text" * (MIB // 4)] * 300], TOO_LARGE),
]


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss and st_blocks have Linux units")
@pytest.mark.parametrize("row", BOMBS, ids=lambda row: row.name)
def test_rejects_a_decompression_bomb_within_100_mb(row: Bomb, target: Path, tmp_path: Path) -> None:
    path = write_chunks(tmp_path / "a.tar.gz", row.chunks())
    code, stderr, memory, disk = measure_fetch(target, path)
    path.unlink()
    assert code == 1
    start = re.escape(str(path))
    assert re.fullmatch(rf"trying {start}\n([\d.]+ of [\d.]+ MB .*\n)*error: {start}: {row.error}\n", stderr)
    assert not os.listdir(target)
    assert memory < 100e6, f"{memory / 1e6:.0f} MB of memory"
    assert disk < 300e6, f"{disk / 1e6:.0f} MB of disk"


def measure_fetch(target: Path, archive: Path) -> tuple[int, str, int, int]:
    """Run a fetch; return its exit code, stderr, and peak memory and disk usage in bytes."""
    # Start it from a small process, because a fork of the test runner would count the runner's memory.
    program = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], timeout=100);"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    call = [sys.executable, "-c", program, sys.executable, "-m", "imagenet_aux", "fetch", str(archive)]
    env = clean_env(PYTHONPATH=str(ROOT), **NO_COVERAGE)
    disk = 0
    with (target.parent / "stderr").open("w+") as stderr:
        process = subprocess.Popen(call, cwd=target, env=env, stdout=subprocess.PIPE, stderr=stderr, encoding="ascii")
        while process.poll() is None:
            paths = (os.path.join(root, name) for root, folders, files in os.walk(target) for name in folders + files)
            disk = max(disk, sum(map(disk_usage, paths)))
            time.sleep(0.01)
        code, memory = process.communicate()[0].split()
        stderr.seek(0)
        return int(code), stderr.read(), int(memory) * 1024, disk


def disk_usage(path: str) -> int:
    """Return the size on disk, or 0 if the file has been removed."""
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


# Unusual archives


def gzip_member(data: bytes, flags: int = 0, fields: bytes = b"") -> bytes:
    """Compress data into a gzip member with these header flags and fields."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\xff" + fields
    if flags & 2:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    return header + deflate.compress(data) + deflate.flush() + struct.pack("<II", zlib.crc32(data), len(data))


def split_gzip(tar: bytes, size: int) -> bytes:
    """Compress a tar into one gzip member for every *size* bytes."""
    return b"".join(gzip.compress(tar[at : at + size]) for at in range(0, len(tar), size))


def write_with_tarfile(form: int, **arguments: Any) -> bytes:
    """Pack CONTENT with tarfile, in this format."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form, **arguments) as tar:
        for name, data in CONTENT.items():
            info = sample_archive.tar_info(name, size=len(data), mtime=1396381234.5, uname="jörg")
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def to_v7(entry: bytes) -> bytes:
    """Zero the header fields that v7 tars lack: magic, owner names, and the typeflag of regular files."""
    return patch_header(entry, 156, bytes(356))


TIMES = pax_header(
    pax_record("mtime", "1396381234.5"),
    pax_record("atime", "1"),
    pax_record("ctime", "1"),
    pax_record("comment", "ünïcode"),
)
XATTRS = pax_header(pax_record("SCHILY.xattr.com.apple.quarantine", "0001;"), pax_record("LIBARCHIVE.xattr.x", "eA=="))
OWNERS = pax_header(
    pax_record("uname", "jörg"),
    pax_record("gname", "staff"),
    pax_record("uid", "9999999"),
    pax_record("gid", "9999999"),
)
GIT_COMMIT = pax_header(pax_record("comment", "0123456789abcdef0123456789abcdef01234567"), kind=b"g")
TOP_FOLDER = folder_entry("top/", mode=0o755)
APPLE_DOUBLE = b"".join(
    tar_entry(f"{folder}._{name}", b"\0\5\x16\7" + bytes(183)) for folder in ("", "__MACOSX/") for name in CONTENT
)
EXTRA_FIELD = b"\x08\0RA\4\0\1\2\0\0"
ALL_FIELDS = gzip_member(TAR[700:], 31, EXTRA_FIELD + b"name\0" + b"comment\0")
UNUSUAL = {
    # Names
    "plain names": gzip.compress(TAR),
    "./ names": gzip.compress(plain_files("./") + END),
    "./ names and an entry ./": gzip.compress(folder_entry("./") + plain_files("./") + END),
    "top folder": gzip.compress(plain_files("caffe_ilsvrc12/") + END),
    "top folder with its own entry": gzip.compress(TOP_FOLDER + plain_files("top/") + END),
    "top folder below ./": gzip.compress(folder_entry("./top/") + plain_files("./top/") + END),
    "v7 folder": gzip.compress(to_v7(tar_entry("top/", b"")) + plain_files("top/") + END),
    "empty folder": gzip.compress(folder_entry("a/b/") + TAR),
    "non-ASCII top folder": gzip.compress(plain_files("données/") + END),
    "AppleDouble entries": gzip.compress(APPLE_DOUBLE + TAR),
    "unwanted files": gzip.compress(tar_entry("README", b"read me") + plain_files() + tar_entry("top/LICENSE") + END),
    "unwanted files with similar names": gzip.compress(tar_entry("VAL.TXT") + tar_entry("val.txt~") + TAR),
    # Tar formats
    "ustar": gzip.compress(write_with_tarfile(tarfile.USTAR_FORMAT)),
    "GNU": gzip.compress(write_with_tarfile(tarfile.GNU_FORMAT)),
    "pax": gzip.compress(write_with_tarfile(tarfile.PAX_FORMAT)),
    "v7": gzip.compress(b"".join(to_v7(tar_entry(name, data)) for name, data in CONTENT.items()) + END),
    "contiguous files": gzip.compress(plain_files(type=b"7") + END),
    "old type flag for regular files": gzip.compress(plain_files(type=b"\0") + END),
    "ustar prefix": gzip.compress(plain_files("a" * 90 + "/" + "b" * 40 + "/", form=tarfile.USTAR_FORMAT) + END),
    # Pax headers
    "pax times and comment": gzip.compress(b"".join(TIMES + tar_entry(n, d) for n, d in CONTENT.items()) + END),
    "pax extended attributes": gzip.compress(XATTRS + TAR),
    "pax owners": gzip.compress(OWNERS + TAR),
    "pax keys that start like overrides": gzip.compress(
        pax_header(pax_record("paths", "1"), pax_record("size2", "1")) + TAR
    ),
    "empty pax header": gzip.compress(pax_header() + TAR),
    "several pax headers": gzip.compress(GIT_COMMIT + OWNERS + XATTRS + TAR),
    "global pax header from git archive": gzip.compress(GIT_COMMIT + TOP_FOLDER + plain_files("top/") + END),
    "global pax header from tarfile": gzip.compress(
        write_with_tarfile(tarfile.PAX_FORMAT, pax_headers={"comment": "a" * 40})
    ),
    # Header fields
    "all mode bits": gzip.compress(plain_files(mode=0o7777) + END),
    "no mode bits": gzip.compress(plain_files(mode=0) + END),
    "large owner ids": gzip.compress(plain_files(uid=2**40, gid=2**40, uname="nobody", gname="x" * 30) + END),
    "times in the far future": gzip.compress(plain_files(mtime=2**40) + END),
    "times before 1970": gzip.compress(plain_files(mtime=-1) + END),
    # End of the tar
    "one zero block": gzip.compress(TAR[:-BLOCK]),
    "blocking factor": gzip.compress(TAR + bytes(-len(TAR) % 10240)),
    "large blocking factor": gzip.compress(TAR + bytes(MIB)),
    "text after the end-of-archive marker": gzip.compress(TAR + b"left over"),
    "no end-of-archive marker": gzip.compress(plain_files()),
    "no end-of-archive marker, several gzip members": split_gzip(plain_files(), 700),
    "no end-of-archive marker, zeros after the gzip trailer": gzip.compress(plain_files()) + bytes(10240),
    # Gzip members
    "gzip members of 1 MiB": split_gzip(TAR, MIB),
    "gzip members that end with the entries": split_gzip(TAR, BLOCK),
    "gzip members that end in headers": split_gzip(TAR, 100),
    "gzip members of one byte": split_gzip(TAR[:BLOCK], 1) + gzip.compress(TAR[BLOCK:]),
    "empty gzip members": gzip.compress(b"") + gzip.compress(TAR) + gzip.compress(b"") * 9,
    # After the gzip trailer
    "zeros after the gzip trailer": GOOD + bytes(10240),
    "zeros between gzip members": gzip.compress(TAR[:700]) + bytes(9) + gzip.compress(TAR[700:]),
    "text after the gzip trailer": GOOD + b"garbage" * 99,
    "one byte after the gzip trailer": GOOD + b"x",
    "text and a gzip member after the gzip trailer": GOOD + b"text" + GOOD,
    "zeros and text after the gzip trailer": GOOD + bytes(100) + b"text",
    # Gzip headers
    "gzip header with a file name": gzip_member(TAR, 8, b"caffe_ilsvrc12.tar\0"),
    "gzip header with a comment": gzip_member(TAR, 16, b"made by hand\0"),
    "gzip header with an extra field": gzip_member(TAR, 4, EXTRA_FIELD),
    "gzip header with a CRC": gzip_member(TAR, 2),
    "gzip header with every field": gzip_member(TAR, 31, EXTRA_FIELD + b"name\0" + b"comment\0"),
    "second gzip header with a CRC": gzip.compress(TAR[:700]) + gzip_member(TAR[700:], 2),
    "second gzip header with every field": gzip.compress(TAR[:700]) + ALL_FIELDS,
    "stored gzip": STORED,
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_accepts_an_unusual_archive(name: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    mask = os.umask(0o022)
    try:
        fetch(write_chunks(tmp_path / "a.tar.gz", [UNUSUAL[name]]), target / "data")
    finally:
        os.umask(mask)
    assert read_data(target) == CONTENT
    assert os.listdir(target) == ["data"]
    if os.name == "posix":
        assert {path.stat().st_mode & 0o7777 for path in (target / "data").iterdir()} == {0o644}


# Limits


class Limit(NamedTuple):
    """A limit, and a function that makes an archive of a given size."""

    name: str
    make: Callable[[int], Iterable[bytes]]
    limit: int
    error: str


def with_compressed_size(size: int) -> Iterator[bytes]:
    """Yield an archive of this size, padding included."""
    count, rest = divmod(size - len(GOOD), MIB)
    yield from [GOOD, *[bytes(MIB)] * count, bytes(rest)]


def with_unpacked_size(size: int) -> Iterator[bytes]:
    """Yield gzip members that unpack to this size."""
    count, rest = divmod(size - len(TAR), MIB)
    yield from [GOOD, *[gzip.compress(bytes(MIB), 1)] * count, gzip.compress(bytes(rest))]


def with_entries(count: int) -> Iterator[bytes]:
    """Yield an archive with this number of entries."""
    yield gzip.compress(b"".join(tar_entry(f"{n}", b"") for n in range(count - len(CONTENT))) + TAR)


def with_gzip_members(count: int) -> Iterator[bytes]:
    """Yield an archive with this number of gzip members."""
    yield gzip.compress(b"") * (count - 1) + GOOD


def with_pax_header(size: int) -> Iterator[bytes]:
    """Yield an archive with a pax header of this size."""
    yield gzip.compress(pax_header(pax_record("comment", "x" * (size - 15))) + TAR)


LIMITS = [
    Limit("200 MiB compressed", with_compressed_size, 200 * MIB, TOO_LARGE),
    Limit("200 MiB unpacked", with_unpacked_size, 200 * MIB, UNPACKS_TO_TOO_MUCH),
    Limit("1,000 entries", with_entries, 1000, TOO_MANY_ENTRIES),
    Limit("10,000 gzip members", with_gzip_members, 10_000, TOO_MANY_GZIP_MEMBERS),
    Limit("pax header of 64 KiB", with_pax_header, 64 << 10, r"pax header of 65537 bytes: expected at most 65536"),
]


@pytest.mark.parametrize("row", LIMITS, ids=lambda row: row.name)
def test_accepts_the_limit_and_rejects_more(row: Limit, tmp_path: Path) -> None:
    def read(size: int) -> dict[str, bytes]:
        path = write_chunks(tmp_path / "a.tar.gz", row.make(size))
        return dict(LocalFile(str(path), lambda stream: None).deliver(read_members))

    assert read(row.limit) == CONTENT
    with pytest.raises(SourceError) as caught:
        read(row.limit + 1)
    assert re.fullmatch(row.error, str(caught.value))
    assert isinstance(caught.value, ContentError) == (row.error != TOO_LARGE)  # a resumed transfer then restarts


# Random changes


def read_members(chunks: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Read all members of an archive."""

    def read(name: str, size: int, content: Iterable[bytes]) -> tuple[str, bytes]:
        data = b"".join(content)
        assert len(data) == size
        return name, data

    return unpacker.unpack(chunks, WANTED, read)


def unpack(chunks: Iterable[bytes], zlib_module: object, chunk_size: int = 1 << 18) -> list[tuple[str, bytes]] | None:
    """Read all members, or return None if the archive is rejected; other exceptions propagate."""
    # The limits are smaller than usual, so that short archives take several calls too.
    names = {"zlib": zlib_module, "_MIN_INPUT_BYTES": 600, "_MAX_OUTPUT_BYTES": chunk_size}
    with mock.patch.multiple(gunzip, **names):
        try:
            return read_members(chunks)
        except ContentError as error:
            assert str(error).isprintable()
            return None


def test_trailing_bytes_in_an_incomplete_tar_may_be_truncation() -> None:
    with pytest.raises(ContentError, match="end-of-archive") as caught:
        read_members([gzip.compress(plain_files()) + b"text"])
    assert isinstance(caught.value, TruncatedError)


def zlib_that_calls(at_call: int, action: Callable[[], object]) -> SimpleNamespace:
    """Return a zlib module that calls *action* before it decompresses for the n-th time."""
    calls = itertools.count(1)

    class Decompressor:
        def __init__(self, bits: int) -> None:
            self._real = zlib.decompressobj(bits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def decompress(self, data: bytes, size: int) -> bytes:
            if next(calls) == at_call:
                action()
            return self._real.decompress(data, size)

    return SimpleNamespace(decompressobj=Decompressor, error=zlib.error)


def test_decompresses_the_next_chunk_while_one_is_used() -> None:
    """The second call of the decompressor and the user of the first chunk wait for each other."""
    both = threading.Barrier(2, timeout=20)

    def use(name: str, size: int, content: Iterator[bytes]) -> int:
        first = len(next(content))
        both.wait()
        return first + sum(map(len, content))

    with mock.patch.object(gunzip, "zlib", zlib_that_calls(2, both.wait)):
        assert unpacker.unpack([gzip.compress(tar_entry("val.txt", bytes(MIB)) + END)], WANTED, use) == [MIB]


def test_reads_the_next_chunk_while_one_is_decompressed() -> None:
    """The first call of the decompressor and the source of the second chunk wait for each other."""
    both = threading.Barrier(2, timeout=20)

    def chunks() -> Iterator[bytes]:
        archive = gzip.compress(tar_entry("val.txt", bytes(MIB)) + END, 0)
        yield archive[:MIB]
        both.wait()
        yield archive[MIB:]

    with mock.patch.object(gunzip, "zlib", zlib_that_calls(1, both.wait)):
        assert read_members(chunks()) == [("val.txt", bytes(MIB))]


def read_with_tarfile(tar: bytes) -> list[tuple[str, bytes]]:
    """Read the wanted members with tarfile."""
    files = []
    # tarfile raises ReadError if a pax header is the last entry.
    with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(tar)) as reader:
        for info in reader:
            name = info.name.split("/")[-1]
            content = reader.extractfile(info)
            if content and name in WANTED:
                files.append((name, content.read()))
    return files


def split_chunks(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Yield chunks of these sizes, then the rest."""
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


def mutate(data: bytes, changes: Iterable[tuple[str, int, int, bytes]]) -> bytes:
    """Apply each change at its offset, modulo the length."""
    for change, at, length, new in changes:
        at %= len(data) + 1
        part = data[at : at + length]
        data = {
            "flip": data[:at] + bytes(byte ^ (1 << length % 8) for byte in data[at : at + 1]) + data[at + 1 :],
            "write": data[:at] + new + data[at + len(new) :],
            "insert": data[:at] + new + data[at:],
            "remove": data[:at] + data[at + length :],
            "double": data[:at] + part + data[at:],
            "move": data[:at] + data[at + length :] + part,
            "cut": data[:at],
            "append": data + part,
        }[change]
    return data


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "write", "insert", "remove", "double", "move", "cut", "append"]),
        st.one_of(st.integers(0, 20), st.integers(0, 600), st.integers(0, 1 << 14)),
        st.integers(0, 1100),
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from([b"\0" * 8, b"\xff" * 12, b"\x80" * 12, b"..", b"/", b"path=", b"77777777777\0"]),
        ),
    ),
    min_size=1,
    max_size=4,
)
# All accepted kinds of entries
RICH = (
    GIT_COMMIT
    + TOP_FOLDER
    + tar_entry("top/._val.txt")
    + TIMES
    + plain_files("top/")
    + XATTRS
    + tar_entry("x", b"y" * 700)
    + END
)
RICH_FILES = list(CONTENT.items())
SIZES = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 600)), max_size=30)
CHUNK_SIZES = st.one_of(st.integers(20, 99), st.integers(100, 1 << 12), st.just(1 << 18))
fuzzing = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
with_each_zlib = pytest.mark.parametrize("zlib_module", ZLIB_MODULES, ids=lambda module: module.__name__)


@with_each_zlib
@settings(fuzzing, max_examples=250)
@given(SIZES, CHUNK_SIZES, st.lists(st.integers(0, len(RICH)), max_size=6), st.integers(0, 40))
def test_chunks_of_any_size_yield_the_same_files(
    zlib_module: object, sizes: list[int], chunk_size: int, cuts: list[int], padding: int
) -> None:
    edges = [0, *sorted(cuts), len(RICH)]
    packed = b"".join(gzip.compress(RICH[a:b], mtime=0) for a, b in zip(edges, edges[1:])) + bytes(padding)
    assert unpack(split_chunks(packed, sizes), zlib_module, chunk_size) == RICH_FILES


@with_each_zlib
def test_chunks_of_one_byte_yield_the_same_files(zlib_module: object) -> None:
    packed = gzip.compress(RICH[:700]) + gzip.compress(RICH[700:]) + bytes(9)
    assert unpack((packed[at : at + 1] for at in range(len(packed))), zlib_module, 1) == RICH_FILES


@with_each_zlib
@pytest.mark.parametrize("padding", [0, 70_000])
@pytest.mark.parametrize("flags", range(0, 32, 2))
def test_a_gzip_header_may_be_split_anywhere(zlib_module: object, flags: int, padding: int) -> None:
    fields = EXTRA_FIELD * bool(flags & 4) + b"name\0" * bool(flags & 8) + b"comment\0" * bool(flags & 16)
    # The unpacker joins the first bytes, so put the header to split after them.
    first = gzip.compress(tar_entry("skipped", bytes(70_000)) + TAR[:2000], 0) + bytes(padding)
    second = gzip_member(TAR[2000:], flags, fields)
    header_size = 10 + len(fields) + (2 if flags & 2 else 0)
    for cut in range(len(first), len(first) + header_size + 2):
        assert unpack(split_chunks(first + second, [cut]), zlib_module) == RICH_FILES


@with_each_zlib
def test_a_gzip_header_may_arrive_byte_by_byte(zlib_module: object) -> None:
    first = gzip.compress(tar_entry("skipped", bytes(70_000)) + TAR[:2000], 0)
    second = gzip_member(TAR[2000:], 31, EXTRA_FIELD + b"name\0comment\0")
    assert unpack(split_chunks(first + second, [len(first), *[1] * len(second)]), zlib_module) == RICH_FILES


@pytest.mark.parametrize("size", [10, 70_000])
def test_delivers_the_output_before_waiting_for_more_input(size: int) -> None:
    """The output of the first chunk takes several calls. The second chunk alone may be too small for a call."""
    data = os.urandom(MIB).hex().encode()
    packed = gzip.compress(tar_entry("val.txt", data) + END, 1)
    first, second = packed[:800_000], packed[800_000 : 800_000 + size]
    available = len(zlib.decompressobj(31).decompress(first)) - BLOCK
    received = 0

    def chunks() -> Iterator[bytes]:
        yield first
        yield second
        assert received >= available > MIB
        yield packed[800_000 + size :]

    def count(name: str, size: int, content: Iterable[bytes]) -> None:
        nonlocal received
        for chunk in content:
            received += len(chunk)

    unpacker.unpack(chunks(), ["val.txt"], count)
    assert received == len(data)


@with_each_zlib
@pytest.mark.parametrize("garbage", [b"x", b"text" * 99, b"\0x", b"\x1fx", GOOD[1:]], ids=repr)
def test_ignores_bytes_after_the_gzip_trailer(zlib_module: object, garbage: bytes) -> None:
    for cut in range(len(STORED) - 1, len(STORED) + 3):
        assert unpack(split_chunks(STORED + garbage, [cut]), zlib_module) == RICH_FILES


@with_each_zlib
def test_ignores_a_damaged_gzip_after_other_trailing_bytes(zlib_module: object) -> None:
    assert unpack([STORED + b"text", GZIP_HEADER + b"garbage" * 9], zlib_module) == RICH_FILES


@pytest.mark.parametrize("size", [1, 100, 600])
def test_recognizes_a_tar_in_small_chunks(size: int) -> None:
    with pytest.raises(ContentError, match="got an uncompressed tar"):
        read_members(TAR[at : at + size] for at in range(0, len(TAR), size))


@with_each_zlib
def test_reports_a_truncated_archive(zlib_module: object) -> None:
    packed = gzip.compress(RICH[:700], mtime=0) + gzip.compress(RICH[700:], mtime=0)
    with mock.patch.object(gunzip, "zlib", zlib_module):
        for end in range(2, len(packed)):
            with pytest.raises(ContentError) as caught:
                read_members([packed[:end]])
            assert isinstance(caught.value, TruncatedError)


@with_each_zlib
@settings(fuzzing, max_examples=500)
@given(CHANGES, SIZES)
def test_a_changed_gzip_is_rejected_or_yields_the_same_files(
    zlib_module: object, changes: list[tuple[str, int, int, bytes]], sizes: list[int]
) -> None:
    packed = mutate(gzip.compress(RICH, mtime=0), changes)
    assert unpack(split_chunks(packed, sizes), zlib_module) in (None, RICH_FILES)


def check_against_tarfile(tar: bytes) -> None:
    """Check that the tar is rejected, or that tarfile reads the same files from it."""
    files = unpack([gzip.compress(tar, 1)], gunzip.zlib)
    if files is not None:
        assert files == read_with_tarfile(tar)


@settings(fuzzing, max_examples=500)
@given(CHANGES)
def test_a_changed_tar_is_rejected_or_read_like_tarfile(changes: list[tuple[str, int, int, bytes]]) -> None:
    check_against_tarfile(mutate(RICH, changes))


@settings(fuzzing, max_examples=500)
@given(st.integers(0, 12), CHANGES)
def test_a_changed_header_is_rejected_or_read_like_tarfile(
    number: int, changes: list[tuple[str, int, int, bytes]]
) -> None:
    headers = [at for at in range(0, len(RICH), BLOCK) if RICH[at + 257 : at + 262] == b"ustar"]
    at = headers[number % len(headers)]
    header = mutate(RICH[at : at + BLOCK], changes)[:BLOCK].ljust(BLOCK, b"\0")
    check_against_tarfile(RICH[:at] + patch_header(header, 0, b"") + RICH[at + BLOCK :])


PLAIN_NAMES = [*WANTED, *(f"top/{name}" for name in WANTED), "./val.txt", "._x", "README"]
NAME_PARTS = ["a", "..", ".", "", "val.txt", "C:", "\\", "\n", "é", "\udcff"]
ENTRY_NAMES = st.one_of(
    st.sampled_from(PLAIN_NAMES),
    st.sampled_from(PLAIN_NAMES),
    st.sampled_from(PLAIN_NAMES),
    st.lists(st.sampled_from(NAME_PARTS), max_size=4).map("/".join),
    st.text(max_size=20),
)
NUMBERS = st.one_of(st.integers(0, 2000), st.integers(-(2**70), 2**70), st.sampled_from([-1, 2**31, 2**33, 2**63]))
SMALL_FIELDS = NUMBERS.map(lambda number: number % 2**56)  # fits in a field of 8 bytes
ENTRY_DATA = st.one_of(st.binary(max_size=40), st.integers(0, 1500).map(bytes))
PLAIN_ENTRIES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({"name": ENTRY_NAMES, "data": ENTRY_DATA})
ODD_ENTRIES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"name": ENTRY_NAMES, "data": ENTRY_DATA},
    optional={
        "type": st.one_of(st.sampled_from([b"\0", b"5", b"7", b"x", b"g"]), st.binary(min_size=1, max_size=1)),
        "mode": SMALL_FIELDS,
        "uid": SMALL_FIELDS,
        "mtime": NUMBERS,
        "size": NUMBERS,
        "records": st.lists(st.tuples(st.sampled_from(["mtime", "path", "a"]), st.text(max_size=9)), max_size=2),
    },
)


def random_entry(name: str, data: bytes, records: Iterable[tuple[str, str]] = (), **fields: Any) -> bytes:
    """Build an entry with these fields; *records* are the contents of a pax header before it."""
    if fields.get("type") in (b"x", b"g"):
        data = b"".join(pax_record(*pair) for pair in records)
    return tar_entry(name, data, **fields)


@settings(fuzzing, max_examples=300)
@given(
    st.lists(st.one_of(PLAIN_ENTRIES, PLAIN_ENTRIES, ODD_ENTRIES), min_size=1, max_size=3),
    st.sampled_from([True, True, True, False]),
)
def test_random_entries_are_rejected_or_read_like_tarfile(entries: list[dict[str, Any]], has_end: bool) -> None:
    check_against_tarfile(b"".join(random_entry(**entry) for entry in entries) + END * has_end)

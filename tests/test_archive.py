"""What the unpacker refuses, what it takes, and that nothing else can come of any bytes whatever."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple
from unittest import mock

import pytest
import sample_archive
from cm_home import ROOT
from command import NO_COVERAGE, read_data, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagenet_aux import archive as unpacker

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 512
END = bytes(2 * BLOCK)
OUTSIDE = Path(tempfile.gettempdir()) / "imagenet-aux-outside"
CONTENT = {
    "val.txt": b"ILSVRC2012_val_00000001.JPEG 65\nILSVRC2012_val_00000002.JPEG 970\n",
    "synsets.txt": b"n01440764\n" * 60,  # more than a block
    "imagenet_mean.binaryproto": bytes(range(256)) * 4,  # whole blocks
    "test.txt": b"",
}

try:
    from isal import isal_zlib

    INFLATERS = [zlib, isal_zlib]
except ImportError:
    INFLATERS = [zlib]


# How archives are made by hand


def packed(name: str, data: bytes = b"hi\n", form: int = tarfile.GNU_FORMAT, **fields: Any) -> bytes:
    """A tar entry with these fields; its size is what *data* has, unless it is told."""
    info = sample_archive.tar_info(name, **{"size": len(data), **fields})
    return info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % BLOCK)


def patched(entry: bytes, at: int, field: bytes) -> bytes:
    """The entry with other bytes in its header, and the checksum that makes it valid."""
    header = bytearray(entry[:BLOCK])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + entry[BLOCK:]


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A pax header of these records."""
    return packed("PaxHeader", b"".join(records), type=kind)


def record(key: str, value: str) -> bytes:
    """A pax record: its own length, a key, a value."""
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def honest(content: dict[str, bytes] = CONTENT, folder: str = "", **fields: Any) -> bytes:
    """The entries of plain files."""
    return b"".join(packed(folder + name, data, **fields) for name, data in content.items())


def repeated(head: bytes, unit: bytes, times: int) -> Iterator[bytes]:
    """A gzip file of *head*, then *unit* so many times, made at once however large it unpacks; it has no trailer."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH)
    again = deflate.compress(unit) + deflate.flush(zlib.Z_FULL_FLUSH)
    for _ in range(times):
        yield again


def written(path: Path, pieces: Iterable[bytes]) -> Path:
    with path.open("wb") as file:
        file.writelines(pieces)
    return path


# Hostile archives


class Hostile(NamedTuple):
    """An archive between whose honest files there is something else, and the reason for which it is refused."""

    what: str
    entries: bytes
    reason: str


def named(name: str, **fields: Any) -> Hostile:
    return Hostile(f"the name {name!r}", packed(name, **fields), r"the unsafe name ")


def typed(what: str, name: str, kind: bytes, **fields: Any) -> Hostile:
    reason = rf"'{re.escape(name)}' that is neither a regular file nor a folder \(type {re.escape(repr(kind))}\)"
    return Hostile(what, packed(name, b"", type=kind, **fields), reason)


def overriding(key: str, value: str, kind: bytes = b"x") -> Hostile:
    what = f"a {'global ' if kind == b'g' else ''}pax header that sets {key}"
    return Hostile(what, pax(record(key, value), kind=kind) + packed("train.txt"), rf"overrides {re.escape(key)}\n")


def unreadable(what: str, records: bytes) -> Hostile:
    return Hostile(f"a pax header {what}", pax(records) + packed("train.txt"), r"a pax header that cannot be read")


def sized(what: str, field: bytes, reason: str) -> Hostile:
    return Hostile(f"a size that is {what}", patched(packed("train.txt"), 124, field), reason)


BELOW_A_FILE = r"under the name of a file"
TWICE = r"holds train\.txt twice"
HOSTILE = [
    # Names that lead elsewhere
    named("../train.txt"),
    named("a/../../train.txt"),
    named("a/../train.txt"),
    named("train.txt/.."),
    named(".."),
    named("../", type=b"5", data=b""),
    named("/train.txt"),
    named("//host/train.txt"),
    named("/", type=b"5", data=b""),
    named(f"{OUTSIDE}/train.txt"),
    named("\\train.txt"),
    named("..\\train.txt"),
    named("a\\train.txt"),
    named("\\\\host\\share\\train.txt"),
    named("C:/train.txt"),
    named("C:\\train.txt"),
    named("C:train.txt"),
    named("train.txt:stream"),
    Hostile("a prefix of ..", patched(packed("train.txt", form=tarfile.USTAR_FORMAT), 345, b".."), r"unsafe name"),
    Hostile("a prefix of /tmp", patched(packed("train.txt", form=tarfile.USTAR_FORMAT), 345, b"/tmp"), r"unsafe name"),
    # Names that are none
    named(""),
    named("", type=b"5", data=b""),
    named("\n"),
    named("train.txt\n"),
    named("train.txt\r"),
    named("train\x01.txt"),
    named("\x1b[2Jtrain.txt"),
    named("\x7f"),
    named("\u202etxt.niart"),
    named("\udcfftrain.txt"),
    # Links
    typed("a symlink out of the folder", "train.txt", b"2", linkname="../val.txt"),
    typed("a symlink to an absolute path", "train.txt", b"2", linkname="/etc/passwd"),
    typed("a symlink to itself", "train.txt", b"2", linkname="train.txt"),
    typed("a symlink under the name of a real file", "val.txt", b"2", linkname="synsets.txt"),
    typed("a symlink that is no file of the set", "extra", b"2", linkname="val.txt"),
    Hostile(
        "a symlink, and a file below it", packed("a", b"", type=b"2", linkname="..") + packed("a/train.txt"), "'2'"
    ),
    typed("a hard link out of the folder", "train.txt", b"1", linkname="../val.txt"),
    typed("a hard link to an absolute path", "train.txt", b"1", linkname="/etc/passwd"),
    typed("a hard link to another member", "train.txt", b"1", linkname="val.txt"),
    typed("a hard link under the name of a real file", "val.txt", b"1", linkname="val.txt"),
    # What is no file
    typed("a character device", "train.txt", b"3", devmajor=1, devminor=5),
    typed("a block device", "train.txt", b"4", devmajor=8, devminor=0),
    typed("a FIFO", "train.txt", b"6"),
    typed("a FIFO under the name of a real file", "val.txt", b"6"),
    typed("a regular file that is called a folder", "train.txt/", b"0"),
    typed("a regular file that is called .", ".", b"0"),
    typed("a reserved type", "train.txt", b"8"),
    typed("an unknown type", "train.txt", b"Z"),
    typed("an unknown type in small", "train.txt", b"a"),
    typed("an unknown type that is no letter", "train.txt", b"\xff"),
    typed("a GNU sparse file", "train.txt", b"S"),
    typed("a GNU long name", "././@LongLink", b"L"),
    typed("a GNU long link name", "././@LongLink", b"K"),
    typed("a GNU multi-volume rest", "train.txt", b"M"),
    typed("a GNU volume label", "backup", b"V"),
    typed("a GNU listing", "train.txt", b"D"),
    typed("a GNU old long name", "train.txt", b"N"),
    typed("a Solaris pax header", "train.txt", b"X"),
    Hostile("a long name that is written out", packed("a/" * 99 + "train.txt"), r"type b'L'"),
    Hostile("a long link name that is written out", packed("x", b"", type=b"2", linkname="a" * 200), r"type b'K'"),
    # Folders under a file's name
    Hostile("a folder val.txt/", packed("val.txt/", b"", type=b"5"), BELOW_A_FILE),
    Hostile("a folder train.txt/", packed("train.txt/", b"", type=b"5"), BELOW_A_FILE),
    Hostile("a folder ./train.txt/", packed("./train.txt/", b"", type=b"5"), BELOW_A_FILE),
    Hostile("a folder top/train.txt/", packed("top/train.txt/", b"", type=b"5"), BELOW_A_FILE),
    Hostile("a folder train.txt/a/", packed("train.txt/a/", b"", type=b"5"), BELOW_A_FILE),
    Hostile("a folder train.txt/ as v7 has it", packed("train.txt/", b"", type=b"\0"), BELOW_A_FILE),
    Hostile("a file train.txt/a", packed("train.txt/a"), BELOW_A_FILE),
    Hostile("a file train.txt/train.txt", packed("train.txt/train.txt"), BELOW_A_FILE),
    Hostile("a file top/train.txt/a", packed("top/train.txt/a"), BELOW_A_FILE),
    Hostile("a folder with bytes of its own", packed("a/", b"hi", type=b"5"), r"a folder 'a' of 2 bytes"),
    # The same name twice
    Hostile("a file twice", packed("train.txt") * 2, TWICE),
    Hostile("a file twice, with other bytes", packed("train.txt") + packed("train.txt", b"other"), TWICE),
    Hostile("a file as ./ and plain", packed("./train.txt") + packed("train.txt"), TWICE),
    Hostile("a file plain and as ./", packed("train.txt") + packed("./train.txt"), TWICE),
    Hostile("a file in a top folder and plain", packed("top/train.txt") + packed("train.txt"), TWICE),
    Hostile("a file in two folders", packed("a/train.txt") + packed("b/train.txt"), TWICE),
    Hostile("a file with an empty step in its path", packed("train.txt") + packed("a//train.txt"), TWICE),
    # Pax headers that change what the plain header says
    *[
        overriding(key, value, kind)
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
    Hostile("an override after other records", pax(record("mtime", "1"), record("path", "x")), r"overrides path\n"),
    Hostile(
        "an override of the same name", pax(record("path", "train.txt")) + packed("train.txt"), r"overrides path\n"
    ),
    Hostile("an override of any length", pax(b"0013 path=xx\n") + packed("train.txt"), r"overrides path\n"),
    Hostile("an override after a chain", pax(record("a", "b")) * 9 + pax(record("size", "1")), r"overrides size\n"),
    Hostile("a pax header whose key is no text", pax(b"18 GNU.sparse.\xff=1\n"), r"overrides GNU\.sparse\.\\xff\n"),
    Hostile(
        "a pax header whose key steers the terminal", pax(b"21 GNU.sparse.\x1b[2J=1\n"), r"GNU\.sparse\.\\x1b\[2J\n"
    ),
    unreadable("of length 0", b"0 path=x\n"),
    unreadable("that is too short for its key", b"4 path=x\n"),
    unreadable("that is longer than it is", b"99 mtime=1\n"),
    unreadable("without an end", b"8 mtime="),
    unreadable("of negative length", b"-9 path=x\n"),
    unreadable("of absurd length", b"9" * 5000 + b" path=x\n"),
    unreadable("without a key", b"5 =x\n"),
    unreadable("without a value", b"7 path\n"),
    unreadable("of garbage", b"\xff\0 garbage"),
    unreadable("with a gap", record("mtime", "1") + b"\0\0" + record("path", "x")),
    Hostile("a pax header of 1 MiB", pax(record("comment", "x" * MIB)), r"a header of 10485\d\d bytes"),
    # Sizes and numbers
    sized("negative", b"\xff" * 12, r"'train\.txt' of -1 bytes"),
    sized("negative by a block", b"\xff" * 10 + b"\xfe\0", r"'train\.txt' of -512 bytes"),
    sized("negative in octal", b"-0000000001\0", r"'train\.txt' of -1 bytes"),
    sized("absurd", b"\x80" + b"\x7f" * 11, r"'train\.txt' of \d{27} bytes"),
    sized("the largest in octal", b"77777777777\0", r"'train\.txt' of 8589934591 bytes"),
    sized("2 GiB", b"20000000000\0", r"'train\.txt' of 2147483648 bytes"),
    sized("no number", b"many bytes\0\0", r"no tar, or a damaged one"),
    sized("more than there is", b"00000777777\0", r"is cut short"),
    Hostile("a negative pax header", patched(pax(b""), 124, b"\xff" * 12), r"of -1 bytes"),
    Hostile("a folder of 2 GiB", patched(packed("a/", b"", type=b"5"), 124, b"20000000000\0"), r"of 2147483648 bytes"),
    Hostile("a wrong checksum", packed("train.txt").replace(b"train", b"trail", 1), r"a damaged one: bad checksum"),
    Hostile("a number that is none", patched(packed("train.txt"), 100, b"rw-r--r"), r"a damaged one"),
]


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """An empty folder in the midst of what must not be touched."""
    cell = tmp_path / "around" / "cell"
    cell.mkdir(parents=True)
    for folder in (tmp_path, cell.parent):
        for name in (*CONTENT, "train.txt", "data"):
            (folder / name).write_bytes(b"mine")
    return cell


def everything(folder: Path) -> dict[str, object]:
    """All that stands below a folder, with what would tell of a change."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (about.st_mode, about.st_ino, about.st_nlink, path.is_file() and about.st_mtime_ns, data)
    return found


def refusal(cell: Path, path: Path) -> str:
    """What the command says of a hostile archive, once it is sure that it left nothing, here or elsewhere."""
    before = everything(cell.parent.parent)
    result = run_command(cell, "fetch", path, **NO_COVERAGE)
    assert (result.returncode, result.stdout) == (1, "")
    assert not os.listdir(cell) and everything(cell.parent.parent) == before
    assert not os.path.lexists(OUTSIDE) and not os.path.lexists("/train.txt")
    assert re.sub(r"[^\n\x20-\x7e]", "", result.stderr) == result.stderr, "an archive must not write to the terminal"
    assert "starting over" not in result.stderr, "what lies on disk is not asked for again"
    return result.stderr


@pytest.mark.parametrize("row", HOSTILE, ids=lambda row: ascii(row.what))
def test_a_hostile_archive_is_refused_with_a_reason_and_nothing_is_written(row: Hostile, cell: Path) -> None:
    tar = honest() + row.entries + packed("synset_words.txt") + END
    path = written(cell.parent.parent / "a.tar.gz", [gzip.compress(tar)])
    assert re.search(rf"error: {re.escape(str(path))}: .*({row.reason})", refusal(cell, path))


class Damaged(NamedTuple):
    what: str
    data: bytes
    reason: str


GOOD = gzip.compress(honest() + END, mtime=0)
DAMAGED = [
    Damaged("nothing", b"", r"is empty"),
    Damaged("garbage", b"garbage" * 99, r"is no gzip archive: it begins with b'garbagegarbagega'\n"),
    Damaged("a plain tar", honest() + END, r"is no gzip archive: it begins with b'val\.txt"),
    Damaged("a gzip that holds no tar", gzip.compress(b"no tar\n" * 999), r"holds no tar"),
    Damaged("a gzip of nothing", gzip.compress(b""), r"holds no tar"),
    Damaged("a gzip of a line", gzip.compress(b"no tar\n"), r"holds no tar: it unpacks to 7 bytes"),
    Damaged("a gzip of zeros", gzip.compress(bytes(10240)), r"holds none of the eight files"),
    Damaged("a gzip of a block of zeros", gzip.compress(bytes(512)), r"holds none of the eight files"),
    Damaged("a tar without its end", gzip.compress(honest()), r"is cut short: its bytes end in the middle of the tar"),
    Damaged("a tar with half its end", gzip.compress(honest() + END[:511]), r"is cut short"),
    Damaged("a missing trailer", GOOD[:-8], r"is cut short: its bytes end before the gzip trailer"),
    Damaged("half a trailer", GOOD[:-4], r"is cut short: its bytes end before the gzip trailer"),
    Damaged("a wrong CRC", GOOD[:-8] + b"\0\0\0\0" + GOOD[-4:], r"is damaged"),
    Damaged("a wrong length", GOOD[:-4] + b"\0\0\0\0", r"is damaged"),
    Damaged("a flipped bit", GOOD[:99] + bytes([GOOD[99] ^ 1]) + GOOD[100:], r"is damaged|is cut short"),
    Damaged("another method than deflate", GOOD[:2] + b"\7" + GOOD[3:], r"is damaged"),
    Damaged("garbage behind it", GOOD + b"garbage" * 99, r"is damaged"),
    Damaged("half a gzip behind it", GOOD + GOOD[:99], r"is cut short"),
    Damaged("half a magic", GOOD[:1], r"is no gzip archive"),
    Damaged("half a gzip header", GOOD[:5], r"is cut short"),
    Damaged("comments without end, as of a page", b"<!---->" * 140, r"is no gzip archive|is a page of HTML"),
]


@pytest.mark.parametrize("row", DAMAGED, ids=lambda row: row.what)
def test_a_damaged_archive_is_refused_with_a_reason_and_nothing_is_written(row: Damaged, cell: Path) -> None:
    path = written(cell.parent.parent / "a.tar.gz", [row.data])
    assert re.search(rf"error: {re.escape(str(path))}: .*({row.reason})", refusal(cell, path))


# Bombs


class Bomb(NamedTuple):
    what: str
    pieces: Callable[[], Iterable[bytes]]
    reason: str


def large(name: str, size: int) -> bytes:
    """The header of a file that is that large."""
    return packed(name, b"", size=size)


def two_large_files() -> Iterator[bytes]:
    """Two files that are each within the limit, and together above it."""
    for name in ("train.txt", "val.txt"):
        yield from [large(name, 150 * MIB), *[bytes(MIB)] * 150]


def endless_empty_members() -> Iterator[bytes]:
    yield GOOD
    empty = gzip.compress(b"", mtime=0)
    yield from [empty * 1000] * 3000


HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
TOO_MUCH = r"unpacks to more than 200 MiB"
TOO_MANY = r"holds more than 1000 entries"
BOMBS = [
    Bomb("a file of 2 GiB", lambda: repeated(large("train.txt", 2 * GIB), bytes(MIB), 2048), r"of 2147483648 bytes"),
    Bomb(
        "files of 300 MiB in all, each within the limit",
        lambda: [gzip.compress(b"".join(two_large_files()), 1)],
        TOO_MUCH,
    ),
    Bomb(
        "extra files of 2 GiB in all",
        lambda: repeated(b"", large("x", MIB) + bytes(MIB), 2048),
        TOO_MANY + "|" + TOO_MUCH,
    ),
    Bomb("2 GiB behind the end", lambda: repeated(honest() + END, bytes(MIB), 2048), TOO_MUCH),
    Bomb("2 GiB of zeros", lambda: repeated(b"", bytes(MIB), 2048), TOO_MUCH),
    Bomb("2 GiB in gzip members of 100 MiB", lambda: [gzip.compress(bytes(100 * MIB), 1)] * 20, TOO_MUCH),
    Bomb(
        "a pax header of 2 GiB",
        lambda: repeated(patched(pax(), 124, b"20000000000\0"), bytes(MIB), 2048),
        r"of 2147483648 bytes",
    ),
    Bomb(
        "a pax header of 199 MiB",
        lambda: repeated(patched(pax(), 124, b"%011o\0" % (199 * MIB)), bytes(MIB), 2048),
        r"a header of 208666624 bytes",
    ),
    Bomb(
        "2 GiB of pax headers of 1 MiB",
        lambda: repeated(b"", pax(record("a", "b" * (MIB - 99))), 2048),
        r"a header of 1048[0-9]* bytes",
    ),
    Bomb(
        "2 GiB of a long name",
        lambda: repeated(large("././@LongLink", 2 * GIB), b"a" * MIB, 2048),
        r"of 2147483648 bytes",
    ),
    Bomb("200,000 members", lambda: repeated(honest(), b"".join(packed(f"{n}") for n in range(100)), 2000), TOO_MANY),
    Bomb(
        "200,000 folders",
        lambda: repeated(honest(), b"".join(packed(f"{n}/", b"", type=b"5") for n in range(100)), 2000),
        TOO_MANY,
    ),
    Bomb("200,000 pax headers in a row", lambda: repeated(honest(), pax(record("a", "b")) * 100, 2000), TOO_MANY),
    Bomb("200,000 pax headers, a byte each", lambda: repeated(honest(), pax(b"") * 100, 2000), TOO_MANY),
    Bomb("3,000,000 gzip members of nothing", endless_empty_members, r"gzip members"),
    Bomb(
        "a gzip name of 300 MiB",
        lambda: [GOOD, HEADER[:3] + b"\x08" + HEADER[4:], *[b"a" * MIB] * 300],
        r"is larger than 200 MiB",
    ),
    Bomb(
        "300 MiB of deflate blocks of nothing",
        lambda: [HEADER, *[b"\0\0\0\xff\xff" * (MIB // 5)] * 300],
        r"is larger than 200 MiB",
    ),
    Bomb("300 MiB of padding", lambda: [GOOD, *[bytes(MIB)] * 300], r"is larger than 200 MiB"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss and st_blocks are Linux's")
@pytest.mark.parametrize("row", BOMBS, ids=lambda row: row.what)
def test_a_bomb_is_refused_within_100_mb_of_memory_and_300_mb_of_disk(row: Bomb, cell: Path) -> None:
    path = written(cell.parent.parent / "a.tar.gz", row.pieces())
    began = time.monotonic()
    code, said, memory, disk = watched(cell, path)
    path.unlink()
    assert code == 1 and re.search(rf"error: {re.escape(str(path))}: .*({row.reason})", said)
    assert "Traceback" not in said and not os.listdir(cell)
    assert memory < 100e6, f"{memory / 1e6:.0f} MB of memory"
    assert disk < 300e6, f"{disk / 1e6:.0f} MB of disk"
    assert time.monotonic() - began < 30


def watched(cell: Path, path: Path) -> tuple[int, str, int, int]:
    """Exit code, stderr, and the peaks of memory and of disk in bytes of a fetch."""
    # A process of its own asks: what the forked test had in memory would count, too.
    program = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    call = [sys.executable, "-c", program, sys.executable, "-m", "imagenet_aux", "fetch", str(path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    disk = 0
    with (cell.parent / "said").open("w+") as said:
        process = subprocess.Popen(call, cwd=cell, env=env, stdout=subprocess.PIPE, stderr=said, encoding="ascii")
        while process.poll() is None:
            below = (os.path.join(at, name) for at, folders, files in os.walk(cell) for name in folders + files)
            disk = max(disk, sum(map(usage, below)))
            time.sleep(0.01)
        code, memory = process.communicate()[0].split()
        said.seek(0)
        return int(code), said.read(), int(memory) * 1024, disk


def usage(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0  # it is gone by now


# Honest oddities


def gzipped(data: bytes, flags: int = 0, fields: bytes = b"") -> bytes:
    """A gzip member with these flags and fields in its header."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\xff" + fields
    if flags & 2:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    return header + deflate.compress(data) + deflate.flush() + struct.pack("<II", zlib.crc32(data), len(data))


def split(tar: bytes, size: int) -> bytes:
    """A gzip member for every *size* bytes of a tar."""
    return b"".join(gzip.compress(tar[at : at + size]) for at in range(0, len(tar), size))


def made(form: int, **arguments: Any) -> bytes:
    """A tar as Python's own tarfile writes it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form, **arguments) as tar:
        for name, data in CONTENT.items():
            tar.addfile(
                sample_archive.tar_info(name, size=len(data), mtime=1396381234.5, uname="jörg"), io.BytesIO(data)
            )
    return packed.getvalue()


def v7(tar: bytes) -> bytes:
    """The entries without what came after version 7: a magic, names of owners, a type for regular files."""
    return patched(tar, 156, bytes(356))


TAR = honest() + END
EXTRAS = pax(record("mtime", "1396381234.5"), record("atime", "1"), record("ctime", "1"), record("comment", "ünïcode"))
XATTRS = pax(record("SCHILY.xattr.com.apple.quarantine", "0001;"), record("LIBARCHIVE.xattr.x", "eA=="))
OWNERS = pax(record("uname", "jörg"), record("gname", "staff"), record("uid", "9999999"), record("gid", "9999999"))
GIT = pax(record("comment", "0123456789abcdef0123456789abcdef01234567"), kind=b"g")
FOLDER = packed("top/", b"", type=b"5", mode=0o755)
APPLE = b"".join(
    packed(f"{folder}._{name}", b"\0\5\x16\7" + bytes(183)) for folder in ("", "__MACOSX/") for name in CONTENT
)
HONEST = {
    # Names
    "plain names": gzip.compress(TAR),
    "./ names": gzip.compress(honest(folder="./") + END),
    "./ names, and the folder": gzip.compress(packed("./", b"", type=b"5") + honest(folder="./") + END),
    "one top folder": gzip.compress(honest(folder="caffe_ilsvrc12/") + END),
    "one top folder with its entry": gzip.compress(FOLDER + honest(folder="top/") + END),
    "one top folder behind ./": gzip.compress(packed("./top/", b"", type=b"5") + honest(folder="./top/") + END),
    "folders as v7 has them": gzip.compress(v7(packed("top/", b"")) + honest(folder="top/") + END),
    "a folder that is empty": gzip.compress(packed("a/b/", b"", type=b"5") + TAR),
    "a top folder beyond ASCII": gzip.compress(honest(folder="données/") + END),
    "AppleDouble entries": gzip.compress(APPLE + TAR),
    "an extra plain file": gzip.compress(packed("README", b"read me") + honest() + packed("top/LICENSE") + END),
    "an extra file of a like name": gzip.compress(packed("VAL.TXT") + packed("val.txt~") + TAR),
    # Formats
    "ustar": gzip.compress(made(tarfile.USTAR_FORMAT)),
    "GNU": gzip.compress(made(tarfile.GNU_FORMAT)),
    "pax": gzip.compress(made(tarfile.PAX_FORMAT)),
    "v7": gzip.compress(b"".join(v7(packed(name, data)) for name, data in CONTENT.items()) + END),
    "contiguous files": gzip.compress(honest(type=b"7") + END),
    "old regular files": gzip.compress(honest(type=b"\0") + END),
    "a ustar prefix": gzip.compress(honest(folder="a" * 90 + "/" + "b" * 40 + "/", form=tarfile.USTAR_FORMAT) + END),
    # Pax headers
    "pax times and a comment": gzip.compress(b"".join(EXTRAS + packed(n, d) for n, d in CONTENT.items()) + END),
    "pax xattrs": gzip.compress(XATTRS + TAR),
    "pax owners": gzip.compress(OWNERS + TAR),
    "a pax header of nothing": gzip.compress(pax() + TAR),
    "pax headers in a row": gzip.compress(GIT + OWNERS + XATTRS + TAR),
    "a global header, as of git archive": gzip.compress(GIT + FOLDER + honest(folder="top/") + END),
    "a global header of tarfile": gzip.compress(made(tarfile.PAX_FORMAT, pax_headers={"comment": "a" * 40})),
    # Fields
    "odd modes": gzip.compress(honest(mode=0o7777) + END),
    "no modes": gzip.compress(honest(mode=0) + END),
    "odd owners": gzip.compress(honest(uid=2**40, gid=2**40, uname="nobody", gname="x" * 30) + END),
    "odd times": gzip.compress(honest(mtime=2**40) + END),
    "times before 1970": gzip.compress(honest(mtime=-1) + END),
    # The end
    "one zero block": gzip.compress(honest() + END[:BLOCK]),
    "a blocking factor": gzip.compress(TAR + bytes(-len(TAR) % 10240)),
    "a large blocking factor": gzip.compress(TAR + bytes(MIB)),
    "something behind the end": gzip.compress(TAR + b"left over"),
    # Gzip
    "gzip members of 1 MiB": split(TAR, MIB),
    "gzip members that end with the entries": split(TAR, BLOCK),
    "gzip members that split headers": split(TAR, 100),
    "gzip members of a byte": split(TAR[:BLOCK], 1) + gzip.compress(TAR[BLOCK:]),
    "gzip members of nothing": gzip.compress(b"") + gzip.compress(TAR) + gzip.compress(b"") * 9,
    "zeros behind it": gzip.compress(TAR) + bytes(10240),
    "zeros between gzip members": gzip.compress(TAR[:700]) + bytes(9) + gzip.compress(TAR[700:]),
    "a gzip name": gzipped(TAR, 8, b"caffe_ilsvrc12.tar\0"),
    "a gzip comment": gzipped(TAR, 16, b"made by hand\0"),
    "extra gzip fields": gzipped(TAR, 4, b"\x08\0RA\4\0\1\2\3\4"),
    "every gzip field": gzipped(TAR, 31, b"\x08\0RA\4\0\1\2\3\4" + b"name\0" + b"comment\0"),
    "a gzip that is stored": gzip.compress(TAR, 0),
}


@pytest.mark.parametrize("what", HONEST)
def test_an_honest_oddity_is_accepted_and_its_files_come_out_byte_for_byte(what: str, tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    cell.mkdir()
    mask = os.umask(0o022)
    try:
        result = run_command(cell, "fetch", written(tmp_path / "a.tar.gz", [HONEST[what]]), **NO_COVERAGE)
    finally:
        os.umask(mask)
    assert result.returncode == 0, result.stderr
    assert read_data(cell) == CONTENT
    assert os.listdir(cell) == ["data"]
    if os.name == "posix":
        assert {path.stat().st_mode & 0o7777 for path in (cell / "data").iterdir()} == {0o644}


# Bounds


class Bound(NamedTuple):
    """Archives that reach a bound, and, one more than that, go beyond it."""

    what: str
    reaching: Callable[[int], Iterable[bytes]]
    bound: int
    reason: str


def of_unpacked_bytes(size: int) -> Iterator[bytes]:
    """An archive that unpacks to that size, in gzip members."""
    many, rest = divmod(size - len(TAR), MIB)
    yield from [gzip.compress(TAR), *[gzip.compress(bytes(MIB), 1)] * many, gzip.compress(bytes(rest))]


def of_packed_bytes(size: int) -> Iterator[bytes]:
    """An archive of that size, padding included."""
    many, rest = divmod(size - len(GOOD), MIB)
    yield from [GOOD, *[bytes(MIB)] * many, bytes(rest)]


def of_entries(count: int) -> Iterator[bytes]:
    yield gzip.compress(b"".join(packed(f"{n}", b"") for n in range(count - len(CONTENT))) + TAR)


def of_gzip_members(count: int) -> Iterator[bytes]:
    yield gzip.compress(b"") * (count - 1) + gzip.compress(TAR)


def of_pax_bytes(size: int) -> Iterator[bytes]:
    yield gzip.compress(packed("PaxHeader", record("comment", "x" * (size - 15)), type=b"x") + TAR)


BOUNDS = [
    Bound("200 MiB packed", of_packed_bytes, 200 * MIB, r"is larger than 200 MiB"),
    Bound("200 MiB unpacked", of_unpacked_bytes, 200 * MIB, TOO_MUCH),
    Bound("1,000 entries", of_entries, 1000, TOO_MANY),
    Bound("10,000 gzip members", of_gzip_members, 10_000, r"has more than 10000 gzip members"),
    Bound("a pax header of 64 KiB", of_pax_bytes, 64 << 10, r"has a header of 65537 bytes"),
]


@pytest.mark.parametrize("row", BOUNDS, ids=lambda row: row.what)
def test_what_reaches_a_bound_is_taken_and_what_goes_beyond_it_is_refused(row: Bound) -> None:
    taken = [
        (name, b"".join(content)) for name, content in unpacker.members(row.reaching(row.bound), sample_archive.NAMES)
    ]
    assert dict(taken) == CONTENT
    with pytest.raises(unpacker.ArchiveError, match=row.reason):
        for _ in unpacker.members(row.reaching(row.bound + 1), sample_archive.NAMES):
            pass


# Any bytes whatever


def unpacked(chunks: Iterable[bytes], inflater: object, piece: int = 1 << 18) -> list[tuple[str, bytes]] | None:
    """The members, once all has been read; None where the unpacker refuses. Whatever else it raises is a fault."""
    with mock.patch.object(unpacker, "zlib", inflater), mock.patch.object(unpacker, "_PIECE", piece):
        try:
            return [(name, b"".join(content)) for name, content in unpacker.members(chunks, sample_archive.NAMES)]
        except unpacker.ArchiveError as error:
            assert str(error).isprintable()
            return None


def as_tarfile_reads_it(tar: bytes) -> list[tuple[str, bytes]]:
    """The same from another reader."""
    files = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as reader, contextlib.suppress(tarfile.ReadError):
        for info in reader:  # raises where a pax header is the last
            name = info.name.split("/")[-1]
            content = reader.extractfile(info)
            if content and name in sample_archive.NAMES:
                files.append((name, content.read()))
    return files


def pieces(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """The data in pieces of these sizes, and then the rest of it."""
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


def changed(data: bytes, changes: Iterable[tuple[str, int, int, bytes]]) -> bytes:
    """The data after each of these changes at a place; places count from the front, and around."""
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
# What is changed: an archive in which nothing is refused, of all kinds of entries.
RICH = GIT + FOLDER + packed("top/._val.txt") + EXTRAS + honest(folder="top/") + XATTRS + packed("x", b"y" * 700) + END
RICH_FILES = list(CONTENT.items())
SIZES = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 600)), max_size=30)
PIECES = st.one_of(st.integers(1, 9), st.integers(10, 1 << 12), st.just(1 << 18))
fuzzed = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
with_each_inflater = pytest.mark.parametrize("inflater", INFLATERS, ids=lambda module: module.__name__)


@with_each_inflater
@settings(fuzzed, max_examples=250)
@given(SIZES, PIECES, st.lists(st.integers(0, len(RICH)), max_size=6), st.integers(0, 40))
def test_in_whatever_pieces_an_archive_comes_its_files_are_the_same(
    inflater: object, sizes: list[int], piece: int, cuts: list[int], padding: int
) -> None:
    edges = [0, *sorted(cuts), len(RICH)]
    packed = b"".join(gzip.compress(RICH[a:b], mtime=0) for a, b in zip(edges, edges[1:])) + bytes(padding)
    assert unpacked(pieces(packed, sizes), inflater, piece) == RICH_FILES


@with_each_inflater
def test_byte_by_byte_its_files_are_the_same(inflater: object) -> None:
    packed = gzip.compress(RICH[:700]) + gzip.compress(RICH[700:]) + bytes(9)
    assert unpacked((packed[at : at + 1] for at in range(len(packed))), inflater, 1) == RICH_FILES


@with_each_inflater
def test_cut_anywhere_it_is_refused_as_cut_short(inflater: object) -> None:
    packed = gzip.compress(RICH[:700], mtime=0) + gzip.compress(RICH[700:], mtime=0)
    with mock.patch.object(unpacker, "zlib", inflater):
        for end in range(2, len(packed)):
            with pytest.raises(unpacker.CutShort):
                for _ in unpacker.members([packed[:end]], sample_archive.NAMES):
                    pass


@with_each_inflater
@settings(fuzzed, max_examples=500)
@given(CHANGES, SIZES)
def test_a_changed_gzip_is_refused_or_its_files_are_the_same(
    inflater: object, changes: list[tuple[str, int, int, bytes]], sizes: list[int]
) -> None:
    packed = changed(gzip.compress(RICH, mtime=0), changes)
    assert unpacked(pieces(packed, sizes), inflater) in (None, RICH_FILES)


@with_each_inflater
@settings(fuzzed, max_examples=500)
@given(CHANGES)
def test_a_changed_tar_is_refused_or_its_files_are_as_tarfile_reads_them(
    inflater: object, changes: list[tuple[str, int, int, bytes]]
) -> None:
    tar = changed(RICH, changes)
    files = unpacked([gzip.compress(tar, 1)], inflater)
    if files is not None:
        assert files == as_tarfile_reads_it(tar)


@with_each_inflater
@settings(fuzzed, max_examples=500)
@given(st.integers(0, 12), CHANGES)
def test_a_changed_header_whose_checksum_is_right_is_refused_or_its_files_are_as_tarfile_reads_them(
    inflater: object, number: int, changes: list[tuple[str, int, int, bytes]]
) -> None:
    headers = [at for at in range(0, len(RICH), BLOCK) if RICH[at + 257 : at + 262] == b"ustar"]
    at = headers[number % len(headers)]
    header = changed(RICH[at : at + BLOCK], changes)[:BLOCK].ljust(BLOCK, b"\0")
    tar = RICH[:at] + patched(header, 0, b"") + RICH[at + BLOCK :]
    files = unpacked([gzip.compress(tar, 1)], inflater)
    if files is not None:
        assert files == as_tarfile_reads_it(tar)


PLAIN_NAMES = [*sample_archive.NAMES, *(f"top/{name}" for name in sample_archive.NAMES), "./val.txt", "._x", "README"]
STEPS = ["a", "..", ".", "", "val.txt", "C:", "\\", "\n", "é", "\udcff"]
NAME = st.one_of(
    st.sampled_from(PLAIN_NAMES),
    st.sampled_from(PLAIN_NAMES),
    st.sampled_from(PLAIN_NAMES),
    st.lists(st.sampled_from(STEPS), max_size=4).map("/".join),
    st.text(max_size=20),
)
NUMBER = st.one_of(st.integers(0, 2000), st.integers(-(2**70), 2**70), st.sampled_from([-1, 2**31, 2**33, 2**63]))
FIELD = NUMBER.map(lambda number: number % 2**56)  # what a field of 8 bytes can hold
DATA = st.one_of(st.binary(max_size=40), st.integers(0, 1500).map(bytes))
PLAIN: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({"name": NAME, "data": DATA})
ODD: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"name": NAME, "data": DATA},
    optional={
        "type": st.one_of(st.sampled_from([b"\0", b"5", b"7", b"x", b"g"]), st.binary(min_size=1, max_size=1)),
        "mode": FIELD,
        "uid": FIELD,
        "mtime": NUMBER,
        "size": NUMBER,
        "records": st.lists(st.tuples(st.sampled_from(["mtime", "path", "a"]), st.text(max_size=9)), max_size=2),
    },
)


def drawn(name: str, data: bytes, records: Iterable[tuple[str, str]] = (), **fields: Any) -> bytes:
    """An entry of these fields; of these records, where it is a pax header."""
    if fields.get("type") in (b"x", b"g"):
        data = b"".join(record(*pair) for pair in records)
    return packed(name, data, **fields)


@with_each_inflater
@settings(fuzzed, max_examples=300)
@given(st.lists(st.one_of(PLAIN, PLAIN, ODD), min_size=1, max_size=3), st.sampled_from([True, True, True, False]))
def test_whatever_its_headers_say_an_archive_is_refused_or_its_files_are_as_tarfile_reads_them(
    inflater: object, entries: list[dict[str, Any]], ended: bool
) -> None:
    tar = b"".join(drawn(**entry) for entry in entries) + END * ended
    files = unpacked([gzip.compress(tar, 1)], inflater)
    if files is not None:
        assert files == as_tarfile_reads_it(tar)

"""The line: every fault that one can have, tried for real. A new fault is one line of one of the two tables."""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sample_archive
from command import NO_COVERAGE, read_data, run_command
from server import Reply, Server

FILES = sample_archive.make_files(0.01)
ARCHIVE = sample_archive.pack_files(FILES)
# Another set, other from its first file on; its archive, and the same as long as the first one.
LATER_FILES = {**FILES, "det_synset_words.txt": b"other words\n"}
LATER = sample_archive.pack_files(LATER_FILES)
SAME_LENGTH = LATER + bytes(len(ARCHIVE) - len(LATER))

HTML = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>\n"
CUT = 100_000  # somewhere in the middle of the archive
GOOD = Reply()


def busy(status: int, **headers: str) -> Reply:
    """No file, for now or for good."""
    return Reply(status=status, body=b"busy", headers={name.replace("_", "-"): text for name, text in headers.items()})


def moved(to: str, status: int = 302) -> Reply:
    """A redirection."""
    return Reply(status=status, body=b"", headers={"Location": to})


def labelled(**headers: str) -> Reply:
    """The file under headers that do not befit it."""
    return Reply(headers={name.replace("_", "-"): text for name, text in headers.items()})


def soon() -> str:
    """The time in three seconds, in the words of HTTP."""
    return email.utils.formatdate(time.time() + 3, usegmt=True)


def flipped(at: int, data: bytes = ARCHIVE) -> bytes:
    """The archive with one wrong bit."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def pack_tar(files: dict[str, bytes]) -> bytes:
    """Pack these files into an uncompressed tar."""
    return sample_archive.pack_tar(sample_archive.tar_entries(files))


def packed(name: str) -> bytes:
    """An archive of one file of that name."""
    return sample_archive.pack([(sample_archive.tar_info(name, size=2), b"hi")])


# What can be saved


@dataclass
class Saved:
    """A fault that ends in the whole set.

    Attributes
    ----------
    replies : tuple of Reply
        How the server answers, one request after another.
    asked : tuple of int
        From which byte on each request asks. ``(0, 5)`` is resumed, ``(0, 0)`` begun again.
    content : tuple of (str, bytes)
        The files that it ends in.
    seconds : tuple of float
        How long it may take at least, and at most.
    """

    name: str
    replies: tuple[Reply, ...]
    asked: tuple[int, ...] = (0,)
    content: tuple[tuple[str, bytes], ...] = tuple(FILES.items())
    seconds: tuple[float, float] = (0, 15)


def dated(day: int, **more: Any) -> Reply:
    """The file with a date, and no other validator."""
    return Reply(etag="", headers={"Last-Modified": f"Mon, {day:02} Jan 2024 00:00:00 GMT"}, **more)


OTHERS = tuple(LATER_FILES.items())
TINY = (("val.txt", b"hi"),)
HALF = Reply(stop_at=CUT)
HALF_WEAK = Reply(stop_at=CUT, etag='W/"1"')
HALF_UNMARKED = Reply(stop_at=CUT, etag="")
HALF_CHUNKED = Reply(stop_at=CUT, etag="", chunked=True)
ENDLESS_302 = Reply(302, {"Location": "a.tar.gz"}, length=False, endless=True)
LONG_RANGE = Reply(206, {"Content-Range": f"bytes {'9' * 5000}-9/9"})

SAVED = [
    # Slow ones first: they overlap with the others.
    Saved("stalls", (Reply(stop_at=CUT, then="stall"), GOOD), (0, CUT), seconds=(10, 30)),
    Saved("nothing is wrong", (GOOD,)),
    # Redirections
    Saved("302", (moved("a.tar.gz"), GOOD), (0, 0)),
    Saved("301, 302, 303, 307 and 308", (*[moved("a.tar.gz", n) for n in (301, 302, 303, 307, 308)], GOOD), (0,) * 6),
    Saved("a chain of 20 times 302", (*[moved("/a.tar.gz")] * 20, GOOD), (0,) * 21),
    Saved("302 when the rest is asked for", (HALF, moved("a.tar.gz"), GOOD), (0, CUT, CUT)),
    Saved("302 with a body that is cut", (Reply(302, {"Location": "a.tar.gz"}, stop_at=9), GOOD), (0, 0)),
    Saved("302 with a body without end", (ENDLESS_302, GOOD), (0, 0)),
    Saved("302 with a wrong label", (Reply(302, {"Location": "a.tar.gz", "Content-Encoding": "br"}), GOOD), (0, 0)),
    # What the server cannot do, or says in its own way. It never answers HEAD.
    Saved("no ranges", (Reply(ranges=False),)),
    Saved("no length", (Reply(length=False),)),
    Saved("no validators", (Reply(etag=""),)),
    Saved("chunked", (Reply(chunked=True),)),
    Saved("chunked in small pieces", (Reply(chunked=True, chunk_size=1000),)),
    Saved("the connection stays open", (Reply(then="stall"),), seconds=(0, 10)),
    Saved("the connection stays open, chunked", (Reply(then="stall", chunked=True),), seconds=(0, 10)),
    Saved("labelled as gzip-encoded", (labelled(Content_Encoding="gzip"),)),
    Saved("labelled as gzip-encoded, chunked", (Reply(chunked=True, headers={"Content-Encoding": "gzip"}),)),
    Saved("labelled as of an unknown encoding", (labelled(Content_Encoding="zstd, br"),)),
    Saved("labelled as a page", (labelled(Content_Type="text/html; charset=utf-8"),)),
    Saved("a length that is none", (labelled(Content_Length="\xb2"),)),
    Saved("drips slowly", (Reply(chunk_size=4096, pause=0.05),)),
    # Busy
    Saved("429, Retry-After in seconds", (busy(429, Retry_After="2"), GOOD), (0, 0), seconds=(2, 8)),
    Saved("429, Retry-After as a date", (Reply(429, {"Retry-After": soon}, b""), GOOD), (0, 0), seconds=(1.5, 8)),
    Saved("429, Retry-After is past", (busy(429, Retry_After="Mon, 01 Jan 2024 00:00:00 GMT"), GOOD), (0, 0)),
    Saved("429, Retry-After makes no sense", (busy(429, Retry_After="Mon, 01 Jan 99999 00:00:00 GMT"), GOOD), (0, 0)),
    Saved("429, Retry-After is no digit", (busy(429, Retry_After="\xb2"), GOOD), (0, 0)),
    Saved("429 without Retry-After", (busy(429), GOOD), (0, 0)),
    Saved("503 passes", (busy(503), busy(503), GOOD), (0, 0, 0)),
    Saved("500 passes", (busy(500), GOOD), (0, 0)),
    Saved("502, 504 and 408 pass", (*[busy(n, Retry_After="0") for n in (502, 504, 408)], GOOD), (0, 0, 0, 0)),
    Saved("no answer at all passes", (Reply(raw=b""), GOOD), (0, 0)),
    Saved("reset before an answer passes", (Reply(raw=b"", then="reset"), GOOD), (0, 0)),
    Saved("503 when the rest is asked for", (HALF, busy(503, Retry_After="0"), GOOD), (0, CUT, CUT)),
    # Cut, and resumed
    Saved("cut once", (HALF, GOOD), (0, CUT)),
    Saved("cut in the first byte", (Reply(stop_at=1), GOOD), (0, 1)),
    Saved("cut before the first byte", (Reply(stop_at=0), GOOD), (0, 0)),
    Saved("cut before the last byte", (Reply(stop_at=len(ARCHIVE) - 1), GOOD), (0, len(ARCHIVE) - 1)),
    Saved("cut four times in a row", (*[Reply(stop_at=30_000)] * 4, GOOD), (0, 30_000, 60_000, 90_000, 120_000)),
    Saved("cut chunked", (Reply(stop_at=CUT, chunked=True), GOOD), (0, CUT)),
    Saved("reset once", (Reply(stop_at=CUT, then="reset"), GOOD), (0, CUT)),
    Saved("reset four times", (*[Reply(stop_at=30_000, then="reset")] * 4, GOOD), tuple(range(0, 120_001, 30_000))),
    Saved("reset without a length", (Reply(stop_at=CUT, then="reset", length=False), GOOD), (0, CUT)),
    Saved("cut, weak ETag", (HALF_WEAK, Reply(etag='W/"1"')), (0, CUT)),
    Saved("cut, date only", (dated(1, stop_at=CUT), dated(1)), (0, CUT)),
    Saved("cut, no validators", (HALF_UNMARKED, Reply(etag="")), (0, CUT)),
    # Cut, and begun again because it must be
    Saved("cut without a length", (Reply(stop_at=CUT, length=False), GOOD), (0, 0)),
    Saved("cut four times without a length", (*[Reply(stop_at=CUT, length=False)] * 4, GOOD), (0,) * 5),
    Saved("cut, and no ranges", (HALF, Reply(ranges=False)), (0, CUT, 0)),
    Saved("the rest begins too late", (HALF, Reply(shift=5), GOOD), (0, CUT, 0)),
    Saved("the rest begins too early", (HALF, Reply(shift=-5), GOOD), (0, CUT, 0)),
    Saved("206 says not where it begins", (HALF, Reply(206), GOOD), (0, CUT, 0)),
    Saved("206 says it in too many digits", (HALF, LONG_RANGE, GOOD), (0, CUT, 0)),
    Saved("416", (HALF, busy(416), GOOD), (0, CUT, 0)),
    # Cut, and the file changed meanwhile
    Saved("changed", (HALF, Reply(body=LATER)), (0, CUT, 0), OTHERS),
    Saved("changed, date only", (dated(1, stop_at=CUT), dated(8, body=LATER)), (0, CUT, 0), OTHERS),
    Saved("changed, weak ETag", (HALF_WEAK, Reply(body=SAME_LENGTH, etag='W/"2"')), (0, CUT, 0), OTHERS),
    Saved("changed, If-Range not understood", (HALF, Reply(body=SAME_LENGTH, if_range=False)), (0, CUT, 0), OTHERS),
    Saved("changed, another length, no validators", (HALF_UNMARKED, Reply(body=LATER, etag="")), (0, CUT, 0), OTHERS),
    Saved("changed, chunked, no validators", (HALF_CHUNKED, Reply(body=LATER, etag="")), (0, CUT, 0), OTHERS),
    Saved("changed, as long, no validators", (HALF_UNMARKED, Reply(body=SAME_LENGTH, etag="")), (0, CUT, 0), OTHERS),
    Saved("shorter by now", (HALF, Reply(body=packed("val.txt"), if_range=False)), (0, CUT, 0), TINY),
]  # fmt: skip


@pytest.mark.parametrize("fault", SAVED, ids=lambda fault: fault.name)
def test_what_can_be_saved_ends_in_the_whole_set(fault: Saved, server: Server, tmp_path: Path) -> None:
    url = server.serve("a.tar.gz", ARCHIVE, *fault.replies)
    began = time.monotonic()
    result = run_command(tmp_path, "fetch", url)
    took = time.monotonic() - began
    assert result.returncode == 0, result.stderr
    assert read_data(tmp_path) == dict(fault.content)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert tuple(asked_from(server, "a.tar.gz")) == fault.asked, result.stderr
    assert fault.seconds[0] <= took <= fault.seconds[1]


def test_what_drips_until_it_stalls_is_resumed(server: Server, tmp_path: Path) -> None:
    url = server.serve("a.tar.gz", ARCHIVE, Reply(chunk_size=10, pause=0.1), GOOD)
    result = run_command(tmp_path, "fetch", url)
    assert read_data(tmp_path) == FILES, result.stderr
    begun, resumed = asked_from(server, "a.tar.gz")
    assert begun == 0 < resumed < 4096


@pytest.mark.parametrize("names", [{"etag": '"1"'}, {"etag": 'W/"1"'}, {"etag": "", "headers": {"Last-Modified": "1"}}])
def test_the_rest_of_another_version_is_not_joined_even_where_it_fits(
    names: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    tar = pack_tar(FILES)
    changed = pack_tar({**FILES, "val.txt": FILES["val.txt"].replace(b"1", b"2")})
    middle = tar.index(FILES["val.txt"]) - 512
    begin = gzip.compress(tar[:middle], 0)
    later = {"etag": '"2"'} if names["etag"] else {"etag": "", "headers": {"Last-Modified": "2"}}
    old = Reply(body=begin + gzip.compress(tar[middle:], 0), stop_at=len(begin), **names)
    new = Reply(body=gzip.compress(changed[:middle], 0) + gzip.compress(changed[middle:], 0), if_range=False, **later)
    assert len(old.body or b"") == len(new.body or b""), "what does not fit is found out anyway"
    run_command(tmp_path, "fetch", server.serve("a.tar.gz", b"", old, new))
    assert asked_from(server, "a.tar.gz") == [0, len(begin), 0]


def test_a_rest_that_fits_but_is_not_what_the_checksum_says_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    tar = pack_tar(FILES)
    begin = gzip.compress(b"")
    good, other = (begin + gzip.compress(tar, mtime=second) for second in (1, 2))
    assert len(good) == len(other), "what does not fit is found out anyway"
    replies = [Reply(body=good, etag="", stop_at=len(begin)), Reply(body=other, etag=""), Reply(body=good)]
    url = server.serve("a.tar.gz", b"", *replies)
    result = run_command(tmp_path, "fetch", url, "--checksum", hashlib.sha256(good).hexdigest())
    assert result.returncode == 0, result.stderr
    assert asked_from(server, "a.tar.gz") == [0, len(begin), 0]


def asked_from(server: Server, name: str) -> list[int]:
    """From which byte on each request asked."""
    ranges = [headers.get("Range", "bytes=0-") for headers in server.requests_for(name)]
    return [int(asked[len("bytes=") : -1]) for asked in ranges]


# What cannot be saved


@dataclass
class Lost:
    """A fault that ends in its reason.

    Attributes
    ----------
    reason : str
        Pattern of the error that is shown.
    replies : tuple of Reply
        How the server answers, one request after another.
    source : str
        What is asked for, with the places of the server and of a folder to be filled in.
    requests : int
        Number of requests that it takes, where it is the server's address that is asked for.
    seconds : float
        How long it may take at most.
    """

    name: str
    reason: str
    replies: tuple[Reply, ...] = ()
    source: str = "{url}"
    requests: int = 5
    seconds: float = 15


def body(data: bytes, **more: bool) -> tuple[Reply, ...]:
    """These bytes in place of the archive, whenever they are asked for."""
    return (Reply(body=data, length=more.get("length", True)),)


DRIPPING_HEAD = Reply(raw=b"HTTP/1.1 200 " + b"O" * 999, chunk_size=1, pause=0.3)
STEERING = Reply(raw=b"HTTP/1.1 404 \x1b[2J\r\n\r\n")
ZEROS_AFTER = Reply(raw=b"HTTP/1.1 200 OK\r\n\r\n" + ARCHIVE + bytes(201 << 20))

LOST = [
    # Slow ones first: they overlap with the others.
    Lost("never answers", r"no answer from 127.* timed out", (Reply(raw=b"", then="stall"),), requests=1, seconds=25),
    Lost("drips its head", r"nothing came in 20 s", (DRIPPING_HEAD,), requests=1, seconds=25),
    Lost("500 for ever", r"500 Internal Server Error.*given up", (busy(500),)),
    Lost("cut for ever", r"the line was cut", (Reply(stop_at=CUT), Reply(stop_at=0))),
    Lost("not HTTP", r"what came from 127\.0\.0\.1 is not HTTP: SSH", (Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n"),)),
    Lost("cut after few bytes for ever", r"the line was cut", (Reply(stop_at=10),)),
    # The server says no
    Lost("401", r"401 Unauthorized", (busy(401, WWW_Authenticate='Basic realm="x"'),), requests=1),
    Lost("403", r"403 Forbidden", (busy(403),), requests=1),
    Lost("404", r"404 Not Found", (busy(404),), requests=1),
    Lost("410", r"410 Gone", (busy(410),), requests=1),
    Lost("404 with a page", r"404 Not Found", (Reply(404, body=HTML),), requests=1),
    Lost("404 when the rest is asked for", r"404 Not Found", (Reply(stop_at=CUT), busy(404)), requests=2),
    Lost("204", r"204 No Content", (Reply(204, body=b""),), requests=1),
    Lost("304", r"304 Not Modified", (Reply(304, body=b""),), requests=1),
    Lost("429, Retry-After: 3600", r"429 Too Many Requests.*3600", (busy(429, Retry_After="3600"),), requests=1),
    Lost("429, Retry-After has many digits", r"429 Too Many", (busy(429, Retry_After="9" * 5000),), requests=1),
    Lost("an answer that steers the terminal", r"404 \\x1b\[2J", (STEERING,), requests=1),
    # Redirections
    Lost("a redirect loop", r"redirects", (moved("a.tar.gz"),), requests=21),
    Lost("a redirect to a file", r"cannot be asked: .*file:", (moved("file:///etc/passwd"),), requests=1),
    Lost("a redirect to ftp", r"cannot be asked: .*ftp:", (moved("ftp://localhost/a.tar.gz"),), requests=1),
    Lost("a redirect to nowhere", r"302", (Reply(302, body=b""),), requests=1),
    Lost("a redirect to a bad address", r"cannot be asked: .*IPv6", (moved("http://[::1"),), requests=1),
    Lost("a redirect to a bad port", r"cannot be asked: .*[Pp]ort", (moved("http://localhost:99999/"),), requests=1),
    Lost("a redirect to a bad host", r"cannot be asked: .*a\.\.b", (moved("http://a..b/"),), requests=1),
    Lost("a redirect to a long host", r"cannot be asked: .*aaaa", (moved(f"http://{'a' * 70}.invalid/"),), requests=1),
    Lost("a redirect to a refused connection", r"localhost: .*refused", (moved("http://localhost:1/"),), requests=1),
    # The bytes are other ones
    Lost("an HTML page", r"is a page of HTML", body(HTML), requests=1),
    Lost("an HTML page in one line", r"is a page of HTML", body(b" \n<html lang=en><body>Hi"), requests=1),
    Lost("an HTML page after a comment", r"is a page of HTML", body(b"<!-- saved -->\n<HTML><body>Hi"), requests=1),
    Lost("an HTML page after a byte order mark", r"is a page of HTML", body(b"\xef\xbb\xbf" + HTML), requests=1),
    Lost("an XHTML page", r"is a page of HTML", body(b'<?xml version="1.0"?>\n' + HTML), requests=1),
    Lost("an HTML page without a length", r"is a page of HTML", body(HTML, length=False), requests=1),
    Lost("an HTML page that drips", r"is a page of HTML", (Reply(body=HTML, chunk_size=3, pause=0.01),), requests=1),
    Lost("a page after blanks", r"is a page", (Reply(body=b" \n" * 9 + HTML, chunk_size=3, pause=0.01),), requests=1),
    Lost("blanks without end", r"no gzip archive", (Reply(body=b" " * 65536, endless=True, length=False),), requests=1),
    Lost("an empty body", r"is empty", body(b""), requests=1),
    Lost("an empty body without a length", r"is empty", body(b"", length=False), requests=1),
    Lost("one byte", r"is no gzip archive", body(b"\x1f"), requests=1),
    Lost("garbage", r"is no gzip archive", body(bytes(range(256)) * 99), requests=1),
    Lost("comments without end", r"is a page of HTML", body(b"<!---->" * 999), requests=1),
    Lost("a plain tar", r"is no gzip archive", body(pack_tar(FILES)), requests=1),
    Lost("garbage after the magic", r"is damaged", body(b"\x1f\x8b" + b"garbage" * 99), requests=1),
    Lost("a gzip of a text", r"holds no tar", body(gzip.compress(b"val.txt " * 999)), requests=1),
    Lost("a gzip of a short text", r"holds no tar", body(gzip.compress(b"Hello")), requests=1),
    Lost("a gzip of a text, no length", r"holds no tar", body(gzip.compress(b"Hello"), length=False), requests=1),
    Lost("a gzip of a page", r"holds no tar", body(gzip.compress(HTML * 20)), requests=1),
    Lost("a gzip of nothing", r"holds no tar", body(gzip.compress(b"")), requests=1),
    Lost("a gzip of a gzip", r"holds no tar", body(gzip.compress(ARCHIVE)), requests=1),
    Lost("an empty archive", r"none of the eight files", body(sample_archive.pack([])), requests=1),
    Lost("none of the eight files", r"none of the eight files", body(packed("notes.txt")), requests=1),
    # The archive is damaged, though it came whole
    *[Lost(f"a bit flipped at {at}", r"damaged", body(flipped(at)), requests=1) for at in (12, 999, CUT, -99, -12)],
    *[Lost(f"a wrong CRC at {at}", r"is damaged", body(flipped(at)), requests=1) for at in (-8, -5)],
    *[Lost(f"a wrong length at {at}", r"is damaged", body(flipped(at)), requests=1) for at in (-4, -1)],
    Lost("no trailer", r"is cut short", body(ARCHIVE[:-8]), requests=1),
    Lost("half a trailer", r"is cut short", body(ARCHIVE[:-4]), requests=1),
    Lost("no trailer, no length", r"is cut short", body(ARCHIVE[:-8], length=False)),
    Lost("half the archive", r"is cut short", body(ARCHIVE[:CUT]), requests=1),
    Lost("half the tar", r"is cut short", body(gzip.compress(gzip.decompress(ARCHIVE)[:CUT])), requests=1),
    Lost("garbage after the archive", r"is damaged", body(ARCHIVE + b"garbage" * 9), requests=1),
    # The line is always cut
    Lost("always cut, no ranges", r"could not be had.*given up", (Reply(stop_at=CUT, ranges=False),), requests=10),
    Lost("always cut, no length", r"is cut short.*given up", (Reply(stop_at=CUT, length=False),)),
    Lost("always cut, neither", r"is cut short.*given up", (Reply(stop_at=CUT, length=False, ranges=False),)),
    Lost("always cut, chunked, no ranges", r"given up", (Reply(stop_at=CUT, chunked=True, ranges=False),), requests=10),
    Lost("always begun in the wrong place", r"Content-Range", (*[HALF, Reply(shift=5)] * 9,), requests=10),
    # There is too much
    Lost("an absurd length", r"offers 9{15} bytes; more than 200", (labelled(Content_Length="9" * 15),), requests=1),
    Lost("a length of 5000 digits", r"offers 9{18} bytes", (labelled(Content_Length="9" * 5000),), requests=1),
    Lost("an endless body", r"is no gzip archive", (Reply(body=b"x" * 65536, endless=True, length=False),), requests=1),
    Lost("an endless page", r"is a page of HTML", (Reply(body=HTML * 999, endless=True, length=False),), requests=1),
    Lost("an endless archive", r"damaged|more than|twice", (Reply(endless=True, length=False),), requests=1),
    Lost("endless zeros after it", r"sends more than 200 MiB", (ZEROS_AFTER,), requests=1),
    # It is not even asked
    Lost("a refused connection", r"no answer from 127\.0\.0\.1: .*refused", source="http://127.0.0.1:1/a.tar.gz"),
    Lost("an unknown host", r"no answer from aux\.invalid: ", source="http://aux.invalid/a.tar.gz"),
    Lost("an impossible host", r"cannot be asked: .*a\.\.b", source="http://a..b/a.tar.gz"),
    Lost("a long host", r"cannot be asked: .*aaaa", source=f"http://{'a' * 70}.invalid/a.tar.gz"),
    Lost("no host", r"cannot be asked: .*http:///", source="http:///a.tar.gz"),
    Lost("an impossible port", r"cannot be asked: .*99999", source="http://localhost:99999/a.tar.gz"),
    Lost("half an IPv6 address", r"cannot be asked: .*\[::1", source="http://[::1/a.tar.gz"),
    Lost("TLS where there is none", r"no trusted connection to 127\.0\.0\.1: .*SSL", source="{tls}"),
    Lost("an unknown scheme", r"ftp://localhost.*http, https or file", source="ftp://localhost/a.tar.gz"),
    Lost("a missing file", r"no such file", source="{there}/missing.tar.gz"),
    Lost("a missing file by its URL", r"no such file", source="{there_url}/missing.tar.gz"),
    Lost("a drive that is none", r"no such file|cannot be read as a file URL", source="file:///1:/a.tar.gz"),
    Lost("an empty file", r"is empty", source="{there}/empty.tar.gz"),
    Lost("an empty folder", r"none of the eight files", source="{there}/folder"),
    Lost("a folder with a page in it", r"pages: val\.txt: is a page of HTML", source="{there}/pages"),
]  # fmt: skip


@pytest.fixture
def places(tmp_path: Path, server: Server) -> dict[str, str]:
    """What is filled in where a source is named."""
    there = tmp_path / "there"
    (there / "folder").mkdir(parents=True)
    (there / "empty.tar.gz").touch()
    (there / "pages").mkdir()
    (there / "pages" / "val.txt").write_bytes(HTML)
    return {"there": str(there), "there_url": there.as_uri(), "tls": f"https://127.0.0.1:{server.port}/a.tar.gz"}


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: fault.name)
def test_what_cannot_be_saved_ends_in_its_reason_and_the_next_call_works(
    fault: Lost, server: Server, tmp_path: Path, places: dict[str, str]
) -> None:
    url = server.serve("a.tar.gz", ARCHIVE, *fault.replies)
    here = tmp_path / "here"
    here.mkdir()
    began = time.monotonic()
    result = run_command(here, "fetch", fault.source.format(url=url, **places))
    took = time.monotonic() - began
    assert result.returncode == 1, result.stderr
    assert re.search(f"^error: .*(?:{fault.reason})", result.stderr, re.MULTILINE), result.stderr
    assert list(here.iterdir()) == []
    assert len(server.requests_for("a.tar.gz")) == (fault.requests if fault.source == "{url}" else 0)
    assert took <= fault.seconds

    result = run_command(here, "fetch", server.serve("b.tar.gz", ARCHIVE), **NO_COVERAGE)
    assert result.returncode == 0, result.stderr
    assert read_data(here) == FILES

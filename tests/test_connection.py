"""Test connection faults against a real server. To add a fault, add a row to one of the two tables."""

from __future__ import annotations

import email.utils
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sample_archive
from command import read_data, run_command
from server import Reply, Server

from imagenet_aux.download import STALL_SECONDS

pytestmark = pytest.mark.usefixtures("no_coverage")
FILES = sample_archive.make_files(0.01)
ARCHIVE = sample_archive.pack_files(FILES)
# FILES with a changed first file; their archive; and that archive, padded to the length of ARCHIVE.
NEW_FILES = {**FILES, "det_synset_words.txt": b"other words\n"}
NEW = sample_archive.pack_files(NEW_FILES)
NEW_SAME_LENGTH = NEW + bytes(len(ARCHIVE) - len(NEW))

HTML = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>\n"
CUT = 100_000  # an offset in the middle of the archive
GOOD = Reply()

# Patterns for errors.
CUT_SHORT = r"the connection closed (?:too early|after [0-9]+ of [0-9]+ bytes)"
GAVE_UP = r" \(gave up at attempt 5, [0-9]+ s idle\)$"
HTML_ERROR = r"HTML or XML instead of the file: "
INVALID_URL = r"invalid URL, redirect or proxy: "
NO_RESPONSE = r"no response from 127\.0\.0\.1: "
NO_HEADERS = NO_RESPONSE + f"nothing received in {STALL_SECONDS:.0f} s$"
NOT_GZIP = r"not gzip: expected a \.tar\.gz archive, got "
TOO_LONG = r"Content-Length: expected at most 200 MiB, got "
STATUS = r"the server responded "
TRUNCATED = r"truncated: the data ends before the gzip trailer"


def with_headers(**headers: str) -> Reply:
    """Make a correct reply with additional headers."""
    return Reply(headers={name.replace("_", "-"): text for name, text in headers.items()})


def error_reply(status: int, **headers: str) -> Reply:
    """Make an error reply, without the file."""
    return Reply(status=status, body=b"busy", headers={name.replace("_", "-"): text for name, text in headers.items()})


def redirect(to: str, status: int = 302) -> Reply:
    """Make a redirect."""
    return Reply(status=status, body=b"", headers={"Location": to})


def measured(row: Any) -> Any:
    """Mark a row that covers code which no other test covers."""
    return pytest.param(row, marks=pytest.mark.measured)


def dated(day: int, **options: Any) -> Reply:
    """Make a reply with a Last-Modified header and no ETag."""
    return Reply(etag="", headers={"Last-Modified": f"Mon, {day:02} Jan 2024 00:00:00 GMT"}, **options)


def partial(content_range: str) -> Reply:
    """Make a reply with the bytes from CUT on. In the header, R stands for the range and N for the total size."""
    value = content_range.replace("R", f"{CUT}-{len(ARCHIVE) - 1}").replace("N", str(len(ARCHIVE)))
    return Reply(206, {"Content-Range": value}, ARCHIVE[CUT:], etag="")


def starts(server: Server, name: str = "a.tar.gz") -> list[int]:
    """Return the start offset of each request for a file."""
    ranges = [headers.get("Range", "bytes=0-") for headers in server.requests_for(name)]
    return [int(value[len("bytes=") : -1]) for value in ranges]


# Faults from which a fetch recovers


@dataclass
class Recovered:
    """A fault, and how the fetch recovers.

    Attributes
    ----------
    replies : tuple of Reply
        The server's replies, one per request.
    starts : tuple of int
        The first byte of each request: ``(0, 5)`` resumes at the sixth byte, ``(0, 0)`` restarts.
    files : dict of str to bytes
        The files that are fetched.
    min_seconds : float
        The minimum duration.
    """

    name: str
    replies: tuple[Reply, ...]
    starts: tuple[int, ...] = (0,)
    files: tuple[tuple[str, bytes], ...] = tuple(FILES.items())
    min_seconds: float = 0


NEW_ONES = tuple(NEW_FILES.items())
TINY = sample_archive.pack([(sample_archive.tar_info("val.txt", size=2), b"hi")])
HALF = Reply(stop_at=CUT)
HALF_CHUNKED = Reply(stop_at=CUT, etag="", chunked=True)
HALF_NO_LENGTH = Reply(stop_at=CUT, length=False)
HALF_UNMARKED = Reply(stop_at=CUT, etag="")
HALF_WEAK = Reply(stop_at=CUT, etag='W/"1"')
QUARTER = Reply(stop_at=30_000)
QUARTER_RESET = Reply(stop_at=30_000, then="reset")
BR_302 = Reply(302, {"Location": "a.tar.gz", "Content-Encoding": "br"})
ENDLESS_302 = Reply(302, {"Location": "a.tar.gz"}, length=False, endless=True)
LONG_RANGE = Reply(206, {"Content-Range": f"bytes {'9' * 5000}-9/9"})
IN_YEAR_99999 = error_reply(429, Retry_After="Mon, 01 Jan 99999 00:00:00 GMT")
IN_YEAR_99999999999 = error_reply(429, Retry_After="Mon, 01 Jan 99999999999 00:00:00 GMT")
IN_THREE_SECONDS = Reply(429, {"Retry-After": lambda: email.utils.formatdate(time.time() + 3, usegmt=True)}, b"")

RECOVERED = [
    # Slow rows first, so that they run in parallel with the others.
    measured(Recovered("stall", (Reply(stop_at=CUT, then="stall"), GOOD), (0, CUT), min_seconds=10)),
    Recovered("no fault", (GOOD,)),
    # Redirects
    Recovered("302", (redirect("a.tar.gz"), GOOD), (0, 0)),
    Recovered("all redirects", (*[redirect("a.tar.gz", n) for n in (301, 302, 303, 307, 308)], GOOD), (0,) * 6),
    Recovered("20 redirects", (*[redirect("/a.tar.gz")] * 20, GOOD), (0,) * 21),
    Recovered("302 for a Range request", (HALF, redirect("a.tar.gz"), GOOD), (0, CUT, CUT)),
    Recovered("302 with a truncated body", (Reply(302, {"Location": "a.tar.gz"}, stop_at=9), GOOD), (0, 0)),
    Recovered("302 with an endless body", (ENDLESS_302, GOOD), (0, 0)),
    Recovered("302 with Content-Encoding: br", (BR_302, GOOD), (0, 0)),
    # Servers that lack a feature, or send unusual headers
    Recovered("no ranges", (Reply(ranges=False),)),
    Recovered("no length", (Reply(length=False),)),
    Recovered("no validators", (Reply(etag=""),)),
    Recovered("chunked", (Reply(chunked=True),)),
    Recovered("small chunks", (Reply(chunked=True, chunk_size=1000),)),
    Recovered("chunked with Content-Length", (Reply(chunked=True, headers={"Content-Length": "5"}),)),
    Recovered("connection stays open", (Reply(then="stall"),)),
    Recovered("connection stays open, chunked", (Reply(then="stall", chunked=True),)),
    Recovered("Content-Encoding: gzip", (with_headers(Content_Encoding="gzip"),)),
    Recovered("Content-Encoding: gzip, chunked", (Reply(chunked=True, headers={"Content-Encoding": "gzip"}),)),
    Recovered("unknown Content-Encoding", (with_headers(Content_Encoding="zstd, br"),)),
    Recovered("Content-Type: text/html", (with_headers(Content_Type="text/html; charset=utf-8"),)),
    Recovered("invalid length", (with_headers(Content_Length="\xb2"),)),
    Recovered("slow", (Reply(chunk_size=4096, pause=0.05),)),
    # Busy servers
    Recovered("Retry-After in seconds", (error_reply(429, Retry_After="2"), GOOD), (0, 0), min_seconds=2),
    Recovered("Retry-After as a date", (IN_THREE_SECONDS, GOOD), (0, 0), min_seconds=1.5),
    Recovered("Retry-After in the past", (error_reply(429, Retry_After="Mon, 01 Jan 2024 00:00:00 GMT"), GOOD), (0, 0)),
    measured(Recovered("Retry-After in year 99999", (IN_YEAR_99999, GOOD), (0, 0))),
    Recovered("Retry-After in year 99999999999", (IN_YEAR_99999999999, GOOD), (0, 0)),
    Recovered("Retry-After without a digit", (error_reply(429, Retry_After="\xb2"), GOOD), (0, 0)),
    Recovered("429 without Retry-After", (error_reply(429), GOOD), (0, 0)),
    Recovered("503 twice", (error_reply(503), error_reply(503), GOOD), (0, 0, 0)),
    Recovered("500", (error_reply(500), GOOD), (0, 0)),
    Recovered("502, 504, 408", (*[error_reply(n, Retry_After="0") for n in (502, 504, 408)], GOOD), (0, 0, 0, 0)),
    Recovered("425", (error_reply(425, Retry_After="0"), GOOD), (0, 0)),
    Recovered("closed before the response", (Reply(raw=b""), GOOD), (0, 0)),
    Recovered("reset before the response", (Reply(raw=b"", then="reset"), GOOD), (0, 0)),
    Recovered("503 for a Range request", (HALF, error_reply(503, Retry_After="0"), GOOD), (0, CUT, CUT)),
    Recovered("closed before the second response", (HALF, Reply(raw=b""), GOOD), (0, CUT, CUT)),
    Recovered("refused after the first response", (HALF, redirect("http://127.0.0.1:1/"), GOOD), (0, CUT, CUT)),
    Recovered("refused after a 503", (error_reply(503), redirect("http://127.0.0.1:1/"), GOOD), (0, 0, 0)),
    # Cut and resumed
    Recovered("cut", (HALF, GOOD), (0, CUT)),
    Recovered("cut after the first byte", (Reply(stop_at=1), GOOD), (0, 1)),
    Recovered("cut before the first byte", (Reply(stop_at=0), GOOD), (0, 0)),
    Recovered("cut before the last byte", (Reply(stop_at=len(ARCHIVE) - 1), GOOD), (0, len(ARCHIVE) - 1)),
    Recovered("cut four times", (*[QUARTER] * 4, GOOD), (0, 30_000, 60_000, 90_000, 120_000)),
    Recovered("cut, chunked", (Reply(stop_at=CUT, chunked=True), GOOD), (0, CUT)),
    measured(Recovered("reset", (Reply(stop_at=CUT, then="reset"), GOOD), (0, CUT))),
    Recovered("reset four times", (*[QUARTER_RESET] * 4, GOOD), (0, 30_000, 60_000, 90_000, 120_000)),
    Recovered("reset, no length", (Reply(stop_at=CUT, then="reset", length=False), GOOD), (0, CUT)),
    Recovered("cut, weak ETag", (HALF_WEAK, Reply(etag='W/"1"')), (0, CUT)),
    Recovered("cut, date only", (dated(1, stop_at=CUT), dated(1)), (0, CUT)),
    Recovered("cut, no validators", (HALF_UNMARKED, Reply(etag="")), (0, CUT)),
    Recovered("Content-Range in mixed case", (HALF, partial("bYtEs R/N")), (0, CUT)),
    Recovered("Content-Range without a total", (HALF, partial("bytes R/*")), (0, CUT)),
    Recovered("Content-Range with extra spaces", (HALF, partial(" bytes R/N ")), (0, CUT)),
    # Cut and restarted
    Recovered("cut, no length", (HALF_NO_LENGTH, GOOD), (0, 0)),
    Recovered("cut four times, no length", (*[HALF_NO_LENGTH] * 4, GOOD), (0,) * 5),
    Recovered("cut, no ranges", (HALF, Reply(ranges=False)), (0, CUT)),
    Recovered("range starts too late", (HALF, Reply(shift=5), GOOD), (0, CUT, 0)),
    Recovered("range starts too early", (HALF, Reply(shift=-5), GOOD), (0, CUT, 0)),
    Recovered("206 without Content-Range", (HALF, Reply(206), GOOD), (0, CUT, 0)),
    Recovered("206 with a long Content-Range", (HALF, LONG_RANGE, GOOD), (0, CUT, 0)),
    measured(Recovered("416", (HALF, error_reply(416), GOOD), (0, CUT, 0))),
    # Cut, then the file changes
    Recovered("changed", (HALF, Reply(body=NEW)), (0, CUT), NEW_ONES),
    Recovered("changed, date only", (dated(1, stop_at=CUT), dated(8, body=NEW)), (0, CUT), NEW_ONES),
    Recovered("changed, weak ETag", (HALF_WEAK, Reply(body=NEW_SAME_LENGTH, etag='W/"2"')), (0, CUT, 0), NEW_ONES),
    Recovered("changed, no If-Range", (HALF, Reply(body=NEW_SAME_LENGTH, if_range=False)), (0, CUT, 0), NEW_ONES),
    Recovered("changed, different length", (HALF_UNMARKED, Reply(body=NEW, etag="")), (0, CUT, 0), NEW_ONES),
    Recovered("changed, chunked", (HALF_CHUNKED, Reply(body=NEW, etag="")), (0, CUT, 0), NEW_ONES),
    Recovered("changed, same length", (HALF_UNMARKED, Reply(body=NEW_SAME_LENGTH, etag="")), (0, CUT, 0), NEW_ONES),
    Recovered("shrunk", (HALF, Reply(body=TINY, if_range=False)), (0, CUT, 0), (("val.txt", b"hi"),)),
]  # fmt: skip


@pytest.mark.parametrize("fault", RECOVERED, ids=lambda fault: fault.name)
def test_recovers_from_connection_fault(fault: Recovered, server: Server, tmp_path: Path) -> None:
    url = server.serve("a.tar.gz", ARCHIVE, *fault.replies)
    began = time.monotonic()
    result = run_command(tmp_path, "fetch", url)
    assert time.monotonic() - began >= fault.min_seconds
    assert result.returncode == 0, result.stderr
    assert read_data(tmp_path) == dict(fault.files)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert tuple(starts(server)) == fault.starts, result.stderr
    assert "ResourceWarning" not in result.stderr


# Faults from which a fetch does not recover


@dataclass
class Failed:
    """A fault, and the resulting error.

    Attributes
    ----------
    reason : str
        A pattern that matches the end of the error.
    replies : tuple of Reply
        The server's replies, one per request.
    source : str
        The source, with placeholders for the server's addresses.
    requests : int
        Number of requests that the server receives.
    max_seconds : float
        The maximum duration, for rows that test a time limit.
    """

    name: str
    reason: str
    replies: tuple[Reply, ...] = ()
    source: str = "{url}"
    requests: int = 1
    max_seconds: float = 100


def body(data: bytes, length: bool = True) -> tuple[Reply, ...]:
    """Make replies that send these bytes instead of the archive."""
    return (Reply(body=data, length=length),)


ALWAYS_CUT_BARE = Reply(stop_at=CUT, length=False, ranges=False)
ALWAYS_CUT_CHUNKED = Reply(stop_at=CUT, chunked=True, ranges=False)
MALFORMED_HEADER = Reply(raw=b"HTTP/1.1 404 Not Found\r\nA: b\r\n" + b"bad line " * 99 + b"\r\n\r\n")
CONTROL_CHARACTERS = Reply(raw=b"HTTP/1.1 404 \x1b[2J\r\n\r\n")
DRIPPING_HEAD = Reply(raw=b"HTTP/1.1 200 " + b"O" * 999, chunk_size=1, pause=0.3)
ENDLESS_CONTINUE = Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n", endless=True, pause=0.01)
LONG_HOST = "a" * 70
PAUSE_OF_AN_HOUR = r"429 Too Many Requests\. The server requested a pause of 3600 s"
TAR = sample_archive.pack_tar(sample_archive.tar_entries(FILES))
SSH = Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n")
ZEROS_AFTER = Reply(raw=b"HTTP/1.1 200 OK\r\n\r\n" + ARCHIVE + bytes(201 << 20))

FAILED = [
    # Slow rows first, so that they run in parallel with the others.
    Failed("no response", NO_HEADERS, (Reply(raw=b"", then="stall"),), max_seconds=45),
    Failed("dripping header", NO_HEADERS, (DRIPPING_HEAD,), max_seconds=45),
    Failed("endless 100 Continue", NO_HEADERS, (ENDLESS_CONTINUE,), max_seconds=45),
    Failed("always 500", STATUS + "500 Internal Server Error" + GAVE_UP, (error_reply(500),), requests=5),
    Failed("always cut", CUT_SHORT + GAVE_UP, (HALF, Reply(stop_at=0)), requests=5),
    Failed("always cut after a few bytes", CUT_SHORT + GAVE_UP, (Reply(stop_at=10),), requests=5),
    Failed("not HTTP", r"the response from 127\.0\.0\.1 is not HTTP: SSH", (SSH,), requests=5),
    # Error statuses
    Failed("401", STATUS + "401 Unauthorized", (error_reply(401, WWW_Authenticate='Basic realm="x"'),)),
    Failed("403", STATUS + "403 Forbidden", (error_reply(403),)),
    Failed("404", STATUS + "404 Not Found", (error_reply(404),)),
    Failed("410", STATUS + "410 Gone", (error_reply(410),)),
    Failed("404 with HTML", STATUS + "404 Not Found", (Reply(404, body=HTML),)),
    Failed("404 for a Range request", STATUS + "404 Not Found", (HALF, error_reply(404)), requests=2),
    Failed("204", STATUS + "204 No Content", (Reply(204, body=b""),)),
    Failed("206 without a Range request", STATUS + "206 Partial Content", (Reply(206),)),
    Failed("304", STATUS + "304 Not Modified", (Reply(304, body=b""),)),
    Failed("416 without a Range request", STATUS + "416 (Requested )?Range", (error_reply(416),)),
    Failed("long Retry-After", STATUS + PAUSE_OF_AN_HOUR, (error_reply(429, Retry_After="3600"),)),
    Failed("Retry-After of 400 digits", STATUS + r"429 Too Many", (error_reply(429, Retry_After="9" * 400),)),
    Failed("malformed header", STATUS + "404 Not Found$", (MALFORMED_HEADER,)),
    Failed("control characters", STATUS + r"404 \\x1b\[2J", (CONTROL_CHARACTERS,)),
    # Redirects
    Failed("redirect loop", r"Exceeded 20 redirects", (redirect("a.tar.gz"),), requests=21),
    Failed("redirect to a file", INVALID_URL + ".*file:", (redirect("file:///etc/passwd"),)),
    Failed("redirect to ftp", INVALID_URL + ".*ftp:", (redirect("ftp://localhost/a.tar.gz"),)),
    Failed("redirect without Location", STATUS + r"302", (Reply(302, body=b""),)),
    Failed("redirect to a bad address", INVALID_URL + ".*IPv6", (redirect("http://[::1"),)),
    Failed("redirect to a bad port", INVALID_URL + ".*([Pp]ort|99999)", (redirect("http://localhost:99999/"),)),
    Failed("redirect to a bad host", INVALID_URL + r".*a\.\.b", (redirect("http://a..b/"),)),
    Failed("redirect to a long host", INVALID_URL + ".*aaaa", (redirect(f"http://{LONG_HOST}.invalid/"),)),
    Failed("redirect to a closed port", r"no response from localhost: .*refused", (redirect("http://localhost:1/"),)),
    # Not the file
    Failed("HTML", HTML_ERROR, body(HTML)),
    Failed("HTML, no length", HTML_ERROR, body(HTML, length=False)),
    Failed("dripping HTML", HTML_ERROR, (Reply(body=HTML, chunk_size=3, pause=0.01),)),
    Failed("dripping HTML after whitespace", HTML_ERROR, (Reply(body=b" \n" * 9 + HTML, chunk_size=3, pause=0.01),)),
    Failed("endless spaces", NOT_GZIP, (Reply(body=b" " * 65536, endless=True, length=False),)),
    Failed("empty body", r"empty: expected a \.tar\.gz archive", body(b"")),
    Failed("empty body, no length", r"empty: expected a \.tar\.gz archive", body(b"", length=False)),
    measured(Failed("plain tar", NOT_GZIP + "an uncompressed tar", body(TAR))),
    Failed("plain tar that stalls", NOT_GZIP + "an uncompressed tar", (Reply(body=TAR, stop_at=CUT, then="stall"),)),
    Failed("endless text", NOT_GZIP, (Reply(body=b"x" * 65536, endless=True, length=False),)),
    Failed("endless HTML", HTML_ERROR, (Reply(body=HTML * 999, endless=True, length=False),)),
    Failed("no gzip trailer", TRUNCATED, body(ARCHIVE[:-8])),
    Failed("no gzip trailer, no length", TRUNCATED + GAVE_UP, body(ARCHIVE[:-8], length=False), requests=5),
    Failed("flipped bit, no length", r"damaged: ", body(ARCHIVE[:CUT] + b"??" + ARCHIVE[CUT + 2 :], length=False)),
    Failed(
        "always closed before the response",
        r"no response from 127\.0\.0\.1: .*closed connection without response" + GAVE_UP,
        (Reply(raw=b""),),
        requests=5,
    ),
    # Always cut
    Failed("always cut, no ranges", CUT_SHORT + GAVE_UP, (Reply(stop_at=CUT, ranges=False),), requests=5),
    Failed("always cut, no length", TRUNCATED + GAVE_UP, (HALF_NO_LENGTH,), requests=5),
    Failed("always cut, no length, no ranges", TRUNCATED + GAVE_UP, (ALWAYS_CUT_BARE,), requests=5),
    Failed("always cut, chunked, no ranges", CUT_SHORT + GAVE_UP, (ALWAYS_CUT_CHUNKED,), requests=5),
    Failed("range always starts too late", CUT_SHORT + GAVE_UP, (*[HALF, Reply(shift=5)] * 9,), requests=9),
    # Too large
    measured(Failed("length of 15 digits", TOO_LONG + "9{15} bytes", (with_headers(Content_Length="9" * 15),))),
    Failed("length of 5000 digits", TOO_LONG + r"9{18} bytes", (with_headers(Content_Length="9" * 5000),)),
    Failed("endless archive", r"unpacks to more than 200 MiB", (Reply(endless=True, length=False),)),
    Failed("endless zeros after the archive", r"larger than 200 MiB", (ZEROS_AFTER,)),
    # No request
    Failed("refused connection", NO_RESPONSE + ".*refused", source="http://127.0.0.1:1/a.tar.gz", requests=0),
    Failed("unknown host", r"no response from aux\.invalid: ", source="http://aux.invalid/a.tar.gz", requests=0),
    Failed("bad host", INVALID_URL + r".*a\.\.b", source="http://a..b/a.tar.gz", requests=0),
    Failed("long host", INVALID_URL + ".*aaaa", source=f"http://{LONG_HOST}.invalid/a.tar.gz", requests=0),
    Failed("no host", INVALID_URL + ".*http:///", source="http:///a.tar.gz", requests=0),
    Failed("bad port", INVALID_URL + ".*99999", source="http://localhost:99999/a.tar.gz", requests=0),
    measured(Failed("half of an IPv6 address", INVALID_URL + r".*\[::1", source="http://[::1/a.tar.gz", requests=0)),
    Failed("no TLS", r"TLS error for 127\.0\.0\.1: .*SSL", source="https://127.0.0.1:{port}/", requests=0),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAILED, ids=lambda fault: fault.name)
def test_reports_connection_fault(fault: Failed, server: Server, tmp_path: Path) -> None:
    url = server.serve("a.tar.gz", ARCHIVE, *fault.replies)
    began = time.monotonic()
    result = run_command(tmp_path, "fetch", fault.source.format(url=url, port=server.port))
    assert time.monotonic() - began <= fault.max_seconds
    assert result.returncode == 1, result.stderr
    assert re.search(f"^error: [^ ]+: (?:{fault.reason})", result.stderr, re.MULTILINE), result.stderr
    assert max(map(len, result.stderr.splitlines())) < 700
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests_for("a.tar.gz")) == fault.requests, result.stderr
    assert "ResourceWarning" not in result.stderr

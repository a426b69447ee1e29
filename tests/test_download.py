"""Test `Download` in process: HTTP requests, retry policy, threads, time limits and memory."""

from __future__ import annotations

import contextlib
import gc
import gzip
import hashlib
import itertools
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterable, Iterator

import pytest
import requests
import sample_archive
from cm_home import ROOT, clean_env
from command import make_manifest
from proxy import Proxy
from server import Reply, Server

from imagenet_aux import download, exchange, fetch
from imagenet_aux.download import Download
from imagenet_aux.errors import ContentError, FetchError, SourceError, TruncatedError
from imagenet_aux.manifest import Source
from imagenet_aux.streams import Stream

BODY = bytes(range(256)) * 4096  # 1 MiB
STEP = 1 << 16  # bytes that count as progress
THREAD = "imagenet_aux download"


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Check that no download thread is left after the test."""
    yield
    assert live_threads() == []


def live_threads() -> list[threading.Thread]:
    """Return the running download threads."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses between attempts instead of sleeping."""
    recorded: list[float] = []

    def sleep(seconds: float) -> None:
        recorded[-1] += seconds

    monkeypatch.setattr(download.time, "sleep", sleep)
    monkeypatch.setattr(download._log, "warning", lambda text, *args: "Retrying" in text and recorded.append(0))
    return recorded


def read(url: str, watch: Callable[[Stream], None] = lambda stream: None, **options: Any) -> bytes:
    """Download a URL, and check that no connection stays open."""
    stream = Download(url, watch, **options)
    try:
        return stream.deliver(b"".join)
    finally:
        assert stream._exchange is None


def error_of(url: str, watch: Callable[[Stream], None] = lambda stream: None, **options: Any) -> str:
    """Return the error message of a failed download."""
    with pytest.raises(SourceError) as info:
        read(url, watch, **options)
    return str(info.value)


def sent(server: Server, header: str, name: str = "a") -> list[str | None]:
    """Return the values of a header in the requests for a file."""
    return [headers.get(header) for headers in server.requests_for(name)]


@contextlib.contextmanager
def dripping_server(first: bytes) -> Iterator[tuple[str, int]]:
    """Run a TCP server that sends these bytes at once, and then a zero byte every 50 ms; yield its address."""
    done = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(first)
                while not done.wait(0.05):
                    self.request.sendall(b"\0")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        done.set()
        server.shutdown()


# Requests


def test_requests_unencoded_content(server: Server) -> None:
    assert read(server.serve("a", BODY)) == BODY
    (headers,) = server.requests_for("a")
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("get-dataset-imagenet-aux (python-requests/")
    assert "Range" not in headers and "If-Range" not in headers
    assert [method for method, _, _ in server.requests] == ["GET"]


DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    ("etag", "date", "expected"),
    [
        ('"1"', "", '"1"'),
        ('"1"', DATE, '"1"'),
        ('W/"1"', "", None),
        ('W/"1"', DATE, DATE),
        ("", DATE, DATE),
        ("", "", None),
    ],
    ids=["strong ETag", "strong ETag and date", "weak ETag", "weak ETag and date", "date", "no validator"],
)
def test_sends_a_validator_with_a_range_request(
    etag: str, date: str, expected: str | None, server: Server, pauses: list[float]
) -> None:
    headers: Any = {"Last-Modified": date} if date else {}
    url = server.serve("a", BODY, Reply(stop_at=STEP, etag=etag, headers=headers), Reply(etag=etag, headers=headers))
    assert read(url) == BODY
    assert sent(server, "Range") == [None, f"bytes={STEP}-"]
    assert sent(server, "If-Range") == [None, expected]


def test_returns_cookies_to_the_server_that_set_them(server: Server) -> None:
    to_a = Reply(302, {"Location": "/a", "Set-Cookie": "key=1; Path=/"}, b"")
    server.serve("a", BODY)
    assert read(server.serve("start", b"", to_a)) == BODY
    assert sent(server, "Cookie") == ["key=1"]


def test_keeps_the_size_when_content_range_has_no_total(server: Server, pauses: list[float]) -> None:
    rest = Reply(206, {"Content-Range": f"bytes {STEP}-{len(BODY) - 1}/*"}, BODY[STEP:], stop_at=STEP, etag="")
    assert read(server.serve("a", BODY, Reply(stop_at=STEP, etag=""), rest, Reply(etag=""))) == BODY
    assert sent(server, "Range") == [None, f"bytes={STEP}-", f"bytes={2 * STEP}-"]


@pytest.mark.parametrize("chunked", [False, True])
def test_requests_more_when_a_server_sends_less_than_the_range(
    chunked: bool, server: Server, pauses: list[float]
) -> None:
    part = Reply(206, {"Content-Range": f"bytes {STEP}-{2 * STEP - 1}/{len(BODY)}"}, BODY[STEP : 2 * STEP], etag="")
    first = Reply(stop_at=STEP, etag="", chunked=chunked)
    assert read(server.serve("a", BODY, first, part, Reply(etag=""))) == BODY
    assert sent(server, "Range") == [None, f"bytes={STEP}-", f"bytes={2 * STEP}-"]


def test_resumes_when_only_the_second_response_has_an_etag(server: Server, pauses: list[float]) -> None:
    assert read(server.serve("a", BODY, Reply(stop_at=STEP, etag=""), Reply())) == BODY
    assert sent(server, "Range") == [None, f"bytes={STEP}-"]


def test_restarts_when_a_server_sends_more_than_the_size(server: Server, pauses: list[float]) -> None:
    content_range = f"bytes {STEP}-{len(BODY) - 1}/{len(BODY)}"
    rest = Reply(206, {"Content-Range": content_range}, BODY[STEP:] + b"extra", chunked=True, etag="")
    assert read(server.serve("a", BODY, Reply(stop_at=STEP, etag=""), rest, Reply(etag=""))) == BODY
    assert sent(server, "Range") == [None, f"bytes={STEP}-", f"bytes={len(BODY) + 5}-", None]


@pytest.mark.parametrize("start", [STEP - 5, STEP + 5])
def test_rejects_a_range_with_the_wrong_start(start: int, server: Server, pauses: list[float]) -> None:
    """Only Content-Range shows that the range starts at the wrong byte."""
    rest = Reply(206, {"Content-Range": f"bytes {start}-{len(BODY) - 1}/*"}, BODY[start:], etag="")
    assert read(server.serve("a", BODY, Reply(stop_at=STEP, etag="", chunked=True), rest, Reply(etag=""))) == BODY
    assert sent(server, "Range") == [None, f"bytes={STEP}-", None]


def test_restarts_when_the_size_of_the_file_changes(server: Server, pauses: list[float]) -> None:
    new = BODY[::-1][:-STEP]
    assert read(server.serve("a", BODY, Reply(stop_at=STEP, etag=""), Reply(body=new, etag=""))) == new
    assert sent(server, "Range") == [None, f"bytes={STEP}-", None]


# The retry policy


def test_pauses_grow_until_it_gives_up(server: Server, pauses: list[float]) -> None:
    assert "gave up at attempt 5" in error_of(server.serve("a", BODY, Reply(503, body=b"")))
    assert pauses == [0.5, 1, 2, 4]


@pytest.mark.parametrize("step", [STEP, STEP * 3 // 4, STEP // 4])
def test_progress_resets_the_attempts(step: int, server: Server, pauses: list[float]) -> None:
    """The attempt count resets after 64 KiB, received in one response or in four."""
    url = server.serve("a", BODY[: 12 * step], Reply(stop_at=step))
    assert read(url) == BODY[: 12 * step]
    assert len(server.requests_for("a")) == 12
    assert max(pauses) == 0.25 * 2 ** (-(-STEP // step))


def test_gives_up_after_five_attempts_without_progress(server: Server, pauses: list[float]) -> None:
    url = server.serve("a", BODY, Reply(stop_at=STEP // 8))
    assert "gave up at attempt 5" in error_of(url)
    assert sent(server, "Range") == [None, *(f"bytes={n * STEP // 8}-" for n in range(1, 5))]


def busy(seconds: float) -> Reply:
    """Make a reply that requests a pause."""
    return Reply(503, {"Retry-After": str(seconds)}, b"")


def test_pauses_add_up_to_at_most_20_seconds(server: Server, pauses: list[float]) -> None:
    error = error_of(server.serve("a", BODY, busy(12), busy(6), busy(9), Reply()))
    assert re.search(r"The server requested a pause of 9 s \(gave up at attempt 3, (18|19|20) s idle\)", error)
    assert pauses == [12, 6]


def test_received_bytes_reset_the_idle_time(server: Server, pauses: list[float]) -> None:
    assert read(server.serve("a", BODY, busy(15), Reply(stop_at=1), busy(15), Reply(stop_at=1), Reply())) == BODY
    assert pauses == [15, 1, 15, 4]


def test_a_date_in_the_past_requests_no_pause(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    assert read(server.serve("a", BODY, Reply(503, {"Retry-After": DATE}, b""), Reply())) == BODY
    assert "Retrying in 0.0 s" in caplog.text


def test_waiting_counts_as_idle(server: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(download, "MAX_IDLE_SECONDS", 2.0)
    url = server.serve("a", BODY, Reply(stop_at=STEP, then="stall"), Reply(raw=b"", then="stall"))
    assert re.search(r"gave up at attempt 2, [23] s idle", error_of(url))


def test_a_wait_that_ends_with_a_fault_counts(server: Server, pauses: list[float]) -> None:
    stream = Download(
        server.serve("a", BODY, Reply(stop_at=STEP, pause=0.4), Reply(404, body=b"")), lambda stream: None
    )
    with pytest.raises(SourceError, match="404"):
        stream.deliver(b"".join)
    assert stream.waited - sum(pauses) >= 0.4


def test_retries_a_timeout_after_the_first_response(
    server: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 2.0)
    url = server.serve("a", BODY, Reply(stop_at=STEP), Reply(raw=b"", then="stall"), Reply())
    assert read(url) == BODY
    assert len(server.requests_for("a")) == 3


def test_does_not_retry_a_timeout_before_the_first_response(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)
    assert "nothing received in 1 s" in error_of(server.serve("a", BODY, Reply(raw=b"", then="stall"), Reply()))
    assert len(server.requests_for("a")) == 1


def test_retries_a_failed_tls_handshake_after_the_first_response(server: Server, pauses: list[float]) -> None:
    to_tls = Reply(302, {"Location": f"https://127.0.0.1:{server.port}/a"}, b"")
    assert read(server.serve("a", BODY, Reply(stop_at=STEP), to_tls, Reply())) == BODY
    assert len(server.requests_for("a")) == 3


def test_retries_a_proxy_refusal_after_the_first_response(
    server: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(server.port, server.port, down=["down.invalid"]) as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        server.serve("a", BODY, Reply(stop_at=STEP), Reply(302, {"Location": "https://down.invalid/"}, b""), Reply())
        assert read("http://up.invalid/a") == BODY
    assert proxy.hosts == ["up.invalid", "up.invalid", "down.invalid", "up.invalid"]


@pytest.mark.parametrize("is_incomplete", [True, False])
@pytest.mark.parametrize("has_length", [True, False])
def test_restarts_after_an_error_that_truncation_can_cause(
    is_incomplete: bool, has_length: bool, server: Server, pauses: list[float]
) -> None:
    received = []

    def consume(chunks: Iterable[bytes]) -> None:
        received.append(b"".join(chunks))
        raise (TruncatedError if is_incomplete else ContentError)("not complete")

    url = server.serve("a", BODY, Reply(length=has_length))
    with pytest.raises(ContentError if has_length or not is_incomplete else SourceError, match="not complete"):
        Download(url, lambda stream: None).deliver(consume)
    assert received == [BODY] * (5 if is_incomplete and not has_length else 1)
    assert sent(server, "Range") == [None] * len(received)
    assert not any(pauses)


def test_restarts_once_after_an_error_in_resumed_bytes(server: Server, pauses: list[float]) -> None:
    received = []

    def consume(chunks: Iterable[bytes]) -> None:
        received.append(b"".join(chunks))
        raise ContentError("wrong")

    url = server.serve("a", BODY, Reply(stop_at=STEP), Reply())
    with pytest.raises(ContentError, match=r"^wrong$"):
        Download(url, lambda stream: None).deliver(consume)
    assert received == [BODY, BODY]
    assert sent(server, "Range") == [None, f"bytes={STEP}-", None]


@pytest.mark.parametrize(
    "marks", [{"etag": '"1"'}, {"etag": 'W/"1"'}, {"etag": "", "headers": {"Last-Modified": "1"}}], ids=str
)
def test_never_mixes_two_versions(marks: Any, server: Server, pauses: list[float]) -> None:
    """The server ignores If-Range, and both versions have the same length."""
    new = {"etag": '"2"'} if marks["etag"] else {"etag": "", "headers": {"Last-Modified": "2"}}
    url = server.serve("a", BODY, Reply(stop_at=STEP, **marks), Reply(body=BODY[::-1], if_range=False, **new))
    assert read(url) == BODY[::-1]
    assert sent(server, "Range") == [None, f"bytes={STEP}-", None]


def test_restarts_when_the_checksum_differs_after_a_resume(
    server: Server, tmp_path: Path, pauses: list[float], sample_files: dict[str, bytes]
) -> None:
    """Both versions are intact archives of the same length, and the responses have no validators."""
    tar = sample_archive.pack_tar(sample_archive.tar_entries(sample_files))
    begin = gzip.compress(b"")
    good, other = (begin + gzip.compress(tar, mtime=second) for second in (1, 2))
    assert len(good) == len(other)
    replies = [Reply(body=good, etag="", stop_at=len(begin)), Reply(body=other, etag=""), Reply(body=good)]
    url = server.serve("a", b"", *replies)
    result = fetch(url, str(tmp_path / "data"), hashlib.sha256(good).hexdigest())
    assert result.verified
    assert sent(server, "Range") == [None, f"bytes={len(begin)}-", None]


def test_restarts_when_trailing_bytes_are_missing(
    server: Server, tmp_path: Path, pauses: list[float], archive: bytes
) -> None:
    """Without a length, only the checksum shows it."""
    packed = archive + b"text"
    url = server.serve("a", packed, Reply(stop_at=len(archive), length=False), Reply())
    assert fetch(url, str(tmp_path / "data"), hashlib.sha256(packed).hexdigest()).verified
    assert sent(server, "Range") == [None, None]


def test_resumes_a_body_that_is_too_slow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 2.0)
    assert read(server.serve("a", BODY, Reply(chunk_size=10, pause=0.1), Reply())) == BODY
    _, resumed = sent(server, "Range")
    assert 0 < int(str(resumed)[len("bytes=") : -1]) < 4096


def test_slow_body_is_not_a_stall(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each 4096-byte block arrives within the stall limit, but the whole body takes longer."""
    monkeypatch.setattr(download, "STALL_SECONDS", 3.0)
    assert read(server.serve("a", BODY[: 8 << 12], Reply(chunk_size=4096, pause=0.5))) == BODY[: 8 << 12]
    assert len(server.requests_for("a")) == 1


def test_waiting_for_headers_is_not_a_body_stall(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 3.0)
    late = Reply(headers={"X": lambda: str(time.sleep(2))}, chunk_size=1024, pause=0.5)
    assert read(server.serve("a", BODY[:5120], late)) == BODY[:5120]
    assert len(server.requests_for("a")) == 1


def test_detects_a_stall_after_a_fast_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(download, "MAX_ATTEMPTS", 1)
    with dripping_server(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + bytes(5000)) as address:
        assert re.match(r"the connection stalled: [0-9]{1,2} bytes in 1 s", error_of(f"http://{address}/a"))


def test_limits_the_total_traffic(server: Server, pauses: list[float]) -> None:
    """A server without Range support truncates each response a little later, which counts as progress."""
    replies = [Reply(stop_at=(n + 1) * STEP, ranges=False) for n in range(16)]
    error = error_of(server.serve("a", BODY, *replies), limit=4 * len(BODY))
    assert error == "larger than 200 MiB in total"
    assert len(server.requests_for("a")) == 11


def test_limits_a_body_of_unknown_length(server: Server) -> None:
    received = 0

    def consume(chunks: Iterable[bytes]) -> None:
        nonlocal received
        for chunk in chunks:
            received += len(chunk)

    stream = Download(server.serve("a", BODY, Reply(length=False, endless=True)), lambda stream: None)
    with pytest.raises(SourceError, match="larger than 200 MiB in total"):
        stream.deliver(consume)
    assert (200 << 20) - (1 << 20) < received <= 200 << 20


def test_limits_the_total_size_of_individual_files(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"synsets.txt": BODY, "val.txt": BODY + b"1"}
    mirror = Source("http://mirror", locations={name: server.serve(name, data) for name, data in files.items()})
    manifest = make_manifest(files, mirror)
    fetch(into=tmp_path / "accepted", manifest=manifest)
    monkeypatch.setattr("imagenet_aux.fetcher.MAX_BYTES", 2 * len(BODY))
    with pytest.raises(FetchError, match=r"val\.txt: larger than 200 MiB in total"):
        fetch(into=tmp_path / "rejected", manifest=manifest)


@pytest.mark.parametrize("has_length", [True, False])
def test_accepts_a_file_of_the_maximum_size(has_length: bool, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", len(BODY))
    assert read(server.serve("a", BODY, Reply(length=has_length)), limit=len(BODY)) == BODY


# Slow sources

RequireRate = Callable[[int], None]


@pytest.fixture
def short_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the rate over one second."""
    monkeypatch.setattr(download, "RATE_SECONDS", 1.0)


@pytest.fixture
def require_rate(short_rates: None, monkeypatch: pytest.MonkeyPatch) -> RequireRate:
    """Return a function that sets the minimum rate, in bytes per second."""
    return lambda rate: monkeypatch.setattr(download, "MIN_RATE", rate)


SLOW = Reply(chunk_size=8000, pause=0.5)  # 16 kB/s


def test_gives_up_below_the_minimum_rate(server: Server, require_rate: RequireRate) -> None:
    require_rate(100_000)
    error = error_of(server.serve("a", BODY, SLOW), allow_slow=False)
    assert re.fullmatch(r"too slow: expected at least 100,000 bytes/s, got [0-9,]+", error)
    assert len(server.requests_for("a")) == 1


@pytest.mark.parametrize("rate", [0, 2_000])
def test_continues_above_the_minimum_rate(rate: int, server: Server, require_rate: RequireRate) -> None:
    require_rate(rate)
    assert read(server.serve("a", BODY[:50_000], SLOW), allow_slow=False) == BODY[:50_000]


def test_detects_a_drop_in_the_rate(server: Server, require_rate: RequireRate) -> None:
    require_rate(100_000)
    url = server.serve("a", BODY, Reply(stop_at=len(BODY) - 88_000), SLOW)
    assert "too slow" in error_of(url, allow_slow=False)


def test_bytes_before_a_restart_count_for_the_rate(server: Server, require_rate: RequireRate) -> None:
    """In the second window, the position is lower than at its start."""
    require_rate(10_000)
    body = BODY[: 6 * STEP]
    full = Reply(ranges=False, headers={"X": lambda: str(time.sleep(0.6))}, chunk_size=STEP // 4, pause=0.1)
    assert read(server.serve("a", body, Reply(stop_at=4 * STEP), full), allow_slow=False) == body


@pytest.mark.usefixtures("short_rates")
def test_tries_the_next_mirror_when_one_is_slow(
    server: Server, tmp_path: Path, sample_files: dict[str, bytes], archive: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [server.serve(name, archive, Reply(chunk_size=1000, pause=0.25)) for name in ("a", "b")]
    urls.append(server.serve("c", archive))
    result = fetch(into=str(tmp_path / "data"), manifest=make_manifest(sample_files, *map(Source, urls)))
    assert result.source == urls[2]
    slow_ones = [record.getMessage() for record in caplog.records if "too slow" in record.getMessage()]
    assert [message.partition(": ")[0] for message in slow_ones] == urls[:2]


def test_measures_the_rate_of_each_transfer(
    server: Server, tmp_path: Path, sample_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two slow files takes less than the window, and both together take longer."""
    monkeypatch.setattr(download, "RATE_SECONDS", 2.0)
    monkeypatch.setattr(download, "MIN_RATE", 10_000_000)
    files = {name: sample_files[name] for name in ("synsets.txt", "val.txt")}
    late = Reply(headers={"X": lambda: str(time.sleep(1.2))})
    urls = {name: server.serve(name, data, late) for name, data in files.items()}
    mirrors = (Source("http://slow.invalid", locations=urls), Source("http://last.invalid", locations=urls))
    result = fetch(into=str(tmp_path / "data"), manifest=make_manifest(files, *mirrors))
    assert result.source == "http://slow.invalid"


@pytest.mark.usefixtures("short_rates")
def test_the_last_mirror_may_be_slow(
    server: Server, tmp_path: Path, sample_files: dict[str, bytes], archive: bytes
) -> None:
    urls = [server.serve("a", b"", Reply(404)), server.serve("b", archive, Reply(chunk_size=4000, pause=0.05))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagenet_aux.download.MIN_RATE", 10_000_000)
        result = fetch(into=str(tmp_path / "data"), manifest=make_manifest(sample_files, *map(Source, urls)))
    assert result.source == urls[1]


# Threads


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(raw=b"", then="stall"),
        Reply(raw=b"HTTP/1.1 200 OK\r\nX: " + bytes(999), chunk_size=1, pause=0.05),
        Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n", endless=True),
        Reply(raw=CHUNKED + b"X: y\r\n" * 9999, chunk_size=6, pause=0.001),
        Reply(raw=CHUNKED + b"X: y\r\n" * 999_999, chunk_size=65536),
        Reply(raw=b"HTTP/1.1 302 Found\r\nLocation: /a\r\n\r\n" + bytes(999), pause=0.05, chunk_size=1, then="stall"),
        Reply(stop_at=1, then="stall"),
        Reply(stop_at=1, then="stall", chunked=True),
        Reply(chunk_size=1, pause=0.05),
    ],
    ids=[
        "no response",
        "dripping header",
        "endless 100 Continue",
        "dripping trailers",
        "endless trailers",
        "dripping redirect",
        "stall",
        "stall, chunked",
        "dripping body",
    ],
)
def test_download_leaves_no_thread_running(
    reply: Reply, server: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(download, "MAX_ATTEMPTS", 2)
    began = time.monotonic()
    with contextlib.suppress(SourceError):
        read(server.serve("a", BODY, reply))
    assert live_threads() == []
    assert time.monotonic() - began < 30


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse connections when the queue is full")
def test_limits_the_time_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for one address, so that the next address of a host can be tried before the time limit."""
    assert 2 * exchange.CONNECT_SECONDS < download.STALL_SECONDS
    monkeypatch.setattr(exchange, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):  # fills the queue
            error = error_of(f"http://127.0.0.1:{address[1]}/")
    assert error == "no response from 127.0.0.1: timed out"


def test_limits_the_time_for_a_tls_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit for headers applies, because the connect timeout would include suspended time."""
    monkeypatch.setattr(exchange, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(download, "STALL_SECONDS", 3.0)
    with dripping_server(b"\x16\x03\x03\x40\x00") as address:
        assert "nothing received in 3 s" in error_of(f"https://{address}/a")
        assert live_threads() == []


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03\x40\x00"])
def test_limits_the_time_for_a_proxy_connection(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)
    with dripping_server(first) as address:
        monkeypatch.setenv("https_proxy", f"http://{address}")
        assert re.search("no response|TLS error|proxy", error_of("https://aux.invalid/a"))


def test_stops_a_connection_that_opens_late(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is stopped while the thread resolves the host's name."""
    resolved = threading.Event()
    resolve = socket.getaddrinfo

    def resolve_late(*args: Any, **kwargs: Any) -> Any:
        resolved.wait(30)
        return resolve(*args, **kwargs)

    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(exchange, "_JOIN_SECONDS", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_late)
    assert "nothing received" in error_of(server.serve("a", BODY, Reply(raw=b"", then="stall")))
    assert [thread.daemon for thread in live_threads()] == [True]  # does not prevent the process from exiting
    resolved.set()
    for thread in live_threads():
        thread.join(10)
    assert live_threads() == []


# Suspension


FAST = """
import sys
from imagenet_aux import cli, download
download.STALL_SECONDS = 2.0
sys.exit(cli.main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
@pytest.mark.parametrize("phase", ["before the headers", "before delayed headers", "in the body"])
def test_continues_after_a_suspension(phase: str, server: Server, tmp_path: Path, archive: bytes) -> None:
    """The process is suspended for longer than the time limit."""
    go = threading.Event()

    def wait() -> str:
        go.wait(30)
        return "1"

    reply = Reply(chunk_size=8192, pause=0.1) if phase == "in the body" else Reply(headers={"X": wait})
    url = server.serve("a", archive, reply)
    process = subprocess.Popen(
        [sys.executable, "-c", FAST, "fetch", url],
        cwd=tmp_path,
        env=clean_env(PYTHONPATH=str(ROOT)),
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        server.wait_for_requests(process)
        time.sleep(0.3)
        process.send_signal(signal.SIGSTOP)
        if phase != "before delayed headers":
            go.set()
        time.sleep(5)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        go.set()
        _, stderr = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert len(server.requests) == 1, stderr


# Memory and messages


PEAK = """
import resource, subprocess, sys
result = subprocess.run([sys.executable, "-m", "imagenet_aux", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(result.returncode)
"""


def head(status: str, field: str, count: int, size: int = 65_000) -> bytes:
    """Return the status line and headers of a response, with this number of headers of this size."""
    fields = [field.replace("N", str(n)) + "x" * size for n in range(count)]
    return "\r\n".join([f"HTTP/1.1 {status}", "Location: /a", *fields, "\r\n"]).encode()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("field", ["X-N: ", "Set-Cookie: cN="])
@pytest.mark.parametrize(
    ("status", "count", "size"),
    [("302 Found", 90, 65_000), ("302 Found", 3, 20_000), ("302 Found", 90, 100), ("200 OK", 90, 65_000)],
    ids=["large", "few", "short", "no redirect"],
)
def test_large_headers_use_less_than_100_mb(
    field: str, status: str, count: int, size: int, server: Server, tmp_path: Path
) -> None:
    url = server.serve("a", b"", Reply(raw=head(status, field, count, size)))
    process = subprocess.run(
        [sys.executable, "-c", PEAK, "fetch", url],
        cwd=tmp_path,
        env=clean_env(PYTHONPATH=str(ROOT), COVERAGE_PROCESS_START=""),
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=100,
    )
    assert process.returncode == 1, process.stderr
    *lines, peak = process.stderr.splitlines()
    assert int(peak) < 100_000
    assert re.search("Exceeded 20 redirects" if size == 100 else "larger than 256 KiB", lines[-1])


@pytest.mark.parametrize(
    "replies",
    [
        [Reply()],
        [Reply(stop_at=STEP), Reply()],
        [Reply(503, body=b"")],
        [Reply(404, body=b"")],
        [Reply(raw=head("200 OK", "X-N: ", 9))],
        [Reply(raw=b"")],
    ],
    ids=["success", "cut", "503", "404", "large headers", "closed"],
)
def test_frees_responses_while_the_garbage_collector_is_off(
    replies: list[Reply], server: Server, pauses: list[float]
) -> None:
    """The command disables the garbage collector, and a server can cause thousands of attempts."""
    url = server.serve("a", BODY, *replies)
    for _ in range(2):  # the first collection calls finalizers, the second frees what they kept
        gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(SourceError):
            read(url)
        objects = gc.get_objects()
        left = [thing for thing in objects if isinstance(thing, (requests.Response, exchange.Exchange))]
        adapters = [thing for thing in objects if isinstance(thing, exchange._Adapter)]
    finally:
        gc.enable()
    assert len(left) <= 2  # from the last attempt
    assert len(adapters) <= 2  # the last one and, on Python 3.8, the one before


LONG = "x" * 60_000
LONG_HOST = ".".join(["x" * 60] * 900)  # a label of more than 63 characters is an invalid URL


@pytest.mark.parametrize(
    "replies",
    [
        [Reply(raw=f"HTTP/1.1 404 {LONG}\r\n\r\n".encode())],
        [Reply(raw=f"HTTP/1.1 503 {LONG}\r\n\r\n".encode())],
        [Reply(302, {"Location": f"ftp://{LONG}"}, b"")],
        [Reply(302, {"Location": f"http://{LONG}/"}, b"")],
        [Reply(302, {"Location": f"http://{LONG_HOST}/"}, b"")],
        [Reply(302, {"Location": f"http://127.0.0.1:1/{LONG}"}, b"")],
        [Reply(stop_at=STEP, etag=f'"{LONG}"'), Reply(etag=f'"{LONG}2"', if_range=False), Reply(404, body=b"")],
        [Reply(stop_at=STEP), Reply(206, {"Content-Range": LONG}, b""), Reply(404, body=b"")],
        [Reply(503, {"Retry-After": "9" * 60_000}, b"")],
        [Reply(raw=LONG.encode() + b"\r\n\r\n")],
        [Reply(chunked=True, raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + LONG.encode())],
    ],
    ids=[
        "404",
        "503",
        "scheme",
        "label",
        "host",
        "path",
        "ETag",
        "Content-Range",
        "Retry-After",
        "status line",
        "chunk size",
    ],
)
def test_messages_stay_short(
    replies: list[Reply], server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    error = error_of(server.serve("a", BODY, *replies))
    messages = [error, *(record.getMessage() for record in caplog.records if record.name.startswith("imagenet_aux"))]
    assert max(map(len, messages)) < 700


def test_warnings_hide_passwords(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    bad = Reply(302, {"Location": "ftp://user:secret@localhost/"}, b"")
    url = server.serve("a", BODY, Reply(stop_at=STEP), bad, Reply())
    assert read(url.replace("//", "//user:secret@")) == BODY
    assert "//localhost/" in caplog.text
    assert "secret" not in caplog.text


def test_limits_the_total_headers_of_a_redirect_chain(server: Server) -> None:
    """Each response's headers are under the 256 KiB limit; the fifth response pushes the total over it."""
    error = error_of(server.serve("a", b"", Reply(raw=head("302 Found", "X-N: ", 1, 60_000))))
    assert "response headers larger than 256 KiB" in error
    assert len(server.requests_for("a")) == 5


def test_accepts_200_kib_of_headers(server: Server) -> None:
    large = Reply(headers={f"X-{n}": "x" * 50_000 for n in range(4)})
    assert read(server.serve("a", BODY, large)) == BODY


def test_calls_watch_while_it_waits(server: Server) -> None:
    waited = []
    read(
        server.serve("a", BODY, Reply(headers={"X": lambda: str(time.sleep(2))})),
        watch=lambda stream: waited.append((stream.received, stream.waited)),
    )
    assert waited[:2] == [(0, 0.5), (0, 1.0)]
    assert waited[-1][0] == len(BODY)


def test_calls_watch_during_a_pause(server: Server, pauses: list[float]) -> None:
    """The callback can then abort the fetch after a signal."""
    received = []
    read(server.serve("a", BODY, busy(2), Reply()), watch=lambda stream: received.append(stream.received))
    assert pauses == [2]
    assert received.count(0) >= 4  # every half second


# The background thread


@contextlib.contextmanager
def filled_exchange(server: Server) -> Iterator[exchange.Exchange]:
    """Start an exchange, receive the response, and wait until the buffer is full."""
    opened = exchange.Exchange(server.serve("a", BODY * 16, Reply()), {})
    try:
        while opened.next_item() is None:
            pass
        while opened._items.qsize() < 4:
            assert opened._thread.is_alive()
            time.sleep(0.01)
        time.sleep(0.3)
        yield opened
    finally:
        opened.close()


def test_receives_a_few_chunks_ahead(server: Server) -> None:
    with filled_exchange(server) as opened:
        assert opened._items.qsize() == 4
        assert b"".join(chunk or b"" for chunk in iter(opened.next_item, b"")) == BODY * 16


def test_stops_the_thread_while_the_buffer_is_full(server: Server) -> None:
    """The thread waits for space, and the system has received more than the buffer holds."""
    with filled_exchange(server):
        pass
    assert live_threads() == []


def test_wait_for_headers_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 2.0)
    waits: list[float] = []
    began = time.monotonic()
    with pytest.raises(SourceError, match="nothing received in 2 s"):
        read(server.serve("a", BODY, Reply(raw=b"", then="stall")), lambda stream: waits.append(stream.waited))
    assert waits == [0.5, 1.0, 1.5, 2.0]
    assert time.monotonic() - began < 3.5


def test_wait_excludes_suspended_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock continues while the process is suspended."""
    waits: list[float] = []
    clock = itertools.count(0, 100)
    stream = Download(server.serve("a", BODY[:5], Reply()), lambda stream: waits.append(stream.waited))
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert stream.deliver(b"".join) == BODY[:5]
    assert len(waits) >= 3  # for the response, the chunk and the end
    assert waits == [0.5 * count for count in range(1, len(waits) + 1)]

"""Resumable HTTP(S) downloads: resume after a connection fault, restart if the bytes cannot be used, or give up."""

from __future__ import annotations

import gc
import logging
import re
import time
from typing import Any, Callable, Generator, Iterable, Iterator

import requests
import urllib3.exceptions
from urllib3.util import Retry

from .errors import ContentError, SourceError, TruncatedError, shorten
from .exchange import POLL_SECONDS, ConnectionFault, Exchange, host_name
from .manifest import MAX_BYTES
from .streams import Stream, T, Watch

_log = logging.getLogger(__name__)

STALL_SECONDS = 15.0  # for the headers, including redirects, then for each STALL_BYTES of the body
STALL_BYTES = 4096
MAX_ATTEMPTS = 5  # consecutive attempts that receive less than MIN_PROGRESS_BYTES
MIN_PROGRESS_BYTES = 1 << 16
MAX_IDLE_SECONDS = 20.0  # longest time from the last byte to the next attempt
MIN_RATE = 10_000  # bytes per second; a slower source is abandoned if another source remains
RATE_SECONDS = 30.0  # window for measuring the rate

_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", re.IGNORECASE)


class _RestartRequired(SourceError):
    """The download must restart: the server's response does not continue the received bytes."""


class Download(Stream):
    """A download with retries."""

    def __init__(self, url: str, watch: Watch, limit: int = MAX_BYTES, allow_slow: bool = True) -> None:
        super().__init__(host_name(url), watch, limit)
        self._url = url
        self._allow_slow = allow_slow
        self._window = (0.0, 0)  # `waited` and `total` when the rate was last measured
        self._validators: dict[str, str] = {}
        self._exchange: Exchange | None = None
        self._is_partial = False  # whether the last response is not the whole file
        self._attempts = 0  # consecutive attempts without progress; 0 only before the first fault
        self._best = 0  # `received` at the last progress; after a restart, only bytes beyond it count
        self._last_byte = 0.0  # `waited` when the last chunk arrived

    def deliver(self, consume: Callable[[Iterable[bytes]], T]) -> T:
        """Return ``consume(chunks)``; on errors that a restart may fix, call it again from the first byte."""
        try:
            while True:
                try:
                    return super().deliver(consume)
                except _RestartRequired as error:  # without a pause: the resumed request is already counted
                    _log.warning("%s: %s. Restarting the download", self.label, error)
                    if self._is_partial:  # otherwise, `_body` continues with this response
                        self._close()
                except ContentError as error:
                    may_be_truncated = self.size is None and isinstance(error, TruncatedError)
                    if not (self._is_partial or may_be_truncated):
                        raise
                    self._close()
                    self._wait_to_retry(str(error), 0.0)
                self.received = 0
        finally:
            self._close()

    def __iter__(self) -> Generator[bytes, None, None]:
        """Yield the file's chunks; resume after connection faults."""
        while True:
            try:
                for chunk in self._body():
                    self._count(chunk)
                    self._last_byte = self.waited
                    yield chunk
                if self.size is not None and self.received != self.size:
                    raise ConnectionFault(f"the connection closed after {self.received} of {self.size} bytes")
                return
            except ConnectionFault as fault:
                self._close()
                if fault.is_permanent and not self._attempts:  # after other attempts, it may be temporary
                    raise
                self._wait_to_retry(str(fault), fault.pause)
            gc.collect()  # urllib3's errors reference responses in cycles, and the command disables the collector

    def _wait_to_retry(self, reason: str, pause: float | None) -> None:
        """Wait before the next attempt; raise `SourceError` if a limit is reached."""
        if self.received - self._best >= MIN_PROGRESS_BYTES:
            self._attempts, self._best = 0, self.received
        self._attempts += 1
        requested = f". The server requested a pause of {pause:.0f} s" if pause else ""
        if pause is None:
            pause = 0.25 * 2**self._attempts  # 0.5, 1, 2 and 4 s
        idle = self.waited - self._last_byte
        if self._attempts >= MAX_ATTEMPTS or idle + pause > MAX_IDLE_SECONDS:
            raise SourceError(f"{reason}{requested} (gave up at attempt {self._attempts}, {idle:.0f} s idle)") from None
        _log.warning("%s: %s. Retrying in %.1f s", self.label, reason, pause)
        while pause > 0:
            step = min(pause, POLL_SECONDS)
            time.sleep(step)
            pause -= step
            self.report(step)

    def _body(self) -> Iterator[bytes]:
        """Yield the chunks of the open response; if there is none, request the remaining bytes."""
        exchange = self._exchange
        if not exchange:
            exchange = self._exchange = Exchange(self._url, self._range_headers())
            response = self._wait_for_item(exchange, self.waited + STALL_SECONDS)
            if response is None:
                reason = f"no response from {self.label}: nothing received in {STALL_SECONDS:.0f} s"
                raise ConnectionFault(reason, is_permanent=True)
            self._check_response(response)
        recent, deadline = 0, self.waited + STALL_SECONDS  # bytes since the deadline was set
        while True:
            chunk = self._wait_for_item(exchange, deadline)
            if chunk is None:
                raise ConnectionFault(f"the connection stalled: {recent} bytes in {STALL_SECONDS:.0f} s")
            if not chunk:
                return
            recent += len(chunk)
            if recent >= STALL_BYTES:
                recent, deadline = 0, self.waited + STALL_SECONDS
            yield chunk

    def _wait_for_item(self, exchange: Exchange, deadline: float) -> Any:
        """Return the next item of the exchange, or None if `waited` reaches the deadline."""
        item = None
        while item is None and self.waited < deadline:
            started = time.monotonic()
            item = exchange.next_item()
            self.report(min(time.monotonic() - started, POLL_SECONDS))  # if the computer slept, count one step only
        if isinstance(item, BaseException):
            raise item
        return item

    def _close(self) -> None:
        if self._exchange:
            self._exchange.close()
            self._exchange = None

    def report(self, seconds: float = 0.0) -> None:
        """Call *watch*, after a wait of this duration; raise `SourceError` if the source is too slow."""
        super().report(seconds)
        seconds_waited, count = self.waited - self._window[0], self.total - self._window[1]
        if seconds_waited < RATE_SECONDS:
            return
        rate = count / seconds_waited
        if rate < MIN_RATE and not self._allow_slow:
            raise SourceError(f"too slow: expected at least {MIN_RATE:,} bytes/s, got {rate:,.0f}")
        self._window = self.waited, self.total

    def _range_headers(self) -> dict[str, str]:
        if not self.received:
            return {}
        headers = {"Range": f"bytes={self.received}-"}
        etag = self._validators.get("ETag", "W/")  # If-Range requires a strong ETag, or a date
        validator = self._validators.get("Last-Modified") if etag.startswith("W/") else etag
        if validator:
            headers["If-Range"] = validator
        return headers

    def _check_response(self, response: requests.Response) -> None:
        """Check the status of a response and store its size and validators."""
        status = response.status_code
        if status in _RETRYABLE_STATUS:
            raise ConnectionFault(_status_text(response), _retry_after(response))
        self._is_partial = status != 200
        if status == 206 and self.received:
            self._require_same_file(response)
            return
        if status == 416 and self.received:
            raise _RestartRequired(f"the remaining bytes are not available ({_status_text(response)})")
        if status != 200:
            raise SourceError(_status_text(response))
        self.size = _content_length(response)
        self._validators = _read_validators(response)
        if self.size is not None and self.size > MAX_BYTES:
            raise SourceError(f"Content-Length: expected at most {MAX_BYTES >> 20} MiB, got {self.size} bytes")
        if self.received:
            raise _RestartRequired(f"the server ignored the Range request ({_status_text(response)})")

    def _require_same_file(self, response: requests.Response) -> None:
        """Raise `_RestartRequired` unless a partial response continues the received bytes."""
        content_range = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(content_range.strip())
        if not match or int(match[1]) != self.received:
            got = shorten(repr(content_range))
            raise _RestartRequired(f"Content-Range: expected bytes {self.received}-, got {got}")
        size = self.size if match[2] == "*" else int(match[2])
        if self.size not in (None, size):
            raise _RestartRequired(f"the file changed: expected {self.size} bytes, got {size}")
        self.size = size
        for name, value in _read_validators(response).items():
            if self._validators.get(name, value) != value:
                old = shorten(self._validators[name])
                raise _RestartRequired(f"the file changed: expected {name} {old}, got {shorten(value)}")


def _status_text(response: requests.Response) -> str:
    return f"the server responded {response.status_code} {shorten(response.reason)}"


def _content_length(response: requests.Response) -> int | None:
    """Return the length of the body in bytes, or None if it is unknown."""
    length = response.headers.get("Content-Length", "")
    is_chunked = "Transfer-Encoding" in response.headers
    is_number = re.fullmatch("[0-9]+", length)
    return int(length[:18]) if is_number and not is_chunked else None  # int() rejects thousands of digits


def _read_validators(response: requests.Response) -> dict[str, str]:
    """Return the headers that identify this version of the file."""
    return {name: response.headers[name] for name in ("ETag", "Last-Modified") if response.headers.get(name)}


def _retry_after(response: requests.Response) -> float | None:
    """Return the delay requested by Retry-After, in seconds, or None."""
    value = response.headers.get("Retry-After", "")
    try:
        return Retry().parse_retry_after(value[:40])
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None

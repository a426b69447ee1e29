"""Resumable HTTP(S) downloads.

`Download` implements the retry policy: it resumes after a connection fault, restarts if the received bytes cannot be
used, and gives up after too many attempts.
"""

from __future__ import annotations

import contextlib
import email.utils
import gc
import http.client
import logging
import re
import socket
import time
import urllib.parse
from types import SimpleNamespace
from typing import Any, Callable, Generator, Iterable, Iterator, NoReturn, TypeVar, cast

import requests
import requests.adapters
import urllib3.exceptions

from .background import BackgroundIterator, WaitTimeout
from .errors import ContentError, SourceError, shorten
from .manifest import MAX_BYTES
from .transfer import Stream, Watch

_log = logging.getLogger(__name__)

_USER_AGENT = f"get-dataset-imagenet-aux (python-requests/{requests.__version__})"
_CHUNK_BYTES = 1 << 18
_MAX_HEADER_BYTES = 1 << 18  # total over all responses in a chain of redirects
_MAX_REDIRECTS = 20
_WATCH_SECONDS = 0.5

CONNECT_SECONDS = 5.0  # for each address of a host
STALL_SECONDS = 15.0  # limit for all headers, including redirects; then for each MIN_CHUNK_BYTES of the body
MIN_CHUNK_BYTES = 4096
RATE_SECONDS = 30.0  # window over which the download rate is measured
MAX_ATTEMPTS = 5  # consecutive attempts that receive less than MIN_PROGRESS_BYTES
MIN_PROGRESS_BYTES = 1 << 16
MAX_IDLE_SECONDS = 20.0  # no retry after this time without data

_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", re.IGNORECASE)
# requests does not wrap all errors of urllib3, http.client and the OS, so catch those too.
_REQUEST_ERRORS = (OSError, ValueError, WaitTimeout, http.client.HTTPException, urllib3.exceptions.HTTPError)
_TRANSIENT = (ConnectionAbortedError, ConnectionResetError, BrokenPipeError, http.client.HTTPException)
# The first entry whose type matches the error or any of its causes applies.
_ERROR_TEXTS = (
    (requests.exceptions.ProxyError, "cannot reach {host} through the proxy: {cause}"),
    (requests.exceptions.SSLError, "TLS error for {host}: {cause}"),
    (http.client.IncompleteRead, "the connection closed too early"),
    (http.client.RemoteDisconnected, "no response from {host}: {cause}"),
    (http.client.HTTPException, "the response from {host} is not HTTP: {cause}"),
    ((requests.ConnectionError, requests.Timeout, WaitTimeout), "no response from {host}: {cause}"),
    (ValueError, "invalid URL or redirect: {error}"),
    (requests.TooManyRedirects, "{cause}"),
    (Exception, "the connection broke: {cause}"),
)

T = TypeVar("T")


class _ConnectionFault(SourceError):
    """A fault that another request may fix, after *pause* seconds; None for the default backoff."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _RestartRequired(SourceError):
    """The download must restart: the server's response does not continue the received bytes."""


class Download(Stream):
    """A download with retries; it fails if it is slower than *min_rate* bytes per second."""

    def __init__(self, url: str, watch: Watch, min_rate: float) -> None:
        super().__init__(_host(url))
        self._url = url
        self._watch = watch
        self._min_rate = min_rate
        self._validators: dict[str, str] = {}
        self._exchange: _Exchange | None = None
        self._is_resumed = False
        self._has_response = False
        self._attempts = 0  # consecutive attempts without progress
        self._best = 0  # `received` at the last progress; a restart must exceed it to count as progress
        self._waited_before = 0.0  # `waited` in earlier exchanges and pauses
        self._active = 0.0  # `waited` when bytes last arrived
        self._rate_start, self._rate_bytes = 0.0, 0  # current measurement of the rate

    @property
    def waited(self) -> float:
        """Seconds spent waiting for the host."""
        return self._waited_before + (self._exchange.items.waited if self._exchange else 0.0)

    def deliver(self, consume: Callable[[Iterable[bytes]], T]) -> T:
        """Return ``consume(chunks)``; on errors that a restart may fix, call it again from the first byte."""
        try:
            while True:
                try:
                    return consume(self)
                except _RestartRequired as error:
                    _log.warning("%s: %s. Restarting the download", self.label, error)
                except ContentError as error:
                    if not (self._is_resumed or (self.size is None and error.may_be_incomplete)):
                        raise
                    self._close()
                    self._retry(str(error), 0.0)
                self.received = 0
        finally:
            self._close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file's chunks; resume after connection faults."""
        while True:
            try:
                for chunk in self._response().chunks():
                    self._record(chunk)
                    yield chunk
                self._require_complete()
                return
            except _ConnectionFault as fault:
                self._close()
                self._retry(str(fault), fault.pause)
            gc.collect()  # urllib3's errors refer to responses, in cycles, and the command disables the collector

    def _response(self) -> _Exchange:
        """Return the open response; if there is none, request the remaining bytes."""
        if not self._exchange:
            self._exchange = _Exchange(self._url, self._range_headers(), lambda: self._watch(self))
            self._read_head(self._request_head(self._exchange))
        return self._exchange

    def _close(self) -> None:
        if self._exchange:
            self._waited_before = self.waited
            self._exchange.close()
            self._exchange = None

    def _request_head(self, exchange: _Exchange) -> requests.Response:
        try:
            return exchange.head()
        except _REQUEST_ERRORS as error:
            if not self._has_response and not any(isinstance(cause, _TRANSIENT) for cause in _causes(error)):
                raise SourceError(_describe(error, self.label)) from None
            raise _ConnectionFault(_describe(error, self.label)) from None

    def _range_headers(self) -> dict[str, str]:
        if not self.received:
            return {}
        headers = {"Range": f"bytes={self.received}-"}
        etag = self._validators.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else self._validators.get("Last-Modified")
        if validator:  # If-Range requires a strong ETag or a date
            headers["If-Range"] = validator
        return headers

    def _read_head(self, response: requests.Response) -> None:
        """Check the status of a response and store its size and validators."""
        self._has_response = True
        status = response.status_code
        if status in _RETRYABLE_STATUS:
            raise _ConnectionFault(_status_text(response), _retry_after(response))
        if status == 206 and self.received:
            self._require_same_file(response)
            self._is_resumed = True
        elif status == 416 and self.received:
            self._restart(f"the remaining bytes are not available ({_status_text(response)})")
        elif status == 200:
            self._begin(response)
        else:
            raise SourceError(_status_text(response))

    def _begin(self, response: requests.Response) -> None:
        """Start receiving the whole file from a 200 response."""
        had_bytes = self.received > 0
        self.received = 0
        self.size = _content_length(response)
        self._validators = _validators(response)
        self._is_resumed = False
        if self.size is not None and self.size > MAX_BYTES:
            raise SourceError(f"Content-Length: expected at most {MAX_BYTES >> 20} MiB, got {self.size} bytes")
        if had_bytes:  # keep the response open: the restart reads it
            raise _RestartRequired(f"the server ignored the Range request ({_status_text(response)})")

    def _require_same_file(self, response: requests.Response) -> None:
        """Restart the download unless a partial response continues the received bytes."""
        content_range = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(content_range.strip())
        if not match or int(match[1]) != self.received:
            self._restart(f"Content-Range: expected bytes {self.received}-, got {shorten(repr(content_range))}")
        if match[2] != "*":
            total = int(match[2])
            if self.size not in (None, total):
                self._restart(f"the file changed: expected {self.size} bytes, got {total}")
            self.size = total
        for name, value in _validators(response).items():
            if self._validators.get(name, value) != value:
                old = shorten(self._validators[name])
                self._restart(f"the file changed: expected {name} {old}, got {shorten(value)}")

    def _restart(self, reason: str) -> NoReturn:
        self._close()
        raise _RestartRequired(reason)

    def _record(self, chunk: bytes) -> None:
        """Update the counters for a received chunk; raise `SourceError` if the rate is too low."""
        self.received += len(chunk)
        self._active = self.waited
        if self.received - self._best >= MIN_PROGRESS_BYTES:
            self._attempts, self._best = 0, self.received
        self._rate_bytes += len(chunk)
        seconds = self.waited - self._rate_start
        if seconds >= RATE_SECONDS:
            rate = self._rate_bytes / seconds
            if rate < self._min_rate:
                raise SourceError(f"too slow: expected at least {self._min_rate:,.0f} bytes/s, got {rate:,.0f}")
            self._rate_start, self._rate_bytes = self.waited, 0
        self._watch(self)

    def _require_complete(self) -> None:
        if self.size is not None and self.received != self.size:
            raise _ConnectionFault(f"the connection closed after {self.received} of {self.size} bytes")

    def _retry(self, reason: str, pause: float | None) -> None:
        """Wait before the next attempt; raise `SourceError` if the limits are exhausted."""
        self._attempts += 1
        requested = f". The server requested a pause of {pause:.0f} s" if pause else ""
        if pause is None:
            pause = 0.25 * 2**self._attempts
        idle = self.waited - self._active
        if self._attempts >= MAX_ATTEMPTS or idle + pause > MAX_IDLE_SECONDS:
            raise SourceError(f"{reason}{requested} (gave up at attempt {self._attempts}, {idle:.0f} s idle)") from None
        _log.warning("%s: %s. Retrying in %.1f s", self.label, reason, pause)
        while pause > 0:
            step = min(pause, _WATCH_SECONDS)
            time.sleep(step)
            pause -= step
            self._waited_before += step
            self._watch(self)


class _Exchange:
    """One request and its response, received in a background thread."""

    def __init__(self, url: str, headers: dict[str, str], on_wait: Callable[[], None]) -> None:
        self._adapter = _Adapter()
        self.items: BackgroundIterator[Any] = BackgroundIterator(_request(url, headers, self._adapter), on_wait)

    def head(self) -> requests.Response:
        """Wait for the headers and return the response, after any redirects."""
        return cast(requests.Response, self.items.next(STALL_SECONDS))

    def chunks(self) -> Iterator[bytes]:
        """Yield the body; raise `_ConnectionFault` when the connection breaks or stalls."""
        started, received = self.items.waited, 0
        while True:
            try:
                chunk = self.items.next(STALL_SECONDS)
            except _REQUEST_ERRORS as error:
                raise _ConnectionFault(_describe(error, "the server")) from None
            if chunk is None:
                return
            received += len(chunk)
            seconds = self.items.waited - started
            if received >= MIN_CHUNK_BYTES:
                started, received = self.items.waited, 0
            elif seconds > STALL_SECONDS:
                raise _ConnectionFault(f"the connection stalled: {received} bytes in {seconds:.0f} s")
            yield chunk

    def close(self) -> None:
        """Shut down the connection, so that the background thread stops immediately."""
        self._adapter.stop()
        self.items.close()


class _Adapter(requests.adapters.HTTPAdapter):
    """An HTTP adapter that limits header sizes, and lets another thread shut down the connection."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._is_stopped = False
        self._header_bytes = 0
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return a connection pool whose sockets this adapter can shut down."""
        return self._tracked(super().get_connection_with_tls_context(*args, **kwargs))

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same in releases of the requests library before 2.32."""
        return self._tracked(super().get_connection(*args, **kwargs))

    def stop(self) -> None:
        """Shut down the current connection and any later one, so that blocking reads return."""
        self._is_stopped = True
        self._shut_down()

    def _tracked(self, pool: Any) -> Any:
        adapter = self

        class Response(http.client.HTTPResponse):
            def begin(self) -> None:  # reads the headers
                file: Any = self.fp
                self.fp = SimpleNamespace(  # type: ignore[assignment]
                    readline=lambda size: adapter._counted(file.readline(size)), flush=file.flush, close=file.close
                )
                super().begin()
                self.fp = file

        class Connection(type(pool).ConnectionCls):  # type: ignore[misc]
            response_class = Response

            def _new_conn(self) -> Any:
                sock = super()._new_conn()
                adapter._replace_socket(sock.dup())
                sock.settimeout(None)  # also for the TLS handshake, which the timeout in `_Exchange` covers
                return sock

        pool.ConnectionCls = Connection
        return pool

    def _counted(self, line: bytes) -> bytes:
        self._header_bytes += len(line)
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise SourceError(f"response headers larger than {_MAX_HEADER_BYTES >> 10} KiB")
        return line

    def _replace_socket(self, sock: socket.socket) -> None:
        self._shut_down()  # close the socket of the previous request in the redirect chain
        self._socket = sock
        if self._is_stopped:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket:
            with contextlib.suppress(OSError), self._socket as sock:
                sock.shutdown(socket.SHUT_RDWR)


def _request(url: str, headers: dict[str, str], adapter: _Adapter) -> Generator[Any, None, None]:
    """Yield the response to a request, after any redirects, then the raw chunks of its body as they arrive."""
    with requests.Session() as session:  # one session per request: the server may be closing a pooled connection
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.max_redirects = _MAX_REDIRECTS
        session.hooks["response"].append(_skip_redirect_body)
        # Read the body undecoded: some servers send .tar.gz files with Content-Encoding: gzip.
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        # No read timeout: the caller has one, which excludes time while the process is suspended.
        with session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, None)) as response:
            yield response
            # read() would block until the chunk is full. Before urllib3 2.1, only the inner response has read1().
            raw: Any = response.raw if hasattr(response.raw, "read1") else response.raw._fp
            while True:
                chunk = raw.read1(_CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk


def _skip_redirect_body(response: requests.Response, **_: object) -> None:
    """Close a redirect response, because requests would read its whole body."""
    if response.is_redirect:
        response.close()


def _host(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).hostname or "the server"
    except ValueError:
        return "the server"


def _status_text(response: requests.Response) -> str:
    return f"the server responded {response.status_code} {shorten(response.reason)}"


def _content_length(response: requests.Response) -> int | None:
    """Return the length of the body in bytes, or None if it is unknown."""
    length = response.headers.get("Content-Length", "")
    is_chunked = "Transfer-Encoding" in response.headers
    return int(length[:18]) if re.fullmatch("[0-9]+", length) and not is_chunked else None


def _validators(response: requests.Response) -> dict[str, str]:
    """Return the headers that identify this version of the file."""
    return {name: response.headers[name] for name in ("ETag", "Last-Modified") if response.headers.get(name)}


def _retry_after(response: requests.Response) -> float | None:
    """Return the delay requested by Retry-After, in seconds, or None."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]+", value):
        return float(value[:18])
    try:
        date = email.utils.parsedate_tz(value)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError):
        return None


def _describe(error: Exception, host: str) -> str:
    """Describe a failed request in one line."""
    chain = list(_causes(error))
    text = next(text for kind, text in _ERROR_TEXTS if any(isinstance(cause, kind) for cause in chain))
    request = getattr(error, "request", None)  # the last request in a chain of redirects
    cause = " ".join(str(getattr(chain[-1], "strerror", None) or chain[-1]).split())
    return text.format(
        host=_host(request.url) if request is not None else host, cause=shorten(cause), error=shorten(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that it wraps, the root cause last."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)

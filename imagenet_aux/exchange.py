"""One HTTP request and its response, received in a background thread with time limits."""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import threading
import time
import urllib.parse
from typing import Any, Callable, Iterator, cast

import requests
import requests.adapters
import urllib3.exceptions

from .errors import SourceError, shorten

_USER_AGENT = f"get-dataset-imagenet-aux (python-requests/{requests.__version__})"
_CHUNK_BYTES = 1 << 18
_MAX_CHUNKS = 8  # buffered for the caller
_MAX_HEADER_BYTES = 1 << 18  # in total for all responses in a redirect chain
_MAX_REDIRECTS = 20
_JOIN_SECONDS = 5.0

POLL_SECONDS = 0.5
CONNECT_SECONDS = 5.0  # for each address of a host
STALL_SECONDS = 15.0  # limit for all headers, including redirects; then for each MIN_CHUNK_BYTES of the body
MIN_CHUNK_BYTES = 4096

_TRANSIENT = (ConnectionAbortedError, ConnectionResetError, BrokenPipeError, http.client.HTTPException)
# The requests library does not wrap all urllib3, http.client and OS errors, so catch those too.
_REQUEST_ERRORS = (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError)
# The first entry whose type matches the error or any of its causes applies.
_ERROR_TEXTS = (
    (requests.exceptions.ProxyError, "cannot reach {host} through the proxy: {cause}"),
    (requests.exceptions.SSLError, "TLS error for {host}: {cause}"),
    (http.client.IncompleteRead, "the connection closed too early"),
    (http.client.RemoteDisconnected, "no response from {host}: {cause}"),
    (http.client.HTTPException, "the response from {host} is not HTTP: {cause}"),
    ((requests.ConnectionError, requests.Timeout), "no response from {host}: {cause}"),
    (ValueError, "invalid URL or redirect: {error}"),
    (requests.TooManyRedirects, "{cause}"),
    (Exception, "the connection broke: {cause}"),
)


class ConnectionFault(SourceError):
    """A fault that another request may fix, after *pause* seconds (None: the default backoff)."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Unreachable(ConnectionFault):
    """No response, probably for a lasting reason: an unknown host, a refused connection, a TLS error."""


class Exchange:
    """A GET request, sent when the object is created; *on_wait* receives the duration of each wait, in seconds.

    The requests library has no time limit for headers, so a thread runs the request, and the caller waits for it.
    Time that the process spends suspended does not count.
    """

    def __init__(self, url: str, headers: dict[str, str], on_wait: Callable[[float], None]) -> None:
        self._host = host_name(url)
        self._on_wait = on_wait
        self._has_response = False
        self._recent_bytes, self._waited = 0, 0.0  # since the start, or since the last MIN_CHUNK_BYTES
        self._adapter = _Adapter()
        self._items: queue.Queue[Any] = queue.Queue(_MAX_CHUNKS)
        self._thread = threading.Thread(
            target=self._receive, args=(url, headers), name="imagenet_aux download", daemon=True
        )
        self._thread.start()

    def response(self) -> requests.Response:
        """Wait for the headers and return the response, after any redirects; raise `ConnectionFault` on failure."""
        response = cast(requests.Response, self._next())
        self._has_response, self._waited = True, 0.0
        return response

    def chunks(self) -> Iterator[bytes]:
        """Yield the body; raise `ConnectionFault` when the connection breaks or stalls."""
        while True:
            chunk = self._next()
            if chunk is None:
                return
            self._recent_bytes += len(chunk)
            if self._recent_bytes >= MIN_CHUNK_BYTES:
                self._recent_bytes, self._waited = 0, 0.0
            yield chunk

    def close(self) -> None:
        """Shut down the connection, and wait for the thread to end."""
        self._adapter.stop()
        give_up = time.monotonic() + _JOIN_SECONDS
        while self._thread.is_alive() and time.monotonic() < give_up:
            with contextlib.suppress(queue.Empty):
                self._items.get_nowait()  # unblocks the thread if the queue is full
            self._thread.join(0.01)

    def _next(self) -> Any:
        """Return the response, then each chunk, then None; raise the thread's exception."""
        while self._waited < STALL_SECONDS:
            started = time.monotonic()
            try:
                # Wait in short steps: Windows delivers Ctrl-C only between them, and a suspension counts as one step.
                item = self._items.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self._count(POLL_SECONDS)
                continue
            self._count(min(time.monotonic() - started, POLL_SECONDS))
            if isinstance(item, BaseException):
                raise item
            return item
        if self._has_response:
            raise ConnectionFault(f"the connection stalled: {self._recent_bytes} bytes in {STALL_SECONDS:.0f} s")
        raise Unreachable(f"no response from {self._host}: nothing received in {STALL_SECONDS:.0f} s")

    def _count(self, seconds: float) -> None:
        self._waited += seconds
        self._on_wait(seconds)

    def _receive(self, url: str, headers: dict[str, str]) -> None:
        """Put the response into the queue, then the chunks of its body, then None or an exception."""
        has_response = False
        try:
            for item in _request(url, headers, self._adapter):
                self._items.put(item)
                has_response = True
            self._items.put(None)
        except _REQUEST_ERRORS as error:
            is_transient = has_response or any(isinstance(cause, _TRANSIENT) for cause in _causes(error))
            kind = ConnectionFault if is_transient else Unreachable
            self._items.put(kind(_describe(error, self._host)))
        except BaseException as error:
            self._items.put(error)


class _Adapter(requests.adapters.HTTPAdapter):
    """An HTTP adapter whose connection another thread can shut down."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._is_stopped = False
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return a connection pool whose sockets this adapter can shut down."""
        return self._tracked(super().get_connection_with_tls_context(*args, **kwargs))

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same in requests < 2.32."""
        return self._tracked(super().get_connection(*args, **kwargs))

    def stop(self) -> None:
        """Shut down the current connection and any later one, so that blocking reads return."""
        self._is_stopped = True
        self._shut_down()

    def _tracked(self, pool: Any) -> Any:
        adapter = self

        class Connection(type(pool).ConnectionCls):  # type: ignore[misc]
            def _new_conn(self) -> Any:
                sock = super()._new_conn()
                adapter._replace_socket(sock.dup())
                sock.settimeout(None)  # the time limit in `Exchange` also covers the TLS handshake
                return sock

        pool.ConnectionCls = Connection
        return pool

    def _replace_socket(self, sock: socket.socket) -> None:
        self._shut_down()  # close the socket of the previous request in the redirect chain
        self._socket = sock
        if self._is_stopped:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket:
            with contextlib.suppress(OSError), self._socket as sock:
                sock.shutdown(socket.SHUT_RDWR)


def _request(url: str, headers: dict[str, str], adapter: _Adapter) -> Iterator[Any]:
    """Send a request; yield the final response, then the raw chunks of its body as they arrive."""
    header_bytes = 0

    def check_response(response: requests.Response, **_: object) -> None:
        """Limit the headers, and close redirect responses, because the requests library would read their bodies."""
        nonlocal header_bytes
        header_bytes += sum(len(name) + len(value) for name, value in response.raw.headers.items())
        if response.is_redirect or header_bytes > _MAX_HEADER_BYTES:
            response.close()
        if header_bytes > _MAX_HEADER_BYTES:
            raise SourceError(f"response headers larger than {_MAX_HEADER_BYTES >> 10} KiB")

    with requests.Session() as session:  # one session per request: the server may be closing a pooled connection
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.max_redirects = _MAX_REDIRECTS
        session.hooks["response"].append(check_response)
        # Read the body undecoded: some servers send .tar.gz files with Content-Encoding: gzip.
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        # No read timeout: the caller enforces one that excludes suspended time.
        with session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, None)) as response:
            yield response
            # read() would block until the chunk is full. Before urllib3 2.1, only the inner response has read1().
            raw: Any = response.raw if hasattr(response.raw, "read1") else response.raw._fp
            while True:
                chunk = raw.read1(_CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk


def host_name(url: str) -> str:
    """Return the host name in a URL."""
    try:
        return urllib.parse.urlsplit(url).hostname or "the server"
    except ValueError:
        return "the server"


def _describe(error: Exception, host: str) -> str:
    """Describe a failed request in one line."""
    chain = list(_causes(error))
    text = next(text for kind, text in _ERROR_TEXTS if any(isinstance(cause, kind) for cause in chain))
    request = getattr(error, "request", None)  # the last request in a redirect chain
    cause = " ".join(str(getattr(chain[-1], "strerror", None) or chain[-1]).split())
    return text.format(
        host=host_name(request.url) if request is not None else host, cause=shorten(cause), error=shorten(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that it wraps, the root cause last."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)

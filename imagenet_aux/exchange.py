"""One HTTP request and its response, received in a background thread with time limits."""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import threading
import time
import urllib.parse
import urllib.request
from typing import Any, Callable, Generator, Iterator

import requests
import requests.adapters
import urllib3.exceptions

from .errors import SourceError, has_unencoded_password, shorten

_USER_AGENT = f"get-dataset-imagenet-aux (python-requests/{requests.__version__})"
_CHUNK_BYTES = 1 << 19
_MAX_CHUNKS = 4  # buffered for the caller
_MAX_HEADER_BYTES = 1 << 18  # in total for all responses in a redirect chain
_MAX_REDIRECTS = 20
_JOIN_SECONDS = 5.0
_THREAD_NAME = "imagenet_aux download"

POLL_SECONDS = 0.5
CONNECT_SECONDS = 5.0  # for each address of a host
STALL_SECONDS = 15.0  # limit for all headers, including redirects; then for each STALL_BYTES of the body
STALL_BYTES = 4096

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
    (ValueError, "invalid URL, redirect or proxy: {error}"),
    (requests.TooManyRedirects, "{cause}"),
    (Exception, "the connection broke: {cause}"),
)


class ConnectionFault(SourceError):
    """A fault that another request may fix, after *pause* seconds (None: the default backoff)."""

    def __init__(self, reason: str, pause: float | None = None, is_lasting: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause
        self.is_lasting = is_lasting  # whether the cause is probably an unknown host, a refused connection or TLS


def exchange(url: str, headers: dict[str, str], on_wait: Callable[[float], None]) -> Generator[Any, None, None]:
    """Send a GET request; yield the response, after any redirects, then the chunks of its body.

    Raise `ConnectionFault` if the request fails, or if the connection breaks or stalls. *on_wait* receives the duration
    of each wait, in seconds. Time that the process spends suspended does not count.
    """
    has_response = False
    recent_bytes, waited = 0, 0.0  # since the start, the response, or the last STALL_BYTES
    with _start_request(url, headers) as items:
        while waited < STALL_SECONDS:
            started = time.monotonic()
            try:
                # Wait in short steps: Windows delivers Ctrl-C only between them, and a suspension counts as one step.
                item = items.get(timeout=POLL_SECONDS)
            except queue.Empty:
                item = None
            seconds = min(time.monotonic() - started, POLL_SECONDS)
            waited += seconds
            on_wait(seconds)
            if item is None:
                continue
            if item == b"":
                return
            if isinstance(item, BaseException):
                raise item
            if has_response:
                recent_bytes += len(item)
            if not has_response or recent_bytes >= STALL_BYTES:
                has_response, recent_bytes, waited = True, 0, 0.0
            yield item
    if has_response:
        raise ConnectionFault(f"the connection stalled: {recent_bytes} bytes in {STALL_SECONDS:.0f} s")
    reason = f"no response from {host_name(url)}: nothing received in {STALL_SECONDS:.0f} s"
    raise ConnectionFault(reason, is_lasting=True)


@contextlib.contextmanager
def _start_request(url: str, headers: dict[str, str]) -> Iterator[queue.Queue[Any]]:
    """Send a request in a thread, and yield the queue of received items. On exit, shut down the connection.

    The requests library has no time limit for headers, so the caller reads the queue with one.
    """
    adapter = _Adapter()
    items: queue.Queue[Any] = queue.Queue(_MAX_CHUNKS)
    thread = threading.Thread(target=_receive, args=(url, headers, adapter, items), name=_THREAD_NAME, daemon=True)
    thread.start()
    try:
        yield items
    finally:
        adapter.stop()
        while not items.empty():
            items.get_nowait()  # the thread may be waiting for space
        thread.join(_JOIN_SECONDS)


def _receive(url: str, headers: dict[str, str], adapter: _Adapter, items: queue.Queue[Any]) -> None:
    """Put the final response into the queue, then the raw chunks of its body, then an empty chunk or an exception."""
    response = None
    try:
        session = requests.Session()  # one session per request: the server may be closing a pooled connection
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.max_redirects = _MAX_REDIRECTS
        # Read the body undecoded: some servers send .tar.gz files with Content-Encoding: gzip.
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        # No read timeout: the caller enforces one that excludes suspended time.
        timeout = (CONNECT_SECONDS, None)
        with session, session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            items.put(response)
            # read() would block until the chunk is full. Before urllib3 2.1, only the inner response has read1().
            raw: Any = response.raw if hasattr(response.raw, "read1") else response.raw._fp
            chunk = None
            while chunk != b"" and not adapter.is_stopped:
                chunk = raw.read1(_CHUNK_BYTES)
                items.put(chunk)
    except _REQUEST_ERRORS as error:
        is_lasting = response is None and not any(isinstance(cause, _TRANSIENT) for cause in _causes(error))
        items.put(ConnectionFault(_describe(error, url), is_lasting=is_lasting))
    except BaseException as error:
        items.put(error)


class _Adapter(requests.adapters.HTTPAdapter):
    """An HTTP adapter with limits, whose connection another thread can shut down."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stopped = False
        self._socket: socket.socket | None = None  # a duplicate, because TLS takes over the original
        self._header_bytes = 0

    def cert_verify(self, conn: Any, *args: Any, **kwargs: Any) -> None:
        """Track the sockets of a connection pool, which the requests library passes here before it sends a request."""
        try:
            super().cert_verify(conn, *args, **kwargs)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise requests.exceptions.SSLError(str(error)) from None  # the file in REQUESTS_CA_BUNDLE does not exist
        adapter = self

        class Connection(type(conn).ConnectionCls):  # type: ignore[misc]
            def _new_conn(self) -> Any:
                adapter._shut_down()  # the previous connection in the redirect chain
                sock = super()._new_conn()
                sock.settimeout(None)  # the time limit in `exchange` also covers the TLS handshake
                adapter._socket = sock.dup()
                if adapter.is_stopped:
                    adapter._shut_down()
                return sock

        conn.ConnectionCls = Connection

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """Limit the headers, and close redirect responses, because the requests library would read their bodies."""
        response = super().build_response(req, resp)
        self._header_bytes += sum(len(name) + len(value) for name, value in resp.headers.items())
        if response.is_redirect or self._header_bytes > _MAX_HEADER_BYTES:
            response.close()
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise SourceError(f"response headers larger than {_MAX_HEADER_BYTES >> 10} KiB")
        return response

    def stop(self) -> None:
        """Shut down the current connection and any later one, so that blocking reads return."""
        self.is_stopped = True
        self._shut_down()

    def _shut_down(self) -> None:
        if self._socket:
            with contextlib.suppress(OSError), self._socket as sock:
                sock.shutdown(socket.SHUT_RDWR)


def host_name(url: str) -> str:
    """Return the host name in a URL."""
    try:
        return urllib.parse.urlsplit(url).hostname or "the server"
    except ValueError:
        return "the server"


def _describe(error: Exception, url: str) -> str:
    """Describe a failed request in one line."""
    chain = list(_causes(error))
    text = next(text for kind, text in _ERROR_TEXTS if any(isinstance(cause, kind) for cause in chain))
    request = getattr(error, "request", None)  # the last request in a redirect chain
    cause = " ".join(str(getattr(chain[-1], "strerror", None) or chain[-1]).split())
    host = host_name(url if request is None else request.url)
    detail = shorten(error)
    if any(map(has_unencoded_password, [url, *urllib.request.getproxies().values()])):
        detail = "percent-encode special characters in the user name and password"  # the error may quote the password
    return text.format(host=host, cause=shorten(cause), error=detail)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that it wraps, the root cause last."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)

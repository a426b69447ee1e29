"""One HTTP request and its response, received in a background thread."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import urllib.parse
import urllib.request
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any, Iterator

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

POLL_SECONDS = 0.5  # Windows delivers Ctrl-C only between waits
CONNECT_SECONDS = 5.0  # for each address of a host

_TRANSIENT = (ConnectionAbortedError, ConnectionResetError, BrokenPipeError, HTTPException)
# urllib3, http.client and OS errors can escape the requests library unwrapped.
_REQUEST_ERRORS = (OSError, ValueError, HTTPException, urllib3.exceptions.HTTPError)
# The first entry whose type matches the error or any of its causes applies.
_ERROR_TEXTS = (
    (requests.exceptions.ProxyError, "cannot reach {host} through the proxy: {cause}"),
    (requests.exceptions.SSLError, "TLS error for {host}: {cause}"),
    (IncompleteRead, "the connection closed too early"),
    (RemoteDisconnected, "no response from {host}: {cause}"),
    (HTTPException, "the response from {host} is not HTTP: {cause}"),
    ((requests.ConnectionError, requests.Timeout), "no response from {host}: {cause}"),
    (ValueError, "invalid URL, redirect or proxy: {error}"),
    (requests.TooManyRedirects, "{cause}"),
    (Exception, "the connection broke: {cause}"),
)


class ConnectionFault(SourceError):
    """A failed request or broken response; *pause*: seconds until the next (0: at once; None: doubled each time)."""

    def __init__(self, reason: str, pause: float | None = None, is_permanent: bool = False) -> None:
        super().__init__(reason)
        self.pause = pause
        self.is_permanent = is_permanent  # whether the next one would probably fail too, as for an unknown host


class Exchange:
    """A GET request and its response, received in a thread: the requests library has no time limit for headers."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._adapter = _Adapter()
        self._items: queue.Queue[Any] = queue.Queue(_MAX_CHUNKS)
        arguments = (url, headers, self._adapter, self._items)
        self._thread = threading.Thread(target=_receive, args=arguments, name="imagenet_aux download", daemon=True)
        self._thread.start()

    def next_item(self) -> Any:
        """Return the response, then the chunks of its body, then b"" or an exception; None after `POLL_SECONDS`."""
        with contextlib.suppress(queue.Empty):
            return self._items.get(timeout=POLL_SECONDS)
        return None

    def close(self) -> None:
        """Shut down the connection and wait for the thread."""
        self._adapter.stop()
        while not self._items.empty():
            self._items.get_nowait()  # the thread may be waiting for space
        self._thread.join(_JOIN_SECONDS)


def _receive(url: str, headers: dict[str, str], adapter: _Adapter, items: queue.Queue[Any]) -> None:
    """Send the request, follow redirects, and put the items into the queue."""
    response = None
    try:
        session = requests.Session()  # one session per request: the server may be closing a pooled connection
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.max_redirects = _MAX_REDIRECTS
        # Some servers send .tar.gz files with Content-Encoding: gzip anyway; read1() does not decode them.
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        # No read timeout: the caller enforces one that excludes suspended time.
        timeout = (CONNECT_SECONDS, None)
        with session, session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            items.put(response)
            # Unlike read(), read1() returns what has arrived. Before urllib3 2.1, only the inner response has it.
            raw: Any = response.raw if hasattr(response.raw, "read1") else response.raw._fp
            for chunk in iter(lambda: raw.read1(_CHUNK_BYTES), b""):
                items.put(chunk)
                if adapter.is_stopped:
                    return
            items.put(b"")
    except _REQUEST_ERRORS as error:
        is_permanent = response is None and not any(isinstance(cause, _TRANSIENT) for cause in _causes(error))
        reason = _describe(error, url)
        items.put(ConnectionFault(reason, is_permanent=is_permanent))
    except BaseException as error:  # such as the SourceError from build_response; the caller of `next_item` raises it
        items.put(error)


class _Adapter(requests.adapters.HTTPAdapter):
    """An HTTP adapter that limits response headers, and whose connection another thread can shut down."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stopped = False
        self._socket: socket.socket | None = None
        self._header_bytes = 0

    def cert_verify(self, conn: Any, *args: Any, **kwargs: Any) -> None:
        """Track the sockets of *conn*, a connection pool: the requests library passes it here before each request."""
        try:
            super().cert_verify(conn, *args, **kwargs)  # type: ignore[no-untyped-call]
        except OSError as error:  # the file in REQUESTS_CA_BUNDLE does not exist
            raise requests.exceptions.SSLError(str(error)) from None
        adapter = self

        # type(conn): a reused pool already has a derived class.
        class Connection(type(conn).ConnectionCls):  # type: ignore[misc]
            def _new_conn(self) -> Any:
                sock = super()._new_conn()
                sock.settimeout(None)  # the caller's time limit also covers the TLS handshake
                adapter.track(sock)
                return sock

        conn.ConnectionCls = Connection

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """Limit the headers, and close redirect responses, because the requests library would read their bodies."""
        response = super().build_response(req, resp)
        self._header_bytes += sum(len(name) + len(value) for name, value in resp.headers.items())
        if self._header_bytes > _MAX_HEADER_BYTES:
            response.close()
            raise SourceError(f"response headers larger than {_MAX_HEADER_BYTES >> 10} KiB")
        if response.is_redirect:
            response.close()
        return response

    def track(self, sock: socket.socket) -> None:
        """Shut down the previous connection, which a redirect has replaced, and keep a duplicate of the new socket."""
        self._shut_down()
        self._socket = sock.dup()  # TLS takes over the original
        if self.is_stopped:
            self._shut_down()

    def stop(self) -> None:
        """Shut down the current connection and any later one, so that blocking reads return."""
        self.is_stopped = True
        self._shut_down()

    def _shut_down(self) -> None:
        if self._socket:
            with contextlib.suppress(OSError), self._socket as sock:
                sock.shutdown(socket.SHUT_RDWR)


def host_name(url: str) -> str:
    """Return the host name in a URL, truncated."""
    try:
        return shorten(urllib.parse.urlsplit(url).hostname or "the server")
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

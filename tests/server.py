"""An HTTP server on loopback, with a configurable fault for each reply."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable


@dataclass
class Reply:
    """The response to one request; without arguments, a correct one.

    Attributes
    ----------
    status : int or None
        Status code; None: 200, or 206 for a Range request.
    headers : dict of str or callable
        Additional or replacement headers; a callable is evaluated when the response is sent.
    body : bytes or None
        Sent instead of the served file.
    ranges : bool
        Whether Range is supported.
    if_range : bool
        Whether If-Range is compared with the validators.
    shift : int
        Added to the start of a partial response.
    length, chunked : bool
        Whether to send Content-Length; whether to use chunked transfer encoding.
    stop_at : int or None
        Number of body bytes to send before ``then`` happens; None: all.
    then : str
        What to do after the body: ``close``, ``reset``, ``stall``, or ``corrupt`` (break the TLS connection).
    endless : bool
        Whether to repeat the body endlessly.
    etag : str or None
        None: computed from the body; '': no ETag.
    chunk_size : int
        Number of bytes to send at once.
    pause : float
        Seconds between chunks.
    raw : bytes or None
        Sent instead of an HTTP response, before ``then`` happens.
    """

    status: int | None = None
    headers: dict[str, str | Callable[[], str]] = field(default_factory=dict)
    body: bytes | None = None
    ranges: bool = True
    if_range: bool = True
    shift: int = 0
    length: bool = True
    chunked: bool = False
    stop_at: int | None = None
    then: str = "close"
    endless: bool = False
    etag: str | None = None
    chunk_size: int = 65536
    pause: float = 0.0
    raw: bytes | None = None


def slow_reply(body: bytes, seconds: float) -> Reply:
    """Make a reply that takes about this many seconds to send the body."""
    return Reply(pause=seconds * 65536 / len(body))


class Server:
    """A context manager that runs an HTTP server and records its requests.

    Attributes
    ----------
    requests : list of (method, path, headers)
        The requests, in order.
    url : str
        The server's address, which is numeric because Windows takes two seconds to resolve ``localhost``.
    released : threading.Event
        Set on exit, to end replies that stall.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.released = threading.Event()
        self._replies: dict[str, tuple[bytes, list[Reply]]] = {}
        self._lock = threading.Lock()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def serve(self, name: str, body: bytes, *replies: Reply) -> str:
        """Serve a file with these replies in turn, repeating the last one, and return its URL."""
        path = "/" + name
        self._replies[path] = (body, list(replies) or [Reply()])
        return self.url + path

    def requests_for(self, name: str) -> list[dict[str, str]]:
        """Return the headers of each request for a file."""
        return [headers for _, path, headers in self.requests if path.partition("?")[0] == "/" + name]

    def wait_for_requests(self, client: subprocess.Popen[Any], count: int = 1) -> None:
        """Wait until the server has received this many requests; fail if the client ends before."""
        while len(self.requests) < count:
            assert client.poll() is None
            time.sleep(0.01)

    def next_reply(self, path: str) -> tuple[bytes, Reply] | None:
        """Return the file and the reply for a request, or None if there is no such file."""
        with self._lock:
            if path not in self._replies:
                return None
            body, replies = self._replies[path]
            return body, replies.pop(0) if len(replies) > 1 else replies[0]


def _handler(server: Server) -> Any:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            server.requests.append(("HEAD", self.path, dict(self.headers)))
            self.send_error(405)

        def do_GET(self) -> None:
            server.requests.append(("GET", self.path, dict(self.headers)))
            self.close_connection = True
            found = server.next_reply(self.path.partition("?")[0])
            if found is None:
                self.send_error(404)
                return
            with contextlib.suppress(OSError):
                self._respond(*found)

        def _respond(self, file: bytes, reply: Reply) -> None:
            if reply.raw is not None:
                self._send_body(reply.raw, reply)
                return
            whole = file if reply.body is None else reply.body
            headers = {name: value if isinstance(value, str) else value() for name, value in reply.headers.items()}
            etag = '"' + hashlib.md5(whole).hexdigest() + '"' if reply.etag is None else reply.etag
            validators = [etag, headers.get("Last-Modified")] if reply.if_range else [self.headers.get("If-Range")]
            start = self._range_start(validators) if reply.ranges and reply.status is None else None
            if start is not None and start >= len(whole):
                self.send_error(416)
                return
            body = whole if start is None else whole[start + reply.shift :]
            self.send_response(reply.status or (200 if start is None else 206))
            if start is not None:
                first = start + reply.shift
                self.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
            if reply.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif reply.length and "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            if etag:
                self.send_header("ETag", etag)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self._send_body(body, reply)

        def _range_start(self, validators: list[str | None]) -> int | None:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if not match or self.headers.get("If-Range", validators[0]) not in validators:
                return None
            return int(match[1])

        def _send_body(self, body: bytes, reply: Reply) -> None:
            end = len(body) if reply.stop_at is None else min(reply.stop_at, len(body))
            repeat = True
            while repeat:
                for at in range(0, end, reply.chunk_size):
                    chunk = body[at : min(at + reply.chunk_size, end)]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if reply.chunked else chunk)
                    if server.released.wait(reply.pause):
                        return
                repeat = reply.endless
            if reply.stop_at is None and reply.chunked:
                self.wfile.write(b"0\r\n\r\n")
            self._finish(reply)

        def _finish(self, reply: Reply) -> None:
            self.wfile.flush()
            if reply.then == "stall":
                server.released.wait(60)
            elif reply.then == "corrupt":
                socket.socket.sendall(self.connection, b"not a TLS record")  # unencrypted
            elif reply.then == "reset":
                time.sleep(0.1)  # a reset discards data that the client has not read yet
                linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    return Handler

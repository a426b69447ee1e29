"""A real HTTP server on loopback that misbehaves as it is told to, one reply after another."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import socket
import ssl
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable


@dataclass
class Reply:
    """How one request is answered; without arguments, as a good server does.

    Attributes
    ----------
    status : int or None
        None: 200, or 206 where a range is asked for.
    headers : dict of str or callable
        More of them, also in place of the usual ones; those that depend on the time are made when they are sent.
    body : bytes or None
        What to send in place of the file.
    ranges : bool
        Whether a range is honoured.
    if_range : bool
        Whether it is honoured only if the file is still the one that it was asked of.
    shift : int
        Where a partial answer begins, away from where it should.
    length, chunked : bool
        Whether there is a Content-Length; whether the body comes in chunks.
    stop_at : int or None
        Number of body bytes after which ``then`` happens; None: all of them.
    then : str
        ``close``, ``reset``, or ``stall``.
    endless : bool
        Whether the body is sent over and over again.
    etag : str or None
        None: made of the body; '': there is none.
    piece : int
        Number of bytes in a piece.
    pause : float
        Seconds between pieces.
    raw : bytes or None
        What to send in place of an HTTP answer, before ``then`` happens.
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
    piece: int = 65536
    pause: float = 0.0
    raw: bytes | None = None


class Server:
    """A context manager: a server on a port of its own, and what it was asked for.

    Attributes
    ----------
    requests : list of (method, path, headers)
        In the order in which they came.
    url : str
        Where it is; ``localhost`` would be asked for at another address first, which takes Windows two seconds.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.released = threading.Event()
        self._pages: dict[str, tuple[bytes, list[Reply]]] = {}
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
        """Answer requests for a name with these replies in turn, the last one for good; its URL."""
        path = "/" + name
        self._pages[path] = (body, list(replies) or [Reply()])
        return self.url + path

    def asked(self, name: str) -> list[dict[str, str]]:
        """The headers of each request for a name."""
        return [headers for _, path, headers in self.requests if path.partition("?")[0] == "/" + name]

    def next_reply(self, path: str) -> tuple[bytes, Reply] | None:
        with self._lock:
            if path not in self._pages:
                return None
            body, replies = self._pages[path]
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
                self._answer(*found)

        def _answer(self, file: bytes, reply: Reply) -> None:
            if reply.raw is not None:
                self._send_body(reply.raw, reply)
                return
            whole = file if reply.body is None else reply.body
            own = {name: value if isinstance(value, str) else value() for name, value in reply.headers.items()}
            etag = '"' + hashlib.md5(whole).hexdigest() + '"' if reply.etag is None else reply.etag
            validators = [etag, own.get("Last-Modified")] if reply.if_range else [self.headers.get("If-Range")]
            begin = self._range_start(validators) if reply.ranges and reply.status is None else None
            if begin is not None and begin >= len(whole):
                self.send_error(416)
                return
            body = whole if begin is None else whole[begin + reply.shift :]
            self.send_response(reply.status or (200 if begin is None else 206))
            if begin is not None:
                first = begin + reply.shift
                self.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
            if reply.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif reply.length and "Content-Length" not in own:
                self.send_header("Content-Length", str(len(body)))
            if etag:
                self.send_header("ETag", etag)
            for name, value in own.items():
                self.send_header(name, value)
            self.end_headers()
            self._send_body(body, reply)

        def _range_start(self, validators: list[str | None]) -> int | None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if not asked or self.headers.get("If-Range", validators[0]) not in validators:
                return None
            return int(asked[1])

        def _send_body(self, body: bytes, reply: Reply) -> None:
            end = len(body) if reply.stop_at is None else min(reply.stop_at, len(body))
            again = True
            while again:
                for at in range(0, end, reply.piece):
                    piece = body[at : min(at + reply.piece, end)]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if reply.chunked else piece)
                    if server.released.wait(reply.pause):
                        return
                again = reply.endless
            if reply.stop_at is None and reply.chunked:
                self.wfile.write(b"0\r\n\r\n")
            self._end(reply)

        def _end(self, reply: Reply) -> None:
            self.wfile.flush()
            if reply.then == "stall":
                server.released.wait(60)
            elif reply.then == "reset":
                time.sleep(0.1)  # a reset overtakes what has not been read
                linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    return Handler

"""An HTTP proxy on loopback that connects every host name to the tests' own servers."""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import Any, Collection, Mapping


class Proxy:
    """A context manager that runs an HTTP proxy.

    Parameters
    ----------
    http_port, https_port : int
        Loopback ports to connect plain requests and tunnels to, regardless of the requested host.
    down : collection of str
        Host names for which the proxy responds ``410``.
    faults : mapping of int to str
        Faults for individual requests, numbered from 0: ``refuse`` responds ``503``; ``plain`` connects a tunnel to
        the port for plain requests, so that TLS fails.

    Attributes
    ----------
    hosts : list of str
        The requested host names, in order.
    url : str
        The proxy's address.
    """

    def __init__(
        self, http_port: int, https_port: int, down: Collection[str] = (), faults: Mapping[int, str] = {}
    ) -> None:
        self.hosts: list[str] = []
        self._ports = {"http": http_port, "https": https_port}
        self._down = down
        self._faults = faults
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> Any:
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                method, target, _ = self.rfile.readline().decode().split(" ", 2)
                head = [line for line in iter(self.rfile.readline, b"\r\n") if line]
                scheme = "https" if method == "CONNECT" else "http"
                host = target.split("://")[-1].split("/")[0].split(":")[0]
                fault = proxy._faults.get(len(proxy.hosts), "refuse" if host in proxy._down else "")
                proxy.hosts.append(host)
                if fault == "refuse":
                    status = b"410 Gone" if host in proxy._down else b"503 Try later"
                    self.wfile.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
                    return
                port = proxy._ports["http" if fault == "plain" else scheme]
                with socket.create_connection(("127.0.0.1", port)) as server:
                    if scheme == "https":
                        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    else:
                        path = "/" + target.split("://")[1].partition("/")[2]
                        server.sendall(f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(head) + b"\r\n")
                    upload = threading.Thread(target=_copy, args=(self.connection, server), daemon=True)
                    upload.start()
                    _copy(server, self.connection)

        return Handler


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy data in one direction until the connection closes."""
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass

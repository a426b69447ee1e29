"""How far a long transfer has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Protocol, TextIO

from .errors import printable

_BAR_SECONDS = 0.1
_LINE_SECONDS = 3.0


class Counted(Protocol):
    """What is being read: how many bytes have come, and how many there are in all, None while that is not known."""

    received: int
    size: int | None


class Progress:
    """Shows, when it is called with what is being read, how much of it there is.

    Parameters
    ----------
    out : text stream or None
        Where to write; None where Python found stderr closed. A fetch does not fail because nobody listens.
    """

    def __init__(self, out: TextIO | None) -> None:
        self._out = out
        self._bar = bool(out and out.isatty())
        self._stream: Counted | None = None
        self._began = self._shown = 0.0
        self._drawn = False

    def __call__(self, stream: Counted) -> None:
        """Show how far *stream* is, unless that was shown a moment ago."""
        now = time.monotonic()
        if stream is not self._stream:
            self._stream, self._began, self._shown = stream, now, now
        if now - self._shown < (_BAR_SECONDS if self._bar else _LINE_SECONDS):
            return
        self._shown = now
        text = describe(stream.received, stream.size, now - self._began)
        if self._bar:
            width = self._width()
            self._put("\r" + _with_bar(text, stream.received, stream.size, width)[:width].ljust(width))
            self._drawn = True
        else:
            self._put(text + "\n")

    def write(self, text: str) -> None:
        """Write lines, in the place of the bar where there is one."""
        self.clear()
        self._put(printable(text))

    def clear(self) -> None:
        """Take the bar away, where there is one."""
        if self._drawn:
            self._put("\r" + " " * self._width() + "\r")
            self._drawn = False

    def _width(self) -> int:
        """Columns of the terminal that may be written to, so that no line wraps."""
        columns = 0
        with contextlib.suppress(OSError):
            columns = os.get_terminal_size(self._out.fileno() if self._out else -1).columns
        return (columns or 80) - 1

    def _put(self, text: str) -> None:
        if self._out:
            with contextlib.suppress(OSError):
                self._out.write(text)
                self._out.flush()

    def flush(self) -> None:
        """Nothing to do: `write` leaves nothing behind. Makes this a stream for `logging`."""


def describe(received: int, size: int | None, seconds: float) -> str:
    """Size, rate and time left of a transfer in words.

    Parameters
    ----------
    received : int
        Bytes so far.
    size : int or None
        Bytes in all; None where that is not known.
    seconds : float
        Since the transfer began.
    """
    rate = received / max(seconds, 1e-3)
    if size is None:
        return f"{received / 1e6:.1f} MB  {rate / 1e6:.1f} MB/s"
    left = round((size - received) / rate) if rate else 0
    return f"{received / 1e6:.1f} of {size / 1e6:.1f} MB  {rate / 1e6:.1f} MB/s  {left // 60}:{left % 60:02} left"


def _with_bar(text: str, received: int, size: int | None, width: int) -> str:
    cells = min(40, width - len(text) - 4)
    if not size or cells < 8:
        return text
    full = min(cells, cells * received // size)
    return f"[{'#' * full}{'.' * (cells - full)}]  {text}"

"""Report the progress of a transfer: a bar on a terminal, a line every few seconds otherwise."""

from __future__ import annotations

import logging
import os
import time
from typing import TextIO

from .errors import printable
from .streams import Stream

_BAR_SECONDS = 0.1
_LINE_SECONDS = 3.0
_MAX_CELLS = 40
_MIN_CELLS = 8


class Progress(logging.Handler):
    """A callable that reports the progress of a stream, and a handler for log messages."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out
        self._interval = _BAR_SECONDS if out.isatty() else _LINE_SECONDS
        self._stream: Stream | None = None
        self._started = self._shown = 0.0
        self._has_bar = False

    def __call__(self, stream: Stream) -> None:
        """Report the stream's progress, at most once per interval."""
        now = time.monotonic()
        if stream is not self._stream:
            self._stream, self._started, self._shown = stream, now, now
        if now - self._shown < self._interval:
            return
        self._shown = now
        text = describe(stream, now - self._started)
        if self._out.isatty():
            width = self._width()
            line = _with_bar(text, stream, width)[:width]
            self._put("\r" + line.ljust(width))
            self._has_bar = True
        else:
            self._put(text + "\n")

    def write(self, text: str) -> None:
        """Clear the bar, then write the text with control characters other than line feeds escaped."""
        self.clear()
        self._put("\n".join(map(printable, text.split("\n"))))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log message."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self.write(f"{prefix}{printable(record.getMessage())}\n")

    def clear(self) -> None:
        """Erase the bar, if one is shown."""
        if self._has_bar:
            self._put("\r" + " " * self._width() + "\r")
            self._has_bar = False

    def _width(self) -> int:
        """Return the terminal's width in columns, less one so that a full line does not wrap."""
        try:
            columns = os.get_terminal_size(self._out.fileno()).columns
        except OSError:
            columns = 0
        return (columns or 80) - 1

    def _put(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def describe(stream: Stream, seconds: float) -> str:
    """Return one line with the stream's size, rate and remaining time, or "waiting" before the first byte."""
    if not stream.received:
        return printable(f"waiting for {stream.label} ({stream.waited:.0f} s)")
    rate = stream.total / max(seconds, 1e-3)
    if stream.size is None:
        return f"{stream.received / 1e6:.1f} MB  {rate / 1e6:.1f} MB/s"
    left = max(0, round((stream.size - stream.received) / rate))
    of_size = f"{stream.received / 1e6:.1f} of {stream.size / 1e6:.1f} MB"
    return f"{of_size}  {rate / 1e6:.1f} MB/s  {left // 60}:{left % 60:02} left"


def _with_bar(text: str, stream: Stream, width: int) -> str:
    cells = min(_MAX_CELLS, width - len(text) - 4)
    if not stream.size or cells < _MIN_CELLS:
        return text
    full = min(cells, cells * stream.received // stream.size)
    return f"[{'#' * full}{'.' * (cells - full)}]  {text}"

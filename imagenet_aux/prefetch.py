"""Work on both cores: the next items are made while the last ones are used, and need not be waited for for ever."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from typing import Generator, TypeVar

_DEPTH = 8
_POLL_SECONDS = 0.5

T = TypeVar("T")


class TimedOut(Exception):
    """The next item did not come in time."""


def prefetch(
    items: Generator[T, None, None], first_seconds: float | None = None, next_seconds: float | None = None
) -> Generator[T, None, None]:
    """The same items, taken by a thread of its own that runs a few of them ahead.

    What *items* raises is raised here, after the items before it. Closing this iterator ends the thread at its next
    item.

    Parameters
    ----------
    items : generator
        What to take; closed in the end.
    first_seconds, next_seconds : float, optional
        How long the first item, and each later one, is waited for; without them, for ever.

    Raises
    ------
    TimedOut
        While iterating, when an item does not come in time. The thread is left to its waiting.
    """
    taken: queue.Queue[T | BaseException | None] = queue.Queue(_DEPTH)
    abandoned = threading.Event()

    def take() -> None:
        end = None
        try:
            with contextlib.closing(items):
                for item in items:
                    taken.put(item)
                    if abandoned.is_set():
                        return
        except BaseException as error:  # whatever it is: it is raised again, where it can be handled
            end = error
        taken.put(end)
        end = None  # an error that is kept here would keep what it was raised in, connections too

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    seconds = first_seconds
    try:
        while True:
            item = _next(taken, seconds)
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
            seconds = next_seconds
    finally:
        abandoned.set()
        while not taken.empty():  # a thread that waits for room goes on, and ends
            taken.get_nowait()
        thread.join(_POLL_SECONDS)  # it closes what it has open, unless it is kept waiting


def _next(taken: queue.Queue[T], seconds: float | None) -> T:
    """The next item of the queue, waited for in short spells, between which Windows hears of Ctrl-C."""
    until = math.inf if seconds is None else time.monotonic() + seconds
    while True:
        try:
            return taken.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if time.monotonic() >= until:
                raise TimedOut(f"nothing came in {seconds:.0f} s") from None

"""Produce an iterator's items in a background thread, with timeouts that ignore suspension of the process."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Callable, Generator, Generic, TypeVar

_DEPTH = 8
_POLL_SECONDS = 0.5
_JOIN_SECONDS = 5.0

T = TypeVar("T")


class WaitTimeout(Exception):
    """The next item did not arrive in time."""


class BackgroundIterator(Generic[T]):
    """Run a generator in a background thread, a few items ahead; call *on_wait* while the caller waits for an item."""

    def __init__(self, items: Generator[T, None, None], on_wait: Callable[[], None]) -> None:
        self.waited = 0.0  # seconds, excluding time while the process was suspended
        self._on_wait = on_wait
        self._queue: queue.Queue[T | BaseException | None] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(items,), name="imagenet_aux download", daemon=True)
        self._thread.start()

    def next(self, timeout: float) -> T | None:
        """Return the next item, or None after the last one; raise the generator's exception, or `WaitTimeout`."""
        limit = self.waited + timeout
        while True:
            started = time.monotonic()
            try:
                # Wait in short steps: Windows delivers Ctrl-C only between them, and a suspension adds at most one.
                item = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self.waited += _POLL_SECONDS
                if self.waited >= limit:
                    raise WaitTimeout(f"nothing received in {timeout:.0f} s") from None
                self._on_wait()
                continue
            self.waited += min(time.monotonic() - started, _POLL_SECONDS)
            if isinstance(item, BaseException):
                raise item
            return item

    def close(self) -> None:
        """Stop the thread at its next item, and wait for it to end."""
        self._closed.set()
        give_up = time.monotonic() + _JOIN_SECONDS
        while self._thread.is_alive() and time.monotonic() < give_up:
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()  # unblocks the thread if the queue is full
            self._thread.join(0.01)

    def _produce(self, items: Generator[T, None, None]) -> None:
        end = None
        try:
            with contextlib.closing(items):
                for item in items:
                    self._queue.put(item)
                    if self._closed.is_set():
                        return
        except BaseException as error:
            end = error  # next() raises it in the caller's thread
        self._queue.put(end)
        end = None  # the exception's traceback references this frame: break the cycle, so that sockets close now

"""Work on both cores: the next chunks are made while the last ones are used."""

from __future__ import annotations

import queue
import threading
from typing import Iterable, Iterator

_DEPTH = 8


def ahead(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks, taken by a thread of its own that runs a few of them ahead.

    What *chunks* raises is raised here, after the chunks before it. Closing this iterator ends the thread at its next
    chunk.
    """
    taken: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
    abandoned = threading.Event()

    def take() -> None:
        end = None
        try:
            for chunk in chunks:
                taken.put(chunk)
                if abandoned.is_set():
                    return
        except BaseException as error:  # whatever it is: it is raised again, where it can be handled
            end = error
        taken.put(end)
        end = None  # an error that is kept here would keep what it was raised in, connections too

    threading.Thread(target=take, daemon=True).start()
    try:
        while True:
            item = taken.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        abandoned.set()
        while not taken.empty():  # a thread that waits for room goes on, and ends
            taken.get_nowait()

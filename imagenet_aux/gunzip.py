"""Decompress gzip in a thread, with limited memory."""

from __future__ import annotations

import queue
import tarfile
import threading
from concurrent.futures import Future
from typing import Any, Generator, Iterator

from .errors import ContentError, TruncatedError
from .manifest import MAX_BYTES

try:
    from isal import isal_zlib as zlib  # optional, about three times as fast
except ImportError:
    import zlib  # type: ignore[no-redef]

_MAX_MEMBERS = 10_000
_MIN_INPUT_BYTES = 1 << 16  # for each call: fewer calls, and isal rejects split gzip headers
_MAX_OUTPUT_BYTES = 1 << 20

_GZIP = 16 + zlib.MAX_WBITS  # the gzip format
_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
}


class TrailingBytes(TruncatedError):
    """Bytes follow the last gzip member: like gzip(1), ignore them if the tar is complete."""


def decompress(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Yield decompressed chunks. A thread decompresses the next one while the caller uses the last one."""
    block = _read_block(chunks)
    if not block:
        raise ContentError("empty: expected a .tar.gz archive")
    if not block.startswith(_GZIP_MAGIC):
        raise ContentError(f"not gzip: expected a .tar.gz archive, got {_guess_format(block)}")
    gunzip = _Gunzip()
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    worker = threading.Thread(target=_run_calls, args=(gunzip, calls), name="imagenet_aux decompress", daemon=True)
    worker.start()
    try:
        # output: of the last call, not yet yielded. pending: input for the next call. block: input after that.
        output = pending = b""
        while pending or block:
            if len(pending) < _MIN_INPUT_BYTES:
                if block and len(pending) + len(block) < _MIN_INPUT_BYTES:
                    yield output  # on a slow connection, reading more input may take long
                    output, block = b"", block + _read_block(chunks)
                pending, block = pending + block, b""
            result: Future[tuple[bytes, bytes]] = Future()
            calls.put((result, pending))
            yield output  # the caller uses it while the thread works
            block = block or next(chunks, b"")
            output, pending = result.result()
        yield output
        gunzip.check_end()
    finally:
        calls.put(None)
        worker.join()


def _read_block(chunks: Iterator[bytes]) -> bytes:
    """Return the next chunks, joined to at least _MIN_INPUT_BYTES; less at the end."""
    block = b""
    for chunk in chunks:
        block += chunk
        if len(block) >= _MIN_INPUT_BYTES:
            break
    return block


def _run_calls(gunzip: _Gunzip, calls: queue.SimpleQueue[Any]) -> None:
    """Run the queued calls until None. A ThreadPoolExecutor would reject calls once the main thread has ended."""
    for result, data in iter(calls.get, None):
        try:
            result.set_result(gunzip.decompress(data))
        except BaseException as error:
            result.set_exception(error)


class _Gunzip:
    """A decompressor for several gzip members; zlib verifies their headers, CRCs and lengths."""

    def __init__(self) -> None:
        self._decompressor: Any = None  # of the current gzip member
        self._member_count = 0
        self._output_size = 0

    def decompress(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the next output, perhaps empty, and the unconsumed rest of *data*, which the next call must repeat."""
        if not self._decompressor:
            if data.startswith(b"\0"):
                return b"", data.lstrip(b"\0")  # padding: the caller appends input, so that isal gets a whole header
            self._start_member(data)
        decompressor = self._decompressor
        try:
            output = decompressor.decompress(data, _MAX_OUTPUT_BYTES)
        except zlib.error as error:  # type: ignore[misc]
            raise ContentError(f"damaged: {error}") from None
        self._output_size += len(output)
        if self._output_size > MAX_BYTES:
            raise ContentError(f"unpacks to more than {MAX_BYTES >> 20} MiB")
        if decompressor.eof:
            self._decompressor = None
            return output, decompressor.unused_data
        # When all input is consumed, zlib may still hold output. No loss: until eof, another call or an error follows.
        return output, decompressor.unconsumed_tail

    def _start_member(self, data: bytes) -> None:
        if not data.startswith(_GZIP_MAGIC):
            raise TrailingBytes("truncated: expected an end-of-archive block in the tar, got trailing data")
        if self._member_count == _MAX_MEMBERS:
            raise ContentError(f"more than {_MAX_MEMBERS} gzip members")
        self._decompressor = zlib.decompressobj(_GZIP)
        self._member_count += 1

    def check_end(self) -> None:
        """Raise `ContentError` if the input ended too early."""
        if self._decompressor:
            raise TruncatedError("truncated: the data ends before the gzip trailer")
        if self._output_size < tarfile.BLOCKSIZE:
            raise ContentError(f"not a tar: it unpacks to {self._output_size} bytes")


def _guess_format(start: bytes) -> str:
    for magic, name in _OTHER_FORMATS.items():
        if start.startswith(magic):
            return f"{name}. Unpack it and pass the folder"
    if start[257:262] == b"ustar":
        return "an uncompressed tar. Unpack it and pass the folder"
    return f"bytes that start with {start[:16]!r}"

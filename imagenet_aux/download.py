"""Bytes over HTTP(S) that outlive a bad line.

The proxy variables, ``REQUESTS_CA_BUNDLE`` and ``CURL_CA_BUNDLE`` are honoured as requests honours them, and
certificates are always verified.
"""

from __future__ import annotations

import email.utils
import http.client
import http.cookiejar
import logging
import re
import time
import urllib.parse
from typing import Any, Generator, Iterator, cast

import requests
import urllib3.exceptions

from .contents import MAX_BYTES
from .errors import SourceError, StartOver
from .prefetch import TimedOut, prefetch

_log = logging.getLogger(__name__)

_USER_AGENT = f"get-dataset-imagenet-aux (python-requests/{requests.__version__})"
_CHUNK = 1 << 18

CONNECT_SECONDS = 5.0  # for each address of a host, of which some have eight
ANSWER_SECONDS = 20.0  # from looking up the name to the end of the headers, redirections included
STALL_SECONDS = 15.0
MIN_BYTES = 4096  # in STALL_SECONDS of waiting: less is a stall, however regularly it drips
MAX_REDIRECTS = 20
MAX_TRIES = 5  # requests in a row that bring next to nothing new
NEXT_TO_NOTHING = 1 << 16
PATIENCE_SECONDS = 20.0  # without anything new, after which no further request is made

_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
# What is said of a failed request: the first line whose kind the error is of, or what it was made of.
_ERROR_TEXTS = (
    (requests.exceptions.ProxyError, "no way to {host} through the proxy: {}"),
    (requests.exceptions.SSLError, "no trusted connection to {host}: {}"),
    (http.client.IncompleteRead, "the line was cut"),
    (http.client.RemoteDisconnected, "no answer from {host}: {}"),
    (http.client.HTTPException, "what came from {host} is not HTTP: {}"),
    ((requests.ConnectionError, requests.Timeout), "no answer from {host}: {}"),
    (ValueError, "the address, or one that it redirects to, cannot be asked: {}"),
    (urllib3.exceptions.HTTPError, "the line broke: {}"),
)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)")


class _TransientError(Exception):
    """A fault that a further request may not meet; *wait* is the pause in seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Download:
    """The body of one URL, as an iterable of bytes.

    Iterating asks for the file, and asks for the rest of it whenever the line is cut or stalls.

    Parameters
    ----------
    url : str
        ``http://`` or ``https://``.

    Attributes
    ----------
    received : int
        Bytes handed on so far.
    size : int or None
        Bytes in all; None while the server has not said.
    joined : bool
        Whether they are the bytes of more than one answer.

    Raises
    ------
    SourceError
        While iterating, when the server cannot be reached or will not give the file: the reason of the last request.
    StartOver
        While iterating, when the rest cannot be joined to what came: the file is another one by now, or the server
        only sends it whole.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.received = 0
        self.size: int | None = None
        self.joined = False
        self._version: dict[str, str] = {}
        self._answered = False
        self._tries = 0
        self._tried_at = 0
        self._progress_at = time.monotonic()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                for chunk in self._ask():
                    self._take(chunk)
                    yield chunk
                self._check_whole()
                return
            except _TransientError as fault:
                self._wait_for_another_try(fault)

    def _ask(self) -> Iterator[bytes]:
        """Request the bytes that are still to come."""
        # In a thread: what a server sends in front of a body, drop by drop or without end, keeps requests for ever.
        answer = prefetch(_exchange(self.url, self._range()), ANSWER_SECONDS, STALL_SECONDS)
        try:
            self._read_head(self._head(answer))
            yield from _body(answer)
        finally:
            answer.close()

    def _head(self, answer: Iterator[Any]) -> requests.Response:
        try:
            return cast(requests.Response, next(answer))
        except Exception as error:  # requests lets many through that are not its own
            if not self._answered and _is_hopeless(error):
                raise SourceError(_reason(error)) from None
            raise _TransientError(_reason(error)) from None

    def _range(self) -> dict[str, str]:
        if not self.received:
            return {}
        headers = {"Range": f"bytes={self.received}-"}
        etag = self._version.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else self._version.get("Last-Modified")
        if validator:  # If-Range can hold a strong ETag, or else the date
            headers["If-Range"] = validator
        return headers

    def _read_head(self, response: requests.Response) -> None:
        """Take from an answer what it says of the file, or raise what it says of the request."""
        status = response.status_code
        self._answered = True
        if status in _RETRYABLE:
            raise _TransientError(_answered(response), _retry_after(response))
        if self.received and status in (200, 416):
            raise StartOver(f"the rest could not be had: {_answered(response)}")
        if self.received and status == 206:
            self._check_joins(response)
        elif status == 200:
            self.size = _length(response)
            self._version = _version(response)
        else:
            raise SourceError(_answered(response))
        if self.size is not None and self.size > MAX_BYTES:
            raise SourceError(f"the server offers {self.size} bytes; more than {MAX_BYTES >> 20} MiB cannot be right")

    def _check_joins(self, response: requests.Response) -> None:
        """Raise `StartOver` unless a partial answer goes on where the last one ended, in the same file."""
        given = response.headers.get("Content-Range", "")
        parts = _CONTENT_RANGE.fullmatch(given.strip())
        if not parts or int(parts[1]) != self.received:
            raise StartOver(f"asked for the bytes from {self.received} on, and got Content-Range {given!r}")
        if parts[2] != "*":
            total = int(parts[2])
            if self.size not in (None, total):
                raise StartOver(f"the file had {self.size} bytes, and has {total} now")
            self.size = total
        for name, value in _version(response).items():
            if self._version.get(name, value) != value:
                raise StartOver(f"the file had the {name} {self._version[name]}, and has {value} now")
        self.joined = True

    def _take(self, chunk: bytes) -> None:
        self.received += len(chunk)
        if self.received > MAX_BYTES:
            raise SourceError(f"the server sends more than {MAX_BYTES >> 20} MiB; that cannot be right")
        if self.received - self._tried_at >= NEXT_TO_NOTHING:
            self._tries, self._tried_at = 0, self.received
        self._progress_at = time.monotonic()

    def _check_whole(self) -> None:
        if self.size is not None and self.received != self.size:
            raise _TransientError(f"the line was cut after {self.received} of {self.size} bytes")

    def _wait_for_another_try(self, fault: _TransientError) -> None:
        """Pause before the next request, or give up with the fault as the reason."""
        self._tries += 1
        wait = fault.wait if fault.wait is not None else 0.25 * 2**self._tries
        waited = time.monotonic() - self._progress_at
        patience = PATIENCE_SECONDS if self._tries == 1 else PATIENCE_SECONDS - waited  # we may have been suspended
        if self._tries >= MAX_TRIES or wait > patience:
            asked = f", and asks to wait {fault.wait:.0f} s" if fault.wait else ""
            raise SourceError(
                f"{fault}{asked} (given up at try {self._tries} of {MAX_TRIES}, {waited:.0f} s without progress)"
            )
        _log.warning("%s; trying again in %.1f s", fault, wait)
        time.sleep(wait)


def _exchange(url: str, headers: dict[str, str]) -> Generator[Any, None, None]:
    """The answer to one request, behind its redirections, then its body in pieces, undecoded, as they arrive."""
    # A session for each request: the server may be closing the last connection without having said that it would.
    with requests.Session() as session:
        session.max_redirects = MAX_REDIRECTS
        session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))  # nobody here wants any
        session.hooks["response"].append(_drop_body_of_redirect)
        # Some servers label a .tar.gz with Content-Encoding: gzip; the file is wanted as it lies there.
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        with session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)) as response:
            yield response
            read = getattr(response.raw, "read1", response.raw.read)  # urllib3 has read1 since 2.1
            size = _CHUNK if hasattr(response.raw, "read1") else 1 << 14  # read loses what came of a piece that breaks
            while True:
                chunk = read(size, decode_content=False)
                if not chunk:
                    return
                yield chunk


def _drop_body_of_redirect(response: requests.Response, **_: object) -> None:
    """Have requests not read the body, as it otherwise does to the end, however long that is."""
    if response.is_redirect:
        response.close()


def _body(answer: Iterator[Any]) -> Iterator[bytes]:
    """What follows the head of an answer; raises `_TransientError` when the line breaks or stalls."""
    waited, came = 0.0, 0
    while True:
        before = time.monotonic()
        try:
            chunk = next(answer, None)
        except (TimedOut, urllib3.exceptions.HTTPError, OSError) as error:
            raise _TransientError(_reason(error)) from None
        if chunk is None:
            return
        waited, came = waited + time.monotonic() - before, came + len(chunk)
        if came >= MIN_BYTES:
            waited, came = 0.0, 0
        elif waited > STALL_SECONDS:
            raise _TransientError(f"the line stalled: {came} bytes in {waited:.0f} s")
        yield chunk


def _answered(response: requests.Response) -> str:
    return f"the server answered {response.status_code} {str(response.reason)[:100]}"


def _length(response: requests.Response) -> int | None:
    """Bytes in the body, None where the server does not say."""
    length = response.headers.get("Content-Length", "")
    chunked = "Transfer-Encoding" in response.headers
    return int(length[:18]) if re.fullmatch("[0-9]+", length) and not chunked else None


def _version(response: requests.Response) -> dict[str, str]:
    """What tells this version of the file from another one, of what the server gives."""
    return {name: response.headers[name] for name in ("ETag", "Last-Modified") if response.headers.get(name)}


def _retry_after(response: requests.Response) -> float | None:
    """Seconds to wait, None where the server does not say."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]+", value):
        return float(value[:18])
    try:
        date = email.utils.parsedate_tz(value)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError):
        return None


def _is_hopeless(error: Exception) -> bool:
    """Whether a first request failed in a way that asking once more will not mend within our patience."""
    if isinstance(error, (requests.Timeout, TimedOut)):
        return True
    if not isinstance(error, requests.ConnectionError):
        return True  # a redirect loop, an URL that is none
    if isinstance(error, (requests.exceptions.SSLError, requests.exceptions.ProxyError)):
        return True
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(cause, urllib3.exceptions.NewConnectionError)


def _reason(error: Exception) -> str:
    """What kept a request from its answer, or from the rest of it, in one line, without a password."""
    cause = _innermost(error)
    sentence = next(
        (sentence for kind, sentence in _ERROR_TEXTS if isinstance(error, kind) or isinstance(cause, kind)), "{}"
    )
    asked = getattr(error, "request", None)  # the last request, where there were redirections
    reason = sentence.format(
        " ".join(str(getattr(cause, "strerror", None) or cause).split()),
        host=urllib.parse.urlsplit(asked.url).hostname if asked is not None else "the server",
    )
    return re.sub(r"//[^/?#\s]*@", "//", reason)


def _innermost(error: BaseException) -> BaseException:
    """The error that others were made of: the system's own, where it was one of those."""
    while True:
        nested = [inner for inner in (getattr(error, "reason", None), *error.args) if isinstance(inner, BaseException)]
        behind = [inner for inner in (error.__cause__, error.__context__) if isinstance(inner, OSError)]
        if not nested + behind:
            return error
        error = (nested + behind)[0]

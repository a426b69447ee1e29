"""The command-line interface: arguments, signals, progress and the result file."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import os
import signal
import sys
import traceback
from typing import Any, Iterable, NoReturn, TextIO

from . import __version__
from .errors import FetchError, printable, redact
from .fetcher import fetch, target_folder
from .manifest import MANIFEST, Manifest
from .progress import Progress
from .streams import Stream
from .verify import File, inspect_folder, missing

_DESCRIPTION = "Fetch the Caffe ImageNet 2012 auxiliary files and verify them against their published digests."
_EXIT_CODES = "exit codes: 0 success; 1 failure; 2 usage error; 129, 130 or 143 interrupted by a signal"
_DEBUG = "IMAGENET_AUX_DEBUG"


class _Output(io.TextIOWrapper):
    """A wrapper for stdout or stderr that discards all output after a write error, so that Python exits cleanly."""

    def write(self, text: str) -> int:
        try:
            super().write(text)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        return len(text)


def run() -> NoReturn:
    """Run the command and exit with its code."""
    gc.disable()  # collection takes a tenth of the time, and frees little
    sys.stdout, sys.stderr = _output(sys.stdout), _output(sys.stderr)
    code = main()
    gc.freeze()  # skip the collection on exit
    sys.exit(code)


def main(argv: list[str] | None = None, manifest: Manifest = MANIFEST) -> int:
    """Run the command with *argv* (default: the process's arguments), and return its exit code."""
    parser = _parser()
    argv = sys.argv[1:] if argv is None else argv
    if any(argument.startswith("--") and argument.endswith("=--") for argument in argv):
        parser.error("option value: expected text, got '--'")  # before Python 3.13, argparse drops it
    args = parser.parse_args(argv)
    if args.command == "show":
        return _show(args.folder, manifest)
    return _fetch(args, manifest)


def _output(stream: TextIO | None) -> TextIO:
    """Wrap stdout or stderr so that writes never fail, even if the stream is closed, full or limited to ASCII."""
    if not isinstance(stream, io.TextIOWrapper):
        return open(os.devnull, "w", encoding="utf-8")
    with contextlib.suppress(OSError):
        stream.flush()  # before Python 3.9, stderr can hold earlier text
    return _Output(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("imagenet-aux", description=_DESCRIPTION, epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    text = "Download, verify and write the files."
    example = "example: imagenet-aux fetch caffe_ilsvrc12.tar.gz --into imagenet-aux"
    get = commands.add_parser("fetch", help=text, description=text, epilog=f"{example}; {_EXIT_CODES}")
    get.add_argument(
        "source",
        nargs="?",
        default="",
        metavar="SOURCE",
        help="http, https or file URL, or path of an archive or of a folder containing the files "
        "(default: the built-in mirrors, in turn)",
    )
    get.add_argument("--checksum", default="", metavar="HEX", help="expected MD5 or SHA-256 of the archive")
    get.add_argument("--into", default="data", metavar="FOLDER", help="where to write the files (default: %(default)s)")
    get.add_argument(
        "--replace",
        action="store_true",
        help="replace files in FOLDER that differ from the published ones, and remove files missing from SOURCE",
    )
    get.add_argument(
        "--result",
        default="",
        metavar="FILE",
        help="write the result or the error to FILE as JSON, and exit with 0",
    )
    get.add_argument("--pid", type=int, default=0, help="stop, as on SIGHUP, when process PID ends (not on Windows)")

    text = "List the files in a folder with their size, line count and verification status."
    example = "example: imagenet-aux show imagenet-aux"
    show = commands.add_parser("show", help=text, description=text, epilog=f"{example}; {_EXIT_CODES}")
    show.add_argument("folder", metavar="FOLDER", help="the folder to inspect")
    return parser


def _show(folder: str, manifest: Manifest) -> int:
    try:
        files = inspect_folder(folder, manifest)
    except OSError as error:
        return _fail(printable(f"{error.filename} cannot be read: {error.strerror}"))
    except KeyboardInterrupt:
        return _fail("interrupted by SIGINT", 128 + signal.SIGINT)
    print(_table(files, "published"), end="")
    missing_names = missing(files, manifest)
    if missing_names:
        print(printable(f"warning: missing from {folder}: {', '.join(missing_names)}"), file=sys.stderr)
    return 0 if not missing_names and all(file.verified for file in files) else 1


def _fetch(args: argparse.Namespace, manifest: Manifest) -> int:
    progress = Progress(sys.stderr)
    log = logging.getLogger(__package__)  # not the root: urllib3's warnings quote server data
    log.addHandler(progress)
    log.setLevel(logging.INFO)
    signals = _record_signals()

    def watch(stream: Stream) -> None:
        # Signals abort the fetch only here, never while files are moved.
        if _has_ended(args.pid):
            signals.append(signal.SIGHUP)  # as if its terminal had closed
        if signals:
            raise KeyboardInterrupt
        progress(stream)

    code = 0
    record: dict[str, Any] = {"requested": args.source, "folder": args.into}  # the content of the result file
    try:
        folder = record["folder"] = target_folder(args.into)
        result = fetch(args.source, folder, args.checksum, args.replace, manifest=manifest, watch=watch)
        record.update(source=result.source, verified=result.verified, files=list(result.paths))
    except KeyboardInterrupt:  # raised by `watch`
        code, record["error"] = 128 + signals[0], f"interrupted by {signal.Signals(signals[0]).name}"
    except FetchError as error:
        code, record["error"] = 1, str(error)
    except Exception as error:
        if os.environ.get(_DEBUG):
            progress.write(redact(traceback.format_exc()))
        text = traceback.format_exception_only(type(error), error)[-1].strip()
        code, record["error"] = 1, printable(redact(f"unexpected {text}. Set {_DEBUG}=1 for a traceback"))
    progress.clear()
    if not code:
        print(_table(result.files, "verified") + f"in {folder}")
    if args.result and not _has_ended(args.pid):  # the caller reads the error from it
        try:
            _write_atomically(args.result, json.dumps(record))
        except OSError as error:
            return _fail(printable(f"cannot write {args.result}: {error.strerror}"))
        return 0
    return _fail(record["error"], code) if code else 0


def _fail(text: str, code: int = 1) -> int:
    """Print an error and return the exit code."""
    print(f"error: {text}", file=sys.stderr)
    return code


def _record_signals() -> list[int]:
    """Install handlers for the stop signals; return a list to which they append each received signal."""
    received: list[int] = []
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) != signal.SIG_IGN:  # keep a disposition inherited from nohup
            signal.signal(number, lambda number, _: received.append(number))
    return received


def _has_ended(pid: int) -> bool:
    """Return whether a process has ended, even if its parent has not waited for it."""
    try:
        if pid and os.name == "posix":  # on Windows, os.kill() would end it
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat", "rb") as file:  # on Linux: "PID (NAME) STATE ..."
                return file.read().rpartition(b")")[2].startswith(b" Z")
    except OSError as error:  # otherwise no /proc, or another user's process
        return isinstance(error, ProcessLookupError)
    return False


def _table(files: Iterable[File], heading: str) -> str:
    rows = [("file", "bytes", "lines", heading)]
    for name, size, lines, verified in files:
        rows.append((name, f"{size:,}", "-" if lines is None else f"{lines:,}", "yes" if verified else "no"))
    return "".join(f"{name:<27}{size:>11}{lines:>11}  {verified}\n" for name, size, lines, verified in rows)


def _write_atomically(path: str, text: str) -> None:
    """Write a file under a temporary name, then rename it, so that readers never see a partial file."""
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        with open(path, "w", encoding="utf-8") as file:  # do not replace links or devices, such as /dev/stdout
            file.write(text)
        return
    part = f"{path}.{os.urandom(4).hex()}.part"
    try:
        with open(part, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise

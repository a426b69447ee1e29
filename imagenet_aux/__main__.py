"""The command: reads its arguments, shows progress, says how it went."""

from __future__ import annotations

import argparse
import gc
import io
import json
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, Iterable, NoReturn

from . import contents
from .contents import File
from .errors import FetchError
from .fetch import fetch
from .progress import Progress

_EXIT_CODES = """\
exit codes: 0 done; 1 the set cannot be had, or is not the published one; 2 wrong usage; 129, 130 or 143 interrupted"""

# What ends a process from outside and lets it clear away; Windows has no hang-up.
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM") if hasattr(signal, name)]


def main(argv: list[str] | None = None) -> int:
    """Carry out the command, and return its exit code."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may have letters that a pipe has not
    if args.command == "show":
        return _show(args.folder)
    return _fetch(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imagenet_aux",
        description="Fetch the Caffe ImageNet 2012 auxiliary files, and prove that they are the published ones.",
        epilog=_EXIT_CODES,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    get = commands.add_parser("fetch", help="put the files into a folder", epilog=_EXIT_CODES)
    get.add_argument(
        "source",
        nargs="?",
        default="",
        help="http, https or file URL, path of an archive, or path of a folder that holds the files; "
        "without it, the mirrors are asked in turn",
    )
    get.add_argument("--checksum", default="", metavar="HEX", help="MD5 or SHA-256 that the archive must have")
    get.add_argument("--into", default="data", metavar="FOLDER", help="where to put them (%(default)s)")
    get.add_argument(
        "--outcome", default="", metavar="FILE", help="write how it went to FILE, as JSON, and exit with 0"
    )
    show = commands.add_parser("show", help="list the files of a folder: size, lines, published or not")
    show.add_argument("folder")
    return parser


def _show(folder: str) -> int:
    if not os.path.isdir(folder):
        print(f"{folder}: there is no such folder", file=sys.stderr)
        return 1
    try:
        files = list(contents.examine(folder))
    except OSError as error:
        print(f"{error.filename}: cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    _show_table(files, "published", "")
    absent = contents.absent(files)
    if absent:
        print(f"{folder}: not there: {', '.join(absent)}", file=sys.stderr)
    return 0 if not absent and all(file.proved for file in files) else 1


def _fetch(args: argparse.Namespace) -> int:
    progress = Progress(sys.stderr)
    logging.basicConfig(stream=progress, level=logging.INFO, format="%(message)s")
    code, report = _carry_out(args, progress)
    if not args.outcome:
        return code
    try:
        _write_whole(args.outcome, json.dumps(report))
    except OSError as error:
        progress.write(f"error: cannot write {args.outcome}: {error.strerror}\n")
        return 1
    return 0


def _carry_out(args: argparse.Namespace, progress: Progress) -> tuple[int, dict[str, Any]]:
    """Fetch, and say how it went; the exit code, and the same for a program."""
    try:
        _on_signals(_stop)
        outcome = fetch(args.source, args.checksum, args.into, progress)
        _on_signals(signal.SIG_IGN)  # it is done, and said in a moment
    except (FetchError, OSError) as error:
        return 1, _say_failed(str(error), progress)
    except _Stopped as stop:
        return 128 + stop.number, _say_failed(f"stopped by signal {stop.number}", progress)
    progress.clear()
    _show_table(outcome.files, "verified", f"in {os.path.abspath(args.into)}\n")
    return 0, {
        "source": outcome.source,
        "verified": outcome.verified,
        "files": [file.name for file in outcome.files],
    }


def _say_failed(reason: str, progress: Progress) -> dict[str, Any]:
    _on_signals(signal.SIG_IGN)
    progress.write(f"error: {reason}\n")
    return {"error": reason}


class _Stopped(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """End as an error does, so that what was staged is cleared away."""
    _on_signals(signal.SIG_IGN)  # a second one would end the clearing away
    raise _Stopped(number)


def _on_signals(handler: Any) -> None:
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell sets it for what it runs in the background
            signal.signal(number, handler)


def _table(files: Iterable[File], heading: str) -> str:
    rows = [("file", "bytes", "lines", heading)]
    for name, size, lines, is_proved in files:
        rows.append((name, f"{size:,}", "-" if lines is None else f"{lines:,}", "yes" if is_proved else "no"))
    return "".join(f"{name:<27}{size:>11}{lines:>11}  {proved}\n" for name, size, lines, proved in rows)


def _show_table(files: Iterable[File], heading: str, below: str) -> None:
    """Print the table, unless nobody takes it: the files are in their place all the same."""
    try:
        print(_table(files, heading) + below, end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def _write_whole(path: str, text: str) -> None:
    """Write a file in such a way that nobody finds half of it."""
    part = path + ".part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


if __name__ == "__main__":
    # So short a life leaves nothing worth collecting, and looking for it takes a tenth of a cold fetch.
    gc.disable()
    code = main()
    gc.freeze()
    sys.exit(code)

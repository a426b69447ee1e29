"""Run ``python -m imagenet_aux`` without an engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Mapping, Sequence

import pytest
from cm_home import ROOT, WINDOWS, clean_env

from imagenet_aux.manifest import Manifest, Source

# Variables that disable coverage measurement, which doubles the time of a fetch, for code that other tests cover.
NO_COVERAGE = {"COVERAGE_PROCESS_START": ""}

# The wording of the progress lines.
PROGRESS = "{} of {} MB  {} MB/s  {} left"
PROGRESS_WITHOUT_SIZE = "{} MB  {} MB/s"
WAITING = "waiting for {} ({} s)"

# Turn warnings into errors, except urllib3's about LibreSSL, which Apple's Python uses.
_WARNINGS = ["-W", "error", "-W", "ignore:urllib3 v2 only supports OpenSSL"]


def start_command(
    folder: Path, *args: object, manifest: Manifest | None = None, prefix: Sequence[str] = (), **env: str
) -> subprocess.Popen[str]:
    """Start ``python -m imagenet_aux`` with these arguments in a folder.

    Parameters
    ----------
    folder : Path
        The working directory.
    args : object
        The arguments.
    manifest : Manifest, optional
        Files and mirrors to use instead of the published ones.
    prefix : sequence of str
        A wrapper command, to which the command is appended.
    env : str
        Additional environment variables.
    """
    program = ["-m", "imagenet_aux"]
    if manifest:
        program = [str(ROOT / "tests" / "run_with_manifest.py"), json.dumps(manifest)]
    return subprocess.Popen(
        [*prefix, sys.executable, *_WARNINGS, *program, *map(str, args)],
        cwd=folder,
        env=clean_env(**{"PYTHONPATH": str(ROOT), **env}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run_command(
    folder: Path, *args: object, manifest: Manifest | None = None, prefix: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m imagenet_aux`` as `start_command` does, and wait for it."""
    process = start_command(folder, *args, manifest=manifest, prefix=prefix, **env)
    try:
        stdout, stderr = process.communicate(timeout=100)
    finally:
        process.kill()
    assert "Traceback" not in stderr, stderr
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_at_start(folder: Path, code: str) -> dict[str, str]:
    """Return environment variables that make Python run this code at startup."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def line_pattern(line: str, *fields: str) -> str:
    """Return a regular expression for a line, with a pattern for each of its fields."""
    return re.escape(line).replace(r"\{\}", "{}").format(*fields)


def without_privileges() -> list[str]:
    """Return a command prefix that enforces file permissions even for root."""
    if WINDOWS or os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root bypasses permissions, and setpriv is not installed")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--"]


def make_manifest(files: Mapping[str, bytes], *mirrors: Source) -> Manifest:
    """Make a manifest with the digests of these files."""
    return Manifest({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, mirrors)


def write_file(path: Path, data: bytes) -> Path:
    """Write a file, create its folder if needed, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a new folder and return it."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """Read the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def read_data(folder: Path) -> dict[str, bytes]:
    """Read the files in the folder's ``data`` folder."""
    return read_files(folder / "data")

"""Run ``python -m imagenet_aux`` without an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cm_home import ROOT, clean_env

from imagenet_aux.manifest import Manifest

# For code paths that other tests measure: coverage doubles the time of a fetch.
NO_COVERAGE = {"COVERAGE_PROCESS_START": ""}

# A warning is an error, except urllib3's about LibreSSL, which Apple's Python is built with.
_WARNINGS = ["-W", "error", "-W", "ignore:urllib3 v2 only supports OpenSSL"]


def start_command(folder: Path, *args: object, manifest: Manifest | None = None, **env: str) -> subprocess.Popen[str]:
    """Start ``python -m imagenet_aux`` with these arguments in a folder.

    Parameters
    ----------
    folder : Path
        The working directory.
    args : object
        The arguments.
    manifest : Manifest, optional
        Files and mirrors to use instead of the published ones.
    env : str
        Additional environment variables.
    """
    program = ["-m", "imagenet_aux"]
    if manifest:
        program = [str(ROOT / "tests" / "run_with_manifest.py"), json.dumps(manifest)]
    return subprocess.Popen(
        [sys.executable, *_WARNINGS, *program, *map(str, args)],
        cwd=folder,
        env=clean_env(**{"PYTHONPATH": str(ROOT), **env}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run_command(
    folder: Path, *args: object, manifest: Manifest | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m imagenet_aux`` as `start_command` does, and wait for it."""
    process = start_command(folder, *args, manifest=manifest, **env)
    try:
        stdout, stderr = process.communicate(timeout=100)
    finally:
        process.kill()
    assert "Traceback" not in stderr, stderr
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def read_data(folder: Path) -> dict[str, bytes]:
    """Read the files in the folder's ``data`` folder."""
    data = folder / "data"
    return {path.name: path.read_bytes() for path in data.iterdir()} if data.exists() else {}

"""Run ``python -m imagenet_aux`` without an engine."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from cm_home import ROOT, clean_env

REAL_DIGESTS = {
    "det_synset_words.txt": "7b526fc8f4e4ed27a6b71d83dfec93c7ab2906b7cd257b996357bbe1aacf69ce",
    "imagenet.bet.pickle": "e77f4e9a9130e35385d2896c3d287d3a3f8836c9",
    "imagenet_mean.binaryproto": "b5863836b6777bdb3d336d94c791864500e2aebb49f7c2bf3d20110223da244f",
    "synset_words.txt": "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355",
    "synsets.txt": "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    "test.txt": "fecd6a03eb9f74811e52791295f4ddf62d4b8b6b31de2c73eafae7e9fbd896ee",
    "train.txt": "39ce41b8efe238c4970ce04283407a3c2290711d",
    "val.txt": "4138c0cd92d2dffea9353a9339c9f352361b7c6c267d2ff989b366f154188257",
}
DROPBOX_MD5 = "ee346d67141e476df9c1a3f813552503"
BERKELEY_SHA256 = "e35c0c1994a21f7d8ed49d01881ce17ab766743d3b0372cdc0183ff4d0dfc491"

# For code paths that other tests measure: coverage doubles the time of a fetch.
NO_COVERAGE = {"COVERAGE_PROCESS_START": ""}


def start_command(folder: Path, *args: object, package: Path = ROOT, **env: str) -> subprocess.Popen[str]:
    """Start ``python -m imagenet_aux`` with these arguments in a folder."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "imagenet_aux", *map(str, args)],
        cwd=folder,
        env=clean_env(**{"PYTHONPATH": str(package), **env}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run_command(folder: Path, *args: object, package: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m imagenet_aux`` with these arguments in a folder."""
    process = start_command(folder, *args, package=package, **env)
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


def package_for(files: dict[str, bytes], archive: bytes, folder: Path) -> Path:
    """Copy the package, and replace the published digests by those of these files and this archive."""
    digests = {
        DROPBOX_MD5: hashlib.md5(archive).hexdigest(),
        BERKELEY_SHA256: hashlib.sha256(archive).hexdigest(),
    }
    for name, real in REAL_DIGESTS.items():
        git_id = hashlib.sha1(b"blob %d\0" % len(files[name]) + files[name]).hexdigest()
        digests[real] = hashlib.sha256(files[name]).hexdigest() if len(real) == 64 else git_id
    shutil.copytree(ROOT / "imagenet_aux", folder / "imagenet_aux", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "imagenet_aux").iterdir():
        text = path.read_text()
        for real, made in digests.items():
            text = text.replace(real, made)
        path.write_text(text)
    return folder

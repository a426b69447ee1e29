"""Test installation with pip, and other builds of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cm_home import ROOT, clean_env
from command import run_command
from server import Server

pytestmark = pytest.mark.usefixtures("no_coverage")


def test_pip_installs_a_command_without_deprecation_warnings(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(ROOT / "imagenet_aux", source / "imagenet_aux", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--no-index"]
    log = subprocess.run(
        [*pip, "--target", str(target), str(source)],
        env=clean_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert log.returncode == 0, log.stdout
    assert "SetuptoolsDeprecationWarning" not in log.stdout
    assert list(target.glob("*.dist-info/**/LICENSE.md"))
    command = shutil.which("imagenet-aux", path=str(target / "bin"))
    assert command
    help_text = subprocess.check_output([command, "--help"], env=clean_env(PYTHONPATH=str(target)), encoding="utf-8")
    assert help_text.startswith("usage: imagenet-aux")


def test_fetches_with_libressl(tmp_path: Path, server: Server, archive: bytes) -> None:
    (tmp_path / "sitecustomize.py").write_text("import ssl\nssl.OPENSSL_VERSION = 'LibreSSL 2.8.3'\n")
    search_path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = run_command(tmp_path, "fetch", server.serve("a.tar.gz", archive), PYTHONPATH=search_path)
    assert result.returncode == 0, result.stderr

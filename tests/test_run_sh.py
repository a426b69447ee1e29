"""Test run.sh, called directly and with the inputs from the hooks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cm_home import ROOT, WINDOWS, clean_env
from server import Reply, Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the working folder for the call."""
    path = tmp_path / "any folder"
    path.mkdir()
    return path


def run(bash: str, folder: Path, *arguments: Any, script: Any = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``bash run.sh`` with these arguments in a folder."""
    return subprocess.run(
        [bash, os.path.join(script, "run.sh"), *map(str, arguments)],
        cwd=folder,
        env=clean_env(**{"CM_IMAGENET_AUX_PYTHON": sys.executable, **env}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )


def copy_script(folder: Path) -> Path:
    shutil.copytree(ROOT / "imagenet_aux", folder / "imagenet_aux", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.sh", folder)
    return folder


# Called directly


def test_without_arguments_fetches_cm_wget_url(
    bash: str, folder: Path, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    result = run(bash, folder, CM_WGET_URL=server.serve("a.tar.gz", archive))
    assert result.returncode == 0, result.stderr
    assert [path.name for path in folder.iterdir()] == ["data"]
    assert sorted(path.name for path in (folder / "data").iterdir()) == sorted(sample_files)


@pytest.mark.parametrize("checksum", ["0" * 32, "not hex"])
def test_without_arguments_verifies_the_checksum(checksum: str, bash: str, folder: Path, archive: bytes) -> None:
    (folder / "a.tar.gz").write_bytes(archive)
    result = run(bash, folder, CM_WGET_URL="a.tar.gz", CM_IMAGENET_AUX_CHECKSUM=checksum)
    assert result.returncode == 1 and checksum in result.stderr


@pytest.mark.parametrize("name", ["-a.tar.gz", "a b.tar.gz"])
def test_without_arguments_accepts_any_file_name(name: str, bash: str, folder: Path, archive: bytes) -> None:
    (folder / name).write_bytes(archive)
    result = run(bash, folder, CM_WGET_URL=name)
    assert result.returncode == 0, result.stderr


def test_runs_python3_by_default(bash: str, folder: Path, tmp_path: Path, archive: bytes) -> None:
    (folder / "a.tar.gz").write_bytes(archive)
    for name, command in {"python3": f"exec '{Path(sys.executable).as_posix()}' \"$@\"", "python": "exit 9"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    result = run(bash, folder, "a.tar.gz", CM_IMAGENET_AUX_PYTHON="", PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr


def test_passes_its_arguments_on(bash: str, folder: Path, archive: bytes, sample_files: dict[str, bytes]) -> None:
    (folder / "a b.tar.gz").write_bytes(archive)
    result = run(bash, folder, "a b.tar.gz", "--into", "the files", CM_WGET_URL="ignored")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (folder / "the files").iterdir()) == sorted(sample_files)


@pytest.mark.parametrize("arguments", [["a.tar.gz"], []])
def test_runs_with_bash_options(arguments: list[str], bash: str, folder: Path, archive: bytes) -> None:
    """The options make unset variables and failed commands fatal."""
    (folder / "a.tar.gz").write_bytes(archive)
    result = run(bash, folder, *arguments, CM_WGET_URL="a.tar.gz", SHELLOPTS="errexit:nounset:pipefail")
    assert result.returncode == 0, result.stderr


def test_prints_help(bash: str, folder: Path) -> None:
    result = run(bash, folder, "--help")
    assert result.returncode == 0 and "--into" in result.stdout


@pytest.mark.parametrize(("arguments", "code"), [(["missing.tar.gz"], 1), (["--unknown"], 2)])
def test_exits_with_the_fetchers_code(arguments: list[str], code: int, bash: str, folder: Path) -> None:
    assert run(bash, folder, *arguments).returncode == code
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["with:colon", "with space", "données", "-dash", "it's"])
def test_runs_from_a_folder_of_any_name(name: str, bash: str, tmp_path: Path, archive: bytes) -> None:
    if WINDOWS and ":" in name:
        pytest.skip("Windows does not allow these file names")
    script = copy_script(tmp_path / name)
    (tmp_path / "a.tar.gz").write_bytes(archive)
    result = run(bash, tmp_path, "a.tar.gz", script=script)
    assert result.returncode == 0, result.stderr


def test_runs_from_its_own_folder(bash: str, tmp_path: Path, archive: bytes) -> None:
    script = copy_script(tmp_path / "script")
    (script / "a.tar.gz").write_bytes(archive)
    assert run(bash, script, "a.tar.gz", script="").returncode == 0


@pytest.mark.parametrize("module", ["json", "shutil", "requests", "imagenet_aux"])
def test_imports_nothing_from_the_current_folder(module: str, bash: str, folder: Path, archive: bytes) -> None:
    (folder / f"{module}.py").write_text("raise SystemExit('imported from the current folder')\n")
    (folder / "a.tar.gz").write_bytes(archive)
    result = run(bash, folder, "a.tar.gz")
    assert result.returncode == 0, result.stderr


def test_keeps_the_callers_pythonpath(bash: str, folder: Path, tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.stderr.write('sitecustomize ran\\n')\n")
    (folder / "a.tar.gz").write_bytes(archive)
    result = run(bash, folder, "a.tar.gz", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0 and "sitecustomize ran" in result.stderr


@pytest.mark.skipif(WINDOWS, reason="Windows cannot send this signal")
def test_signal_to_the_shell_ends_the_fetcher(bash: str, folder: Path, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(stop_at=9, then="stall"))
    env = clean_env(CM_IMAGENET_AUX_PYTHON=sys.executable)
    with subprocess.Popen([bash, str(ROOT / "run.sh"), url], cwd=folder, env=env, stderr=subprocess.PIPE) as process:
        server.wait_for_requests(process)
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and b"interrupted by SIGTERM" in printed
    assert list(folder.iterdir()) == []


# Called with the inputs from the hooks


def hook_variables(source: str) -> dict[str, str]:
    """Return the variables that the hooks set."""
    return {
        "CM_IMAGENET_AUX_PYTHON": sys.executable,
        "CM_IMAGENET_AUX_SOURCE": source,
        "CM_IMAGENET_AUX_CHECKSUM": "",
        "CM_IMAGENET_AUX_INTO": "the files",
        "CM_IMAGENET_AUX_RESULT": "the result.json",
        "CM_IMAGENET_AUX_PID": str(os.getpid()),
        "CM_IMAGENET_AUX_REPLACE": "",
    }


@pytest.mark.parametrize("name", ["-a.tar.gz", "a b.tar.gz"])
def test_writes_the_files_and_the_result(
    name: str, bash: str, folder: Path, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    (folder / name).write_bytes(archive)
    result = run(bash, folder, **hook_variables(name))
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (folder / "the files").iterdir()) == sorted(sample_files)
    written = json.loads((folder / "the result.json").read_text(encoding="utf-8"))
    assert written["source"] == str(folder / name)


def test_exits_with_0_if_python_cannot_start(bash: str, folder: Path) -> None:
    assert run(bash, folder, **{**hook_variables("a.tar.gz"), "CM_IMAGENET_AUX_PYTHON": "missing"}).returncode == 0


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX process groups")
def test_interruption_removes_the_result(bash: str, folder: Path, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(stop_at=9, then="stall"))
    process = subprocess.Popen(
        [bash, str(ROOT / "run.sh")],
        cwd=folder,
        env=clean_env(**hook_variables(url)),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        server.wait_for_requests(process)
        os.killpg(process.pid, signal.SIGTERM)
        printed = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and printed.splitlines()[-1] == b"error: interrupted"
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX process groups")
def test_interruption_before_there_is_a_result(bash: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os.killpg(0, 15)\n")
    env = clean_env(**hook_variables("a.tar.gz"), PYTHONPATH=str(tmp_path))
    call = [bash, str(ROOT / "run.sh")]
    result = subprocess.run(call, cwd=folder, env=env, capture_output=True, start_new_session=True, timeout=60)
    assert result.returncode == 0 and result.stderr.endswith(b"error: interrupted\n")
    assert b"rm:" not in result.stderr

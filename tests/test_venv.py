"""Test the environment that tests/venv.sh creates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the Python stub is a shell script")

# A stand-in for python3: counts the environments that it creates, and omits pip to save time.
STUB = f"""#!/bin/sh
case $2 in
venv) echo venv >>created; exec "{sys.executable}" "$@" --without-pip ;;
*) echo "${{VERSION:-$("{sys.executable}" "$@")}}" ;;
esac
"""


class Project:
    """A folder with tests/venv.sh and a script that prints its temporary folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "tests").mkdir(parents=True)
        shutil.copy(Path(__file__).parent / "venv.sh", path / "tests")
        (path / "tests" / "try.sh").write_text('. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"\necho "$TMPDIR"\n')
        (path / "python3").write_text(STUB)
        (path / "python3").chmod(0o755)

    @property
    def packages(self) -> Path:
        return next((self.path / ".venv" / "lib").glob("python3*/site-packages"))

    def run(self, bash: str, **env: str) -> str:
        """Run the script and return what it prints."""
        env = {"PATH": f"{self.path}{os.pathsep}{os.environ['PATH']}", **env}
        script = [bash, self.path / "tests" / "try.sh"]
        return subprocess.run(script, cwd="/", env=env, capture_output=True, check=True, encoding="utf-8").stdout

    def created(self) -> int:
        """Count the environments that were created."""
        return len((self.path / "created").read_text().split())

    def add_pip(self) -> None:
        (self.packages / "pip").mkdir()
        (self.packages / "pip" / "__main__.py").touch()


@pytest.fixture
def project(tmp_path: Path, bash: str) -> Project:
    project = Project(tmp_path / "a project")
    project.run(bash)
    project.add_pip()
    return project


def test_usable_venv_is_kept(project: Project, bash: str) -> None:
    project.run(bash)
    project.run(bash, PYTHON=str(project.path / "python3"))
    assert project.created() == 1


def test_venv_of_another_version_is_recreated(project: Project, bash: str) -> None:
    project.run(bash, PYTHON=str(project.path / "python3"), VERSION="3.8.0 of another build")
    assert project.created() == 2


@pytest.mark.parametrize("damage", ["empty", "no pip", "no Python", "interrupted package", "moved"])
def test_unusable_venv_is_recreated(project: Project, bash: str, damage: str) -> None:
    venv = project.path / ".venv"
    if damage == "empty":
        shutil.rmtree(venv)
        venv.mkdir()
    elif damage == "no pip":
        shutil.rmtree(project.packages / "pip")
    elif damage == "no Python":
        for python in (venv / "bin").glob("python*"):
            python.unlink()
            python.symlink_to("/nonexistent/python")
    elif damage == "interrupted package":
        (project.packages / "example-1.0.dist-info").mkdir()
    else:
        project.path = project.path.rename(project.path.with_name("moved"))
    project.run(bash)
    assert project.created() == 2


def test_each_requests_release_has_its_own_venv(project: Project, bash: str) -> None:
    project.run(bash, REQUESTS="2.28.1")
    project.run(bash)
    assert project.created() == 2
    assert (project.path / ".venv-requests-2.28.1").is_dir()


def test_temporary_folder_is_removed_on_exit(project: Project, bash: str, tmp_path: Path) -> None:
    printed = project.run(bash, TMPDIR=str(tmp_path))
    assert printed.startswith(str(tmp_path))
    assert not Path(printed.strip()).exists()


def test_missing_temporary_folder_is_replaced(project: Project, bash: str, tmp_path: Path) -> None:
    assert not project.run(bash, TMPDIR=str(tmp_path / "missing")).startswith(str(tmp_path))


def test_python_variables_do_not_reach_the_checks(project: Project, bash: str) -> None:
    (project.path / "tests" / "try.sh").write_text('. "$(dirname "$0")/venv.sh"\necho "${!PYTHON*}"\n')
    assert project.run(bash, PYTHONPATH="/nonexistent", PYTHONOPTIMIZE="1").strip() == ""

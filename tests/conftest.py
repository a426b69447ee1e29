from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Iterator

import pytest
import standin
from home import ROOT, Home
from server import Server

REAL = ROOT.parent / "shared" / "aux-real"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def home(tmp_path: Path, template: Home) -> Home:
    path = tmp_path / "home"
    path.mkdir()
    return Home(path, template)


@pytest.fixture(scope="session")
def bash() -> str:
    """What runs a bash script: by its path, since Windows would first look for one that runs Linux's programs."""
    found = shutil.which("bash")
    if not found:
        pytest.skip("there is no bash")
    return found


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def small() -> dict[str, bytes]:
    """The eight files, at a hundredth of their scale."""
    return standin.files(0.01)


@pytest.fixture(scope="session")
def archive(small: dict[str, bytes]) -> bytes:
    """These files as an archive."""
    return standin.pack(standin.members(small))


@pytest.fixture
def real() -> Path:
    """The folder of the six published files that can be had."""
    if not REAL.is_dir():
        pytest.skip(f"the published files are not at {os.path.relpath(REAL, ROOT)}")
    return REAL

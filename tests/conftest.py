from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Iterator

import pytest
import sample_archive
from cm_home import ROOT, CmHome
from command import write_files
from server import Server

from imagenet_aux.manifest import MANIFEST

PUBLISHED = ROOT.parent / "shared" / "aux-real"


@pytest.fixture(scope="session")
def home_template(tmp_path_factory: pytest.TempPathFactory) -> CmHome:
    return CmHome(tmp_path_factory.mktemp("template"))


@pytest.fixture
def home(tmp_path: Path, home_template: CmHome) -> CmHome:
    path = tmp_path / "home"
    path.mkdir()
    return CmHome(path, home_template)


@pytest.fixture(scope="session")
def bash() -> str:
    """Return the absolute path of bash, because Windows would resolve ``bash`` to WSL's."""
    found = shutil.which("bash")
    if not found:
        pytest.skip("bash is not installed")
    return found


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def sample_files() -> dict[str, bytes]:
    """Make every file of the manifest, at about a hundredth of the published size."""
    files = sample_archive.make_files(0.01)
    return {name: files.get(name, b"sample\n") for name in MANIFEST.files}


@pytest.fixture(scope="session")
def old_files(sample_files: dict[str, bytes]) -> dict[str, bytes]:
    """Make files that all differ from the sample files."""
    return {name: data[::-1] for name, data in sample_files.items()}


@pytest.fixture(scope="session")
def archive(sample_files: dict[str, bytes]) -> bytes:
    """Pack the sample files."""
    return sample_archive.pack_files(sample_files)


@pytest.fixture
def published_folder() -> Path:
    """Return a folder with six of the published files."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published files are not at {os.path.relpath(PUBLISHED, ROOT)}")
    return PUBLISHED


@pytest.fixture
def source(tmp_path: Path, sample_files: dict[str, bytes]) -> Path:
    """Return a folder with the sample files."""
    return write_files(tmp_path / "source", sample_files)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder

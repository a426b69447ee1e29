from __future__ import annotations

import collections
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest
import sample_archive
from cm_home import ROOT, WINDOWS, CmHome
from command import NO_COVERAGE, write_files
from server import Server

from imagenet_aux.manifest import MANIFEST

PUBLISHED = ROOT.parent / "shared" / "aux-real"
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread each module's tests over the whole run, so that tests that wait run beside tests that compute."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        modules = [item.nodeid.partition("::")[0] for item in items]
        sizes = collections.Counter(modules)
        seen: collections.Counter[str] = collections.Counter()
        positions = {}
        for item, module in zip(items, modules):
            positions[item] = seen[module] / sizes[module]
            seen[module] += 1
        items.sort(key=positions.__getitem__)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Return a function that makes a folder once for all xdist workers, given its name and a function to fill it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # contains the temporary folders of all workers

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder = base / name
        with lock(base / f"{name}.lock"):
            if not folder.exists():
                folder.mkdir()
                try:
                    fill(folder)
                except BaseException:
                    shutil.rmtree(folder)
                    raise
        return folder

    return make


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock. The lock is a folder, because only one process can create it."""
    deadline = time.monotonic() + 300
    while True:
        try:
            path.mkdir()
            break
        except FileExistsError:
            assert time.monotonic() < deadline, f"{path} stays locked"
            time.sleep(0.05)
    try:
        yield
    finally:
        path.rmdir()


@pytest.fixture(scope="session")
def home_template(make_once: MakeOnce) -> Path:
    return make_once("home", CmHome)


@pytest.fixture
def home(tmp_path: Path, home_template: Path) -> CmHome:
    path = tmp_path / "home"
    path.mkdir()
    return CmHome(path, home_template)


@pytest.fixture
def no_coverage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable coverage measurement of child processes, except in tests marked as ``measured``.

    Measuring doubles their run time. Use this in modules that test code which other modules cover.
    """
    if not request.node.get_closest_marker("measured"):
        for name, value in NO_COVERAGE.items():
            monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables that would affect the HTTP requests of this process."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
            monkeypatch.delenv(name)


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Restore the default signal handlers, which child processes inherit, in case the tests run under nohup."""
    numbers = [] if WINDOWS else [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    handlers = {number: signal.getsignal(number) for number in numbers}
    for number, handler in handlers.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


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
    """Make every file in the manifest, at about a hundredth of the published size."""
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

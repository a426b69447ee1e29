"""Test the Python API and the installed command."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sample_archive
from cm_home import ROOT, WINDOWS, clean_env
from command import NO_COVERAGE, make_manifest, read_files, write_files
from conftest import MakeOnce
from server import Server

import imagenet_aux
from imagenet_aux.manifest import MANIFEST, Manifest, Source
from imagenet_aux.verify import File

pytestmark = pytest.mark.usefixtures("no_coverage")
NAMES = list(MANIFEST.files)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def source(tmp_path: Path, sample_files: dict[str, bytes]) -> Path:
    """Return a folder with the sample files and one published file."""
    return write_files(tmp_path / "source", {**sample_files, "test.txt": sample_archive.make_test_txt()})


@pytest.fixture
def manifest(server: Server, sample_files: dict[str, bytes], archive: bytes) -> Manifest:
    """Return a manifest with the digests of the sample files, a broken mirror and a working one."""
    return make_manifest(sample_files, Source(server.url + "/broken"), Source(server.serve("a.tar.gz", archive)))


def test_public_names() -> None:
    assert set(imagenet_aux.__all__) == {"FetchError", "fetch", "inspect_folder"}
    assert all(getattr(imagenet_aux, name).__doc__ for name in imagenet_aux.__all__)


@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
def test_fetch_returns_paths_and_verification_results(as_text: bool, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    result = imagenet_aux.fetch(str(source), str(folder)) if as_text else imagenet_aux.fetch(source, folder)
    assert (result.source, result.folder, result.verified) == (str(source), str(folder), False)
    assert result.paths == {name: str(folder / name) for name in NAMES}
    assert [file.name for file in result.files if file.verified] == ["test.txt"]
    assert result.files[NAMES.index("test.txt")] == File("test.txt", 3_200_000, 100_000, True)
    assert read_files(folder) == read_files(source)


def test_fetch_writes_into_data_by_default(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert imagenet_aux.fetch("source").folder == str(tmp_path / "data")
    assert read_files(tmp_path / "data") == read_files(source)


def test_result_stays_valid_in_another_working_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = imagenet_aux.fetch(source, "data")
    monkeypatch.chdir("/")
    assert all(os.path.isfile(path) for path in result.paths.values())


def test_fetch_with_a_checksum(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive)
    assert imagenet_aux.fetch(tmp_path / "a.tar.gz", tmp_path / "data", digest(archive)).verified
    with pytest.raises(imagenet_aux.FetchError, match="SHA-256 mismatch: expected 00"):
        imagenet_aux.fetch(tmp_path / "a.tar.gz", tmp_path / "other", "0" * 64)
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 12, 2), reason="these versions start no threads at exit")
def test_fetch_in_a_thread_continues_after_the_main_thread(tmp_path: Path, server: Server, archive: bytes) -> None:
    program = (
        "import imagenet_aux, sys, threading\n"
        "def work():\n"
        "    threading.main_thread().join()\n"
        "    print(imagenet_aux.fetch(sys.argv[1]).folder)\n"
        "threading.Thread(target=work).start()\n"
    )
    command = [sys.executable, "-c", program, server.serve("a.tar.gz", archive)]
    env = clean_env(PYTHONPATH=str(ROOT), **NO_COVERAGE)
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.stdout == f"{tmp_path / 'data'}\n", result.stderr


def test_fetch_replaces_other_files_only_if_allowed(source: Path, tmp_path: Path) -> None:
    data = write_files(tmp_path / "data", {"val.txt": b"mine"})
    with pytest.raises(imagenet_aux.FetchError, match=r"val\.txt.* pass --replace"):
        imagenet_aux.fetch(source, data)
    assert read_files(data) == {"val.txt": b"mine"}
    imagenet_aux.fetch(source, data, replace=True)
    assert read_files(data) == read_files(source)


def test_fetch_tries_the_mirrors_in_a_manifest(
    manifest: Manifest, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    result = imagenet_aux.fetch(into=tmp_path / "data", manifest=manifest)
    assert result.verified and result.source == manifest.mirrors[1].address
    assert read_files(tmp_path / "data") == sample_files


def test_fetch_downloads_nothing_if_the_target_is_complete(
    manifest: Manifest, server: Server, tmp_path: Path, sample_files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    data = write_files(tmp_path / "data", {**sample_files, "mine.txt": b"mine"})
    with caplog.at_level(logging.INFO, "imagenet_aux"):
        result = imagenet_aux.fetch(into=data, replace=True, manifest=manifest)
    assert caplog.messages == [f"{data} already contains the files"]
    assert (result.source, result.folder, result.verified) == (str(data), str(data), True)
    assert list(result.paths) == NAMES
    assert server.requests == [] and read_files(data) == {**sample_files, "mine.txt": b"mine"}


@pytest.mark.skipif(WINDOWS, reason="NTFS allocates the space of a file that is not marked as sparse")
def test_fetch_does_not_read_huge_files_in_the_target(
    manifest: Manifest, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    data = write_files(tmp_path / "data", sample_files)
    with (data / "val.txt").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file, which would take minutes to read
    with pytest.raises(imagenet_aux.FetchError, match=r"contains other files named val\.txt"):
        imagenet_aux.fetch(into=data, manifest=manifest)


@pytest.mark.parametrize("call", ["missing file", "other file", "source", "checksum"])
def test_fetch_downloads_into_a_complete_target_if_needed(
    call: str, manifest: Manifest, server: Server, tmp_path: Path, sample_files: dict[str, bytes], archive: bytes
) -> None:
    data = write_files(tmp_path / "data", sample_files)
    if call == "missing file":
        (data / "val.txt").unlink()
    elif call == "other file":
        (data / "val.txt").write_bytes(b"other")
    options = {"source": {"source": manifest.mirrors[1].address}, "checksum": {"checksum": digest(archive)}}
    result = imagenet_aux.fetch(into=data, replace=True, manifest=manifest, **options.get(call, {}))
    assert result.source == manifest.mirrors[1].address and len(server.requests_for("a.tar.gz")) == 1
    assert read_files(data) == sample_files


def test_warnings_hide_the_passwords_of_mirrors(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = (Source(mirror.address.replace("//", "//user:secret@")) for mirror in manifest.mirrors)
    with caplog.at_level(logging.INFO, "imagenet_aux"):
        result = imagenet_aux.fetch(into=tmp_path / "data", manifest=manifest._replace(mirrors=(broken, good)))
    assert result.source == manifest.mirrors[1].address
    assert f"{manifest.mirrors[0].address}: the server responded 404 Not Found" in caplog.text
    assert "secret" not in caplog.text


def test_warnings_hide_the_password_with_an_optional_file(
    server: Server, tmp_path: Path, sample_files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    data = sample_files["val.txt"]
    files = {"val.txt": server.serve("val.txt", data), "test.txt": server.url + "/missing"}
    mirror = Source("http://user:secret@host", locations=files, optional=("test.txt",))
    digests = {"val.txt": digest(data), "test.txt": digest(b"")}
    imagenet_aux.fetch(into=tmp_path / "data", manifest=Manifest(digests, (mirror,)))
    assert "http://host: test.txt: the server responded 404" in caplog.text
    assert "secret" not in caplog.text


def test_fetch_reports_all_mirrors(manifest: Manifest, tmp_path: Path) -> None:
    broken = manifest._replace(mirrors=manifest.mirrors[:1] * 2)
    with pytest.raises(imagenet_aux.FetchError) as caught:
        imagenet_aux.fetch(into=tmp_path / "data", manifest=broken)
    first, *reasons = str(caught.value).splitlines()
    assert first.startswith("none of the 2 mirrors could be reached. ")
    assert reasons == [f"{broken.mirrors[0].address}: the server responded 404 Not Found"] * 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, BrokenPipeError, ValueError, imagenet_aux.FetchError])
@pytest.mark.parametrize("is_local", [True, False])
def test_exception_in_watch_aborts_the_fetch(
    kind: type[BaseException], is_local: bool, source: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """The exception is not mistaken for a file, connection or mirror error."""
    error = kind("mine")

    def watch(stream: object) -> None:
        raise error

    with pytest.raises(kind) as caught:
        imagenet_aux.fetch(source if is_local else "", tmp_path / "data", manifest=manifest, watch=watch)
    assert caught.value is error
    assert not (tmp_path / "data").exists()


def test_empty_source_and_checksum_can_be_none(manifest: Manifest, tmp_path: Path) -> None:
    none: Any = None
    assert imagenet_aux.fetch(none, tmp_path / "data", none, manifest=manifest).verified


def test_target_cannot_be_empty(source: Path) -> None:
    with pytest.raises(imagenet_aux.FetchError, match=r"^target: expected a folder, got an empty path$"):
        imagenet_aux.fetch(source, "")


def test_target_cannot_contain_nul(source: Path) -> None:
    with pytest.raises(imagenet_aux.FetchError, match=r"a\\x00b: expected a path, got a NUL character$"):
        imagenet_aux.fetch(source, "a\0b")


def test_target_can_be_in_the_home_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert imagenet_aux.fetch(source, os.path.join("~", "data")).folder == str(tmp_path / "data")


@pytest.mark.parametrize("name", ["missing", "source/val.txt"])
def test_inspect_folder_requires_a_folder(name: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        imagenet_aux.inspect_folder(tmp_path / name)


def test_fetch_prints_only_warnings(source: Path, tmp_path: Path) -> None:
    """Python prints warnings to stderr unless logging is configured."""
    program = "import imagenet_aux, sys; imagenet_aux.fetch(sys.argv[1], sys.argv[2])"
    result = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "data")],
        env=clean_env(PYTHONPATH=str(ROOT)),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert result.stdout == "" and result.stderr.startswith("differs from the published file: ")


def test_import_and_local_fetch_do_not_import_requests(source: Path, tmp_path: Path) -> None:
    program = (
        "import imagenet_aux, sys\n"
        "imagenet_aux.fetch(sys.argv[1], sys.argv[2])\n"
        "imagenet_aux.inspect_folder(sys.argv[2])\n"
        "sys.exit('requests' in sys.modules or 'urllib3' in sys.modules or 'cmind' in sys.modules)"
    )
    call = [sys.executable, "-c", program, str(source), str(tmp_path / "data")]
    subprocess.run(call, env=clean_env(PYTHONPATH=str(ROOT)), check=True, stderr=subprocess.DEVNULL)


def test_inspect_folder(source: Path, manifest: Manifest, sample_files: dict[str, bytes]) -> None:
    (source / "val.txt").unlink()
    for folder in (source, str(source)):
        files = imagenet_aux.inspect_folder(folder)
        assert [file.name for file in files] == [name for name in NAMES if name != "val.txt"]
        assert [file.name for file in files if file.verified] == ["test.txt"]
    files = imagenet_aux.inspect_folder(source, manifest)
    assert [file.name for file in files if not file.verified] == ["test.txt"]
    assert files[0] == File(NAMES[0], len(sample_files[NAMES[0]]), sample_files[NAMES[0]].count(b"\n"), True)


def run_pip(*arguments: object) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    env = clean_env(**NO_COVERAGE)
    result = subprocess.run([*pip, *map(str, arguments)], env=env, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="session")
def installed(make_once: MakeOnce) -> Path:
    """Install the project with pip into a new environment and return the folder of its commands."""
    venv = pytest.importorskip("venv", reason="Python's embeddable Windows build has no venv")
    commands = Path("venv", "Scripts" if WINDOWS else "bin")

    def install(folder: Path) -> None:
        shutil.copytree(ROOT / "imagenet_aux", folder / "imagenet_aux", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "LICENSE.md"):
            shutil.copy(ROOT / name, folder)
        run_pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheel", folder)
        venv.create(folder / "venv", symlinks=not WINDOWS)
        python = folder / commands / "python"
        run_pip("--python", python, "install", "--no-deps", "--no-index", *(folder / "wheel").iterdir())

    return make_once("installed", install) / commands


@pytest.mark.parametrize("command", [["imagenet-aux"], ["python", "-m", "imagenet_aux"]], ids=["script", "module"])
def test_installed_command(command: list[str], installed: Path, source: Path, tmp_path: Path) -> None:
    """Run the command in an environment without the requests and cmind packages."""
    call = [str(installed / command[0]), *command[1:]]
    version = subprocess.run([*call, "--version"], env=clean_env(), capture_output=True, encoding="utf-8", check=True)
    assert version.stdout == f"{imagenet_aux.__version__}\n"
    subprocess.run([*call, "fetch", str(source)], cwd=tmp_path, env=clean_env(), check=True)
    assert read_files(tmp_path / "data") == read_files(source)


def test_type_checkers_use_the_annotations(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = "import imagenet_aux; reveal_type(imagenet_aux.fetch().paths)"
    call = [sys.executable, "-m", "mypy", "--python-executable", str(installed / "python"), "-c", program]
    result = subprocess.run(call, cwd=tmp_path, env=clean_env(**NO_COVERAGE), capture_output=True, encoding="utf-8")
    assert re.search(r'Revealed type is "(builtins\.)?dict\[(builtins\.)?str, (builtins\.)?str\]"', result.stdout), (
        result.stdout
    )

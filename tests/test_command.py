"""``python -m imagenet_aux`` by itself: its words, its exit codes, what it says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sample_archive
from cm_home import ROOT, clean_env
from command import read_data, run_command
from server import Reply, Server

from imagenet_aux import mirrors

ENV = clean_env(PYTHONPATH=str(ROOT))


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("words", [["--help"], ["fetch", "--help"], ["show", "--help"]], ids=" ".join)
def test_help_fits_on_a_screen(words: list[str], tmp_path: Path) -> None:
    lines = run_command(tmp_path, *words, COLUMNS="80").stdout.splitlines()
    assert 5 < len(lines) <= 24 and max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", [["--help"], ["fetch", "FOLDER"], ["show", "FOLDER"]], ids=" ".join)
def test_imports_requests_only_for_http(words: list[str], tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    folder = write_all(tmp_path / "mine", sample_files)
    program = (
        "import sys\nfrom imagenet_aux.__main__ import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit('requests' in sys.modules)"
    )
    words = [str(folder) if word == "FOLDER" else word for word in words]
    call = [sys.executable, "-c", program, *words]
    assert subprocess.run(call, cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL).returncode == 0


def test_fetch_puts_the_files_where_it_is_told_to(tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    folder = write_all(tmp_path / "mine", sample_files)
    assert run_command(tmp_path, "fetch", folder, "--into", "other").returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()} == sample_files
    assert read_data(tmp_path) == {}


def test_fetch_writes_its_outcome_where_it_is_told_to_and_then_exits_with_0(
    tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    folder = write_all(tmp_path / "mine", sample_files)
    assert run_command(tmp_path, "fetch", folder, "--result", "good.json").returncode == 0
    assert json.loads((tmp_path / "good.json").read_text()) == {
        "source": str(folder),
        "verified": False,
        "files": sorted(sample_files),
    }
    assert run_command(tmp_path, "fetch", "nowhere", "--result", "bad.json").returncode == 0
    assert json.loads((tmp_path / "bad.json").read_text()) == {
        "error": f"{tmp_path / 'nowhere'}: there is no such file or folder"
    }


def test_show_lists_each_file_with_its_size_and_lines_and_whether_it_is_published(
    tmp_path: Path, published_folder: Path, sample_files: dict[str, bytes]
) -> None:
    mine = write_all(
        tmp_path / "mine",
        {"val.txt": sample_files["val.txt"], "synsets.txt": (published_folder / "synsets.txt").read_bytes()},
    )
    result = run_command(tmp_path, "show", mine)
    assert result.returncode == 1
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["file", "bytes", "lines", "published"],
        ["synsets.txt", "10,000", "1,000", "yes"],
        ["val.txt", f"{len(sample_files['val.txt']):,}", "500", "no"],
    ]


def test_show_names_the_files_that_are_absent(tmp_path: Path, published_folder: Path) -> None:
    result = run_command(tmp_path, "show", published_folder)
    assert result.returncode == 1 and result.stdout.count("yes") == 6
    assert result.stderr == f"{published_folder}: not there: imagenet.bet.pickle, train.txt\n"


def test_show_of_no_folder_says_so(tmp_path: Path) -> None:
    result = run_command(tmp_path, "show", "nowhere")
    assert result.returncode == 1 and result.stderr == "nowhere: there is no such folder\n"


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc/self/mem")
def test_show_says_where_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "val.txt").symlink_to("/proc/self/mem")  # a plain file that even root cannot read from the start
    result = run_command(tmp_path, "show", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"{tmp_path / 'val.txt'}: cannot be read: Input/output error\n"


def test_unusable_words_exit_with_2(tmp_path: Path) -> None:
    assert run_command(tmp_path, "get").returncode == 2


def test_fills_a_folder_with_an_unprintable_name(tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    folder = write_all(tmp_path / "mine", sample_files)
    result = run_command(tmp_path, "fetch", folder, "--into", "donn\xe9es", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("donn\\xe9es\n")


def test_what_it_says_is_plain_text(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive)
    result = run_command(tmp_path, "fetch", "a.tar.gz")
    assert "\x1b" not in result.stdout + result.stderr and "\r" not in result.stdout + result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal")
def test_a_terminal_gets_a_bar(tmp_path: Path, server: Server, archive: bytes) -> None:
    import pty

    screen, terminal = pty.openpty()
    url = server.serve("a.tar.gz", archive, Reply(pause=0.3))
    call = [sys.executable, "-m", "imagenet_aux", "fetch", url]
    fetch = subprocess.Popen(call, cwd=tmp_path, env=ENV, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        for piece in iter(lambda: os.read(screen, 4096), b""):
            shown += piece
    os.close(screen)
    assert fetch.wait() == 0
    assert re.search(rb"\r\[#+\.+\]  \d+\.\d of \d+\.\d MB", shown)


@pytest.mark.parametrize("source", ["az://account/a", "ftp://host/a.tar.gz", "s3://bucket/a"])
def test_a_source_of_an_unknown_kind_is_refused_in_one_sentence(source: str, tmp_path: Path) -> None:
    result = run_command(tmp_path, "fetch", source)
    assert result.returncode == 1
    kinds = "a source is an http, https or file URL, or the path of an archive or a folder"
    assert result.stderr == f"error: {source}: {kinds}\n"


def test_a_file_of_another_machine_is_refused_in_one_sentence(tmp_path: Path) -> None:
    result = run_command(tmp_path, "fetch", "file://elsewhere/a")
    assert result.returncode == 1
    assert result.stderr == "error: file://elsewhere/a: a file URL names a file of this machine, as file:///path does\n"


@pytest.mark.parametrize("begin", ["file:///", "file://localhost/", "file:/", "FILE:///"])
def test_a_file_of_this_machine_is_named_by_its_url(begin: str, tmp_path: Path, archive: bytes) -> None:
    path = tmp_path / "a b.tar.gz"
    path.write_bytes(archive)
    result = run_command(tmp_path, "fetch", path.as_uri().replace("file:///", begin))
    assert result.returncode == 0 and result.stderr.startswith(f"asking {path}\n")
    assert read_data(tmp_path) == sample_archive.make_files(0.01)


def test_what_is_no_plain_file_in_a_folder_is_named(tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    path = write_all(tmp_path / "mine", sample_files) / "val.txt"
    path.unlink()
    path.mkdir()
    result = run_command(tmp_path, "fetch", path.parent)
    assert result.returncode == 1 and f"{path.parent}: val.txt: is a folder or a device, not" in result.stderr
    assert read_data(tmp_path) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc/self/mem")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").symlink_to("/proc/self/mem")  # a plain file that even root cannot read from the start
    result = run_command(tmp_path, "fetch", "a.tar.gz")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"error: {tmp_path / 'a.tar.gz'}: cannot be read: Input/output error"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few users make links")
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    path = write_all(tmp_path / "mine", sample_files) / "val.txt"
    path.unlink()
    path.symlink_to("nowhere")
    result = run_command(tmp_path, "fetch", path.parent)
    assert result.returncode == 1 and f"{path.parent}: val.txt: there is no such file" in result.stderr
    assert read_data(tmp_path) == {}


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows takes the last backslash for a quote")
def test_accepts_a_quoted_folder_with_a_trailing_backslash(tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    folder = write_all(tmp_path / "mine", sample_files)
    words = subprocess.list2cmdline([sys.executable, "-m", "imagenet_aux", "fetch"]) + f' "{folder}\\"'
    assert subprocess.run(words, cwd=tmp_path, env=ENV).returncode == 0
    assert read_data(tmp_path) == sample_files


def test_a_folder_of_files_that_are_too_large_together_is_refused(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "mine", {"train.txt": b"", "val.txt": b""})
    for path in folder.iterdir():
        os.truncate(path, 101 << 20)  # a hole, which takes no room
    result = run_command(tmp_path, "fetch", folder)
    assert result.returncode == 1
    assert result.stderr.endswith(f"error: {folder}: gives more than 200 MiB; that cannot be right\n")
    assert os.listdir(tmp_path) == ["mine"]


def test_a_folder_cannot_be_held_against_a_checksum(tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    result = run_command(tmp_path, "fetch", write_all(tmp_path / "mine", sample_files), "--checksum", "0" * 32)
    assert result.returncode == 1 and "a checksum is of an archive" in result.stderr


@pytest.mark.parametrize("checksum", [" ", "0" * 31, "md5:" + "0" * 32])
def test_refuses_a_malformed_checksum(checksum: str, tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    result = run_command(tmp_path, "fetch", write_all(tmp_path / "mine", sample_files), "--checksum", checksum)
    assert result.returncode == 1 and f"(64 hex digits), not {checksum!r}" in result.stderr


def test_old_digests_work_where_a_policy_bars_them(tmp_path: Path, archive: bytes, published_folder: Path) -> None:
    policy = tmp_path / "openssl.cnf"
    policy.write_text("openssl_conf = a\n[a]\nalg_section = b\n[b]\ndefault_properties = fips=yes\n")
    barred = {"OPENSSL_CONF": str(policy)}
    without_saying_so = [sys.executable, "-c", "import hashlib; hashlib.md5()"]
    if subprocess.run(without_saying_so, env={**ENV, **barred}, stderr=subprocess.DEVNULL).returncode == 0:
        pytest.skip("this Python takes no such policy from OpenSSL")
    (tmp_path / "a.tar.gz").write_bytes(archive)
    result = run_command(tmp_path, "fetch", "a.tar.gz", "--checksum", hashlib.md5(archive).hexdigest(), **barred)
    assert result.returncode == 0, result.stderr
    result = run_command(tmp_path, "show", published_folder, **barred)
    assert result.stdout.count("yes") == 6, result.stderr
    result = run_command(tmp_path, "show", "data", **barred)
    assert result.stdout.count("no\n") == 8, "two of them are held against a SHA-1"


def test_single_files_cannot_be_held_against_a_checksum_of_an_archive(tmp_path: Path) -> None:
    result = run_command(tmp_path, "fetch", mirrors.GITHUB, "--checksum", "0" * 32)
    assert result.returncode == 1 and "a checksum is of an archive: leave it out" in result.stderr


@pytest.mark.parametrize("who", ["me:secret", "me:a@secret", "me:secret@b"])
def test_a_password_is_sent_but_not_shown(who: str, tmp_path: Path, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive).replace("//", f"//{who}@")
    result = run_command(tmp_path, "fetch", url, "--result=outcome.json")
    assert result.returncode == 0 and server.requests_for("a.tar.gz")[0]["Authorization"].startswith("Basic ")
    assert "secret" not in result.stdout + result.stderr + (tmp_path / "outcome.json").read_text()


@pytest.mark.parametrize("address", ["127.0.0.1:99999/x", "/x", "127.0.0.1:1/x"])
def test_a_password_is_not_shown_where_the_address_is_a_bad_one(address: str, tmp_path: Path) -> None:
    result = run_command(tmp_path, "fetch", f"http://me:secret@{address}")
    assert result.returncode == 1 and "secret" not in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_where_nobody_takes_the_table_the_files_are_in_their_place_all_the_same(
    tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    call = [sys.executable, "-m", "imagenet_aux", "fetch", str(write_all(tmp_path / "mine", sample_files))]
    with open("/dev/full", "w") as full:
        result = subprocess.run(call, cwd=tmp_path, env=ENV, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 0 and b"Traceback" not in result.stderr and b"Exception" not in result.stderr
    assert read_data(tmp_path) == sample_files


@pytest.mark.skipif(sys.platform == "win32", reason="bash closes it there in another way")
@pytest.mark.parametrize("stderr", ["2>&-", pytest.param("2>/dev/full", marks=pytest.mark.xfail)])
@pytest.mark.parametrize("source", ["a.tar.gz", "nowhere"])
def test_where_nobody_listens_it_goes_the_same_way(
    source: str, stderr: str, tmp_path: Path, bash: str, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive)
    command = f"'{sys.executable}' -m imagenet_aux fetch {source} --result o.json {stderr}"
    subprocess.run([bash, "-c", command], cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, check=True)
    assert ("error" in json.loads((tmp_path / "o.json").read_text())) == (source == "nowhere")
    assert read_data(tmp_path) == (sample_files if source == "a.tar.gz" else {})


def test_progress_that_nobody_takes_does_not_end_a_fetch(
    tmp_path: Path, server: Server, bash: str, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    url = server.serve("a.tar.gz", archive, Reply(pause=4.0 * 65536 / len(archive)))
    command = f"'{sys.executable}' -m imagenet_aux fetch {url} 2>&1 >&- | head -n 1"
    subprocess.run([bash, "-c", command], cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, check=True)
    assert read_data(tmp_path) == sample_files


def test_an_outcome_that_cannot_be_written_is_said_to_be_one(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive)
    result = run_command(tmp_path, "fetch", "a.tar.gz", "--result=no/such.json")
    assert result.returncode == 1 and "error: cannot write no/such.json: No such file" in result.stderr


@pytest.mark.parametrize("source", ["ftp://me:secret@host/a", " http://me:secret@host/a", "file://me:secret@host/a"])
def test_a_password_is_not_shown_where_the_source_is_of_an_unknown_kind(source: str, tmp_path: Path) -> None:
    result = run_command(tmp_path, "fetch", source)
    assert result.returncode == 1 and "secret" not in result.stderr


def test_http_without_requests_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "requests.py").write_text("raise ImportError('as if it were not installed')\n")
    result = run_command(
        tmp_path, "fetch", "http://127.0.0.1:1/a", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)])
    )
    assert result.returncode == 1 and "pip install requests" in result.stderr


def test_isal_is_used_where_it_is_installed_and_not_needed_where_it_is_not(tmp_path: Path, archive: bytes) -> None:
    pytest.importorskip("isal")
    (tmp_path / "a.tar.gz").write_bytes(archive)
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "isal.py").write_text("raise ImportError('as if it were not installed')\n")
    program = "from imagenet_aux import archive; print(archive.zlib.__name__)"
    without = os.pathsep.join([str(tmp_path / "without"), str(ROOT)])
    for path, name in ((str(ROOT), "isal.isal_zlib"), (without, "zlib")):
        call = [sys.executable, "-c", program]
        used = subprocess.run(call, env=clean_env(PYTHONPATH=path), stdout=subprocess.PIPE, check=True)
        assert used.stdout.decode().strip() == name
    assert run_command(tmp_path, "fetch", "a.tar.gz", PYTHONPATH=without).returncode == 0
    assert read_data(tmp_path) == sample_archive.make_files(0.01)

"""Test the command: arguments, exit codes, messages, and unwritable output."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sample_archive
from cm_home import ROOT, WINDOWS, clean_env
from command import (
    NO_COVERAGE,
    PROGRESS,
    line_pattern,
    make_manifest,
    read_data,
    read_files,
    run_at_start,
    run_command,
    without_privileges,
    write_file,
    write_files,
)
from server import Reply, Server, slow_reply

from imagenet_aux.manifest import MANIFEST

NAMES = list(MANIFEST.files)
ENV = clean_env(PYTHONPATH=str(ROOT), **NO_COVERAGE)
ERROR_WORDS = ("Traceback", "Exception ignored", "BrokenPipe")

needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


def read_result(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result


# Arguments


@pytest.mark.parametrize("arguments", [["--help"], ["fetch", "--help"], ["show", "--help"]], ids=" ".join)
def test_help_fits_on_a_screen(arguments: list[str], work: Path) -> None:
    lines = run_command(work, *arguments, COLUMNS="80").stdout.splitlines()
    assert 5 < len(lines) <= 24 and max(map(len, lines)) <= 80


def test_version(work: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", run_command(work, "--version").stdout)


@pytest.mark.parametrize(
    "arguments",
    [[], ["get"], ["fetch", "a", "b"], ["show"], ["fetch", "--checksum=--"], ["fetch", "--into=--"], ["fetch", "--no"]],
    ids=" ".join,
)
def test_usage_error_exits_with_2(arguments: list[str], work: Path) -> None:
    result = run_command(work, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"usage: .*\nimagenet-aux.*: error: .*\n", result.stderr, re.DOTALL)
    assert os.listdir(work) == []


@pytest.mark.parametrize("arguments", [["--help"], ["fetch", "FOLDER"], ["show", "FOLDER"]], ids=" ".join)
def test_imports_requests_only_for_http(arguments: list[str], work: Path, source: Path) -> None:
    program = (
        "import sys\n"
        "from imagenet_aux import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "sys.exit('requests' in sys.modules)"
    )
    arguments = [str(source) if argument == "FOLDER" else argument for argument in arguments]
    call = [sys.executable, "-c", program, *arguments]
    assert subprocess.run(call, cwd=work, env=ENV, stdout=subprocess.DEVNULL).returncode == 0


def test_into_selects_the_folder(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    result = run_command(work, "fetch", source, "--into", "other")
    assert result.returncode == 0 and result.stdout.endswith(f"in {work / 'other'}\n")
    assert read_files(work / "other") == sample_files
    assert os.listdir(work) == ["other"]


def test_replace_allows_replacing_other_files(work: Path, source: Path, sample_files: dict[str, bytes]) -> None:
    data = write_files(work / "data", {"val.txt": b"mine"})
    result = run_command(work, "fetch", source)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: {data} contains other files named val.txt. "
        "Choose another folder, move the files away, or, without CM, pass --replace"
    )
    assert read_data(work) == {"val.txt": b"mine"}
    assert run_command(work, "fetch", source, "--replace").returncode == 0
    assert read_data(work) == sample_files


def test_checksum_is_compared_with_the_archive(work: Path, archive: bytes) -> None:
    (work / "a.tar.gz").write_bytes(archive)
    digest = hashlib.sha256(archive).hexdigest()
    good = run_command(work, "fetch", "a.tar.gz", "--checksum", digest.upper())
    assert good.returncode == 0 and len(re.findall("  yes$", good.stdout, re.MULTILINE)) == len(NAMES)
    bad = run_command(work, "fetch", "a.tar.gz", "--checksum", "0" * 32, "--into", "other")
    assert bad.returncode == 1
    md5 = hashlib.md5(archive).hexdigest()
    assert f"MD5 mismatch: expected {'0' * 32}, got {md5}. Check the value, or download the arch" in bad.stderr
    assert sorted(os.listdir(work)) == ["a.tar.gz", "data"]


@pytest.mark.skipif(not WINDOWS, reason="only cmd passes a trailing backslash as a quote")
def test_accepts_a_quoted_folder_with_a_trailing_backslash(
    work: Path, source: Path, sample_files: dict[str, bytes]
) -> None:
    command = subprocess.list2cmdline([sys.executable, "-m", "imagenet_aux", "fetch"]) + f' "{source}\\"'
    assert subprocess.run(command, cwd=work, env=ENV).returncode == 0
    assert read_data(work) == sample_files


# The result file


@pytest.mark.parametrize("verified", [False, True])
def test_result_file_of_a_successful_fetch(verified: bool, work: Path, archive: bytes) -> None:
    (work / "a.tar.gz").write_bytes(archive)
    (work / "result.json.part").write_text("mine")
    checksum = hashlib.md5(archive).hexdigest() if verified else ""
    result = run_command(work, "fetch", "a.tar.gz", "--checksum", checksum, "--result", "result.json")
    assert result.returncode == 0
    assert read_result(work / "result.json") == {
        "requested": "a.tar.gz",
        "folder": str(work / "data"),
        "source": str(work / "a.tar.gz"),
        "verified": verified,
        "files": NAMES,
    }
    assert sorted(os.listdir(work)) == ["a.tar.gz", "data", "result.json", "result.json.part"]
    assert (work / "result.json.part").read_text() == "mine"


def test_result_file_of_a_failed_fetch(work: Path) -> None:
    result = run_command(work, "fetch", "nowhere", "--result", "result.json")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    with pytest.raises(OSError) as missing:
        os.listdir(work / "nowhere")
    assert read_result(work / "result.json") == {
        "requested": "nowhere",
        "folder": str(work / "data"),
        "error": f"{work / 'nowhere'} cannot be read: {missing.value.strerror}",
    }


def test_result_file_is_replaced_atomically(work: Path, tmp_path: Path) -> None:
    """The old content stays until the complete new file is renamed over it."""
    hook = (
        "import sys\n"
        "from pathlib import Path\n"
        "def hook(event, args):\n"
        "    if event == 'os.rename' and str(args[1]).endswith('result.json'):\n"
        "        print(*(Path(path).read_text() for path in args[1::-1]), flush=True)\n"
        "sys.addaudithook(hook)\n"
    )
    (work / "result.json").write_text("old")
    env = run_at_start(tmp_path / "hook", hook)
    result = run_command(work, "fetch", "nowhere", "--result=result.json", **env)
    assert result.stdout == f"old {(work / 'result.json').read_text()}\n"
    assert set(read_result(work / "result.json")) == {"requested", "folder", "error"}


@pytest.mark.skipif(WINDOWS, reason="Windows restricts symbolic links")
@pytest.mark.parametrize("kind", ["device", "FIFO", "file"])
def test_result_file_that_is_a_link_is_not_replaced(kind: str, work: Path) -> None:
    """Links such as /dev/stdout, and devices, must not be replaced."""
    path = work / kind
    if kind == "device":
        path = Path("/dev/null")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.write_text("old")
    (work / "link").symlink_to(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert run_command(work, "fetch", "nowhere", "--result=link").returncode == 0
    report = os.read(reader, 999)
    os.close(reader)
    assert (work / "link").is_symlink() and path.is_char_device() == (kind == "device")
    assert kind == "device" or set(json.loads(report)) == {"requested", "folder", "error"}
    assert set(os.listdir(work)) <= {"link", kind}


@pytest.mark.parametrize("path", ["no/such.json", "folder"])
def test_result_file_that_cannot_be_written_is_reported(path: str, work: Path, archive: bytes) -> None:
    (work / "a.tar.gz").write_bytes(archive)
    (work / "folder").mkdir()
    result = run_command(work, "fetch", "a.tar.gz", f"--result={path}")
    assert result.returncode == 1
    assert re.search(rf"^error: cannot write {path}: .+$", result.stderr, re.MULTILINE)
    assert sorted(os.listdir(work)) == ["a.tar.gz", "data", "folder"]


def test_incomplete_result_file_is_removed(work: Path, tmp_path: Path) -> None:
    fail = "import os\ndef replace(source, target): raise OSError(28, 'No space left on device')\nos.replace = replace"
    result = run_command(work, "fetch", "nowhere", "--result=result.json", **run_at_start(tmp_path / "fail", fail))
    assert (result.returncode, result.stderr) == (1, "error: cannot write result.json: No space left on device\n")
    assert os.listdir(work) == []


# The show command


def test_show_lists_the_files(work: Path) -> None:
    write_files(work / "mine", {"test.txt": sample_archive.make_test_txt(), "val.txt": b"a\nb\n", "notes": b"mine"})
    (work / "mine" / "imagenet_mean.binaryproto").write_bytes(bytes(1234))
    result = run_command(work, "show", "mine")
    assert result.returncode == 1
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["file", "bytes", "lines", "published"],
        ["imagenet_mean.binaryproto", "1,234", "-", "no"],
        ["test.txt", "3,200,000", "100,000", "yes"],
        ["val.txt", "4", "2", "no"],
    ]
    present = ("imagenet_mean.binaryproto", "test.txt", "val.txt")
    missing = ", ".join(name for name in NAMES if name not in present)
    assert result.stderr == f"warning: missing from mine: {missing}\n"


def test_show_exits_with_0_only_if_all_files_are_published(work: Path, sample_files: dict[str, bytes]) -> None:
    data = write_files(work / "data", sample_files)
    manifest = make_manifest(sample_files)
    result = run_command(work, "show", data, manifest=manifest)
    assert (result.returncode, result.stderr) == (0, "") and len(re.findall("  yes\n", result.stdout)) == len(NAMES)
    (data / "val.txt").write_bytes(b"other")
    assert run_command(work, "show", data, manifest=manifest).returncode == 1
    (data / "val.txt").unlink()
    result = run_command(work, "show", data, manifest=manifest)
    assert (result.returncode, result.stderr) == (1, f"warning: missing from {data}: val.txt\n")


def test_show_reports_a_path_that_is_not_a_folder(work: Path) -> None:
    (work / "file").touch()
    for name in ("nowhere", "file"):
        result = run_command(work, "show", name)
        with pytest.raises(OSError) as caught:
            os.scandir(work / name)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"error: {name} cannot be read: {caught.value.strerror}\n"


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
def test_show_reports_an_unreadable_file(work: Path, source: Path) -> None:
    (source / "val.txt").chmod(0)
    result = run_command(work, "show", source, prefix=without_privileges())
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {source / 'val.txt'} cannot be read: Permission denied\n"


@pytest.mark.skipif(WINDOWS, reason="Windows has no sparse files by default")
@pytest.mark.parametrize(("size", "lines"), [(200 << 20, "0"), ((200 << 20) + 1, "-"), (1 << 40, "-")])
def test_show_does_not_read_a_huge_file(size: int, lines: str, work: Path) -> None:
    """Use a link to a sparse file."""
    (work / "data").mkdir()
    (work / "data" / "val.txt").symlink_to(write_file(work / "huge", b""))
    os.truncate(work / "huge", size)
    result = run_command(work, "show", "data")
    assert result.returncode == 1
    assert result.stdout.splitlines()[1].split() == ["val.txt", f"{size:,}", lines, "no"]


# Sources


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX permissions")
@pytest.mark.parametrize("name", ["", "val.txt"], ids=["folder", "file"])
def test_unreadable_source_is_reported(name: str, work: Path, source: Path) -> None:
    path = source / name if name else source
    path.chmod(0)
    try:
        result = run_command(work, "fetch", source, prefix=without_privileges())
        below = run_command(work, "fetch", source / "a.tar.gz", prefix=without_privileges())
    finally:
        path.chmod(0o755)
    assert (result.returncode, below.returncode) == (1, 1)
    reason = f"{source}: val.txt: cannot be read" if name else f"{source} cannot be read"
    assert result.stderr.splitlines()[-1] == f"error: {reason}: Permission denied"
    reason = "No such file or directory" if name else "Permission denied"
    assert below.stderr == f"error: {source / 'a.tar.gz'} cannot be read: {reason}\n"
    assert os.listdir(work) == []


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc/self/mem")
def test_read_error_is_reported(work: Path) -> None:
    (work / "a.tar.gz").symlink_to("/proc/self/mem")  # a regular file whose first bytes even root cannot read
    result = run_command(work, "fetch", "a.tar.gz")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"error: {work / 'a.tar.gz'}: cannot be read: Input/output error"


@pytest.mark.parametrize("kind", ["folder", pytest.param("dangling link", marks=pytest.mark.skipif("os.name=='nt'"))])
def test_irregular_file_in_a_source_folder_is_reported(kind: str, work: Path, source: Path) -> None:
    path = source / "val.txt"
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to("nowhere")
    result = run_command(work, "fetch", source)
    assert result.returncode == 1
    reason = "not a regular file" if kind == "folder" else "cannot be read: No such file or directory"
    assert f"error: {source}: val.txt: {reason}" in result.stderr
    assert os.listdir(work) == []


def test_differing_and_missing_files_are_reported_separately(work: Path, source: Path) -> None:
    (source / "test.txt").write_bytes(sample_archive.make_test_txt())
    (source / "val.txt").unlink()
    result = run_command(work, "fetch", source)
    assert result.returncode == 0
    differing = ", ".join(name for name in NAMES if name not in ("test.txt", "val.txt"))
    assert result.stderr.splitlines() == [
        f"trying {source}",
        f"warning: differs from the published file: {differing}",
        "warning: missing from the source: val.txt",
    ]


@pytest.mark.skipif(WINDOWS, reason="Windows has no sparse files by default")
def test_oversized_folder_is_rejected(work: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine", {"train.txt": b"", "val.txt": b""})
    for path in folder.iterdir():
        os.truncate(path, 101 << 20)
    result = run_command(work, "fetch", folder, **NO_COVERAGE)
    assert result.returncode == 1
    assert result.stderr.endswith(f"error: {folder}: val.txt: larger than 200 MiB in total\n")
    assert os.listdir(work) == []


@pytest.mark.parametrize("credentials", ["me:secret", "me:a@secret", "me:secret@b", "me:a secret"])
def test_password_is_sent_but_not_shown(credentials: str, work: Path, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive).replace("//", f"//{credentials}@")
    result = run_command(work, "fetch", url, "--result=result.json")
    assert result.returncode == 0 and server.requests_for("a.tar.gz")[0]["Authorization"].startswith("Basic ")
    assert "secret" not in result.stdout + result.stderr + read_result(work / "result.json")["source"]


def test_login_from_netrc_is_sent(work: Path, server: Server, archive: bytes) -> None:
    netrc = write_file(work / "netrc", b"machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    assert run_command(work, "fetch", server.serve("a.tar.gz", archive), NETRC=str(netrc)).returncode == 0
    assert server.requests_for("a.tar.gz")[0]["Authorization"] == "Basic bWU6c2VjcmV0"


def test_no_proxy_excludes_a_host(work: Path, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    result = run_command(work, "fetch", url, http_proxy="http://127.0.0.1:1", no_proxy="127.0.0.1")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@127.0.0.1:99999/x",
        "http://me:secret@/x",
        "http://me:secret@127.0.0.1:1/x",
        "ftp://me:secret@host/a",
        " http://me:secret@host/a",
        "file://me:secret@host/a",
        "http://me:x#secret@host/a",
        "http://me:x/secret@host/a",
        "http://me:secret/x@host/a",
        "http://me:secret?x@host/a",
        "http://me:secret#x@host/a",
        "http://me:secret\\x@host/a",
        "http://me@work:x/secret@host/a",
        "http://me@work:secret/x@host/a",
        "http://me@work:secret\\x@host/a",
        "http://me:my secret@127.0.0.1:99999/x",
    ],
)
def test_password_in_an_invalid_url_is_not_shown(url: str, work: Path) -> None:
    result = run_command(work, "fetch", url)
    assert result.returncode == 1 and "error: " in result.stderr
    assert "secret" not in result.stdout + result.stderr


@pytest.mark.parametrize("user", ["", "me@", "me:secret@"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_at_sign_in_a_path_does_not_end_a_password(host: str, user: str, work: Path) -> None:
    result = run_command(work, "fetch", f"http://{user}{host}:1/v@2/a.tar.gz")
    assert f"error: http://{host}:1/v@2/a.tar.gz: no response from {host.strip('[]')}: " in result.stderr


def test_missing_certificates_are_reported(work: Path) -> None:
    result = run_command(work, "fetch", "https://127.0.0.1:1/a", REQUESTS_CA_BUNDLE="/missing.pem")
    assert re.search("error: .*: TLS error for 127.0.0.1: .*/missing.pem", result.stderr)


def test_missing_requests_library_is_reported(work: Path, tmp_path: Path) -> None:
    env = run_at_start(tmp_path / "without", "import sys; sys.modules['requests'] = None")
    result = run_command(work, "fetch", "http://127.0.0.1:1/a", **env)
    assert result.returncode == 1
    assert re.search(
        r"^error: HTTP requires the requests package: .*\. Run: pip install requests$", result.stderr, re.M
    )


def test_old_digests_work_in_fips_mode(work: Path, archive: bytes) -> None:
    policy = work / "openssl.cnf"
    policy.write_text("openssl_conf = a\n[a]\nalg_section = b\n[b]\ndefault_properties = fips=yes\n")
    env = {"OPENSSL_CONF": str(policy)}
    blocked = [sys.executable, "-c", "import hashlib; hashlib.md5()"]
    if subprocess.run(blocked, env={**ENV, **env}, stderr=subprocess.DEVNULL).returncode == 0:
        pytest.skip("this Python's OpenSSL ignores the policy")
    (work / "a.tar.gz").write_bytes(archive)
    result = run_command(work, "fetch", "a.tar.gz", "--checksum", hashlib.md5(archive).hexdigest(), **env)
    assert result.returncode == 0, result.stderr
    result = run_command(work, "show", "data", **env)
    assert len(re.findall("  no\n", result.stdout)) == len(NAMES), result.stderr


@pytest.mark.parametrize("is_installed", [True, False], ids=["isal", "no isal"])
def test_isal_is_optional(
    is_installed: bool, work: Path, tmp_path: Path, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    pytest.importorskip("isal")
    (work / "a.tar.gz").write_bytes(archive)
    show = "import atexit, sys; atexit.register(lambda: print(sys.modules['imagenet_aux.gunzip'].zlib.__name__))\n"
    hide = "" if is_installed else "sys.modules['isal'] = None"
    result = run_command(work, "fetch", "a.tar.gz", **run_at_start(tmp_path / "start", show + hide))
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == ("isal.isal_zlib" if is_installed else "zlib")
    assert read_data(work) == sample_files


# Unexpected errors


@pytest.mark.skipif(WINDOWS, reason="Windows has no resource limits")
@pytest.mark.parametrize("kind", ["threads", "memory"])
def test_exhausted_resources_are_reported_in_one_sentence(
    kind: str, work: Path, tmp_path: Path, server: Server, archive: bytes
) -> None:
    """Limit the address space at the start of the download, so that allocating a thread or a chunk fails."""
    limit = f"""if True:
        import pathlib, resource, threading
        from imagenet_aux import archive, download
        threading.stack_size(64 << 20)
        def limit_memory(*_):
            size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), resource.RLIM_INFINITY))
        if {kind == "threads"}:
            limit_memory()
        else:
            def unpack(chunks, wanted, use):
                limit_memory()
                bytes(1 << 28)
            archive.unpack = unpack
    """
    if sys.platform != "linux":
        pytest.skip("there is no /proc/self/statm")
    url = server.serve("a.tar.gz", archive)
    env = {**run_at_start(tmp_path / "limit", limit), **NO_COVERAGE}
    expected = "unexpected RuntimeError: can't start new thread" if kind == "threads" else "unexpected MemoryError"
    expected += ". Set IMAGENET_AUX_DEBUG=1 for a traceback"
    result = run_command(work, "fetch", url, **env)
    assert result.returncode == 1
    assert result.stderr == f"trying {url}\nerror: {expected}\n"
    result = run_command(work, "fetch", url, "--result=result.json", **env)
    assert (result.returncode, result.stderr) == (0, f"trying {url}\n")
    assert read_result(work / "result.json")["error"] == expected
    assert os.listdir(work) == ["result.json"]


def test_debug_variable_adds_a_traceback(work: Path, source: Path, tmp_path: Path) -> None:
    fail = (
        "from imagenet_aux import cli\n"
        "def fetch(*_, **__): raise ValueError('//me:secret@host \\x1b')\n"
        "cli.fetch = fetch"
    )
    env = run_at_start(tmp_path / "fail", fail)
    result = run_command(work, "fetch", source, **env)
    expected = "error: unexpected ValueError: //host \\x1b. Set IMAGENET_AUX_DEBUG=1 for a traceback\n"
    assert (result.returncode, result.stderr) == (1, expected)
    call = [sys.executable, "-m", "imagenet_aux", "fetch", str(source)]
    debug = subprocess.run(
        call, cwd=work, env={**ENV, **env, "IMAGENET_AUX_DEBUG": "1"}, stderr=subprocess.PIPE, encoding="utf-8"
    )
    assert debug.stderr.startswith("Traceback (most recent call last):\n") and debug.stderr.endswith(expected)
    assert "secret" not in debug.stderr


@pytest.mark.skipif(WINDOWS, reason="Windows cannot remove the working directory")
def test_deleted_working_folder_is_reported(tmp_path: Path, bash: str, source: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = (
        f"cd gone && rmdir ../gone && '{sys.executable}' '{ROOT}/imagenet_aux/__main__.py' fetch '{source}' "
        f"--result '{tmp_path}/result.json'"
    )
    result = subprocess.run([bash, "-c", command], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, encoding="utf-8")
    assert result.returncode == 0 and "Traceback" not in result.stderr
    report = read_result(tmp_path / "result.json")
    assert report["folder"] == "data" and report["error"].startswith("unexpected FileNotFoundError: ")


@pytest.mark.skipif(WINDOWS, reason="--pid has no effect on Windows")
def test_fetch_ends_with_another_process(work: Path, source: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    result = run_command(work, "fetch", source, f"--pid={ended.pid}", "--result=result.json")
    assert result.returncode == 129 and result.stderr.endswith("error: interrupted by SIGHUP\n")
    assert os.listdir(work) == []


def test_fetch_continues_while_the_other_process_runs(work: Path, source: Path) -> None:
    assert run_command(work, "fetch", source, f"--pid={os.getpid()}").returncode == 0


# Output


def test_output_to_a_pipe_is_plain_text(work: Path, tmp_path: Path, server: Server, archive: bytes) -> None:
    """Unlike the progress bar, progress lines have no control characters."""
    often = "from imagenet_aux import progress; progress._LINE_SECONDS = 0.01"
    url = server.serve("a.tar.gz", archive, slow_reply(archive, 0.5))
    result = run_command(work, "fetch", url, **run_at_start(tmp_path / "often", often))
    line = line_pattern(PROGRESS, r"0\.\d", r"0\.\d", r"\d+\.\d", r"0:0\d")
    assert re.search(f"^{line}$", result.stderr, re.MULTILINE)
    assert all(character.isprintable() or character == "\n" for character in result.stdout + result.stderr)


@pytest.mark.skipif(WINDOWS, reason="there is no pseudo-terminal")
def test_terminal_shows_a_bar(work: Path, server: Server, archive: bytes) -> None:
    import pty

    screen, terminal = pty.openpty()
    url = server.serve("a.tar.gz", archive, Reply(pause=0.3))
    checksum = hashlib.md5(archive).hexdigest()  # otherwise a warning would follow the bar
    call = [sys.executable, "-m", "imagenet_aux", "fetch", url, "--checksum", checksum]
    process = subprocess.Popen(call, cwd=work, env=ENV, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # raised on Linux when the other side is closed
        for chunk in iter(lambda: os.read(screen, 4096), b""):
            shown += chunk
    os.close(screen)
    assert process.wait() == 0
    assert re.search(rb"\r\[#+\.+\]  \d+\.\d of \d+\.\d MB", shown)
    assert re.search(rb"\r +\rfile ", shown)


@pytest.mark.skipif(WINDOWS, reason="there is no pseudo-terminal")
def test_closed_terminal_does_not_end_a_fetch(
    work: Path, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    import pty

    screen, terminal = pty.openpty()
    url = server.serve("a.tar.gz", archive, slow_reply(archive, 1.0))
    call = [sys.executable, "-m", "imagenet_aux", "fetch", url]
    process = subprocess.Popen(call, cwd=work, env=ENV, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    while b"[#" not in shown:
        shown += os.read(screen, 4096)
    os.close(screen)
    assert process.wait(60) == 0
    assert read_data(work) == sample_files


def test_unprintable_folder_name_is_escaped(work: Path, source: Path) -> None:
    result = run_command(work, "fetch", source, "--into", "donn\xe9es", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("donn\\xe9es\n")


@pytest.mark.parametrize("command", [["fetch", "no\nsuch"], ["fetch", "http://[::1\nsuch"], ["show", "no\nsuch"]])
def test_error_for_a_name_with_a_line_feed_is_one_line(command: list[str], work: Path) -> None:
    result = run_command(work, *command)
    assert result.returncode == 1
    assert re.search(r"^error: .*\\nsuch", result.stderr, re.MULTILINE)
    assert not re.search("^such", result.stderr, re.MULTILINE)


COMMANDS = {
    "fetch": ["fetch", "SOURCE"],
    "failing fetch": ["fetch", "nowhere"],
    "show": ["show", "SOURCE"],
    "failing show": ["show", "nowhere"],
    "help": ["--help"],
    "usage error": ["get"],
}
CODES = {"fetch": 0, "failing fetch": 1, "show": 1, "failing show": 1, "help": 0, "usage error": 2}


@pytest.mark.skipif(WINDOWS, reason="bash for Windows closes streams differently")
@pytest.mark.parametrize(
    "redirection",
    [
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
        pytest.param(">/dev/full", marks=needs_dev_full),
        pytest.param("2>/dev/full", marks=needs_dev_full),
        pytest.param(">/dev/full 2>&1", marks=needs_dev_full),
        pytest.param("PYTHONUNBUFFERED=1 >/dev/full 2>&1", marks=needs_dev_full),
    ],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_unwritable_output_does_not_change_the_exit_code(
    name: str,
    redirection: str,
    work: Path,
    bash: str,
    source: Path,
    sample_files: dict[str, bytes],
) -> None:
    arguments = " ".join(COMMANDS[name]).replace("SOURCE", f"'{source}'")
    # In bash, a redirection may precede the command.
    command = f"{redirection} '{sys.executable}' -m imagenet_aux {arguments}"
    result = subprocess.run(
        [bash, "-c", command],
        cwd=work,
        env=ENV,
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == CODES[name]
    assert not any(word in result.stderr for word in ERROR_WORDS)
    assert read_data(work) == (sample_files if name == "fetch" else {})


@pytest.mark.skipif(WINDOWS, reason="bash for Windows closes streams differently")
@pytest.mark.parametrize("stderr", ["2>&-", pytest.param("2>/dev/full", marks=needs_dev_full)])
@pytest.mark.parametrize("name", ["a.tar.gz", "nowhere"])
def test_unwritable_stderr_does_not_change_the_result(
    name: str, stderr: str, work: Path, bash: str, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    (work / "a.tar.gz").write_bytes(archive)
    command = f"'{sys.executable}' -m imagenet_aux fetch {name} --result result.json {stderr}"
    subprocess.run([bash, "-c", command], cwd=work, env=ENV, stdout=subprocess.DEVNULL, check=True)
    assert ("error" in read_result(work / "result.json")) == (name == "nowhere")
    assert read_data(work) == (sample_files if name == "a.tar.gz" else {})


@pytest.mark.skipif(WINDOWS, reason="bash for Windows connects pipes differently")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["", "unbuffered"])
def test_closed_pipe_does_not_end_a_fetch(
    unbuffered: str,
    work: Path,
    tmp_path: Path,
    server: Server,
    bash: str,
    archive: bytes,
    sample_files: dict[str, bytes],
) -> None:
    """`head` exits after the first line, before the progress lines and the table are printed."""
    often = run_at_start(tmp_path / "often", "from imagenet_aux import progress; progress._LINE_SECONDS = 0.01")
    url = server.serve("a.tar.gz", archive, slow_reply(archive, 1.0))
    command = f"('{sys.executable}' -m imagenet_aux fetch {url} 2>&1; echo $? >code) | head -n 1"
    env = {**ENV, **often, "PYTHONUNBUFFERED": unbuffered}
    shown = subprocess.run([bash, "-c", command], cwd=work, env=env, capture_output=True, encoding="utf-8")
    assert (shown.stdout, shown.stderr) == (f"trying {url}\n", "")
    assert (work / "code").read_text() == "0\n"
    assert read_data(work) == sample_files

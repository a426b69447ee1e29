"""Test customize.py under CM: selecting the source, rejected inputs, concurrent calls, signals."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
import sample_archive
from cm_home import PARENT, ROOT, TAGS, WINDOWS, CmHome
from command import read_files, write_file
from server import Reply, Server


def run_parent(home: CmHome, *arguments: str, **meta: Any) -> subprocess.CompletedProcess[str]:
    """Run a script that depends on this one."""
    deps = [{"tags": TAGS, "names": ["imagenet-aux"]}]
    home.add_script({"deps": deps, **PARENT, **meta})
    return home.run_command("cm", "run", "script", "--tags=needs,aux", "--quiet", *arguments)


# Selecting the source


@pytest.mark.usefixtures("no_coverage")
@pytest.mark.parametrize("option", ["--const", "--env"])
@pytest.mark.parametrize("name", ["CM_WGET_URL", "CM_PACKAGE_URL", "CM_DOWNLOAD_LOCAL_FILE_PATH"])
def test_env_keys_in_the_call_select_the_source(option: str, name: str, home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a=b.tar.gz", archive)
    assert home.export_keys(f"{option}.{name}=a=b.tar.gz")["CM_DATASET_AUX_SOURCE"] == str(path)


def test_url_overrides_env_keys(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    env = home.export_keys("--url=a.tar.gz", "--const.CM_PACKAGE_URL=missing", "--env.CM_WGET_URL=missing")
    assert env["CM_DATASET_AUX_SOURCE"] == str(path)


@pytest.mark.parametrize(
    "names", [("WGET_URL", "DOWNLOAD_LOCAL_FILE_PATH"), ("DOWNLOAD_LOCAL_FILE_PATH", "PACKAGE_URL")]
)
def test_first_of_two_env_keys_selects_the_source(names: tuple[str, str], home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    env = home.export_keys(f"--const.CM_{names[0]}=a.tar.gz", f"--const.CM_{names[1]}=missing")
    assert env["CM_DATASET_AUX_SOURCE"] == str(path)


def test_file_url_may_have_one_slash(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    env = home.export_keys(f"--url={path.as_uri().replace('file:///', 'FILE:/')}")
    assert env["CM_DATASET_AUX_SOURCE"] == str(path)


@pytest.mark.usefixtures("no_coverage")
@pytest.mark.parametrize("name", ["plain", "with space", "a=b", "données"])
@pytest.mark.parametrize("kind", ["archive", "folder", "file URL", "relative path", "home folder"])
def test_reads_a_local_source(
    name: str, kind: str, home: CmHome, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    folder = home.path / name
    path = write_file(folder / "a.tar.gz", archive)
    if kind == "folder":
        path = folder
        for file, data in sample_files.items():
            write_file(folder / file, data)
    spelled = {
        "file URL": path.as_uri(),
        "relative path": f"{name}/a.tar.gz",
        "home folder": f"~/{name}/a.tar.gz",
    }
    env = home.export_keys(f"--url={spelled.get(kind, str(path))}")
    assert read_files(Path(env["CM_DATASET_AUX_PATH"])) == sample_files
    assert env["CM_DATASET_AUX_SOURCE"] == str(path)


def test_uppercase_scheme_is_a_url(home: CmHome, server: Server, archive: bytes) -> None:
    server.serve("a.tar.gz", archive)
    assert home.run_script(f"--url={server.url.replace('http', 'HTTP')}/a.tar.gz").returncode == 0


@pytest.mark.usefixtures("no_coverage")
@pytest.mark.parametrize("place", ["env", "const"])
@pytest.mark.parametrize("name", ["CM_PACKAGE_URL", "CM_DOWNLOAD_LOCAL_FILE_PATH", "CM_WGET_URL"])
def test_parents_keys_do_not_select_the_source(place: str, name: str, home: CmHome, archive: bytes) -> None:
    write_file(home.path / "other.tar.gz", b"")
    path = write_file(home.path / "a.tar.gz", archive)
    deps = [{"tags": TAGS, "env": {"CM_PACKAGE_URL": str(path)}}]
    result = run_parent(home, f"--{place}.{name}={home.path / 'other.tar.gz'}", deps=deps)
    assert result.returncode == 0 and f"fetched from: {path}" in result.stderr, result.stderr


@pytest.mark.parametrize("option", ["url", "env.CM_PACKAGE_URL", "const.CM_DOWNLOAD_LOCAL_FILE_PATH"])
def test_adr_selects_the_source(option: str, home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    result = run_parent(home, f"--adr.imagenet-aux.{option}={path}")
    assert result.returncode == 0 and f"fetched from: {path}" in result.stderr, result.stderr


def test_adrs_url_overrides_its_env_keys(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    options = (f"--adr.imagenet-aux.url={path}", "--adr.imagenet-aux.env.CM_PACKAGE_URL=/missing")
    result = run_parent(home, *options)
    assert result.returncode == 0 and f"fetched from: {path}" in result.stderr, result.stderr


def test_adr_sets_the_checksum(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    result = run_parent(home, f"--adr.imagenet-aux.url={path}", f"--adr.imagenet-aux.checksum={'0' * 32}")
    assert result.returncode != 0 and f"expected {'0' * 32}" in result.stderr


@pytest.mark.parametrize("url", [None, ""])
def test_empty_url_selects_the_variations_mirror(url: str | None, home: CmHome) -> None:
    result = home.run_api(tags=f"{TAGS},_from.berkeleyvision", url=url, checksum="0" * 32, **offline())
    assert result["error"].index("berkeleyvision") < result["error"].index("dropbox")


def test_default_variation_selects_the_first_mirror(home: CmHome) -> None:
    meta = json.loads((home.script / "_cm.json").read_text())
    del meta["variations"]["from.dropbox"]["default"]
    meta["variations"]["from.go"]["default"] = True
    write_file(home.script / "_cm.json", json.dumps(meta).encode())
    error = home.run_api(tags=TAGS, **offline())["error"]
    assert error.index("armi.in") < min(error.index("dropbox"), error.index("berkeleyvision"))


def test_inherited_url_does_not_change_the_mirror(home: CmHome) -> None:
    deps = [{"tags": f"{TAGS},_from.berkeleyvision"}]
    result = run_parent(home, "--const.CM_WGET_URL=http://127.0.0.1:9/model", deps=deps, **OFFLINE_META)
    printed = result.stderr
    assert "127.0.0.1:9/model" not in printed
    assert printed.index("berkeleyvision") < printed.index("dropbox")


def offline() -> dict[str, Any]:
    """Return an input that sends all requests to a closed port."""
    return {"env": {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}}


OFFLINE_META = {"env": offline()["env"]}


# Target folder


def test_extract_path_receives_the_files(home: CmHome, archive: bytes, sample_files: dict[str, bytes]) -> None:
    write_file(home.path / "a.tar.gz", archive)
    env = home.export_keys("--url=a.tar.gz", "--env.CM_EXTRACT_PATH=mine")
    assert env["CM_DATASET_AUX_PATH"] == str(home.path / "mine")
    assert read_files(home.path / "mine") == sample_files


@pytest.mark.parametrize("place", ["env", "const"])
def test_parents_extract_path_is_ignored(place: str, home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    result = run_parent(home, f"--{place}.CM_EXTRACT_PATH=other", f"--adr.imagenet-aux.url={path}")
    assert result.returncode == 0 and not (home.path / "other").exists(), result.stderr


def test_extract_path_keeps_the_users_own_files(home: CmHome, archive: bytes) -> None:
    write_file(home.path / "a.tar.gz", archive)
    write_file(home.path / "mine" / "val.txt", b"my own\n")
    assert home.run_script("--url=a.tar.gz", "--env.CM_EXTRACT_PATH=mine").returncode != 0
    assert read_files(home.path / "mine") == {"val.txt": b"my own\n"}


# Variations


def test_skip_ssl_verification_prints_a_note(home: CmHome, archive: bytes) -> None:
    write_file(home.path / "a.tar.gz", archive)
    command = ("cm", "run", "script", f"--tags={TAGS},_skip_ssl_verification", "--url=a.tar.gz")
    result = home.run_command(*command)
    assert result.returncode == 0
    (note,) = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert note == "note: _skip_ssl_verification has no effect: certificates and digests are always verified."


def test_other_calls_print_no_note(home: CmHome, archive: bytes) -> None:
    write_file(home.path / "a.tar.gz", archive)
    assert "note: " not in home.run_script("--url=a.tar.gz").stderr


# Rejected inputs

SHELL_TEXT = [
    '"; touch pwned; "',
    "$(touch pwned)",
    "`touch pwned`",
    "a\ntouch pwned\n",
    "a\x7fb",
    "a\udcffb",  # cannot be encoded
    "${HOME}",
    "file:///%24%28touch%20pwned%29",
    "FILE:/%60touch%20pwned%60",
    pytest.param("a\\b", marks=pytest.mark.skipif(WINDOWS, reason="the backslash is the path separator")),
]


@pytest.mark.parametrize("text", SHELL_TEXT)
@pytest.mark.parametrize("name", ["url", "checksum"])
def test_rejects_shell_text(name: str, text: str, home: CmHome) -> None:
    result = home.run_api(tags=TAGS, **{name: text})
    assert result["return"] > 0 and repr(text) in result["error"]
    assert not list(home.path.rglob("pwned")) and not list(home.path.rglob("tmp-run.*"))


@pytest.mark.usefixtures("no_coverage")
@pytest.mark.parametrize("place", ["env", "const"])
@pytest.mark.parametrize(
    "name",
    ["CM_WGET_URL", "CM_PACKAGE_URL", "CM_DOWNLOAD_LOCAL_FILE_PATH", "CM_IMAGENET_AUX_SOURCE", "CM_IMAGENET_AUX_X"],
)
def test_unused_inputs_do_not_reach_a_shell(place: str, name: str, home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    result = home.run_api(tags=TAGS, url=str(path), **{place: {name: "$(touch pwned)"}})
    assert result["return"] == 0 and result["new_env"]["CM_DATASET_AUX_SOURCE"] == str(path)
    assert not list(home.path.rglob("pwned"))


def test_extract_path_does_not_reach_a_shell(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    result = home.run_api(tags=TAGS, url=str(path), env={"CM_EXTRACT_PATH": "$(touch pwned)/../mine"})
    assert result["return"] == 0 and not list(home.path.rglob("pwned"))


@pytest.mark.parametrize("place", ["env", "const"])
def test_rejects_shell_text_in_the_checksum_key(place: str, home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    result = home.run_api(tags=TAGS, url=str(path), **{place: {"CM_IMAGENET_AUX_CHECKSUM": "$(touch pwned)"}})
    assert result["error"].startswith("checksum: expected hex digits, got '$(touch pwned)'.")
    assert not list(home.path.rglob("pwned"))


def test_rejects_shell_text_in_the_working_folder(home: CmHome, bash: str, archive: bytes) -> None:
    folder = home.path / "$(touch pwned)"
    write_file(folder / "a.tar.gz", archive)
    call = f'cd "$0" && cm run script --tags={TAGS} --url=a.tar.gz'
    result = home.run_command(bash, "-c", call, folder)
    assert result.returncode != 0 and repr(str(folder / "a.tar.gz")) in result.stderr
    assert not list(home.path.rglob("pwned"))


def test_rejects_shell_text_in_extract_path(home: CmHome) -> None:
    result = home.run_api(tags=TAGS, env={"CM_EXTRACT_PATH": "$(touch pwned)"})
    assert result["error"].startswith("env.CM_EXTRACT_PATH: expected no control characters")
    assert not list(home.path.rglob("pwned"))


@pytest.mark.parametrize("shell_text", ["$(touch pwned)", "$HOME", '"', "`touch pwned`"])
def test_rejects_shell_text_in_outdirname(shell_text: str, home: CmHome, archive: bytes) -> None:
    if WINDOWS and '"' in shell_text:
        pytest.skip("Windows does not allow these file names")
    path = write_file(home.path / "a.tar.gz", archive)
    result = home.run_api(tags=TAGS, url=str(path), outdirname=shell_text)
    assert result["error"].startswith("target folder: expected no control characters")
    assert not list(home.path.rglob("pwned")) and not list(home.path.rglob("val.txt"))


@pytest.mark.parametrize("name", ["url", "checksum"])
@pytest.mark.parametrize("value", [True, False, 0, [], {}])
def test_rejects_a_value_that_is_not_a_string(name: str, value: object, home: CmHome) -> None:
    result = home.run_api(tags=TAGS, **{name: value})
    assert result["error"] == f"{name}: expected a string, got {value!r}. Pass --{name}=VALUE."


def test_rejects_an_extract_path_that_is_not_a_string(home: CmHome) -> None:
    result = home.run_api(tags=TAGS, env={"CM_EXTRACT_PATH": True})
    assert result["error"] == "env.CM_EXTRACT_PATH: expected a string, got True. Pass --env.CM_EXTRACT_PATH=VALUE."


@pytest.mark.usefixtures("no_coverage")
@pytest.mark.parametrize("checksum", ["--", "g" * 32, "abc", "0" * 40])
def test_rejects_an_invalid_checksum(checksum: str, home: CmHome, archive: bytes) -> None:
    result = home.run_script(f"--url={write_file(home.path / 'a.tar.gz', archive)}", f"--checksum={checksum}")
    assert result.returncode != 0
    (error,) = [line for line in result.stderr.splitlines() if "CM error" in line]
    assert checksum in error and "hex digits" in error
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("credentials", ["me:sec$ret", "me:sec$ret/x", "me:x$#sec\nret", "me@work:sec$ret"])
def test_error_hides_the_password_in_a_url(credentials: str, home: CmHome) -> None:
    result = home.run_api(tags=TAGS, url=f"http://{credentials}@127.0.0.1:1/a")
    assert "got 'http://127.0.0.1:1/a'. Rename" in result["error"] and "ret" not in result["error"]


def test_error_hides_the_password_in_a_url_that_is_not_a_string(home: CmHome) -> None:
    result = home.run_api(tags=TAGS, url=["http://me:secret@127.0.0.1:1/a"])
    assert result["error"] == "url: expected a string, got ['http://127.0.0.1:1/a']. Pass --url=VALUE."


@pytest.mark.parametrize("name", ["url", "checksum"])
def test_rejects_a_value_that_is_too_long_for_the_environment(name: str, home: CmHome) -> None:
    result = home.run_api(tags=TAGS, **{name: "0" * 20_000})
    assert result["error"] == f"{name}: expected at most 16384 characters, got 20000. Pass a shorter one."


def test_accepts_an_unbalanced_quote_in_the_command_line(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    assert home.run_api(tags=TAGS, url=str(path), mlc_run_cmd="mlcr 'a")["return"] == 0


# Environment variables for the native script


def test_private_variables_are_not_inputs(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    victim = write_file(home.path / "victim.json", b"mine")
    private = {
        "CM_IMAGENET_AUX_SOURCE": str(home.path / "missing"),
        "CM_IMAGENET_AUX_RESULT": str(victim),
        "CM_IMAGENET_AUX_INTO": str(home.path / "elsewhere"),
        "CM_IMAGENET_AUX_PYTHON": "missing",
    }
    for place in ("env", "const"):
        result = home.run_api(tags=TAGS, url=str(path), new=True, **{place: private})
        assert result["return"] == 0 and result["new_env"]["CM_DATASET_AUX_SOURCE"] == str(path)
    assert victim.read_bytes() == b"mine" and not (home.path / "elsewhere").exists()


def run_program(home: CmHome, program: str, path: Path) -> str:
    """Run a Python program that passes *call*, with this archive, to ``cmind.access``; return its output."""
    call = {"action": "run", "automation": "script", "tags": TAGS, "url": str(path)}
    return home.run_command(sys.executable, "-c", f"import cmind\ncall = {call}\n{program}", check=True).stdout


def test_removes_private_variables_after_the_call(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    program = (
        "import os\n"
        "assert cmind.access(call)['return'] == 0\n"
        "print([key for key in os.environ if 'IMAGENET_AUX' in key])"
    )
    assert run_program(home, program, path).splitlines()[-1] == "[]"


def test_engines_python_runs_the_fetcher(home: CmHome, archive: bytes, tmp_path: Path) -> None:
    write_file(home.path / "a.tar.gz", archive)
    write_file(tmp_path / "bin" / "python3", b"#!/bin/sh\nexit 9\n").chmod(0o755)
    search_path = os.pathsep.join([str(tmp_path / "bin"), home.env["PATH"]])
    call = [sys.executable, "-c", "import cmind.cli; cmind.cli.run()", "run", "script", f"--tags={TAGS}"]
    assert home.run_command(*call, "--url=a.tar.gz", PATH=search_path).returncode == 0


# Concurrent calls

THREADS = """
import json, os, sys, threading, cmind
tags, *urls = sys.argv[1:]
results = {}
def call(url):
    for _ in range(3):
        call = {"action": "run", "automation": "script", "tags": tags, "url": url, "new": True, "quiet": True}
        try:
            r = cmind.access(call)
        except Exception as error:
            r = {"return": 1, "error": f"{type(error).__name__}: {error}"}
        if r["return"] == 0:
            results[url] = r["new_env"]
            return
        errors.append(r["error"])
errors = []
threads = [threading.Thread(target=call, args=(url,)) for url in urls]
for thread in threads: thread.start()
for thread in threads: thread.join()
contents = {}
for url, env in results.items():
    with open(env["CM_DATASET_AUX_VAL_PATH"]) as file:
        contents[url] = (env["CM_DATASET_AUX_SOURCE"], file.read())
print(json.dumps([contents, errors]))
"""


def test_threads_get_their_own_files_or_an_error(home: CmHome) -> None:
    sources = {}
    for number in range(4):
        content = {"val.txt": b"%d\n" % number}
        path = write_file(home.path / f"{number}.tar.gz", sample_archive.pack_files(content))
        sources[str(path)] = f"{number}\n"
    errors = []
    for _ in range(6):  # in the same unfinished cache entries
        printed = home.run_command(sys.executable, "-c", THREADS, TAGS, *sources, check=True).stdout
        contents, failed = json.loads(printed.splitlines()[-1])
        assert contents == {source: [source, sources[source]] for source in contents}
        errors += failed
    thread_errors = [error for error in errors if "thread" in error]
    assert thread_errors, errors
    assert not any("IMAGENET_AUX" in error or "native script" in error for error in errors), errors


def test_call_from_another_thread_succeeds_after_an_aborted_one(home: CmHome, archive: bytes) -> None:
    """Abort a call between the hooks, and call from another thread while the first one is alive."""
    path = write_file(home.path / "a.tar.gz", archive)
    program = (
        "import os, threading\n"
        "done = threading.Event()\n"
        "def abort():\n"
        "    system, os.system = os.system, lambda command: 256\n"
        "    print(cmind.access(dict(call))['error'])\n"
        "    os.system = system\n"
        "    done.set(); finished.wait()\n"
        "finished = threading.Event()\n"
        "threading.Thread(target=abort).start(); done.wait()\n"
        "print(cmind.access(dict(call)))\n"
        "finished.set()"
    )
    printed = run_program(home, program, path)
    assert "Portable CM script failed" in printed
    assert "'return': 0" in printed.splitlines()[-1]


def test_renews_while_another_thread_runs(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    program = (
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "for renew in (False, True):\n"
        "    r = cmind.access({**call, 'renew': renew})\n"
        "    assert r['return'] == 0, r\n"
    )
    run_program(home, program, path)


@pytest.mark.skipif(WINDOWS, reason="replaces run.sh")
def test_rejects_the_result_of_another_call(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    fake = (
        "#!/bin/sh\n"
        'echo \'{"requested": "other", "folder": "other", "source": "", "verified": true, "files": []}\''
        ' >"$CM_IMAGENET_AUX_RESULT"\n'
    )
    write_file(home.script / "run.sh", fake.encode())
    result = home.run_api(tags=TAGS, url=str(path))
    assert result["return"] > 0 and "belongs to another call" in result["error"]


# Signals


@contextlib.contextmanager
def started_call(home: CmHome, url: str) -> Iterator[subprocess.Popen[str]]:
    """Start a call, and kill its process group on exit."""
    process = home.start_script(f"--url={url}")
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(WINDOWS, reason="Windows has no POSIX process groups")
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_call_leaves_no_files_behind(name: str, home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(stop_at=9, then="stall"))
    with started_call(home, url) as process:
        server.wait_for_requests(process)
        time.sleep(0.3)  # give the client time to receive the first bytes
        os.killpg(process.pid, getattr(signal, name))
        printed = process.communicate(timeout=60)[0]  # also waits for the fetcher, which writes to the same pipe
    assert process.returncode != 0 and "error: interrupted" in printed
    assert home.leftovers() == []
    assert [path.name for path in home.cache_entries()[0].iterdir() if "data" in path.name] == []


# Old Pythons


def old_pythons() -> list[str]:
    """List the installed Pythons 3.6 and 3.7."""
    names = [shutil.which(f"python3.{minor}") for minor in (6, 7)]
    names += map(str, Path.home().glob(".pyenv/versions/3.[67].*/bin/python"))
    runs = [name for name in names if name and subprocess.run([name, "-V"], capture_output=True).returncode == 0]
    return sorted(set(runs))


def test_old_python_is_named_in_the_error() -> None:
    if not old_pythons():
        pytest.skip("no Python before 3.8 is installed")
    program = (
        "import sys, importlib.util\n"
        "spec = importlib.util.spec_from_file_location('customize', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.preprocess({'env': {}, 'input': {}})['error'])"
    )
    for python in old_pythons():
        command = [python, "-c", program, str(ROOT / "customize.py")]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
        assert printed.startswith("Python version: expected 3.8 or newer, got 3.")


def test_writes_to_the_cache_entry_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have changed the working folder. The hook reads the entry from its caller's variable."""
    cached_path = str(tmp_path / "entry")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {})
    spec = importlib.util.spec_from_file_location("customize", str(ROOT / "customize.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.preprocess({"env": {}, "input": {"url": "a"}}) == {"return": 0}
    assert os.environ["CM_IMAGENET_AUX_INTO"] == os.path.join(cached_path, "data")

"""What run.bat hands over: to Windows' own cmd and Python there, elsewhere to wine's cmd and a stand-in for Python."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Iterator

import pytest
from cm_home import ROOT, clean_env
from command import NO_COVERAGE

pytestmark = pytest.mark.xdist_group("wine")  # one Windows at a time: two that are being made fail now and then
WINDOWS = sys.platform == "win32"
WINE = shutil.which("wine64", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/lib/wine"]))
COMPILER = shutil.which("x86_64-w64-mingw32-gcc")
ENV = clean_env(**NO_COVERAGE)  # what the probe runs through is not to be measured

# In the place of the package: says which words it is given, and ends with the code it is told.
PROBE = """\
import json, os, sys
def main(words=None):
    with open("words.json", "w", encoding="utf-8") as file:
        json.dump(sys.argv[1:] if words is None else words, file)
    return int(os.environ.get("CODE", "0"))
if __name__ == "__main__":
    sys.exit(main())
"""

# In the place of python.exe: writes down its words and its environment, and ends with the code it is told.
STAND_IN = r"""
#include <stdio.h>
#include <windows.h>

static void put(FILE *file, const wchar_t *text) {
    static char bytes[65536];
    int count = WideCharToMultiByte(CP_UTF8, 0, text, -1, bytes, sizeof bytes, NULL, NULL);
    fwrite(bytes, 1, count, file);
}

int wmain(int count, wchar_t **words) {
    FILE *file = fopen("words.txt", "wb");
    const wchar_t *code = _wgetenv(L"CODE");
    for (int i = 1; i < count; i++)
        put(file, words[i]);
    fclose(file);
    file = fopen("environment.txt", "wb");
    for (const wchar_t *pair = GetEnvironmentStringsW(); *pair; pair += wcslen(pair) + 1)
        put(file, pair);
    fclose(file);
    return code ? _wtoi(code) : 0;
}
"""


class Cmd:
    """Windows' cmd, or wine's with a Windows of its own below this folder."""

    def __init__(self, path: Path) -> None:
        if not WINDOWS and not WINE:
            pytest.skip("run.bat needs Windows or wine64")
        self.path = path
        self._wine = [] if WINDOWS else [str(WINE)]
        self._env = ENV
        if not WINDOWS:
            no_more_than_wine = {"WINEARCH": "win64", "WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml="}
            self._env = {**ENV, **no_more_than_wine, "WINEPREFIX": str(path / "prefix"), "LC_ALL": "C.UTF-8"}
            subprocess.run([*self._wine, "cmd", "/c", "exit"], env=self._env, check=True)  # makes that Windows

    @contextlib.contextmanager
    def staying_on(self) -> Iterator[None]:
        """Keep wine's Windows from shutting down after each call, and from being called while it does."""
        if WINDOWS:
            yield
            return
        idle = [*self._wine, "cmd"]
        with subprocess.Popen(idle, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            yield
            process.communicate()

    def call(self, folder: Path, batch: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Call a batch file in a folder."""
        (folder / "caller.bat").write_bytes(b'@"%BATCH%"\r\n')  # wine's `call` makes any code a 1
        return subprocess.run(
            [*self._wine, "cmd", "/c", "caller.bat"],
            cwd=folder,
            env={**self._env, "BATCH": self.name(batch), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )

    def python(self) -> Path:
        """Python, or its stand-in, in a folder that is not easy to name."""
        if WINDOWS:
            return Path(sys.executable)
        if not COMPILER:
            pytest.skip("a stand-in for python.exe needs x86_64-w64-mingw32-gcc")
        program = self.path / "Program Files é & Co" / "python.exe"
        if not program.exists():
            program.parent.mkdir()
            source = self.path / "stand_in.c"
            source.write_text(STAND_IN)
            subprocess.run([COMPILER, "-municode", "-o", str(program), str(source)], check=True)
        return program

    def name(self, path: Path) -> str:
        """What the path is called there."""
        return str(path) if WINDOWS else "Z:" + str(path).replace("/", "\\")

    def words(self, folder: Path, script: Path) -> list[str]:
        """The words that the package beside the script was given."""
        if not WINDOWS:
            words, pairs = (
                (folder / name).read_bytes().decode().split("\0")[:-1] for name in ("words.txt", "environment.txt")
            )
            env = dict(pair.split("=", 1) for pair in pairs if pair[0] != "=")
            assert env["PYTHONPATH"].split(";")[0] == self.name(script) + "\\"
            env = {key: value for key, value in env.items() if key.startswith("CM_")}
            call = [sys.executable, *words]
            subprocess.run(call, cwd=folder, env={**ENV, **env, "PYTHONPATH": str(script)}, check=True)
        said: list[str] = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return said


@pytest.fixture(scope="module")
def cmd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cmd]:
    path = tmp_path_factory.mktemp("windows")
    made = Cmd(path)
    with made.staying_on():
        yield made
    if not WINDOWS:
        server = shutil.which("wineserver", path=os.pathsep.join([os.environ["PATH"], "/usr/lib/wine"]))
        if server:
            subprocess.run([server, "-k"], env={**ENV, "WINEPREFIX": str(path / "prefix")}, check=False)
        shutil.rmtree(path, ignore_errors=True)  # a Windows is 700 MB


@pytest.fixture(params=["plain", "with space", "données", "a & b (1)", "wow!dir"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The native scripts in a folder, with the probe in the place of the package."""
    return script_in(tmp_path / request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where they are called."""
    path = tmp_path / "çà et là"
    path.mkdir()
    return path


def script_in(path: Path) -> Path:
    (path / "imagenet_aux").mkdir(parents=True)
    (path / "imagenet_aux" / "__init__.py").touch()
    (path / "imagenet_aux" / "__main__.py").write_text(PROBE)
    for name in ("run.sh", "run.bat"):
        shutil.copy(ROOT / name, path)
    return path


def by_run_sh(folder: Path, script: Path, **env: str) -> list[str]:
    env = {**ENV, "CM_IMAGENET_AUX_PYTHON": sys.executable, **env}
    subprocess.run(["bash", str(script / "run.sh")], cwd=folder, env=env, check=True)
    words: list[str] = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    return words


SOURCES = {
    "nothing": "",
    "a URL": "https://example.org/a.tar.gz",
    "a percent-encoded URL": "https://example.org/a%20b%C3%A9%2Fc.tar.gz",
    "a URL with a query": "https://example.org/a?b=c&d=e;f|g",
    "the name of a variable in percent signs": "%PATH%",
    "carets": "a^b^^c",
    "letters of other scripts": "C:\\données\\日本",
    "an equals sign and a space": "C:\\a=b c",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_run_bat_hands_over_the_same_words_as_run_sh(source: str, cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = script_in(tmp_path / "script")
    orders = {
        "CM_WGET_URL": source,
        "CM_IMAGENET_AUX_CHECKSUM": "0" * 32,
        "CM_IMAGENET_AUX_OUTCOME": "how it went.json",
    }
    result = cmd.call(folder, script / "run.bat", CM_IMAGENET_AUX_PYTHON=cmd.name(cmd.python()), **orders)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    words = cmd.words(folder, script)
    assert words == ["fetch", f"--checksum={'0' * 32}", "--result=how it went.json", "--", source]
    if not WINDOWS:
        assert words == by_run_sh(folder, script, **orders)


def test_run_bat_is_called_from_any_folder(cmd: Cmd, folder: Path, script: Path) -> None:
    result = cmd.call(folder, script / "run.bat", CM_IMAGENET_AUX_PYTHON=cmd.name(cmd.python()))
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert cmd.words(folder, script) == ["fetch", "--checksum=", "--result=", "--", ""]


def test_run_bat_takes_the_order_of_the_hooks_before_that_by_hand(cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = script_in(tmp_path / "script")
    orders = {"CM_IMAGENET_AUX_SOURCE": "this", "CM_WGET_URL": "that"}
    cmd.call(folder, script / "run.bat", CM_IMAGENET_AUX_PYTHON=cmd.name(cmd.python()), **orders)
    assert cmd.words(folder, script)[-1] == "this"


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_run_bat_hands_on_the_exit_code(code: int, cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = script_in(tmp_path / "script")
    python = {"CM_IMAGENET_AUX_PYTHON": cmd.name(cmd.python())}
    assert cmd.call(folder, script / "run.bat", CODE=str(code), **python).returncode == code


@pytest.mark.parametrize("code", [0, 1, 130])
def test_run_bat_finds_python_on_the_path_even_where_it_is_a_batch_file(
    code: int, cmd: Cmd, folder: Path, tmp_path: Path
) -> None:
    script = script_in(tmp_path / "script")
    (folder / "python.bat").write_bytes(b"@echo off\r\necho %1\r\nexit /b %CODE%\r\n")
    result = cmd.call(folder, script / "run.bat", CODE=str(code))
    assert result.returncode == code and result.stdout[:1] == "-", result.stderr


# Through the script that the engine writes


@pytest.mark.parametrize("source", [s for s in SOURCES.values() if s and not set(s) & set('"\\')])
def test_what_the_user_said_outlives_the_script_that_the_engine_writes_on_windows(
    source: str, cmd: Cmd, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = script_in(tmp_path / "script")
    monkeypatch.setattr(os, "environ", clean_env())
    before = dict(os.environ)
    env = {"CM_WGET_URL": source, "CM_IMAGENET_AUX_CHECKSUM": "0" * 32, "CM_TMP_CURRENT_PATH": str(tmp_path)}
    assert loaded(ROOT / "customize.py").preprocess({"env": env, "input": {"url": source}}) == {"return": 0}
    handed = {key: value for key, value in os.environ.items() if before.get(key) != value}
    handed["CM_IMAGENET_AUX_PYTHON"] = cmd.name(cmd.python())
    lines = ["@echo off", "", *engines_script(env), "\n", f'call "{cmd.name(script)}\\run.bat"', ""]
    (folder / "tmp-run.bat").write_text("\n".join(lines), encoding="utf-8")
    result = cmd.call(folder, folder / "tmp-run.bat", **handed)
    assert result.returncode == 0, result.stdout + result.stderr
    words = cmd.words(folder, script)
    assert words[1] == f"--checksum={'0' * 32}"
    assert words[-1] == handed["CM_IMAGENET_AUX_SOURCE"] and words[-1].endswith(source)


def engines_script(env: dict[str, str]) -> list[str]:
    """The lines that set these keys, by the engine's own hand."""
    found = importlib.util.find_spec("cmx4mlops")
    assert found and found.submodule_search_locations
    module = loaded(Path(found.submodule_search_locations[0]) / "repo" / "automation" / "script" / "module.py")
    windows = {"platform": "windows", "set_env": "set ${key}=${value}", "env_separator": ";", "env_var": "%env_var%"}
    lines: list[str] = module.convert_env_to_script(env, windows)
    return lines


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem + "_for_windows", str(path))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

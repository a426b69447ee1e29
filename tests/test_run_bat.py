"""Test run.bat: with Windows' cmd and Python, or with wine's cmd and a program that records its arguments."""

from __future__ import annotations

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

pytestmark = pytest.mark.xdist_group("wine")  # creating two prefixes at once sometimes fails
WINDOWS = sys.platform == "win32"
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/lib/wine"])  # Debian's location
WINE, WINESERVER = shutil.which("wine64", path=_PATH), shutil.which("wineserver", path=_PATH)
COMPILER = shutil.which("x86_64-w64-mingw32-gcc")
ENV = clean_env(**NO_COVERAGE)  # do not measure the probe's coverage

# imagenet_aux/__main__.py: records its arguments, and exits with the code in CODE.
PROBE = """\
import json, os, sys
with open("arguments.json", "w", encoding="utf-8") as file:
    json.dump(sys.argv[1:], file)
sys.exit(int(os.environ.get("CODE", "0")))
"""

# python.exe under wine: records its arguments and PYTHONPATH, and exits with the code in CODE.
STAND_IN = r"""
#include <stdio.h>
#include <windows.h>

static void put(FILE *file, const wchar_t *text) {
    static char bytes[65536];
    int count = WideCharToMultiByte(CP_UTF8, 0, text, -1, bytes, sizeof bytes, NULL, NULL);
    fwrite(bytes, 1, count, file);
}

int wmain(int count, wchar_t **arguments) {
    FILE *file = fopen("arguments.txt", "wb");
    const wchar_t *code = _wgetenv(L"CODE"), *path = _wgetenv(L"PYTHONPATH");
    put(file, path ? path : L"");
    for (int i = 1; i < count; i++)
        put(file, arguments[i]);
    fclose(file);
    return code ? _wtoi(code) : 0;
}
"""


class Cmd:
    """Windows' cmd, or wine's cmd with a new prefix in this folder."""

    def __init__(self, path: Path) -> None:
        if not WINDOWS and not (WINE and WINESERVER):
            pytest.skip("run.bat requires Windows or wine64")
        self.path = path
        self._wine = [] if WINDOWS else [str(WINE)]
        self._env = ENV
        if not WINDOWS:
            minimal = {
                "WINEARCH": "win64",
                "WINEDEBUG": "-all",
                "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
            }
            self._env = {**ENV, **minimal, "WINEPREFIX": str(path / "prefix"), "LC_ALL": "C.UTF-8"}
            (path / "prefix").mkdir()
            self.wineserver("--persistent")  # otherwise, it stops after each call, and a call fails while it stops
            subprocess.run([*self._wine, "cmd", "/c", "exit"], env=self._env, check=True)  # creates the prefix

    def wineserver(self, option: str) -> None:
        """Run wineserver for this prefix."""
        subprocess.run([str(WINESERVER), option], env=self._env, check=True)

    def call(self, folder: Path, batch: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Call a batch file in a folder."""
        quoted = "".join(f' "{argument}"' for argument in arguments)
        # No `call`: wine's version returns 1 for any code.
        (folder / "caller.bat").write_bytes(f'@"%BATCH%"{quoted}\r\n'.encode())
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
        """Return the path of Python, or of the stand-in for it in a folder with special characters."""
        if WINDOWS:
            return Path(sys.executable)
        if not COMPILER:
            pytest.skip("the stand-in for python.exe requires x86_64-w64-mingw32-gcc")
        program = self.path / "Program Files é & Co" / "python.exe"
        if not program.exists():
            program.parent.mkdir()
            source = self.path / "stand_in.c"
            source.write_text(STAND_IN)
            subprocess.run([COMPILER, "-municode", "-o", str(program), str(source)], check=True)
        return program

    def name(self, path: Path) -> str:
        """Convert a path to a Windows path."""
        return str(path) if WINDOWS else "Z:" + str(path).replace("/", "\\")

    def arguments(self, folder: Path, script: Path) -> list[str]:
        """Return the arguments that imagenet_aux/__main__.py received."""
        if WINDOWS:
            arguments: list[str] = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
            return arguments
        _, main, *arguments = (folder / "arguments.txt").read_bytes().decode().split("\0")[:-1]
        assert main == self.name(script) + "\\imagenet_aux\\__main__.py"
        return arguments


@pytest.fixture(scope="module")
def cmd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cmd]:
    path = tmp_path_factory.mktemp("windows")
    made = Cmd(path)
    yield made
    if not WINDOWS:
        made.wineserver("--kill")
        shutil.rmtree(path, ignore_errors=True)  # a wine prefix takes 700 MB


IS_WINE = not WINDOWS or "WINEPREFIX" in os.environ
_EXCLAMATION = pytest.param("wow!dir", marks=pytest.mark.skipif(IS_WINE, reason="wine's cmd expands values twice"))


@pytest.fixture(params=["plain", "with space", "données", "a & b (1)", _EXCLAMATION])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a script folder with the probe as imagenet_aux/__main__.py."""
    return make_script(tmp_path / request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the working folder for the call."""
    path = tmp_path / "çà et là"
    path.mkdir()
    return path


def make_script(path: Path) -> Path:
    (path / "imagenet_aux").mkdir(parents=True)
    (path / "imagenet_aux" / "__main__.py").write_text(PROBE)
    for name in ("run.sh", "run.bat"):
        shutil.copy(ROOT / name, path)
    return path


def arguments_of_run_sh(folder: Path, script: Path, **env: str) -> list[str]:
    env = {**ENV, **env, "CM_IMAGENET_AUX_PYTHON": sys.executable}
    subprocess.run(["bash", str(script / "run.sh")], cwd=folder, env=env, check=True)
    arguments: list[str] = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    return arguments


SOURCES = {
    "nothing": "",
    "a URL": "https://example.org/a.tar.gz",
    "a percent-encoded URL": "https://example.org/a%20b%C3%A9%2Fc.tar.gz",
    "a URL with a query": "https://example.org/a?b=c&d=e;f|g",
    "a variable name in percent signs": "%PATH%",
    "carets": "a^b^^c",
    "non-ASCII letters": "C:\\données\\日本",
    "an equals sign and a space": "C:\\a=b c",
}


# Called by the hooks


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("replace", ["", "--replace"])
def test_passes_the_hooks_inputs_like_run_sh(source: str, replace: str, cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "script")
    inputs = {
        "CM_IMAGENET_AUX_SOURCE": source,
        "CM_IMAGENET_AUX_CHECKSUM": "0" * 32,
        "CM_IMAGENET_AUX_INTO": "a & b",
        "CM_IMAGENET_AUX_PID": "123",
        "CM_IMAGENET_AUX_REPLACE": replace,
        "CM_IMAGENET_AUX_RESULT": "the result.json",
        "CM_WGET_URL": "ignored",
    }
    result = cmd.call(folder, script / "run.bat", CM_IMAGENET_AUX_PYTHON=cmd.name(cmd.python()), **inputs)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    options = [f"--checksum={'0' * 32}", "--into=a & b", "--result=the result.json", "--pid=123", *replace.split()]
    arguments = cmd.arguments(folder, script)
    assert arguments == ["fetch", *options, "--", source]
    if not WINDOWS:
        assert arguments == arguments_of_run_sh(folder, script, **inputs)


@pytest.mark.parametrize("code", [0, 1, 130])
def test_exits_with_0_if_there_is_a_result_file(code: int, cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "script")
    env = {"CM_IMAGENET_AUX_PYTHON": cmd.name(cmd.python()), "CM_IMAGENET_AUX_RESULT": "result.json"}
    assert cmd.call(folder, script / "run.bat", CODE=str(code), **env).returncode == 0


# Called directly


def test_runs_from_any_folder(cmd: Cmd, folder: Path, script: Path) -> None:
    result = cmd.call(folder, script / "run.bat", CM_IMAGENET_AUX_PYTHON=cmd.name(cmd.python()))
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert cmd.arguments(folder, script) == ["fetch", "--checksum=", "--", ""]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_takes_the_source_from_cm_wget_url(source: str, cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "script")
    env = {"CM_WGET_URL": source, "CM_IMAGENET_AUX_CHECKSUM": "not hex"}
    cmd.call(folder, script / "run.bat", CM_IMAGENET_AUX_PYTHON=cmd.name(cmd.python()), **env)
    assert cmd.arguments(folder, script) == ["fetch", "--checksum=not hex", "--", source]


def test_callers_variables_are_not_options(cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "script")
    cmd.call(folder, script / "run.bat", CM_IMAGENET_AUX_PYTHON=cmd.name(cmd.python()), options="--unknown")
    assert cmd.arguments(folder, script) == ["fetch", "--checksum=", "--", ""]


def test_leaves_the_callers_variables_unchanged(cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "script")
    (folder / "python.bat").write_bytes(b"@exit /b\r\n")
    batch = folder / "calls.bat"
    names = ("main", "options", "CM_IMAGENET_AUX_PYTHON", "CM_IMAGENET_AUX_SOURCE")
    shown = "".join(f"%{name}%" for name in names)
    batch.write_bytes(f'@call "{cmd.name(script)}\\run.bat"\r\n@echo [{shown}]\r\n'.encode())
    assert cmd.call(folder, batch, CM_WGET_URL="a").stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["C:\\a b\\a.tar.gz", "--into", "wow!dir"], ["https://example.org/a?b=c&d", "--replace"]]
)
def test_passes_its_arguments_on(arguments: list[str], cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "a & b (1)")
    python = {"CM_IMAGENET_AUX_PYTHON": cmd.name(cmd.python())}
    cmd.call(folder, script / "run.bat", *arguments, **python, CM_WGET_URL="ignored")
    assert cmd.arguments(folder, script) == ["fetch", *arguments]


@pytest.mark.parametrize("arguments", [[], ["a.tar.gz"]])
@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_exits_with_the_fetchers_code(code: int, arguments: list[str], cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "script")
    python = {"CM_IMAGENET_AUX_PYTHON": cmd.name(cmd.python())}
    assert cmd.call(folder, script / "run.bat", *arguments, CODE=str(code), **python).returncode == code


@pytest.mark.skipif(WINDOWS, reason="the stand-in records PYTHONPATH")
def test_keeps_the_callers_pythonpath(cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "script")
    python = {"CM_IMAGENET_AUX_PYTHON": cmd.name(cmd.python())}
    cmd.call(folder, script / "run.bat", PYTHONPATH="mine", **python)
    assert (folder / "arguments.txt").read_bytes().startswith(b"mine\0")


@pytest.mark.parametrize("code", [0, 1, 130])
def test_finds_a_python_that_is_a_batch_file(code: int, cmd: Cmd, folder: Path, tmp_path: Path) -> None:
    script = make_script(tmp_path / "script")
    (folder / "python.bat").write_bytes(b"@echo off\r\necho %~nx1\r\nexit /b %CODE%\r\n")
    result = cmd.call(folder, script / "run.bat", CODE=str(code))
    assert (result.returncode, result.stdout.strip()) == (code, "__main__.py"), result.stderr


# Called by the engine's batch file


@pytest.mark.parametrize("source", [s for s in SOURCES.values() if s and not set(s) & set('"\\')])
def test_engines_batch_file_preserves_the_inputs(
    source: str, cmd: Cmd, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = make_script(tmp_path / "script")
    monkeypatch.setattr(os, "environ", clean_env())
    before = dict(os.environ)
    env = {"CM_WGET_URL": source, "CM_IMAGENET_AUX_CHECKSUM": "0" * 32, "CM_TMP_CURRENT_PATH": str(tmp_path)}
    assert load_module(ROOT / "customize.py").preprocess({"env": env, "input": {"url": source}}) == {"return": 0}
    inputs = {key: value for key, value in os.environ.items() if before.get(key) != value}
    inputs["CM_IMAGENET_AUX_PYTHON"] = cmd.name(cmd.python())
    lines = ["@echo off", "", *engine_lines(env), "\n", f'call "{cmd.name(script)}\\run.bat"', ""]
    (folder / "tmp-run.bat").write_text("\n".join(lines), encoding="utf-8")
    result = cmd.call(folder, folder / "tmp-run.bat", **inputs)
    assert result.returncode == 0, result.stdout + result.stderr
    arguments = cmd.arguments(folder, script)
    assert arguments[1] == f"--checksum={'0' * 32}"
    assert arguments[-1] == inputs["CM_IMAGENET_AUX_SOURCE"] and arguments[-1].endswith(source)


def engine_lines(env: dict[str, str]) -> list[str]:
    """Return the lines that the engine writes for these keys."""
    found = importlib.util.find_spec("cmx4mlops")
    assert found and found.submodule_search_locations
    module = load_module(Path(found.submodule_search_locations[0]) / "repo" / "automation" / "script" / "module.py")
    windows = {"platform": "windows", "set_env": "set ${key}=${value}", "env_separator": ";", "env_var": "%env_var%"}
    lines: list[str] = module.convert_env_to_script(env, windows)
    return lines


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem + "_for_windows", str(path))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""What is derived is not stale, and what is written down can be done."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cm_home import ROOT, CmHome

sys.path.insert(0, str(ROOT / "tools"))

import generate

# What a README command needs beside the checkout: a package registry, a mirror, or a container engine.
NEEDS_NETWORK = ("pip install", "_from.", "=...", "dockerfile")
SAID_BY_OTHERS = [
    "cannot write …: Access is denied",
    "cannot write …: Disk quota exceeded",
    "cannot write …: No space left on device",
    "cannot write …: The process cannot access the file",
    "CERTIFICATE_VERIFY_FAILED",
    "Can't load artifact meta",
    "Portable CM script failed",
]
RUN_BY_OTHERS = ("bash tests/demo.sh", "bash tests/run.sh")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", sorted(generate.GENERATED))
def test_what_is_derived_is_what_deriving_gives(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == generate.GENERATED[name](), "run: python tools/generate.py"


def strings(path: Path) -> list[str]:
    """Those of a program that are no docstrings, with dots for what is filled in."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    filled_in = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    alone = [node.value for node in nodes if isinstance(node, ast.Expr)]
    plain = [[node] for node in nodes if isinstance(node, ast.Constant) and node not in alone]
    return ["".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
            for parts in [*filled_in, *plain]]  # fmt: skip


def explained() -> list[str]:
    """The errors in the table of README-extra.md."""
    table = (ROOT / "README-extra.md").read_text(encoding="utf-8").partition("## What an error means")[2]
    rows = [row for row in table.partition("\n## ")[0].splitlines() if row.startswith("| `")]
    return [phrase for row in rows for phrase in re.findall("`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize("error", explained())
def test_each_error_that_is_explained_is_one_that_is_said(error: str) -> None:
    programs = [ROOT / "customize.py", *(ROOT / "imagenet_aux").glob("*.py")]
    said = [text for program in programs for text in strings(program)] + SAID_BY_OTHERS
    wanted = ".*".join(re.escape(part.strip()) for part in error.split("…"))
    assert any(re.search(wanted, text, re.DOTALL) for text in said)


@pytest.fixture
def filled(home: CmHome, tmp_path: Path, archive: bytes) -> CmHome:
    """A home with the set in its cache, so that no command needs a mirror; and the checkout as its folder."""
    (tmp_path / "a.tar.gz").write_bytes(archive)
    home.export_keys(f"--url={tmp_path / 'a.tar.gz'}")
    shutil.copytree(ROOT / "imagenet_aux", home.path / "imagenet_aux")
    return home


@pytest.mark.parametrize("line", [line for block in blocks("README.md", "bash") for line in block.splitlines()])
def test_each_command_of_the_readme_works(line: str, filled: CmHome, bash: str) -> None:
    if line in RUN_BY_OTHERS or any(word in line for word in NEEDS_NETWORK):
        pytest.skip(f"needs the network, or is run elsewhere: {line}")
    if line.startswith("git clone"):
        shutil.rmtree(filled.script)
        line = f"cd '{ROOT.as_posix()}' && {line}"
    result = filled.run_command(bash, "-c", line)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("program", blocks("README.md", "python"))
def test_the_python_of_the_readme_works(program: str, filled: CmHome) -> None:
    said = filled.run_command(sys.executable, "-c", program, check=True).stdout
    assert said.splitlines()[-1] == str(filled.cache_entries()[0] / "data")


def test_the_commands_of_readme_extra_for_use_without_cm_work(home: CmHome, bash: str, archive: bytes) -> None:
    shared = home.path / "shared"
    shared.mkdir()
    (shared / "caffe_ilsvrc12.tar.gz").write_bytes(archive)
    block = next(block for block in blocks("README-extra.md", "bash") if "imagenet_aux show" in block)
    lines = block.replace("/shared", shared.as_posix()).splitlines()
    codes = [home.run_command(bash, "-c", line, PYTHONPATH=str(ROOT)).returncode for line in lines]
    assert codes == [0, 0, 1], "1: the stand-in is not the published set"


def test_the_demonstration_fetches_all_eight_and_prints_the_keys(bash: str) -> None:
    said = subprocess.run([bash, "tests/demo.sh"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert said.count("_PATH") == 9
    assert re.search(r'"CM_DATASET_AUX_VERIFIED": "no"', said)

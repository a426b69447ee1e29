"""Test the documentation: generated files are current, commands work, and messages match the code."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from cm_home import ROOT, CmHome

sys.path.insert(0, str(ROOT / "tools"))

import benchmark
import generate

from imagenet_aux import download, exchange

pytestmark = pytest.mark.usefixtures("no_coverage")
DOCUMENTS = ["README.md", "README-extra.md", "CONTRIBUTING.md", "CHANGELOG.md"]
# Commands in README.md that contain one of these texts require PyPI, a mirror, or a container engine.
NEEDS_NETWORK = ("pip install", "--renew", "_from.", "=...", "dockerfile")
RUN_ELSEWHERE = ("bash tests/", "git ")
# Messages that come from the OS, the requests library or the engines.
FOREIGN_MESSAGES = [
    "cannot write …: Access is denied",
    "cannot write …: Disk quota exceeded",
    "cannot write …: No space left on device",
    "cannot write …: The process cannot access the file",
    "CERTIFICATE_VERIFY_FAILED",
    "Can't load artifact meta",
    "EOFError",
    "Exceeded 20 redirects",
    "More than 1 cached script output found",
    "Native run script failed inside MLC script",
    "Portable CM script failed",
]
# Names of the functions and exceptions that report messages.
REPORTERS = re.compile(r"(\w+Error|ConnectionFault|_RestartRequired|_error|_fail|error|warning)")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read(document), re.DOTALL)


@pytest.mark.parametrize("name", sorted(generate.GENERATED))
def test_generated_file_is_current(name: str) -> None:
    assert read(name) == generate.GENERATED[name](), "run: python tools/generate.py"


def test_readme_extra_is_short() -> None:
    assert len(read("README-extra.md").split()) <= 2200, "shorten it, or move details to CONTRIBUTING.md"


def anchors(document: str) -> set[str]:
    return {generate._anchor(title) for title in re.findall("^#+ (.+)$", read(document), re.MULTILINE)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_have_a_target(document: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", read(document)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        assert (ROOT / path).exists(), target
        assert not anchor or anchor in anchors(path or document), target


def test_benchmark_times_cold_and_cached_calls(tmp_path: Path) -> None:
    bench = benchmark.Bench(tmp_path)
    assert bench.cold(benchmark.NOOP_TAGS)() > 0
    assert bench.cached(benchmark.NOOP_TAGS)() > 0


def test_benchmark_table_matches_the_measured_figures() -> None:
    figures = json.loads(read("docs/benchmark.json"))
    assert benchmark.table(figures["rows"]) in read("CONTRIBUTING.md"), "copy the table that tools/benchmark.py prints"


def test_each_test_module_is_described() -> None:
    described = re.findall("`(test_[a-z_]+[.]py)`", read("CONTRIBUTING.md"))
    assert {path.name for path in Path(__file__).parent.glob("test_*.py")} <= set(described)


# Troubleshooting


@functools.lru_cache(maxsize=None)
def explained_messages() -> list[str]:
    """Return the messages in the first column of the troubleshooting tables."""
    section = read("README-extra.md").partition("## Troubleshooting")[2]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    return [phrase for cell in cells for phrase in re.findall("`([^`]+)`", cell)]


def pattern(phrase: str) -> re.Pattern[str]:
    """Return a pattern for a message, in which … matches any text."""
    return re.compile(".*".join(re.escape(part.strip()) for part in phrase.split("…")), re.DOTALL)


def text_of(node: ast.expr) -> str:
    """Return the text of a string literal, with … in place of expressions; for other nodes, an empty string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.IfExp):
        return text_of(node.body)
    if isinstance(node, ast.Call) and node.args:  # such as printable(...)
        return text_of(node.args[0])
    return ""


def programs() -> Iterator[ast.Module]:
    for path in [ROOT / "customize.py", *sorted((ROOT / "imagenet_aux").glob("*.py"))]:
        yield ast.parse(path.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=None)
def all_texts() -> set[str]:
    return {text_of(node) for program in programs() for node in ast.walk(program) if isinstance(node, ast.expr)}


def reported_arguments(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """Yield the first argument of each call that reports a message; for a variable, each value that it can have."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if REPORTERS.fullmatch(name):
                yield from values.get(getattr(node.args[0], "id", ""), node.args[:1])


def reported_messages() -> set[str]:
    """Return the texts that the code raises, logs or prints as errors."""
    texts = {re.sub("{.*?}", "…", text) for _, text in exchange._ERROR_TEXTS}
    for function in [node for program in programs() for node in ast.walk(program) if isinstance(node, ast.FunctionDef)]:
        texts |= {text_of(argument) for argument in reported_arguments(function)}
    return {text for text in texts if re.search("[a-z]{3}", text)}


@pytest.mark.parametrize("phrase", explained_messages())
def test_documented_message_is_in_the_code(phrase: str) -> None:
    assert any(pattern(phrase).search(text) for text in [*all_texts(), *FOREIGN_MESSAGES])


@pytest.mark.parametrize("message", sorted(reported_messages()))
def test_message_is_documented(message: str) -> None:
    assert any(pattern(phrase).search(message) for phrase in explained_messages())


def test_documented_limits_are_the_constants() -> None:
    text = read("README-extra.md")
    assert f"{download.MAX_IDLE_SECONDS:.0f} s without data" in text
    assert f"Below {download.MIN_RATE // 1000} kB/s over {download.RATE_SECONDS:.0f} s" in text


# Commands and programs


@pytest.fixture
def archive_path(tmp_path: Path, archive: bytes) -> Path:
    path = tmp_path / "caffe_ilsvrc12.tar.gz"
    path.write_bytes(archive)
    return path


@pytest.fixture
def cached(home: CmHome, archive_path: Path) -> CmHome:
    """Return a home with the files in its cache, so that no command needs a mirror."""
    home.export_keys(f"--url={archive_path}")
    return home


@pytest.mark.parametrize("line", [line for block in blocks("README.md", "bash") for line in block.splitlines()])
def test_readme_command_works(line: str, cached: CmHome, bash: str) -> None:
    if line.startswith(RUN_ELSEWHERE) or any(text in line for text in NEEDS_NETWORK):
        pytest.skip(f"requires the network, or is tested elsewhere: {line}")
    result = cached.run_command(bash, "-c", f"{line} <<< ''")  # --help prompts for input
    assert result.returncode == 0, result.stdout + result.stderr


def test_readme_install_and_update_commands_work(cached: CmHome, bash: str, tmp_path: Path) -> None:
    lines = [line for block in blocks("README.md", "bash") for line in block.splitlines() if line.startswith("git ")]
    from_url, from_checkout, update = lines
    assert from_url.replace("REPOSITORY_URL", ".") == from_checkout
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    shutil.rmtree(cached.script)
    checkout = tmp_path / "checkout"
    git = ["git", "-C", checkout, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    cached.run_command("git", "clone", "--quiet", ROOT, checkout, check=True)
    cached.run_command(*git, "checkout", "--quiet", "-B", "main", check=True)  # on CI, HEAD is detached
    cached.run_command(bash, "-c", f"cd '{checkout.as_posix()}' && {from_checkout}", check=True)
    assert cached.run_script().returncode == 0
    (checkout / "new.txt").touch()
    cached.run_command(*git, "add", "new.txt", check=True)
    cached.run_command(*git, "commit", "--quiet", "--message=Add a file", check=True)
    cached.run_command(bash, "-c", update, check=True)
    assert (cached.script / "new.txt").exists()
    assert cached.run_script().returncode == 0


def test_readme_output_matches_a_call(home: CmHome, archive: bytes, archive_path: Path) -> None:
    checksum = hashlib.sha256(archive).hexdigest()  # so that the table shows the sample files as verified
    result = home.run_script(f"--url={archive_path}", f"--checksum={checksum}")
    printed = (result.stdout + result.stderr).splitlines()
    for line in blocks("README.md", "text")[0].splitlines():
        if not line.startswith("["):
            expected = re.sub(r"(\\ )*[\d,]{3,}", r"\\s*[\\d,]+", re.escape(line))
            expected = re.sub(r"(/home/me|https:)\S*", r"\\S+", expected)
            assert any(re.fullmatch(expected, text) for text in printed), line


@pytest.mark.parametrize("program", blocks("README.md", "python"))
def test_readme_python_works(program: str, cached: CmHome) -> None:
    printed = cached.run_command(sys.executable, "-c", program, check=True).stdout
    assert printed.splitlines()[-1] == str(cached.cache_entries()[0] / "data")


def test_dependency_example_works(home: CmHome, bash: str, archive_path: Path) -> None:
    create, run = (block for block in blocks("README-extra.md", "bash") if "print-val" in block or "print,val" in block)
    home.run_command(bash, "-e", "-c", create, check=True)
    with_mirrors, with_archive = run.splitlines()
    for line in (with_archive, with_mirrors):  # the second call gets the files from the cache
        line = line.replace("/media/usb/caffe_ilsvrc12.tar.gz", archive_path.as_posix())
        printed = home.run_command(bash, "-c", line, check=True).stdout
        assert str(home.cache_entries()[0] / "data" / "val.txt") in printed.splitlines()


def test_shell_example_sets_the_keys(cached: CmHome, bash: str) -> None:
    commands = next(block for block in blocks("README-extra.md", "bash") if "eval" in block)
    printed = cached.run_command(bash, "-c", commands, check=True).stdout
    assert printed.strip() == str(cached.cache_entries()[0] / "data" / "val.txt")


def test_examples_without_cm_work(home: CmHome, bash: str, archive_path: Path) -> None:
    block = next(block for block in blocks("README-extra.md", "bash") if "imagenet_aux show" in block)
    lines = block.replace("/shared", archive_path.parent.as_posix()).splitlines()
    codes = [home.run_command(bash, "-c", line, PYTHONPATH=str(ROOT)).returncode for line in lines]
    assert codes == [0, 0, 1]  # 1, because the sample files differ from the published ones


def test_python_example_without_cm_works(home: CmHome, archive_path: Path, sample_files: dict[str, bytes]) -> None:
    program = blocks("README-extra.md", "python")[0].replace("/shared", archive_path.parent.as_posix())
    printed = home.run_command(sys.executable, "-c", program, PYTHONPATH=str(ROOT), check=True).stdout
    assert printed.splitlines()[0] == f"{home.path / 'imagenet-aux' / 'val.txt'} False"
    assert [line.split()[0] for line in printed.splitlines()[1:]] == list(sample_files)


def test_demo_fetches_the_files_and_prints_the_keys(bash: str) -> None:
    printed = subprocess.run([bash, "tests/demo.sh"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert printed.count("_PATH") == 9
    assert re.search(r'"CM_DATASET_AUX_VERIFIED": "no"', printed)

"""Test the export for each upstream project, and run it in place of the project's own script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from cm_home import ROOT, TAGS, CmHome, clean_env
from command import NO_COVERAGE
from conftest import MakeOnce
from mlc_home import validate_meta

sys.path.insert(0, str(ROOT / "tools"))

autopep8 = pytest.importorskip("autopep8", reason="autopep8 is not installed")
import export  # noqa: E402 - needs the path above, and autopep8

pytestmark = pytest.mark.usefixtures("no_coverage")
NAME = "get-dataset-imagenet-aux"
PROGRAMS = ["customize.py", "run.sh", "run.bat", *(f"imagenet_aux/{p.name}" for p in ROOT.glob("imagenet_aux/*.py"))]
FILES = {
    "cm4mlops": [*PROGRAMS, "_cm.yaml", "COPYRIGHT.md", "README.md", "README-extra.md"],
    "mlperf-automations": [*PROGRAMS, "meta.yaml", "COPYRIGHT.md", "README.md", "info.md"],
}
DEFAULTS = {"cm4mlops": ("_cm.yaml", "from.berkeleyvision"), "mlperf-automations": ("meta.yaml", "from.go")}


@pytest.fixture(scope="session")
def exports(make_once: MakeOnce) -> dict[str, Path]:
    """Export the script for both projects."""
    if sys.version_info >= (3, 12):
        pytest.skip("autopep8 damages f-strings on this Python")

    def run_export(folder: Path) -> None:
        for project in FILES:
            command = [sys.executable, str(ROOT / "tools" / "export.py"), project, str(folder / project)]
            subprocess.run(command, cwd=folder, env=clean_env(**NO_COVERAGE), check=True)

    folder = make_once("exports", run_export)
    return {project: folder / project for project in FILES}


def read_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# The files


@pytest.mark.parametrize("project", FILES)
def test_exports_only_the_projects_files(project: str, exports: dict[str, Path]) -> None:
    files = read_files(exports[project])
    assert sorted(files) == sorted(FILES[project])
    assert sum(map(len, files.values())) < 110_000, "too large for a script of these projects: shorten the code"
    assert files["run.sh"] == (ROOT / "run.sh").read_bytes() and files["run.bat"] == (ROOT / "run.bat").read_bytes()
    assert not re.search(b"type: ignore|noqa", b"".join(files.values()))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python can export")
def test_rejects_a_python_whose_autopep8_damages_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^Python version: expected 3\.8 to 3\.11, got 3\.1"):
        export.export("cm4mlops", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("project", FILES)
def test_default_is_the_projects_download_source(project: str, exports: dict[str, Path]) -> None:
    name, default = DEFAULTS[project]
    meta = yaml.safe_load((exports[project] / name).read_text(encoding="utf-8"))
    assert [key for key, variation in meta["variations"].items() if variation.get("default")] == [default]
    assert meta["uid"] == "bb2c6dd8c8c64217"


@pytest.mark.parametrize("project", FILES)
def test_the_projects_formatter_changes_nothing(project: str, exports: dict[str, Path]) -> None:
    for name, content in read_files(exports[project]).items():
        if name.endswith(".py"):
            assert autopep8.fix_code(content.decode(), options={"aggressive": 1}) == content.decode(), name


def test_guide_has_the_engines_keys_and_default(exports: dict[str, Path]) -> None:
    guide = (exports["mlperf-automations"] / "info.md").read_text(encoding="utf-8")
    assert "_from.go" in guide and not re.search(r"\bCM_", guide)
    assert "_from.berkeleyvision` by default" in (exports["cm4mlops"] / "README-extra.md").read_text(encoding="utf-8")


def test_replaces_an_older_export(exports: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(exports["cm4mlops"], tmp_path / NAME)
    (tmp_path / NAME / "customize.py").write_text("old")
    export.export("cm4mlops", tmp_path / NAME)
    assert read_files(tmp_path / NAME) == read_files(exports["cm4mlops"])


@pytest.mark.parametrize("name", ["_cm.json", "imagenet_aux/old.py"])
def test_rejects_a_folder_with_other_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=re.escape(name)):
        export.export("cm4mlops", tmp_path)
    assert list(read_files(tmp_path)) == [name]


def test_missing_section_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = export.PROJECTS["cm4mlops"]._replace(sections=("No such section",))
    monkeypatch.setitem(export.PROJECTS, "cm4mlops", project)
    with pytest.raises(ValueError, match="No such section"):
        export.export("cm4mlops", tmp_path)


# In cmx4mlops


@pytest.fixture(scope="session")
def cm4mlops(exports: dict[str, Path], make_once: MakeOnce) -> Path:
    """Return a folder with a copy of cmx4mlops that contains the export instead of its own script."""

    def copy_package(folder: Path) -> None:
        spec = find_spec("cmx4mlops")
        assert spec and spec.submodule_search_locations
        package = folder / "cmx4mlops"
        shutil.copytree(spec.submodule_search_locations[0], package, ignore=shutil.ignore_patterns("__pycache__"))
        script = package / "repo" / "script" / NAME
        shutil.rmtree(script)
        shutil.copytree(exports["cm4mlops"], script)

    return make_once("packages", copy_package)


@pytest.fixture
def upstream(tmp_path: Path, home_template: Path, cm4mlops: Path, make_once: MakeOnce) -> CmHome:
    """Return a CM home that uses the patched cmx4mlops, without another copy of the script."""

    def index_package(folder: Path) -> None:
        home = CmHome(folder, home_template)
        shutil.rmtree(home.script)
        home.run_command("cm", "reindex", "repo", check=True, PYTHONPATH=str(cm4mlops), **NO_COVERAGE)

    home = CmHome(tmp_path, make_once("upstream", index_package))
    home.env["PYTHONPATH"] = str(cm4mlops)
    return home


def test_runs_in_cmx4mlops_by_tags(upstream: CmHome, archive: bytes, cm4mlops: Path) -> None:
    (upstream.path / "a.tar.gz").write_bytes(archive)
    found = upstream.run_command("cm", "find", "script", f"--tags={TAGS}", check=True).stdout.splitlines()
    assert [line for line in found if NAME in line] == [str(cm4mlops / "cmx4mlops" / "repo" / "script" / NAME)]
    env = upstream.export_keys("--url=a.tar.gz")
    assert Path(env["CM_DATASET_AUX_VAL_PATH"]).is_file() and env["CM_DATASET_AUX_VERIFIED"] == "no"
    assert upstream.leftovers() == []


def test_runs_in_upstreams_process_tests(upstream: CmHome, archive: bytes, cm4mlops: Path) -> None:
    """Run the check from upstream's CI workflow, with the files already cached."""
    (upstream.path / "a.tar.gz").write_bytes(archive)
    upstream.export_keys("--url=a.tar.gz")
    scripts = cm4mlops / "cmx4mlops" / "repo" / "script"
    check = scripts / "test-cm-core" / "src" / "script" / "process_tests.py"
    result = upstream.run_command(sys.executable, check, scripts / NAME / "_cm.yaml", check=True)
    assert f"fetched from: {upstream.path / 'a.tar.gz'}" in result.stderr


# In mlperf-automations


class MlperfAutomations:
    """An MLC home with the project's repository, which contains only the export."""

    def __init__(self, home: CmHome, exported: Path) -> None:
        self.home = home
        self.repos = home.path / "MLC" / "repos"
        project = self.repos / "mlcommons@mlperf-automations"
        self.script = project / "script" / NAME
        shutil.copytree(exported, self.script)
        (project / "meta.yaml").write_text("alias: mlcommons@mlperf-automations\nuid: 9cf241afa6074c89\ngit: true\n")
        (self.repos / "local").mkdir()
        (self.repos / "repos.json").write_text(json.dumps([str(self.repos / "local"), str(project)]))
        home.env["MLC_REPOS"] = str(self.repos)


@pytest.fixture
def mlperf(home: CmHome, exports: dict[str, Path]) -> MlperfAutomations:
    return MlperfAutomations(home, exports["mlperf-automations"])


def test_runs_in_mlperf_automations_by_tags(mlperf: MlperfAutomations, archive: bytes) -> None:
    (mlperf.home.path / "a.tar.gz").write_bytes(archive)
    mlperf.home.run_command("mlcr", TAGS, "--url=a.tar.gz", check=True)
    (state,) = mlperf.repos.glob("local/cache/*/mlc-cached-state.json")
    env: dict[str, Any] = json.loads(state.read_text())["new_env"]
    assert Path(env["MLC_DATASET_AUX_VAL_PATH"]).is_file() and env["MLC_DATASET_AUX_VERIFIED"] == "no"


@pytest.mark.parametrize("action", ["lint", "doc"])
def test_mlc_leaves_the_export_unchanged(action: str, mlperf: MlperfAutomations) -> None:
    before = read_files(mlperf.script)
    mlperf.home.run_command("mlc", action, "script", f"--tags={TAGS}", "--quiet", check=True)
    assert read_files(mlperf.script) == before


def test_mlc_accepts_the_meta(mlperf: MlperfAutomations) -> None:
    assert validate_meta(mlperf.home, mlperf.script / "meta.yaml") == [[], []]


def test_runs_in_mlc_test(mlperf: MlperfAutomations, archive: bytes) -> None:
    """Run the check from upstream's CI workflow, with the files already cached."""
    (mlperf.home.path / "a.tar.gz").write_bytes(archive)
    mlperf.home.run_command("mlcr", TAGS, "--url=a.tar.gz", check=True)
    result = mlperf.home.run_command("mlc", "test", "script", "bb2c6dd8c8c64217", "--quiet", check=True)
    assert f"fetched from: {mlperf.home.path / 'a.tar.gz'}" in result.stdout + result.stderr

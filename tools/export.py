"""Export the script in the layout of an upstream project.

Usage: ``python tools/export.py cm4mlops FOLDER`` or ``python tools/export.py mlperf-automations FOLDER``. FOLDER may be
the project's own ``script/get-dataset-imagenet-aux``. Requires the packages in tests/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import autopep8
import generate

ROOT = generate.ROOT


class Project(NamedTuple):
    """The script layout of an upstream project.

    Attributes
    ----------
    meta_name : str
        Name of the metadata file.
    default : str
        Variation that selects the default download source.
    guide_name : str
        Name of the user documentation file.
    sections : tuple of str
        Sections of README-extra.md to include in it.
    copyright : str
        Contents of COPYRIGHT.md.
    """

    meta_name: str
    default: str
    guide_name: str
    sections: tuple[str, ...]
    copyright: str


PROJECTS = {
    "cm4mlops": Project(
        meta_name="_cm.yaml",
        default="from.berkeleyvision",
        guide_name="README-extra.md",
        sections=("Inputs", "Verification", "Cache and renewal"),
        copyright="""\
© 2022-2025 MLCommons. All Rights Reserved.

Grigori Fursin, the cTuning foundation and OctoML donated the CK and CM projects to MLCommons to benefit everyone.
""",
    ),
    "mlperf-automations": Project(
        meta_name="meta.yaml",
        default="from.go",
        guide_name="info.md",
        sections=("Inputs",),
        copyright="""\
# Copyright Notice

© 2022-2025 MLCommons®. All Rights Reserved.

This file is licensed under the Apache License, Version 2.0 (the "License"). You may not use this file except in \
compliance with the License. A copy of the License can be obtained at:

[Apache License, Version 2.0](http://www.apache.org/licenses/LICENSE-2.0)

Unless required by applicable law or agreed to in writing, software distributed under the License is provided on an \
"AS IS" basis, without warranties or conditions of any kind, either express or implied. Please refer to the License \
for the specific language governing permissions and limitations under the License.
""",
    ),
}

# Matches a docstring from its first numpydoc section to its end. The upstream projects keep scripts small, and have no
# API documentation.
_NUMPYDOC = re.compile(r'\n\n( +)(?:Parameters|Returns|Raises|Attributes|Yields)\n\1-+\n(?:.*\n)*?\1"""')

# Matches comments for tools that the upstream projects do not run. autopep8 would move them to other lines.
_TOOL_COMMENT = re.compile(r"  # type: ignore\[[\w-]+\]|(?<=  # )noqa: \w+ - ")

_CM_README = """\
Please see [https://docs.mlcommons.org/cm4mlops/scripts/AI-ML-datasets/get-dataset-imagenet-aux]\
(https://docs.mlcommons.org/cm4mlops/scripts/AI-ML-datasets/get-dataset-imagenet-aux) for the documentation of this \
CM script.
"""


def export(name: str, folder: Path) -> None:
    """Write the script to a folder, in a project's layout.

    Parameters
    ----------
    name : str
        A key of `PROJECTS`.
    folder : Path
        A new folder, or the project's existing folder for the script.

    Raises
    ------
    ValueError
        If the folder contains other files; CM, for example, would merge a ``_cm.json`` with ``_cm.yaml``. Also on
        Python 3.12 and newer, where autopep8 damages f-strings.
    """
    project = PROJECTS[name]
    meta = _meta(project.default)
    files = {
        project.meta_name: (generate.meta_yaml if name == "mlperf-automations" else generate.to_yaml)(meta),
        "COPYRIGHT.md": project.copyright,
        "README.md": _CM_README,
        project.guide_name: _guide(project, meta),
        **_program_files(),
    }
    others = sorted(set(_list_files(folder)) - set(files))
    if others:
        raise ValueError(f"{folder}: expected no other files, got {', '.join(others)}. Remove them")
    if sys.version_info >= (3, 12):
        found = sys.version.split()[0]
        raise ValueError(f"Python version: expected 3.8 to 3.11, got {found}. autopep8 damages f-strings on later ones")
    for path, text in files.items():
        if path.endswith(".py"):
            text = _format(text)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text.encode())
    (folder / "run.sh").chmod(0o755)
    if name == "mlperf-automations":
        (folder / "README.md").write_bytes(_mlc_readme(folder, meta).encode())


def _list_files(folder: Path) -> list[str]:
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [path.as_posix() for path in found if "__pycache__" not in path.parts]


def _program_files() -> dict[str, str]:
    """Return the source files, keyed by path."""
    paths = [ROOT / "customize.py", ROOT / "run.sh", ROOT / "run.bat", *sorted(ROOT.glob("imagenet_aux/*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes().decode() for path in paths}


def _format(source: str) -> str:
    """Remove numpydoc sections and tools' comments, then run ``autopep8 -a`` as the projects' bots do, until stable."""
    source = _TOOL_COMMENT.sub("", _NUMPYDOC.sub('"""', source))
    while True:
        formatted: str = autopep8.fix_code(source, options={"aggressive": 1})
        if formatted == source:
            return source
        source = formatted


def _meta(default: str) -> dict[str, Any]:
    """Return the CM metadata with the given default variation."""
    meta = generate.read_meta()
    for variation in meta["variations"].values():
        variation.pop("default", None)
    meta["variations"][default]["default"] = True
    in_order: dict[str, Any] = json.loads(json.dumps(meta, sort_keys=True))
    return in_order


def _guide(project: Project, meta: dict[str, Any]) -> str:
    """Return the project's sections of README-extra.md, adapted to its engine and default variation."""
    text = (ROOT / "README-extra.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.+)\n([^\0]*?)(?=^## |\Z)", text, re.MULTILINE))
    missing = [title for title in project.sections if title not in parts]
    if missing:
        raise ValueError(f"README-extra.md: expected the sections {', '.join(missing)}. Update PROJECTS")
    guide = f"# {meta['alias']}\n\n" + "\n\n".join(f"## {title}\n{parts[title].rstrip()}" for title in project.sections)
    guide = guide.replace("_from.dropbox` by default", f"_{project.default}` by default")
    if project.meta_name == "meta.yaml":
        guide = re.sub(r"\bCM_", "MLC_", guide).replace("cm run script --tags=", "mlcr ")
    return guide + "\n"


def _mlc_readme(folder: Path, meta: dict[str, Any]) -> str:
    """Return the README.md that ``mlc doc script`` generates in the project."""
    with tempfile.TemporaryDirectory() as home:
        repos = Path(home) / "MLC" / "repos"
        project = repos / "mlcommons@mlperf-automations"
        script = project / "script" / meta["alias"]
        shutil.copytree(folder, script)
        (project / "meta.yaml").write_text("alias: mlcommons@mlperf-automations\nuid: 9cf241afa6074c89\ngit: true\n")
        (repos / "local").mkdir()
        (repos / "repos.json").write_text(json.dumps([str(repos / "local"), str(project)]))
        command = [sys.executable, "-c", "from mlc.main import main; main()", "doc", "script", meta["uid"], "--quiet"]
        env = {**os.environ, "HOME": home, "USERPROFILE": home, "MLC_REPOS": str(repos)}
        result = subprocess.run(command, cwd=home, env=env, capture_output=True, encoding="utf-8")
        if result.returncode:
            raise RuntimeError(f"mlc doc script failed: {result.stdout}{result.stderr}")
        return (script / "README.md").read_text(encoding="utf-8")


def main() -> None:
    """Export the script and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", choices=PROJECTS, help="the upstream project")
    parser.add_argument("folder", type=Path, help="where to write the script")
    args = parser.parse_args()
    try:
        export(args.project, args.folder)
    except ValueError as error:
        sys.exit(f"error: {error}")
    size = sum((args.folder / name).stat().st_size for name in _list_files(args.folder))
    print(f"{args.folder}: {size:,} bytes")


if __name__ == "__main__":
    main()

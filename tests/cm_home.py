"""Run CM from PyPI in a temporary home that contains the script."""

from __future__ import annotations

import compileall
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from imagenet_aux.manifest import MANIFEST

ROOT = Path(__file__).resolve().parent.parent
TAGS = "get,aux,imagenet-aux"
WINDOWS = sys.platform == "win32"
KEYS = {
    "CM_DATASET_AUX_DET_SYNSET_WORDS_PATH": "det_synset_words.txt",
    "CM_DATASET_AUX_IMAGENET_BET_PATH": "imagenet.bet.pickle",
    "CM_DATASET_AUX_IMAGENET_MEAN_PATH": "imagenet_mean.binaryproto",
    "CM_DATASET_AUX_SYNSETS_PATH": "synsets.txt",
    "CM_DATASET_AUX_SYNSET_WORDS_PATH": "synset_words.txt",
    "CM_DATASET_AUX_TEST_PATH": "test.txt",
    "CM_DATASET_AUX_TRAIN_PATH": "train.txt",
    "CM_DATASET_AUX_VAL_PATH": "val.txt",
}
# Files that are added to the manifest later get a key, too.
KEYS.update(
    {f"CM_DATASET_AUX_{Path(name).stem.upper()}_PATH": name for name in MANIFEST.files if name not in KEYS.values()}
)
# The metadata of a script that depends on this one, without its dependencies.
PARENT = {
    "alias": "needs-aux",
    "uid": "0123456789abcdef",
    "automation_alias": "script",
    "automation_uid": "5b4e0237da074764",
    "tags": ["needs", "aux"],
}

# Inherit only these variables: others, such as PYTHON*, REQUESTS_CA_BUNDLE, NETRC, CM_* and MLC_*, affect the results.
_INHERITED = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_.*|TZ|TMPDIR|TEMP|TMP|LD_LIBRARY_PATH|COVERAGE_.*"
    "|SYSTEMROOT|SYSTEMDRIVE|WINDIR|COMSPEC|PATHEXT|USERPROFILE|APPDATA|LOCALAPPDATA|PROGRAMDATA|PROGRAMFILES.*"
    "|NUMBER_OF_PROCESSORS|PROCESSOR_.*|OS"
)


class CmHome:
    """A temporary home directory with its own CM folder and an empty cache.

    Parameters
    ----------
    path : Path
        An empty folder.
    template : Path, optional
        An existing home to copy, including its script index, because indexing takes three seconds.
    """

    def __init__(self, path: Path, template: Path | None = None) -> None:
        self.path = path
        self.cm = path / "CM"
        search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = clean_env(HOME=str(path), USERPROFILE=str(path), CM_REPOS=str(self.cm), PATH=search_path)
        if template:
            shutil.copytree(template / "CM", self.cm)
            index = self.cm / "index.json"
            old, new = (json.dumps(str(cm))[1:-1] for cm in (template / "CM", self.cm))
            index.write_text(index.read_text().replace(old, new))
        else:
            self.script.parent.mkdir(parents=True)
            shutil.copytree(ROOT, self.script, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "tools"))
            compileall.compile_dir(self.script, quiet=1)  # once for all copies of this home
            self.run_command("cm", "reindex", "repo", check=True, COVERAGE_PROCESS_START="")

    @property
    def script(self) -> Path:
        """Return the script's folder in the ``local`` repository."""
        return self.cm / "repos" / "local" / "script" / "get-dataset-imagenet-aux"

    def add_script(self, meta: dict[str, Any]) -> Path:
        """Write a script's ``_cm.json``, index the script as ``cm reindex repo`` would, and return its folder."""
        folder = self.script.parent / str(meta["alias"])
        folder.mkdir()
        (folder / "_cm.json").write_text(json.dumps(meta))
        path = self.cm / "index.json"
        index = json.loads(path.read_text())
        entry = {"tags": meta["tags"], "repo": index["script"][self.script.name]["repo"], "path": str(folder)}
        for scripts in (index["script"], index[meta["automation_uid"]]):
            scripts[meta["alias"]] = {**entry, "uid": meta["uid"]}
            scripts[meta["uid"]] = {**entry, "alias": meta["alias"]}
        path.write_text(json.dumps(index))
        return folder

    def resolve_command(self, command: str, *args: object) -> list[str]:
        """Resolve the command on this home's PATH, because Windows would search the parent's PATH first."""
        return [shutil.which(command, path=self.env["PATH"]) or command, *map(str, args)]

    def run_command(self, *command: Any, check: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this home."""
        result = subprocess.run(
            self.resolve_command(*command),
            cwd=self.path,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    def run_script(self, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``cm run script --tags=get,aux,imagenet-aux`` with additional arguments."""
        return self.run_command("cm", "run", "script", f"--tags={TAGS}", *args, **env)

    def start_script(self, *args: object) -> subprocess.Popen[str]:
        """Start what `run_script` runs, in its own process group, as a terminal does."""
        return subprocess.Popen(
            self.resolve_command("cm", "run", "script", f"--tags={TAGS}", *args),
            cwd=self.path,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )

    def run_api(self, **call: Any) -> dict[str, Any]:
        """Call ``cmind.access`` in a subprocess and return its result."""
        call = {"action": "run", "automation": "script", "quiet": True, **call}
        program = (
            "import json, sys, cmind; r = cmind.access(json.loads(sys.argv[1]));"
            "json.dump({k: r.get(k) for k in ('return', 'error', 'new_env')}, open(sys.argv[2], 'w'))"
        )
        result_file = self.path / "result.json"
        self.run_command(sys.executable, "-c", program, json.dumps(call), result_file, check=True)
        result: dict[str, Any] = json.loads(result_file.read_text())
        return result

    def export_keys(self, *args: object) -> dict[str, str]:
        """Run the script and return the keys that it exports."""
        result = self.run_script(*args, "-j")
        assert result.returncode == 0, result.stdout + result.stderr
        printed = result.stderr[result.stderr.index("{\n") :]
        new_env: dict[str, str] = json.JSONDecoder().raw_decode(printed)[0]["new_env"]
        return new_env

    def cache_entries(self) -> list[Path]:
        """List the folders in the cache."""
        cache = self.cm / "repos" / "local" / "cache"
        return sorted(cache.iterdir()) if cache.is_dir() else []

    def leftovers(self) -> list[str]:
        """List the files in the cache entries, except published ones and files written by the engine."""
        expected = ("data", "_cm.json", "cm-cached-state.json")
        found = [path for entry in self.cache_entries() for path in entry.iterdir() if path.name not in expected]
        found += [path for entry in self.cache_entries() for path in entry.glob("data/.*")]
        return [str(path) for path in found if not path.name.startswith("tmp-") or "aux" in path.name]


def clean_env(**variables: str) -> dict[str, str]:
    """Return a minimal environment: a few inherited variables, plus the given ones."""
    inherited = {key: value for key, value in os.environ.items() if _INHERITED.fullmatch(key.upper())}
    return {
        **inherited,
        "PYTHONIOENCODING": "utf-8",  # the default differs for Windows pipes
        **variables,
    }

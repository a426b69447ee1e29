"""A throw-away CM home that holds the script, and the engine from PyPI at work in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TAGS = "get,aux,imagenet-aux"


class Home:
    """One user's machine: a HOME, a CM home, and nothing in the cache.

    Parameters
    ----------
    path : Path
        An empty folder.
    template : Home, optional
        A home whose index of the engine's own scripts is taken over, which saves two seconds.
    """

    def __init__(self, path: Path, template: Home | None = None) -> None:
        self.path = path
        self.cm = path / "CM"
        self.env = environment(HOME=str(path), USERPROFILE=str(path), CM_REPOS=str(self.cm), PATH=_path())
        if template:
            shutil.copytree(template.cm, self.cm)
            index = self.cm / "index.json"
            there, here = (json.dumps(str(cm))[1:-1] for cm in (template.cm, self.cm))
            index.write_text(index.read_text().replace(there, here))
        else:
            self.script.parent.mkdir(parents=True)
            shutil.copytree(ROOT, self.script, ignore=shutil.ignore_patterns(".*", "__pycache__"))
            self.call("cm", "reindex", "repo", check=True)

    @property
    def script(self) -> Path:
        """The script's folder in the ``local`` repository."""
        return self.cm / "repos" / "local" / "script" / "get-dataset-imagenet-aux"

    def words(self, command: str, *words: object) -> list[str]:
        """The words of a command, which is looked for on the path of this home; Windows would look elsewhere first."""
        return [shutil.which(command, path=self.env["PATH"]) or command, *map(str, words)]

    def call(self, *words: Any, check: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this home."""
        result = subprocess.run(
            self.words(*words),
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

    def run(self, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
        """``cm run script --tags=get,aux,imagenet-aux`` with further words."""
        return self.call("cm", "run", "script", f"--tags={TAGS}", *words, **env)

    def access(self, **call: Any) -> dict[str, Any]:
        """The answer of ``cmind.access`` to this call, in a process of its own."""
        call = {"action": "run", "automation": "script", "quiet": True, **call}
        program = (
            "import json, sys, cmind; r = cmind.access(json.loads(sys.argv[1]));"
            "json.dump({k: r.get(k) for k in ('return', 'error', 'new_env')}, open(sys.argv[2], 'w'))"
        )
        answer = self.path / "answer.json"
        self.call(sys.executable, "-c", program, json.dumps(call), answer, check=True)
        result: dict[str, Any] = json.loads(answer.read_text())
        return result

    def exported(self, *words: object) -> dict[str, str]:
        """The keys that a run with these words exports."""
        result = self.run(*words, "-j")
        assert result.returncode == 0, result.stdout + result.stderr
        printed = result.stderr[result.stderr.index("{\n") :]
        new_env: dict[str, str] = json.JSONDecoder().raw_decode(printed)[0]["new_env"]
        return new_env

    def entries(self) -> list[Path]:
        """The folders in the cache."""
        cache = self.cm / "repos" / "local" / "cache"
        return sorted(cache.iterdir()) if cache.is_dir() else []

    def litter(self) -> list[str]:
        """What stands in the cache entries that is neither the set nor the engine's own."""
        own = ("data", "_cm.json", "cm-cached-state.json")
        found = [path for entry in self.entries() for path in entry.iterdir()]
        return [str(p) for p in found if p.name not in own and not (p.name.startswith("tmp-") and "aux" not in p.name)]


def environment(**more: str) -> dict[str, str]:
    """That of the tests, without proxies and orders to the script, and with these variables."""
    own = {key: value for key, value in os.environ.items() if not re.search("(?i)_PROXY$|^CM_|^MLC_", key)}
    return {**own, "PYTHONIOENCODING": "utf-8", **more}  # what is piped to the tests; Windows has another


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

"""Run MLC from PyPI on the script in a CM home."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from cm_home import TAGS, CmHome


def validate_meta(home: CmHome, path: Path) -> Any:
    """Return the errors and warnings of MLC's check; importing mlc creates ``~/MLC``, so import it in a subprocess."""
    program = (
        "import json, sys, yaml; from mlc.meta_schema import validate_meta\n"
        "print(json.dumps(validate_meta(yaml.safe_load(open(sys.argv[1], encoding='utf-8')))))"
    )
    return json.loads(home.run_command(sys.executable, "-c", program, path, check=True).stdout)


class MlcHome:
    """An MLC folder in a CM home, with a copy of the script.

    Without a script, MLC would download the upstream ones.
    """

    def __init__(self, home: CmHome) -> None:
        self.home = home
        self.repos = home.path / "MLC" / "repos"
        self.script = self.repos / "local" / "script" / home.script.name
        home.env["MLC_REPOS"] = str(self.repos)
        shutil.copytree(home.script, self.script)

    def run_api(self, **call: Any) -> dict[str, Any]:
        """Call ``mlc.access`` in a subprocess; return its ``new_env``, or its ``error``."""
        call = {"action": "run", "target": "script", "automation": "script", "tags": TAGS, "quiet": True, **call}
        program = (
            "import json, sys, mlc\n"
            "try: r = {'new_env': mlc.access(json.loads(sys.argv[1]))['new_env']}\n"
            "except mlc.script_action.ScriptExecutionError as error: r = {'error': str(error)}\n"
            "json.dump(r, open(sys.argv[2], 'w'))"
        )
        result_file = self.home.path / "result.json"
        self.home.run_command(sys.executable, "-c", program, json.dumps(call), result_file, check=True)
        result: dict[str, Any] = json.loads(result_file.read_text())
        return result

    def export_keys(self, *arguments: str) -> dict[str, str]:
        """Run ``mlcr get,aux,imagenet-aux`` with these arguments, and return the cached keys."""
        self.home.run_command("mlcr", TAGS, *arguments, check=True)
        (state,) = self.repos.glob("local/cache/*/mlc-cached-state.json")
        new_env: dict[str, str] = json.loads(state.read_text())["new_env"]
        return new_env

"""Generate meta.yaml, README.md and the figures in docs/.

Usage: ``python tools/generate.py``.
"""

from __future__ import annotations

import json
import re
import string
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import draw  # noqa: E402

import customize  # noqa: E402
from imagenet_aux.manifest import MANIFEST  # noqa: E402

# The key order and comments that `mlc lint script` produces, so that it leaves meta.yaml unchanged.
_SECTIONS = {
    "": ("alias", "uid", "automation_alias", "automation_uid"),
    "Metadata": ("name", "category", "developers", "tags", "tags_help"),
    "Cache": ("cache", "can_force_cache", "cache_expiration"),
    "Environment": ("default_env", "env", "new_env_keys", "new_state_keys", "local_env_keys"),
    "Input mapping": ("input_mapping", "input_description"),
    "Dependencies": ("deps", "prehook_deps", "posthook_deps", "post_deps"),
    "Variations": ("default_variation", "variations"),
    "Docker / container": ("docker",),
    "Output / debugging": ("print_env_at_the_end", "warnings"),
    "Tests": ("tests",),
}

# Each file's description and users.
_FILES = {
    "det_synset_words.txt": ("ids and names of the 200 classes of the detection task", "detection with Caffe"),
    "imagenet.bet.pickle": ("the class hierarchy, a Python 2 pickle; do not unpickle it", "Caffe's web demo"),
    "imagenet_mean.binaryproto": ("the mean image, as a Caffe blob", "Caffe models"),
    "synset_words.txt": ("the WordNet ids in label order, each with its names", "scripts that print class names"),
    "synsets.txt": ("the WordNet ids in label order", "programs that map ids to labels"),
    "test.txt": ("the 100,000 test images; the label is always 0", "programs that classify the test set"),
    "train.txt": ("the 1,281,167 training images with their labels", "training"),
    "val.txt": ("the 50,000 validation images with their labels (0 to 999)", "preprocessing, MLPerf accuracy checks"),
}


def read_meta() -> dict[str, Any]:
    """Read ``_cm.json``."""
    meta: dict[str, Any] = json.loads((ROOT / "_cm.json").read_text(encoding="utf-8"))
    return meta


def meta_yaml(cm_meta: dict[str, Any] | None = None) -> str:
    """Render CM metadata (by default ``_cm.json``) as meta.yaml, with MLC's key prefix, key order and comments."""
    meta = json.loads(re.sub(r"\bCM_", "MLC_", json.dumps(cm_meta or read_meta())))
    meta["docker"] = {key.replace("docker_", "", 1): value for key, value in meta["docker"].items()}
    meta["input_mapping"] = dict(sorted(meta["input_mapping"].items()))
    meta["variations"] = dict(sorted(meta["variations"].items(), key=_variation_order))
    sections = []
    for title, keys in _SECTIONS.items():
        section = {key: meta.pop(key) for key in keys if key in meta}
        if section:
            sections.append((f"# {title}\n" if title else "") + to_yaml(section))
    if meta:
        raise ValueError(f"_cm.json: no section of meta.yaml has the keys {', '.join(meta)}. Add them to _SECTIONS.")
    return "\n".join(sections)


def _variation_order(item: tuple[str, dict[str, Any]]) -> tuple[bool, str, str]:
    """Return a sort key that keeps the variations of each group together, and puts ungrouped ones last."""
    name, variation = item
    return "group" not in variation, variation.get("group", ""), name


def to_yaml(data: dict[str, Any]) -> str:
    """Format the data as YAML, in the engines' style."""
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    return text


def readme() -> str:
    """Render README.md from its template, ``_cm.json`` and the section titles of README-extra.md."""
    meta = read_meta()
    titles = re.findall("^## (.+)$", (ROOT / "README-extra.md").read_text(encoding="utf-8"), re.MULTILINE)
    inputs = meta["input_description"].items()
    template = (ROOT / "tools" / "README.template.md").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        alias=meta["alias"],
        file_table=_file_table(),
        sections=", ".join(f"[{title}](README-extra.md#{_anchor(title)})" for title in titles if title != "Contents"),
        category=meta["category"],
        tags=",".join(meta["tags"]),
        words=" ".join(meta["tags"]),
        uid=meta["uid"],
        cache=meta["cache"],
        variation="_" + next(name for name in meta["variations"] if name.startswith("from.")),
        inputs=" ".join(f"--{name}=..." for name, _ in inputs),
        input_table=_table(
            ["input", "meaning", "key"],
            [[f"`--{name}=`", about["desc"], f"`{meta['input_mapping'][name]}`"] for name, about in inputs],
        ),
        variations=_variations(meta["variations"]),
        key_filter="\n".join(f"* **{key}**" for key in meta["new_env_keys"]),
        keys="\n".join(f"* `{key}`" for key in _exported_keys()),
    )


def _file_table() -> str:
    rows = []
    for name in MANIFEST.files:
        description, reader = _FILES.get(name, ("", ""))
        rows.append([f"`{name}`", f"`CM_DATASET_AUX_{customize.path_key(name)}`", description, reader])
    return _table(["file", "key", "what it is", "who reads it"], rows)


def _variations(variations: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, variation in variations.items():
        default = " (default)" if variation.get("default") else ""
        keys = ", ".join(f"`{key}={value}`" for key, value in variation["env"].items())
        rows.append([f"`_{name}`{default}", variation.get("group", ""), keys])
    return _table(["variation", "group", "environment"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _anchor(title: str) -> str:
    """Return the anchor that GitHub generates for a heading."""
    return "".join(c for c in title.lower() if c.isalnum() or c in "- ").replace(" ", "-")


def _exported_keys() -> list[str]:
    """Return the CM keys that dependent scripts can read."""
    keys = ["PATH", "VER", "SOURCE", "VERIFIED", *map(customize.path_key, MANIFEST.files)]
    return [f"CM_DATASET_AUX_{key}" for key in keys]


GENERATED = {
    "meta.yaml": meta_yaml,
    "README.md": readme,
    "docs/flow.svg": draw.flow,
    "docs/time.svg": draw.time_spent,
}


def main() -> None:
    """Write all generated files."""
    for name, text in GENERATED.items():
        (ROOT / name).write_bytes(text().encode())


if __name__ == "__main__":
    main()

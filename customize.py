"""CM's two hooks, and MLC's: hand the orders to the native script, export what came of it."""

import json
import os
import re
import sys

# What the engines' keys begin with: CM's, and those of its successor, MLC. Each gives its own, and takes its own.
_ENGINES = ("CM_", "MLC_")
_NAMED = "WGET_URL"
_CHECKSUM = "IMAGENET_AUX_CHECKSUM"
_OUTCOME = "CM_IMAGENET_AUX_OUTCOME"

# What the engine's `export KEY="VALUE"` would not hand over as it is, and a shell would act on.
_SHELL_CHARACTERS = '"$`' if os.name == "nt" else '"$`\\'  # on Windows a backslash only parts the names in a path
_SHELL_TEXT = re.compile(rf"[{re.escape(_SHELL_CHARACTERS)}\x00-\x1f\x7f\ud800-\udfff]")
_ADVICE = {
    "url": "rename the file or folder, or percent-encode the web address",
    "checksum": "give the hex digits alone",
}


def preprocess(i):
    """Put the user's orders where the native script finds them, once it is sure that no shell reads more in them.

    Parameters
    ----------
    i : dict
        What the engine knows: ``env`` (changed here) and ``input``, the call as it was made.

    Returns
    -------
    dict
        ``{'return': 0}``, or ``{'return': 1, 'error': reason}`` for orders that cannot be handed over.
    """
    env, call = i["env"], i.get("input") or {}
    # What a variation says beats what the user says in `env`, so the call itself is asked first.
    named = _given(env, _NAMED)
    written = call.get("url") or _overruled(call, _NAMED) or named
    source = _absolute(written, _given(env, "TMP_CURRENT_PATH")) if isinstance(written, str) else written
    checksum = call.get("checksum") or _given(env, _CHECKSUM)
    # What stands in `env` the engine writes into its script, used or not; the folder of the call becomes a part of the
    # source, and dependents are given that.
    for name, value in (("url", written), ("url", named), ("url", source), ("checksum", checksum)):
        reason = _unfit(name, value)
        if reason:
            return {"return": 1, "error": reason}
    # Not through `env`: the engine writes that into a script, which callers at the same time share, and in which
    # Windows' cmd acts on percent signs.
    os.environ.update(
        {
            "CM_IMAGENET_AUX_SOURCE": source,
            "CM_IMAGENET_AUX_CHECKSUM": checksum,
            "CM_IMAGENET_AUX_PYTHON": sys.executable,
            "CM_IMAGENET_AUX_REPLACE": "--replace",
            _OUTCOME: os.path.abspath(f"tmp-imagenet-aux-{os.urandom(8).hex()}.json"),
        }
    )
    return {"return": 0}


def postprocess(i):
    """Export where the files are, from what the native script says of its outcome.

    Parameters
    ----------
    i : dict
        What the engine knows: ``env`` (changed here).

    Returns
    -------
    dict
        ``{'return': 0}``, or ``{'return': 1, 'error': reason}`` with the reason of each source that was asked.
    """
    handed_over = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("CM_IMAGENET_AUX_")}
    try:
        outcome = _take_outcome(handed_over[_OUTCOME])
    except FileNotFoundError:
        return {
            "return": 1,
            "error": "the native script did not say how it went: it was killed, or another call in the same cache "
            "entry got in its way; run it again",
        }
    if "error" in outcome:
        return {"return": 1, "error": outcome["error"]}
    _export(i["env"], os.path.abspath("data"), outcome)
    return {"return": 0}


def _export(env, folder, outcome):
    """Set the keys for each engine, which lets through its own."""
    exported = {"PATH": folder, "SOURCE": outcome["source"], "VERIFIED": "yes" if outcome["verified"] else "no"}
    for name in outcome["files"]:
        exported[path_key(name)] = os.path.join(folder, name)
    for engine in _ENGINES:
        prefix = engine + "DATASET_AUX_"
        for key in [key for key in env if key.startswith(prefix) and key.endswith("_PATH")]:
            del env[key]  # of the set that this one replaces
        env.update({prefix + key: value for key, value in exported.items()})
        env[engine + "GET_DEPENDENT_CACHED_PATH"] = folder  # the cache entry is passed over once this is gone


def path_key(name):
    """What follows ``CM_DATASET_AUX_`` in the key of a file: its stem in capitals, and ``_PATH``."""
    return os.path.splitext(name)[0].replace(".", "_").upper() + "_PATH"


def _unfit(name, value):
    """Why the value of an input cannot be handed over, '' where it can."""
    if not isinstance(value, str):
        return f"{name} must be text, and is {value!r}: say --{name}=..."
    if _SHELL_TEXT.search(_decoded(value)):
        return (
            f"{name} must be text without {' '.join(_SHELL_CHARACTERS)} and control characters, which a shell would "
            f"act on, and is {_without_password(value)!r}: {_ADVICE[name]}"
        )
    return ""


def _given(env, key):
    """What an engine says under this key of its own, '' where there is none."""
    return next((env[engine + key] for engine in _ENGINES if env.get(engine + key)), "")


def _overruled(call, key):
    """The value of ``--env.KEY=`` among the words of the command line, '' where there is none."""
    prefixes = tuple(f"--env.{engine}{key}=" for engine in _ENGINES)
    words = call.get("cmd")
    if not words and call.get("mlc_run_cmd"):
        import shlex  # here, since an engine loads this file for each cached call too

        words = shlex.split(call["mlc_run_cmd"])
    for word in reversed(words or []):
        if isinstance(word, str) and word.startswith(prefixes):
            return word.partition("=")[2]
    return ""


def _decoded(source):
    """The path that a file URL means, which is what is exported; anything else as it is."""
    if not source.lower().startswith("file:"):
        return source
    from urllib.parse import unquote  # here, since an engine loads this file for each cached call too

    return unquote(source)


def _without_password(value):
    return re.sub("//[^/?#]*@", "//", value)


def _absolute(source, folder):
    """The source, as seen from the cache entry: a path is meant from the folder of the call."""
    if not source or "://" in source or source.lower().startswith("file:"):
        return source
    return os.path.abspath(os.path.join(folder, os.path.expanduser(source)))


def _take_outcome(path):
    with open(path, encoding="utf-8") as file:
        outcome = json.load(file)
    os.remove(path)
    return outcome

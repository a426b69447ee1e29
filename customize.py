"""CM's two hooks: hand the orders to the native script, export what came of it."""

import json
import os
import re
import sys
import uuid

_NAMED = "CM_WGET_URL"
_SOURCE = "CM_IMAGENET_AUX_SOURCE"
_CHECKSUM = "CM_IMAGENET_AUX_CHECKSUM"
_OUTCOME = "CM_IMAGENET_AUX_OUTCOME"
_EXPORTED = "CM_DATASET_AUX_"

# What the engine's `export KEY="VALUE"` would not hand over as it is, and a shell would act on.
_SHELL_TEXT = re.compile(r'["$`\x00-\x1f\x7f]' if os.name == "nt" else r'["$`\\\x00-\x1f\x7f]')


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
    source = call.get("url") or _overruled(call, _NAMED) or env.get(_NAMED, "")
    checksum = call.get("checksum") or env.get(_CHECKSUM, "")
    for wanted, value in (("a source", source), ("a source", env.get(_NAMED, "")), ("a checksum", checksum)):
        if not isinstance(value, str) or _SHELL_TEXT.search(value):
            return {
                "return": 1,
                "error": f"{wanted} should be text without quotes, dollar signs, backticks, backslashes and control "
                f"characters, which a shell would act on, and is {value!r}: rename the file, or encode the URL",
            }
    env[_SOURCE] = _absolute(source, env.get("CM_TMP_CURRENT_PATH", ""))
    env[_CHECKSUM] = checksum
    env["CM_IMAGENET_AUX_PYTHON"] = sys.executable
    # Through the process environment: callers at the same time share the folder and the script that sets `env`.
    os.environ[_OUTCOME] = os.path.abspath(f"tmp-imagenet-aux-{uuid.uuid4().hex}.json")
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
    env = i["env"]
    try:
        outcome = _take_outcome(os.environ.pop(_OUTCOME))
    except FileNotFoundError:
        return {"return": 1, "error": "the native script was ended before it could say how it went: run it again"}
    if "error" in outcome:
        return {"return": 1, "error": outcome["error"]}
    folder = os.path.abspath("data")
    for key in [key for key in env if key.startswith(_EXPORTED) and key.endswith("_PATH")]:
        del env[key]  # of the set that this one replaces
    env[_EXPORTED + "PATH"] = folder
    env[_EXPORTED + "SOURCE"] = outcome["source"]
    env[_EXPORTED + "VERIFIED"] = "yes" if outcome["verified"] else "no"
    for name in outcome["files"]:
        stem = os.path.splitext(name)[0].replace(".", "_").upper()
        env[f"{_EXPORTED}{stem}_PATH"] = os.path.join(folder, name)
    env["CM_GET_DEPENDENT_CACHED_PATH"] = folder  # the engine passes the cache entry over once this is gone
    return {"return": 0}


def _overruled(call, key):
    """The value of ``--env.KEY=`` on the command line, '' where there is none."""
    prefix = f"--env.{key}="
    for word in reversed(call.get("cmd") or []):
        if isinstance(word, str) and word.startswith(prefix):
            return word[len(prefix) :]
    return ""


def _absolute(source, folder):
    """The source, as seen from the cache entry: a path is meant from the folder of the call."""
    path = os.path.join(folder, os.path.expanduser(source))
    return os.path.abspath(path) if source and os.path.exists(path) else source


def _take_outcome(path):
    with open(path, encoding="utf-8") as file:
        outcome = json.load(file)
    os.remove(path)
    return outcome

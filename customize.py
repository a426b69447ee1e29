"""CM and MLC hooks: pass the inputs to the native script, and export the keys."""

import contextlib
import json
import os
import re
import sys
import threading

_ENGINES = ("CM_", "MLC_")  # prefixes of the engines' keys
_PRIVATE = "IMAGENET_AUX_"  # keys of this script alone
_CHECKSUM = "IMAGENET_AUX_CHECKSUM"
_URL = "WGET_URL"
# The upstream scripts read the last two.
_SOURCES = (_URL, "DOWNLOAD_LOCAL_FILE_PATH", "PACKAGE_URL")
_EXTRACT_PATH = "EXTRACT_PATH"

# The engines write env into a shell script as `export KEY="VALUE"`, here and in every dependent script.
_SHELL_CHARACTERS = '"$`' if os.name == "nt" else '"$`\\'  # a backslash separates folders on Windows
_SHELL_TEXT = re.compile("[" + re.escape(_SHELL_CHARACTERS) + "\x00-\x1f\x7f\ud800-\udfff]")

# The running call of this process. An engine loads this file anew for each call, so a module variable is not shared.
_calls = vars(threading).setdefault("_imagenet_aux_calls", {})


def preprocess(i):
    """Validate the inputs, and put them into the environment of the native script."""
    if sys.version_info < (3, 8):  # noqa: UP036 - the engine's Python may be older
        found = sys.version.split()[0]
        return _error(f"this script needs Python 3.8 or newer, found {found}. Install the engine in a newer Python.")
    try:
        inputs = _read_inputs(i)
    except ValueError as error:
        return _error(str(error))
    if "skip_ssl_verification" in i.get("variation_tags", []):
        print("note: _skip_ssl_verification has no effect: every file is verified by its digest.", file=sys.stderr)
    thread = threading.current_thread()
    other = _calls.setdefault("thread", thread)
    if other is not thread and other.is_alive():
        return _error(
            "another thread of this process is running this script, and the engine changes the current folder of the "
            "whole process. Make one call after the other, or use processes."
        )
    inputs["RESULT"] = os.path.abspath(f"tmp-imagenet-aux-{os.urandom(8).hex()}.json")
    inputs["PYTHON"] = sys.executable
    _calls.update(inputs, thread=thread)
    # Not through env: concurrent callers share the engine's shell script, and cmd expands percent signs in it.
    os.environ.update({"CM_" + _PRIVATE + key: value for key, value in inputs.items()})
    return {"return": 0}


def postprocess(i):
    """Read the native script's result, and export the keys."""
    if _calls.get("thread") is not threading.current_thread():
        return _error("another thread of this process took over this call. Make one call after the other.")
    call = dict(_calls)
    _calls.clear()
    for key in [key for key in os.environ if key.startswith("CM_" + _PRIVATE)]:
        del os.environ[key]
    try:
        with open(call["RESULT"], encoding="utf-8") as file:
            result = json.load(file)
        os.remove(call["RESULT"])
    except FileNotFoundError:
        return _error(
            "the native script wrote no result: it was interrupted or killed, or Python could not start. Run it again."
        )
    if (result["requested"], result["folder"]) != (call["SOURCE"], call["INTO"]):
        return _error("the native script's result is of another call. Make one call after the other.")
    if "error" in result:
        return _error(result["error"])
    _export(i["env"], result)
    return {"return": 0}


def path_key(name):
    """Return the key of a file without ``CM_DATASET_AUX_``: its stem in capitals, and ``_PATH``."""
    return os.path.splitext(name)[0].replace(".", "_").upper() + "_PATH"


def _error(reason):
    return {"return": 1, "error": reason}


def _read_inputs(i):
    """Return the values to hand over; raise ValueError for an invalid one."""
    env, call = i["env"], i.get("input") or {}
    own = _own_keys(call)
    current = _value(env, "TMP_CURRENT_PATH") or os.getcwd()
    url = _first(call.get("url"), *(_value(own, key) for key in _SOURCES), _variation_url(i))
    checksum = _first(call.get("checksum"), _value(env, _CHECKSUM))
    extract_path = _value(own, _EXTRACT_PATH)
    for name, value in (("url", url), ("checksum", checksum), (_EXTRACT_PATH, extract_path)):
        if not isinstance(value, str):
            raise ValueError(f"{name}: expected text, got {value!r}. Pass --{name}=VALUE.")
    if not re.fullmatch("[0-9a-fA-F]*", checksum):
        raise ValueError(f"checksum: expected hex digits, got {checksum!r}. Pass the MD5 or SHA-256 of the archive.")
    source = url if not url or "://" in url or url.lower().startswith("file:") else _absolute(url, current)
    if extract_path:
        into = _absolute(extract_path, current)
    elif env.get("MLC_OUTDIRNAME"):  # the current folder; the upstream MLC script adds no "data" to it
        into = os.getcwd()
    else:
        into = os.path.abspath("data")
    for name, value in (("url", url), ("url", source), (_EXTRACT_PATH, extract_path and into)):
        _reject_shell_text(name, value)
    _remove_inputs(env)
    _remove_inputs(i.get("run_script_input", {}).get("const", {}))  # the engine copies it into env before the run
    is_cached = into == os.path.abspath("data") and _in_cache_entry(i)
    return {"SOURCE": source, "CHECKSUM": checksum, "INTO": into, "REPLACE": "--replace" if is_cached else ""}


def _own_keys(call):
    """Return the env keys of this call itself; the keys of a parent script mean other downloads."""
    prefix = "local_" if call.get("recursion") else ""
    own = dict(call.get(prefix + "env") or {})
    for engine in _ENGINES:
        own.pop(engine + _URL, None)  # the variation's, which overrides the call's
    own.update(_cli_env_override(call, _URL))
    own.update(call.get(prefix + "const") or {})
    return own


def _cli_env_override(call, name):
    """Return the command line's ``--env.KEY=VALUE`` for this key; the variation has replaced it in env."""
    arguments = call.get("cmd") or []
    if not arguments and call.get("mlc_run_cmd"):
        import shlex  # slow to import, and an engine loads this file for cached calls too

        with contextlib.suppress(ValueError):  # not MLC's own text, which has balanced quotes
            arguments = shlex.split(call["mlc_run_cmd"])
    pairs = [str(argument).partition("=") for argument in arguments]
    wanted = ["--env." + engine + name for engine in _ENGINES]
    return {key[len("--env.") :]: value for key, _, value in pairs if key in wanted}


def _variation_url(i):
    """Return the URL of the chosen or default variation; env may hold a parent script's instead."""
    variations = i.get("meta", {}).get("variations", {})
    chosen = [variations.get(tag, {}) for tag in i.get("variation_tags", [])]
    default = [variation for variation in variations.values() if variation.get("default")]
    return _first(*(_value(variation.get("env", {}), _URL) for variation in chosen + default))


def _value(env, name):
    """Return the value of the key of either engine."""
    return _first(*(env.get(engine + name) for engine in _ENGINES))


def _first(*values):
    """Return the first value that is neither None nor empty text, or empty text."""
    return next((value for value in values if value is not None and value != ""), "")


def _absolute(path, folder):
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def _reject_shell_text(name, value):
    """Raise ValueError if a shell would act on the value, or on the path that a file URL means."""
    text = value
    if value.lower().startswith("file:"):
        from urllib.parse import unquote  # slow to import, and an engine loads this file for cached calls too

        text = unquote(value)
    if _SHELL_TEXT.search(text):
        shown = re.sub("//[^/?#]*@", "//", value)  # without a password
        raise ValueError(
            f"{name}: expected text without {' '.join(_SHELL_CHARACTERS)} and control characters, got {shown!r}. "
            "Rename the file or folder, or percent-encode the URL."
        )


def _remove_inputs(env):
    """Remove this script's inputs and hand-over keys, which the engine would write into its shell script."""
    inputs = (*_SOURCES, _EXTRACT_PATH)
    for key in list(env):
        name = key.partition("_")[2]
        if key.startswith(_ENGINES) and (name in inputs or name.startswith(_PRIVATE)):
            del env[key]


def _in_cache_entry(i):
    """Return whether the current folder is a cache entry of this script, and not a folder of the user."""
    for name in ("_cm.json", "meta.json"):  # CM's, MLC's
        try:
            with open(name, encoding="utf-8") as file:
                tags = json.load(file)["tags"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return any(kind + i.get("meta", {}).get("uid", "") in tags for kind in ("script-artifact-", "script-item-"))
    return False


def _export(env, result):
    """Set the keys of both engines; each engine lets only its own through."""
    folder = result["folder"]
    exported = {"SOURCE": result["source"], "VERIFIED": "yes" if result["verified"] else "no"}
    for name in result["files"]:
        exported[path_key(name)] = os.path.join(folder, name)
    for engine in _ENGINES:
        prefix = engine + "DATASET_AUX_"
        for key in [key for key in env if key.startswith(prefix) and key.endswith("_PATH")]:
            del env[key]  # of the files that this call replaced
        env.update({prefix + key: value for key, value in exported.items()})
        env[engine + "GET_DEPENDENT_CACHED_PATH"] = folder  # the engine fetches again once this folder is gone
    env["CM_DATASET_AUX_PATH"] = folder  # written out for `cm doc script`, which reads this file line by line
    env["MLC_DATASET_AUX_PATH"] = folder

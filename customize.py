"""Hooks for CM and MLC: pass the inputs to the native script, then export its results as env keys."""

import contextlib
import json
import os
import re
import sys
import threading

_ENGINES = ("CM_", "MLC_")  # each engine's key prefix
_PRIVATE = "IMAGENET_AUX_"  # prefix of keys that only this script uses
_CHECKSUM = "IMAGENET_AUX_CHECKSUM"
_URL = "WGET_URL"
# MLCommons' scripts for the same tags use the last two.
_SOURCES = (_URL, "DOWNLOAD_LOCAL_FILE_PATH", "PACKAGE_URL")
_EXTRACT_PATH = "EXTRACT_PATH"
_MAX_CHARACTERS = 16384  # operating systems limit environment variables
_BUSY = "another thread of this process is running this script. Run one call at a time, or use processes."

# The engines write env to a shell script as `export KEY="VALUE"`.
_SHELL_CHARACTERS = '"$`' if os.name == "nt" else '"$`\\'  # on Windows, the backslash is the path separator
_SHELL_TEXT = re.compile("[" + re.escape(_SHELL_CHARACTERS) + "\x00-\x1f\x7f\ud800-\udfff]")

# A call runs while the engine's stack frame is on a thread's stack. A flag would stay set after an aborted call, which
# skips postprocess. Kept in another module because the engines reload this one for every call.
_running = vars(threading).setdefault("_imagenet_aux_running", {"lock": threading.Lock()})


def preprocess(i):
    """Validate the inputs and pass them to the native script in environment variables."""
    if sys.version_info < (3, 8):  # noqa: UP036 - the engine's Python may be older
        found = sys.version.split()[0]
        return _error(f"Python version: expected 3.8 or newer, got {found}. Install the engine in a newer Python.")
    engine = sys._getframe(1)
    with _running["lock"]:
        other = _running.get("engine")
        if other and any(_is_on_stack(other, top) for top in sys._current_frames().values()):
            return _error(_BUSY)
        _running["engine"] = engine
    folder = _call_folder(i["env"], engine)
    try:
        inputs = _read_inputs(i, folder)
    except ValueError as error:
        return _error(str(error))
    if threading.active_count() > 1 and _is_finished(folder, i["env"]):
        return _error(_BUSY)
    if "skip_ssl_verification" in i.get("variation_tags", []):
        print(
            "note: _skip_ssl_verification has no effect: certificates and digests are always verified.", file=sys.stderr
        )
    inputs["PYTHON"] = sys.executable or ""  # None if Python is embedded
    # Not in env: concurrent calls share the engine's shell script with env, and cmd expands % in it.
    os.environ.update({"CM_" + _PRIVATE + key: value for key, value in inputs.items()})
    return {"return": 0}


def postprocess(i):
    """Read the native script's result file and export the keys."""
    prefix = "CM_" + _PRIVATE
    passed = {key[len(prefix) :]: os.environ.pop(key) for key in list(os.environ) if key.startswith(prefix)}
    try:
        with open(passed["RESULT"], encoding="utf-8") as file:
            result = json.load(file)
        os.remove(passed["RESULT"])
    except FileNotFoundError:
        return _error(
            "the native script wrote no result: it was interrupted or killed, Python could not start, "
            "or the disk is full. See the messages above, and run it again."
        )
    if (result["requested"], result["folder"]) != (passed["SOURCE"], passed["INTO"]):
        return _error("the native script's result belongs to another call. Run one call at a time.")
    if "error" in result:
        return _error(result["error"])
    _export(i["env"], result)
    return {"return": 0}


def path_key(name):
    """Return a file's env key without its ``CM_DATASET_AUX_`` prefix, such as ``VAL_PATH`` for ``val.txt``."""
    return os.path.splitext(name)[0].replace(".", "_").upper() + "_PATH"


def _is_on_stack(frame, top):
    """Return whether the frame is on a stack: its call is still running."""
    while top is not None and top is not frame:
        top = top.f_back
    return top is not None


def _error(reason):
    return {"return": 1, "error": reason}


def _call_folder(env, frame):
    """Return the cache entry or the user's folder; another thread may have changed the working directory."""
    entry = frame.f_locals.get("cached_path")  # a variable of both engines; not in `i`
    return os.path.abspath(entry) if entry and not _value(env, "OUTDIRNAME") else os.getcwd()


def _read_inputs(i, folder):
    """Return the values to pass to the native script; raise ValueError if an input is invalid."""
    env, call = i["env"], i.get("input") or {}
    call_env = _call_env(call)
    current = _value(env, "TMP_CURRENT_PATH")
    url = _first(call.get("url"), *(_value(call_env, key) for key in _SOURCES), _variation_url(i))
    checksum = _value(env, _CHECKSUM)  # where input_mapping puts the input
    extract_path = _value(call_env, _EXTRACT_PATH)
    target_label = "env.CM_" + _EXTRACT_PATH
    for name, value in (("url", url), ("checksum", checksum), (target_label, extract_path)):
        if not isinstance(value, str):
            raise ValueError(f"{name}: expected a string, got {_redacted(value)}. Pass --{name}=VALUE.")
        if len(value) > _MAX_CHARACTERS:
            raise ValueError(
                f"{name}: expected at most {_MAX_CHARACTERS} characters, got {len(value)}. Pass a shorter one."
            )
    if not re.fullmatch("[0-9a-fA-F]*", checksum):
        raise ValueError(f"checksum: expected hex digits, got {checksum!r}. Pass the MD5 or SHA-256 of the archive.")
    source = url if not url or "://" in url or url.lower().startswith("file:") else _absolute(url, current)
    data = os.path.join(folder, "data")
    into = folder if env.get("MLC_OUTDIRNAME") else data  # as in MLCommons' script
    if extract_path:
        into = _absolute(extract_path, current)
    for name, value in (("url", url), ("url", source), (target_label if extract_path else "target folder", into)):
        _reject_shell_text(name, value)
    _remove_inputs(env)
    _remove_inputs(i.get("run_script_input", {}).get("const", {}))  # the engine copies const to env before the run
    # If the entry links to another folder, the files there may be the user's own.
    is_replaceable = into == data and not os.path.islink(into) and _is_cache_entry(folder, i)
    return {
        "SOURCE": source,
        "CHECKSUM": checksum,
        "INTO": into,
        "PID": str(os.getpid()),
        "REPLACE": "--replace" if is_replaceable else "",
        "RESULT": os.path.join(folder, f"tmp-imagenet-aux-{os.urandom(8).hex()}.json"),
    }


def _call_env(call):
    """Return the env keys set for this call, without inherited ones: a parent script's keys are for other downloads."""
    prefix = "local_" if call.get("recursion") else ""
    call_env = dict(call.get(prefix + "env") or {})
    for engine in _ENGINES:
        call_env.pop(engine + _URL, None)  # by now the variation's value, not the user's
    call_env.update(_cli_env_override(call, _URL))
    call_env.update(call.get(prefix + "const") or {})
    return call_env


def _cli_env_override(call, name):
    """Return the key's ``--env.KEY=VALUE`` from the command line; in env, the variation has overridden it."""
    arguments = call.get("cmd") or []
    if not arguments and call.get("mlc_run_cmd"):
        import shlex  # slow to import; engines load this module for cached calls too

        with contextlib.suppress(ValueError):  # unbalanced quotes
            arguments = shlex.split(call["mlc_run_cmd"])
    pairs = [str(argument).partition("=") for argument in arguments]
    wanted = ["--env." + engine + name for engine in _ENGINES]
    return {key[len("--env.") :]: value for key, _, value in pairs if key in wanted}


def _variation_url(i):
    """Return the URL of the selected or default variation; env may contain a parent script's URL instead."""
    variations = i.get("meta", {}).get("variations", {})
    chosen = [variations.get(tag, {}) for tag in i.get("variation_tags", [])]
    default = [variation for variation in variations.values() if variation.get("default")]
    return _first(*(_value(variation.get("env", {}), _URL) for variation in chosen + default))


def _value(env, name):
    """Return the value of a key under either engine's prefix."""
    return _first(*(env.get(engine + name) for engine in _ENGINES))


def _first(*values):
    """Return the first value that is neither None nor empty; otherwise an empty string."""
    return next((value for value in values if value is not None and value != ""), "")


def _absolute(path, folder):
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def _reject_shell_text(name, value):
    """Raise ValueError if the value, or the path in a file URL, contains characters that a shell interprets."""
    text = value
    if value.lower().startswith("file:"):
        from urllib.parse import unquote  # slow to import

        text = unquote(value)
    if _SHELL_TEXT.search(text):
        raise ValueError(
            f"{name}: expected no control characters and none of {' '.join(_SHELL_CHARACTERS)}, "
            f"got {_redacted(value)}. Rename the file or folder, or percent-encode the URL."
        )


def _redacted(value):
    """Return the value's representation without the credentials in a URL."""
    return re.sub("//.*@", "//", repr(value))


def _remove_inputs(env):
    """Remove this script's inputs and private keys: the engine would write them to its shell script."""
    inputs = (*_SOURCES, _EXTRACT_PATH)
    for key in list(env):
        name = key.partition("_")[2]
        if key.startswith(_ENGINES) and (name in inputs or name.startswith(_PRIVATE)):
            del env[key]


def _is_cache_entry(folder, i):
    """Return whether the folder is one of this script's cache entries."""
    for name in ("_cm.json", "meta.json"):  # CM's and MLC's
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                tags = json.load(file)["tags"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return any(kind + i.get("meta", {}).get("uid", "") in tags for kind in ("script-artifact-", "script-item-"))
    return False


def _is_finished(entry, env):
    """Return whether another call has completed this cache entry; engines can assign one entry to concurrent calls."""
    states = [os.path.join(entry, engine + "-cached-state.json") for engine in ("cm", "mlc")]
    return not _value(env, "RENEW_CACHE_ENTRY") and any(map(os.path.exists, states))


def _export(env, result):
    """Set the keys for both engines; each engine exports only those with its own prefix."""
    folder = result["folder"]
    exported = {"SOURCE": result["source"], "VERIFIED": "yes" if result["verified"] else "no"}
    for name in result["files"]:
        exported[path_key(name)] = os.path.join(folder, name)
    for engine in _ENGINES:
        prefix = engine + "DATASET_AUX_"
        for key in [key for key in env if key.startswith(prefix) and key.endswith("_PATH")]:
            del env[key]  # from a previous call
        env.update({prefix + key: value for key, value in exported.items()})
        env[engine + "GET_DEPENDENT_CACHED_PATH"] = folder  # if it is deleted, the engine runs this script again
    env["CM_DATASET_AUX_PATH"] = folder  # literal: `cm doc script` scans this file for keys
    env["MLC_DATASET_AUX_PATH"] = folder

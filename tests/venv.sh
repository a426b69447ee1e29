# shellcheck shell=bash
# Sourced by the other scripts: creates the project's environment in .venv, and a temporary folder that exists until exit.
#
# PYTHON=COMMAND  creates .venv with this Python, a command or an absolute path. Replaces a .venv of another version.
#                 Without it, keeps a working .venv, or creates one with python3.
# REQUESTS=X.Y.Z  uses this release of the requests library and a urllib3 of the same age, in an environment beside .venv.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
venv=.venv${REQUESTS:+-requests-$REQUESTS}
python=${PYTHON:-}
# shellcheck disable=SC2086 # variable names contain no spaces
unset ${!PYTHON*} # PYTHONPATH, PYTHONOPTIMIZE and others affect the checks

find_bin() {
  bin=$venv/bin
  if [ -d "$venv/Scripts" ]; then
    bin=$venv/Scripts
  fi
}

# Check that the environment has pip and PYTHON's version, was created in this folder (its scripts contain the path), and
# has no package whose installation was interrupted (pip writes RECORD last).
is_usable() {
  "$bin/python" -m pip --version && "$bin/python" - "$bin" "$@" <<'END'
import pathlib, sys, sysconfig
bin, *versions = sys.argv[1:]
packages = pathlib.Path(sysconfig.get_path("purelib")).glob("*.dist-info")
sys.exit(
    not all((package / "RECORD").is_file() for package in packages)
    or sys.prefix not in pathlib.Path(bin, "activate").read_text(encoding="utf-8")
    or [version.strip() for version in versions] not in ([], [sys.version])
)
END
}

install() {
  "$bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

find_bin
version=${python:+$("$python" -c 'import sys; print(sys.version)')}
if ! is_usable ${version:+"$version"} >/dev/null 2>&1; then
  echo "Creating $venv ..."
  if [ -L "$venv" ]; then
    rm "$venv" # --clear would empty the environment that the link points to
  fi
  "${python:-python3}" -m venv --clear "$venv"
  find_bin
fi

# pytest and the other tools create their temporary folders in this one.
if [ ! -w "${TMPDIR:-/tmp}" ]; then
  unset TMPDIR # belongs to another user
fi
TMPDIR=$(mktemp -d)
export TMPDIR
remove_temporary() {
  chmod -R u+rwX "$TMPDIR" 2>/dev/null || true
  rm -rf "$TMPDIR" || { sleep 3 && rm -rf "$TMPDIR"; } || true # an exiting process may still write there
}
trap remove_temporary EXIT

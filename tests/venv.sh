# shellcheck shell=bash
# For the scripts beside it: the project's own environment in .venv, and what its commands are called there.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
if [ ! -d .venv ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
bin=.venv/bin
if [ -d .venv/Scripts ]; then
  bin=.venv/Scripts
fi
install() {
  "$bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

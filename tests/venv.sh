# shellcheck shell=bash
# For the scripts beside it: the project's own environment in .venv, with the packages that the caller names.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
install() {
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

#!/usr/bin/env bash
# Checks everything: makes .venv where it is missing, then lints and tests. Words are handed on to pytest.
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
install --requirement tests/requirements.txt
.venv/bin/python -m pytest "$@"

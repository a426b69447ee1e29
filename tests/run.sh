#!/usr/bin/env bash
# Runs all checks: linters, type checks, tests and test coverage. Creates .venv first if needed.
#   bash tests/run.sh                     everything
#   bash tests/run.sh ARGUMENTS           pytest alone, with these arguments, such as -k mirrors
#   PYTHON=python3.8 bash tests/run.sh    with this Python; replaces a .venv of another version
#   REQUESTS=2.28.1 bash tests/run.sh tests/test_{connection,mirrors}.py    with this release of the requests library
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
if [ -n "${REQUESTS:-}" ]; then
  # Replaces the type stubs for requests, which require urllib3 2.
  sed "s/^types-requests.*/requests==$REQUESTS/" tests/requirements.txt >"$TMPDIR/requirements.txt"
  install --requirement "$TMPDIR/requirements.txt" urllib3==1.26.12
else
  install --requirement tests/requirements.txt
fi
if [ $# -gt 0 ]; then
  "$bin/python" -m pytest "$@"
  exit
fi

"$bin/ruff" check
"$bin/ruff" format --check
"$bin/mypy" imagenet_aux
"$bin/shellcheck" -x run.sh tests/*.sh .ci/run

# If COVERAGE_PROCESS_START is set, each Python process that the tests start measures itself and writes a file.
"$bin/python" -c 'import os, sysconfig
with open(os.path.join(sysconfig.get_path("purelib"), "measure.pth"), "w") as file:
    file.write("import os; os.environ.get(\"COVERAGE_PROCESS_START\") and __import__(\"coverage\").process_startup()\n")'
mkdir -p "$venv/coverage"
export COVERAGE_PROCESS_START=$PWD/pyproject.toml COVERAGE_FILE=$PWD/$venv/coverage/data
"$bin/coverage" erase
"$bin/python" -m pytest
"$bin/coverage" combine --quiet
"$bin/coverage" report

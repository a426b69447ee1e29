#!/usr/bin/env bash
# Checks everything: makes .venv where it is missing, then lints and tests, and measures what the tests have run through.
# With words, which are handed on to pytest, it only tests.
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
install --requirement tests/requirements.txt
if [ $# -gt 0 ]; then
  exec "$bin/python" -m pytest "$@"
fi

"$bin/ruff" check
"$bin/ruff" format --check
"$bin/mypy" imagenet_aux
"$bin/shellcheck" -x run.sh tests/*.sh .ci/run

# Each Python that the tests start measures itself, where this variable names the settings.
"$bin/python" -c 'import os, sysconfig
with open(os.path.join(sysconfig.get_path("purelib"), "measure.pth"), "w") as file:
    file.write("import os; os.environ.get(\"COVERAGE_PROCESS_START\") and __import__(\"coverage\").process_startup()\n")'
export COVERAGE_PROCESS_START=$PWD/pyproject.toml COVERAGE_FILE=$PWD/.coverage
"$bin/coverage" erase
"$bin/python" -m pytest
"$bin/coverage" combine --quiet
"$bin/coverage" report

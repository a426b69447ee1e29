#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR
# Shows the script at work, from nothing but PyPI: a stand-in for the real archive, served on loopback, fetched through
# CM in a throw-away home; then the exported keys.
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
install --constraint tests/requirements.txt cmx4mlops requests

home=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null; rm -rf "$home"' EXIT
export HOME=$home CM_REPOS=$home/CM PATH=$PWD/$bin:$PATH
script=$CM_REPOS/repos/local/script/get-dataset-imagenet-aux
mkdir -p "$home/served" "$script"
cp -R _cm.json customize.py run.sh run.bat imagenet_aux "$script"

echo "Making a stand-in archive ..."
python tests/standin.py "$home/served/caffe_ilsvrc12.tar.gz"
python -u -m http.server 0 --bind 127.0.0.1 --directory "$home/served" >"$home/server.log" 2>&1 &
server=$!
until port=$(grep -oE 'port [0-9]+' "$home/server.log"); do
  kill -0 "$server"
  sleep 0.1
done

cm reindex repo
cm run script --tags=get,aux,imagenet-aux --url="http://127.0.0.1:${port#port }/caffe_ilsvrc12.tar.gz"
echo
echo "Exported, as the second call finds it in the cache:"
cm run script --tags=get,aux,imagenet-aux -j 2>&1 | grep -oE '"CM_DATASET_AUX_[^,]*' | sort -u

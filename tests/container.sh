#!/usr/bin/env bash
# Builds README-extra.md's container recipe with a sample archive, then runs the script from the image's cache. Requires
# a Docker daemon, or root and buildah. If buildah cannot pull the base image, debootstrap builds one.
# shellcheck source-path=SCRIPTDIR
. "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
context=$TMPDIR/context
mkdir "$context"
cp -R _cm.json customize.py run.sh imagenet_aux "$context"
awk '/^```/ { inside = $0 == "```dockerfile"; next } inside' README-extra.md >"$context/Dockerfile"
base=$(awk '$1 == "FROM" { print $2 }' "$context/Dockerfile")
"$bin/python" tests/sample_archive.py "$context/caffe_ilsvrc12.tar.gz"
call='cm run script --tags=get,aux,imagenet-aux --quiet -j && pwd'

run_buildah() {
  buildah --root "$TMPDIR/storage" --runroot "$TMPDIR/runroot" --storage-driver vfs "$@"
}

make_base() {
  echo "Building the base image with debootstrap, because $base cannot be pulled ..."
  # debootstrap mounts /proc and /sys. Use a mount namespace, so that the cleanup does not delete files in them.
  if ! unshare --mount debootstrap --variant=minbase --include=ca-certificates,python3-venv \
    stable "$TMPDIR/root" >"$TMPDIR/log"; then
    cat "$TMPDIR/log"
    exit 1
  fi
  chroot "$TMPDIR/root" python3 -m venv /usr/local                     # provides pip, which Debian disables for its Python
  cp /etc/ssl/certs/ca-certificates.crt "$TMPDIR/root/etc/ssl/certs/" # pip may need this machine's CA certificates
  container=$(run_buildah from scratch)
  run_buildah copy --quiet "$container" "$TMPDIR/root" /
  for setting in PATH=/usr/local/bin:/usr/bin:/bin $(env | grep ^PIP_); do
    run_buildah config --env "$setting" "$container"
  done
  run_buildah commit --quiet --rm "$container" "docker.io/library/$base"
}

if docker info >/dev/null 2>&1; then
  DOCKER_BUILDKIT=1 docker build --tag imagenet-aux-recipe "$context"
  docker run --rm --network none imagenet-aux-recipe sh -c "$call"
  docker image rm imagenet-aux-recipe
elif [ "$(id -u)" = 0 ] && command -v buildah >/dev/null; then
  run_buildah pull "docker.io/library/$base" || make_base
  run_buildah build --isolation chroot --pull-never --tag imagenet-aux-recipe "$context"
  container=$(run_buildah from --pull-never imagenet-aux-recipe)
  run_buildah run --isolation chroot "$container" -- sh -c "$call"
else
  echo "error: the recipe cannot be built: no Docker daemon is running, and buildah is not installed or requires root" >&2
  exit 1
fi

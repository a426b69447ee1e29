#!/usr/bin/env bash
# Start the fetcher: by hand with the arguments, or for customize.py with the inputs in the environment.
# The engines source this file, so its folder comes from BASH_SOURCE, not from $0.
here=${BASH_SOURCE[0]%"${BASH_SOURCE[0]##*/}"}
fetch=("${CM_IMAGENET_AUX_PYTHON:-python3}" "${here:-./}imagenet_aux/__main__.py" fetch)
if [ -z "${CM_IMAGENET_AUX_RESULT:-}" ]; then
  [ $# -gt 0 ] || set -- --checksum="${CM_IMAGENET_AUX_CHECKSUM:-}" -- "${CM_WGET_URL:-}"
  exec "${fetch[@]}" "$@"
fi

# After these signals most engines and versions of sh do not get to postprocess, which reads and removes the result.
trap 'interrupted=1' HUP INT TERM
# The error is in the result file, so the exit code is 0 even if Python could not start.
"${fetch[@]}" --checksum="${CM_IMAGENET_AUX_CHECKSUM:-}" --into="$CM_IMAGENET_AUX_INTO" \
  --result="$CM_IMAGENET_AUX_RESULT" ${CM_IMAGENET_AUX_REPLACE:+--replace} -- "${CM_IMAGENET_AUX_SOURCE:-}" || true
if [ -n "${interrupted:-}" ]; then
  rm -f -- "$CM_IMAGENET_AUX_RESULT"
  echo "error: interrupted" >&2
fi

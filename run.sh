#!/usr/bin/env bash
# Run the fetcher, either with command-line arguments or with the inputs that customize.py puts in the environment.
# The engines source this file, so find its folder with BASH_SOURCE instead of $0.
fetch=("${CM_IMAGENET_AUX_PYTHON:-python3}" "${BASH_SOURCE[0]%run.sh}imagenet_aux/__main__.py" fetch)
if [ -z "${CM_IMAGENET_AUX_RESULT:-}" ]; then
  [ $# -gt 0 ] || set -- --checksum="${CM_IMAGENET_AUX_CHECKSUM:-}" -- "${CM_WGET_URL:-}"
  exec "${fetch[@]}" "$@"
fi

# Most engines skip postprocess after these signals, so nothing else would remove the result file.
trap 'rm -f "$CM_IMAGENET_AUX_RESULT"; echo "error: interrupted" >&2' HUP INT TERM
# Always exit with 0: postprocess reports the error in the result file, or that there is no result file.
"${fetch[@]}" --checksum="$CM_IMAGENET_AUX_CHECKSUM" --into="$CM_IMAGENET_AUX_INTO" \
  --result="$CM_IMAGENET_AUX_RESULT" --pid="$CM_IMAGENET_AUX_PID" ${CM_IMAGENET_AUX_REPLACE:+--replace} \
  -- "$CM_IMAGENET_AUX_SOURCE" || true

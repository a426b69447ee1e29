#!/usr/bin/env bash
# The native script: puts the files into ./data, by CM's orders in the environment or by hand.
# CM sources this file, so the path is its own, not that of $0.
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "${CM_IMAGENET_AUX_PYTHON:-python3}" -m imagenet_aux fetch \
  --checksum="${CM_IMAGENET_AUX_CHECKSUM:-}" --outcome="${CM_IMAGENET_AUX_OUTCOME:-}" -- \
  "${CM_IMAGENET_AUX_SOURCE:-${CM_WGET_URL:-}}"

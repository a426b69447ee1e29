#!/usr/bin/env bash
# The native script: puts the files into ./data, by CM's orders in the environment or by hand.
# CM sources this file, so its folder is taken from its own name, not from $0.
here=${BASH_SOURCE[0]%"${BASH_SOURCE[0]##*/}"}
# PYTHONSAFEPATH, from Python 3.11 on: what lies in the folder where it is called is no module of ours.
# With an outcome file it always ends well: postprocess reads there how it went, and without one says that it was killed.
PYTHONSAFEPATH=1 PYTHONPATH="${here:-.}${PYTHONPATH:+:$PYTHONPATH}" \
  "${CM_IMAGENET_AUX_PYTHON:-python3}" -m imagenet_aux fetch \
  --checksum="${CM_IMAGENET_AUX_CHECKSUM:-}" --result="${CM_IMAGENET_AUX_OUTCOME:-}" \
  ${CM_IMAGENET_AUX_OUTCOME:+--replace} -- \
  "${CM_IMAGENET_AUX_SOURCE:-${CM_WGET_URL:-}}" || [ -n "${CM_IMAGENET_AUX_OUTCOME:-}" ]

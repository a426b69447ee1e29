"""Run the command with a custom manifest: ``python run_with_manifest.py JSON ARGUMENT...``."""

import json
import sys

from imagenet_aux import cli
from imagenet_aux.manifest import Manifest, Source

if __name__ == "__main__":
    files, mirrors = json.loads(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:], Manifest(files, tuple(Source(*mirror) for mirror in mirrors))))

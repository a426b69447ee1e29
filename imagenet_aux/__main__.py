"""Run the command, either as ``python -m imagenet_aux`` or as ``python /path/to/__main__.py``."""

import os
import sys

if not __package__:
    # When run by its path, Python puts this folder on sys.path. Put its parent there instead.
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(folder), *(path for path in sys.path if os.path.abspath(path) != folder)]

from imagenet_aux import cli

if __name__ == "__main__":
    cli.run()

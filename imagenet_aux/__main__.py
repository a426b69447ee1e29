"""Start the command, by ``python -m imagenet_aux`` or by the path of this file."""

import os
import sys

if not __package__:
    # Started by its path, Python searches this folder for modules: search the one above instead.
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(folder), *(path for path in sys.path if os.path.abspath(path) != folder)]

from imagenet_aux import cli

if __name__ == "__main__":
    cli.run()

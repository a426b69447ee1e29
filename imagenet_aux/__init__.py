"""Fetch the Caffe ImageNet 2012 auxiliary files and verify them against their published digests.

>>> import imagenet_aux
>>> result = imagenet_aux.fetch("caffe_ilsvrc12.tar.gz", into="data")
>>> result.paths["val.txt"], result.verified
('/home/me/data/val.txt', True)
"""

from .errors import FetchError
from .fetcher import fetch
from .verify import inspect_folder

__all__ = ["FetchError", "fetch", "inspect_folder"]
__version__ = "2.0.0"

"""The hosts of the set, in the order in which they are asked, and the digests of what they serve."""

from __future__ import annotations

from typing import NamedTuple


class Mirror(NamedTuple):
    """A host of ``caffe_ilsvrc12.tar.gz``.

    Attributes
    ----------
    address : str
        How it is known, and shown.
    digest : str
        MD5 or SHA-256 of the archive that it serves, in hex; '' where none is known.
    query : str
        What the address needs in order to answer with the archive.
    """

    address: str
    digest: str
    query: str = ""


# The MD5 is that in MLCommons' own script of this uid. The SHA-256 is that in OpenEmbedded's recipes for Caffe, beside
# the MD5 that MLCommons has for the same address.
MIRRORS = (
    Mirror(
        "https://www.dropbox.com/s/92n2fyej3lzy3s3/caffe_ilsvrc12.tar.gz",
        "ee346d67141e476df9c1a3f813552503",
        "?dl=1",  # without it, a page about the archive
    ),
    Mirror(
        "http://dl.caffe.berkeleyvision.org/caffe_ilsvrc12.tar.gz",
        "e35c0c1994a21f7d8ed49d01881ce17ab766743d3b0372cdc0183ff4d0dfc491",
    ),
    Mirror("https://armi.in/files/caffe_ilsvrc12.tar.gz", "ee346d67141e476df9c1a3f813552503"),
    Mirror("https://download.openmmlab.com/mmclassification/datasets/imagenet/meta/caffe_ilsvrc12.tar.gz", ""),
)

# The same files lie in the history of repositories on GitHub, under addresses that are their content.
GITHUB = "https://raw.githubusercontent.com/BVLC/caffe/e155a2d1a0417dd3540002742a567c96b29b3ed6/data"
_FORK = "https://raw.githubusercontent.com/xjsXjtu/caffe/d72c9e722fe951609da2dc37355cf3b621cbb6a6/data/ilsvrc12"
GITHUB_FILES = {
    "synsets.txt": f"{GITHUB}/ilsvrc_2012_synsets.txt",
    "synset_words.txt": f"{GITHUB}/ilsvrc_2012_synset_words.txt",
    "imagenet_mean.binaryproto": f"{GITHUB}/ilsvrc_2012_mean.binaryproto",
    "val.txt": f"{GITHUB}/ilsvrc_2012_val.txt",
    "test.txt": f"{GITHUB}/ilsvrc_2012_test.txt",
    "train.txt": f"{GITHUB}/ilsvrc_2012_train.txt",
}
GITHUB_EXTRAS = {
    "det_synset_words.txt": f"{_FORK}/det_synset_words.txt",
    "imagenet.bet.pickle": f"{_FORK}/imagenet.bet.pickle",
}

"""The dataset's file names, published digests and built-in mirrors."""

from __future__ import annotations

from typing import Mapping, NamedTuple

ARCHIVE_NAME = "caffe_ilsvrc12.tar.gz"

# About three times the dataset's size. Limits downloads, unpacked data and disk space.
MAX_BYTES = 200 << 20


class Source(NamedTuple):
    """A built-in mirror or a user-supplied source: an archive or individual files."""

    address: str  # URL or path; users select a mirror by its URL, with or without the query
    digest: str = ""  # hex MD5 or SHA-256 of the archive; empty if unknown
    locations: Mapping[str, str] | None = None  # the URL or path of each file; None for an archive
    optional: tuple[str, ...] = ()  # names of files that may be missing from this mirror
    is_custom: bool = False  # the user supplied the source or the digest: accept missing and unpublished files


class Manifest(NamedTuple):
    """The dataset's files and mirrors."""

    files: Mapping[str, str]  # the hex digest of each file: SHA-256 (64 digits) or git blob id (40 digits)
    mirrors: tuple[Source, ...]  # tried in this order


_GITHUB = "https://raw.githubusercontent.com/BVLC/caffe/e155a2d1a0417dd3540002742a567c96b29b3ed6/data"
_FORK = "https://raw.githubusercontent.com/xjsXjtu/caffe/d72c9e722fe951609da2dc37355cf3b621cbb6a6/data/ilsvrc12"

MANIFEST = Manifest(
    # Each digest is confirmed by several independent public repositories. For train.txt and imagenet.bet.pickle, only
    # the git blob id is known.
    files={
        "det_synset_words.txt": "7b526fc8f4e4ed27a6b71d83dfec93c7ab2906b7cd257b996357bbe1aacf69ce",
        "imagenet.bet.pickle": "e77f4e9a9130e35385d2896c3d287d3a3f8836c9",
        "imagenet_mean.binaryproto": "b5863836b6777bdb3d336d94c791864500e2aebb49f7c2bf3d20110223da244f",
        "synset_words.txt": "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355",
        "synsets.txt": "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
        "test.txt": "fecd6a03eb9f74811e52791295f4ddf62d4b8b6b31de2c73eafae7e9fbd896ee",
        "train.txt": "39ce41b8efe238c4970ce04283407a3c2290711d",
        "val.txt": "4138c0cd92d2dffea9353a9339c9f352361b7c6c267d2ff989b366f154188257",
    },
    mirrors=(
        Source(  # MD5 from the MLCommons script with the same uid
            f"https://www.dropbox.com/s/92n2fyej3lzy3s3/{ARCHIVE_NAME}?dl=1",  # without it, Dropbox responds with HTML
            digest="ee346d67141e476df9c1a3f813552503",
        ),
        Source(  # SHA-256 from the OpenEmbedded recipe for Caffe
            f"http://dl.caffe.berkeleyvision.org/{ARCHIVE_NAME}",
            digest="e35c0c1994a21f7d8ed49d01881ce17ab766743d3b0372cdc0183ff4d0dfc491",
        ),
        Source(f"https://armi.in/files/{ARCHIVE_NAME}", digest="ee346d67141e476df9c1a3f813552503"),
        Source(f"https://download.openmmlab.com/mmclassification/datasets/imagenet/meta/{ARCHIVE_NAME}"),
        Source(  # pinned to commits, so the contents cannot change
            _GITHUB,
            locations={
                "synsets.txt": f"{_GITHUB}/ilsvrc_2012_synsets.txt",
                "synset_words.txt": f"{_GITHUB}/ilsvrc_2012_synset_words.txt",
                "imagenet_mean.binaryproto": f"{_GITHUB}/ilsvrc_2012_mean.binaryproto",
                "val.txt": f"{_GITHUB}/ilsvrc_2012_val.txt",
                "test.txt": f"{_GITHUB}/ilsvrc_2012_test.txt",
                "train.txt": f"{_GITHUB}/ilsvrc_2012_train.txt",
                "det_synset_words.txt": f"{_FORK}/det_synset_words.txt",
                "imagenet.bet.pickle": f"{_FORK}/imagenet.bet.pickle",
            },
            optional=("det_synset_words.txt", "imagenet.bet.pickle"),
        ),
    ),
)

"""Test the published digests and addresses, and verification against them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sample_archive
from cm_home import ROOT
from command import run_command

import imagenet_aux
from imagenet_aux.manifest import MANIFEST

# An independent copy, to catch typos in the manifest.
PUBLISHED_FILES = {
    "det_synset_words.txt": "7b526fc8f4e4ed27a6b71d83dfec93c7ab2906b7cd257b996357bbe1aacf69ce",
    "imagenet.bet.pickle": "e77f4e9a9130e35385d2896c3d287d3a3f8836c9",
    "imagenet_mean.binaryproto": "b5863836b6777bdb3d336d94c791864500e2aebb49f7c2bf3d20110223da244f",
    "synset_words.txt": "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355",
    "synsets.txt": "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    "test.txt": "fecd6a03eb9f74811e52791295f4ddf62d4b8b6b31de2c73eafae7e9fbd896ee",
    "train.txt": "39ce41b8efe238c4970ce04283407a3c2290711d",
    "val.txt": "4138c0cd92d2dffea9353a9339c9f352361b7c6c267d2ff989b366f154188257",
}
PUBLISHED_ARCHIVES = {
    "https://www.dropbox.com/s/92n2fyej3lzy3s3/caffe_ilsvrc12.tar.gz": "ee346d67141e476df9c1a3f813552503",
    "http://dl.caffe.berkeleyvision.org/caffe_ilsvrc12.tar.gz": (
        "e35c0c1994a21f7d8ed49d01881ce17ab766743d3b0372cdc0183ff4d0dfc491"
    ),
    "https://armi.in/files/caffe_ilsvrc12.tar.gz": "ee346d67141e476df9c1a3f813552503",
}


def test_digests_are_the_published_ones() -> None:
    assert MANIFEST.files.items() >= PUBLISHED_FILES.items()
    archives = {mirror.address.partition("?")[0]: mirror.digest for mirror in MANIFEST.mirrors}
    assert archives.items() >= PUBLISHED_ARCHIVES.items()


def test_verifies_the_published_files(published_folder: Path) -> None:
    files = imagenet_aux.inspect_folder(str(published_folder))
    assert files and all(file.verified for file in files), files


def test_verifies_a_generated_test_txt(tmp_path: Path) -> None:
    data = sample_archive.make_test_txt()
    (tmp_path / "test.txt").write_bytes(data)
    assert imagenet_aux.inspect_folder(str(tmp_path)) == [("test.txt", len(data), 100_000, True)]


def test_does_not_verify_a_changed_test_txt(tmp_path: Path) -> None:
    data = sample_archive.make_test_txt()
    (tmp_path / "test.txt").write_bytes(data.replace(b"00100000", b"00100001"))
    assert imagenet_aux.inspect_folder(str(tmp_path)) == [("test.txt", len(data), 100_000, False)]


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_fetch_verifies_a_generated_test_txt(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    data = sample_archive.make_test_txt()
    if kind == "folder":
        source.mkdir()
        (source / "test.txt").write_bytes(data)
    else:
        source.write_bytes(sample_archive.pack_files({"test.txt": data}))
    run_command(tmp_path, "fetch", source, "--result=result.json")
    report = json.loads((tmp_path / "result.json").read_text())
    assert report["verified"] is True and report["files"] == ["test.txt"]


def test_mirrors_have_the_files_in_the_manifest() -> None:
    for mirror in MANIFEST.mirrors:
        if mirror.locations:
            assert set(mirror.locations) <= set(MANIFEST.files)
            assert set(MANIFEST.files) - set(mirror.locations) <= set(mirror.optional) <= set(MANIFEST.files)
        else:
            assert not mirror.optional


def test_files_from_the_fork_are_optional() -> None:
    (mirror,) = (mirror for mirror in MANIFEST.mirrors if "raw.githubusercontent.com/BVLC" in mirror.address)
    assert set(mirror.optional) >= {"det_synset_words.txt", "imagenet.bet.pickle"}


def test_dropbox_url_requests_the_file_itself() -> None:
    (mirror,) = (mirror for mirror in MANIFEST.mirrors if "dropbox.com" in mirror.address)
    assert mirror.address.endswith("?dl=1"), "otherwise Dropbox responds with HTML"


def test_variations_select_built_in_mirrors() -> None:
    variations = json.loads((ROOT / "_cm.json").read_text(encoding="utf-8"))["variations"]
    addresses = {variation["env"]["CM_WGET_URL"] for name, variation in variations.items() if name.startswith("from.")}
    assert addresses <= {mirror.address.partition("?")[0] for mirror in MANIFEST.mirrors}
    (default,) = (variation["env"]["CM_WGET_URL"] for variation in variations.values() if variation.get("default"))
    assert default == MANIFEST.mirrors[0].address.partition("?")[0]

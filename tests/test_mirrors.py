"""The chain of sources, tried for real: a proxy plays all five hosts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import ssl
import subprocess
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest
import sample_archive
import trustme
from cm_home import ROOT
from command import package_for, read_data, run_command
from proxy import Proxy
from server import Reply, Server

DROPBOX = "www.dropbox.com/s/92n2fyej3lzy3s3/caffe_ilsvrc12.tar.gz"
BERKELEY = "dl.caffe.berkeleyvision.org/caffe_ilsvrc12.tar.gz"
ARMI = "armi.in/files/caffe_ilsvrc12.tar.gz"
OPENMMLAB = "download.openmmlab.com/mmclassification/datasets/imagenet/meta/caffe_ilsvrc12.tar.gz"
BVLC = "raw.githubusercontent.com/BVLC/caffe/e155a2d1a0417dd3540002742a567c96b29b3ed6/data"
FORK = "raw.githubusercontent.com/xjsXjtu/caffe/d72c9e722fe951609da2dc37355cf3b621cbb6a6/data/ilsvrc12"
CHAIN = (DROPBOX, BERKELEY, ARMI, OPENMMLAB, BVLC)
ON_GITHUB = {
    "synsets.txt": f"{BVLC}/ilsvrc_2012_synsets.txt",
    "synset_words.txt": f"{BVLC}/ilsvrc_2012_synset_words.txt",
    "imagenet_mean.binaryproto": f"{BVLC}/ilsvrc_2012_mean.binaryproto",
    "val.txt": f"{BVLC}/ilsvrc_2012_val.txt",
    "test.txt": f"{BVLC}/ilsvrc_2012_test.txt",
    "train.txt": f"{BVLC}/ilsvrc_2012_train.txt",
    "det_synset_words.txt": f"{FORK}/det_synset_words.txt",
    "imagenet.bet.pickle": f"{FORK}/imagenet.bet.pickle",
}


def host(location: str) -> str:
    return location.partition("/")[0]


def path(location: str) -> str:
    return location.partition("/")[2]


class World(NamedTuple):
    """All five hosts, each with the set; and a package for which that set is the published one."""

    http: Server
    https: Server
    env: dict[str, str]
    package: Path

    def at(self, location: str) -> Server:
        return self.http if location == BERKELEY else self.https


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    issued = authority.issue_cert(*sorted({host(location) for location in CHAIN}))
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return folder


@pytest.fixture(scope="module")
def package(sample_files: dict[str, bytes], archive: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_for(sample_files, archive, tmp_path_factory.mktemp("package"))


@pytest.fixture
def world(certificates: Path, package: Path, sample_files: dict[str, bytes], archive: bytes) -> Iterator[World]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(certificates / "server.pem"))
    with Server() as http, Server(context) as https:
        env = {"REQUESTS_CA_BUNDLE": str(certificates / "authority.pem")}
        made = World(http, https, env, package)
        for location in CHAIN[:4]:
            made.at(location).serve(path(location), archive)
        for name, location in ON_GITHUB.items():
            https.serve(path(location), sample_files[name])
        yield made


def fetch(world: World, proxy: Proxy, folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    through = {"http_proxy": proxy.url, "https_proxy": proxy.url, **world.env, **env}
    return run_command(folder, "fetch", *words, package=world.package, **through)


@pytest.mark.parametrize(
    "up", list(itertools.product([True, False], repeat=5)), ids=lambda up: "".join("-+"[u] for u in up)
)
def test_the_first_host_that_is_up_serves_and_the_reasons_of_those_before_it_are_shown(
    up: tuple[bool, ...],
    world: World,
    tmp_path: Path,
    sample_files: dict[str, bytes],
) -> None:
    down = [host(location) for location, is_up in zip(CHAIN, up) if not is_up]
    with Proxy(world.http.port, world.https.port, down) as proxy:
        result = fetch(world, proxy, tmp_path, "--result=outcome.json")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    asked = CHAIN[: up.index(True) + 1] if any(up) else CHAIN
    assert list(dict.fromkeys(proxy.hosts)) == [host(location) for location in asked]
    for location in asked[:-1]:
        assert re.search(rf"{re.escape(location)}: .*410", result.stderr)
    if any(up):
        assert outcome["source"].endswith(asked[-1]) and outcome["verified"]
        assert read_data(tmp_path) == sample_files
    else:
        said, *reasons = outcome["error"].splitlines()
        assert said == "none of the sources could serve; try later, or name an archive or a folder of your own:"
        assert [location in reason for location, reason in zip(CHAIN, reasons)] == [True] * 5
        assert read_data(tmp_path) == {}


@pytest.mark.parametrize("location", CHAIN, ids=host)
def test_the_source_that_a_variation_names_is_asked_first_and_the_others_after_it(
    location: str, world: World, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    scheme = "http" if location == BERKELEY else "https"
    with Proxy(world.http.port, world.https.port, down=[host(location)]) as proxy:
        fetch(world, proxy, tmp_path, f"{scheme}://{location}")
    rest = [other for other in CHAIN if other != location]
    assert list(dict.fromkeys(proxy.hosts)) == [host(location), host(rest[0])]
    assert read_data(tmp_path) == sample_files


def test_dropbox_is_asked_for_the_file_and_told_who_asks(world: World, tmp_path: Path) -> None:
    with Proxy(world.http.port, world.https.port) as proxy:
        fetch(world, proxy, tmp_path)
    _, asked, headers = world.https.requests[0]
    assert asked.endswith("?dl=1")
    assert headers["User-Agent"].startswith("get-dataset-imagenet-aux")


def test_wrong_bytes_of_any_mirror_are_never_taken(
    world: World, tmp_path: Path, sample_files: dict[str, bytes], archive: bytes
) -> None:
    wrong = sample_archive.pack_files({**sample_files, "val.txt": sample_files["val.txt"].replace(b" 5\n", b" 6\n")})
    for location in CHAIN[:4]:
        world.at(location).serve(path(location), wrong)
    with Proxy(world.http.port, world.https.port) as proxy:
        result = fetch(world, proxy, tmp_path)
    assert read_data(tmp_path) == sample_files
    assert result.stderr.count("does not give the published val.txt") == 4


def test_another_packing_of_the_published_files_is_as_good(
    world: World, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    world.https.serve(path(DROPBOX), sample_archive.pack_files(sample_files, level=1))
    with Proxy(world.http.port, world.https.port) as proxy:
        result = fetch(world, proxy, tmp_path)
    assert read_data(tmp_path) == sample_files
    assert set(proxy.hosts) == {host(DROPBOX)}
    assert result.stdout.count("yes") == 8


@pytest.mark.parametrize("named", ["", f"https://{DROPBOX}"])
def test_a_checksum_chooses_among_the_mirrors(
    named: str, world: World, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    other = sample_archive.pack_files(sample_files, level=1)
    world.https.serve(path(ARMI), other)
    with Proxy(world.http.port, world.https.port) as proxy:
        fetch(world, proxy, tmp_path, named, "--checksum", hashlib.sha256(other).hexdigest())
    assert proxy.hosts == [host(DROPBOX), host(BERKELEY), host(ARMI)]
    assert read_data(tmp_path) == sample_files


@pytest.mark.parametrize("name", ["val.txt", "train.txt"])
def test_a_required_single_file_that_is_not_the_published_one_is_not_taken(
    name: str, world: World, tmp_path: Path
) -> None:
    world.https.serve(path(ON_GITHUB[name]), b"other\n")
    down = [host(location) for location in CHAIN[:4]]
    with Proxy(world.http.port, world.https.port, down) as proxy:
        result = fetch(world, proxy, tmp_path)
    assert result.returncode == 1 and f"does not give the published {name}" in result.stderr
    assert read_data(tmp_path) == {}


@pytest.mark.parametrize("reply", [Reply(status=404), Reply(body=b"other"), Reply(body=b"<!DOCTYPE html><p>Sorry")])
def test_the_two_files_of_the_other_repository_may_be_missing(
    reply: Reply, world: World, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    extras = ("det_synset_words.txt", "imagenet.bet.pickle")
    for name in extras:
        world.https.serve(path(ON_GITHUB[name]), b"", reply)
    with Proxy(world.http.port, world.https.port) as proxy:
        result = fetch(world, proxy, tmp_path, f"https://{BVLC}")
    assert result.returncode == 0
    assert read_data(tmp_path) == {name: data for name, data in sample_files.items() if name not in extras}
    assert "delivered without: det_synset_words.txt, imagenet.bet.pickle" in result.stderr


@pytest.mark.parametrize(
    "replies",
    [
        (Reply(stop_at=100000), Reply()),
        (Reply(stop_at=100000, then="reset"), Reply()),
        (Reply(status=503, headers={"Retry-After": "0"}), Reply()),
        (Reply(chunked=True),),
        (Reply(length=False),),
        (Reply(stop_at=100000), Reply(ranges=False)),
        (Reply(stop_at=100000), Reply(shift=5), Reply()),
    ],
    ids=["cut", "reset", "503", "chunked", "no length", "cut without ranges", "resumed in the wrong place"],
)
def test_single_files_outlive_a_bad_line_too(
    replies: tuple[Reply, ...],
    world: World,
    tmp_path: Path,
    sample_files: dict[str, bytes],
) -> None:
    world.https.serve(path(ON_GITHUB["train.txt"]), sample_files["train.txt"], *replies)
    with Proxy(world.http.port, world.https.port) as proxy:
        fetch(world, proxy, tmp_path, f"https://{BVLC}")
    assert read_data(tmp_path) == sample_files
    assert set(proxy.hosts) == {host(BVLC)}


def test_an_untrusted_certificate_means_that_nothing_is_asked(world: World, tmp_path: Path) -> None:
    with Proxy(world.http.port, world.https.port, down=[host(BERKELEY)]) as proxy:
        result = fetch(world, proxy, tmp_path, REQUESTS_CA_BUNDLE="")
    assert result.returncode == 1
    for location in (DROPBOX, ARMI, OPENMMLAB, BVLC):
        reason = f"no trusted connection to {host(location)}: .*CERTIFICATE_VERIFY_FAILED"
        assert re.search(f"{re.escape(location)}: .*{reason}", result.stderr)
    assert world.https.requests == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_cannot_be_reached_is_named_as_what_is_in_the_way(scheme: str, tmp_path: Path) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    result = run_command(tmp_path, "fetch", f"{scheme}://aux.invalid/a.tar.gz", **proxies)
    assert re.search("^error: .*: no way to aux.invalid through the proxy: .*refused", result.stderr, re.MULTILINE)


def test_a_variation_and_our_addresses_are_the_same() -> None:
    variations = json.loads((ROOT / "_cm.json").read_text())["variations"]
    named = {v["env"]["CM_WGET_URL"] for name, v in variations.items() if name.startswith("from.")}
    assert named == {f"https://{DROPBOX}", f"http://{BERKELEY}", f"https://{ARMI}", f"https://{BVLC}"}

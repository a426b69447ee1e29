"""Test the built-in mirrors: order, verification, fallbacks. A proxy connects their hosts to local servers."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping, NoReturn
from urllib.parse import urlsplit

import pytest
import sample_archive
import trustme
from command import WAITING, line_pattern, read_data, run_command, start_command
from proxy import Proxy
from server import Reply, Server

import imagenet_aux
from imagenet_aux.download import Download
from imagenet_aux.errors import FetchError, SourceError
from imagenet_aux.manifest import ARCHIVE_NAME, MANIFEST, Manifest, Source

pytestmark = pytest.mark.usefixtures("no_coverage")


def with_all_files(mirror: Source) -> Source:
    """Add a URL for each of the dataset's files that a mirror of single files does not have."""
    if not mirror.locations:
        return mirror
    added = {name: f"{mirror.address}/{name}" for name in MANIFEST.files if name not in mirror.locations}
    return mirror._replace(locations={**mirror.locations, **added})


MIRRORS = tuple(map(with_all_files, MANIFEST.mirrors))
ARCHIVES = [mirror for mirror in MIRRORS if not mirror.locations]
SINGLE_FILES = next(mirror for mirror in MIRRORS if mirror.locations)
QUERY = next(mirror for mirror in MIRRORS if "?" in mirror.address)
HTTPS = next(mirror for mirror in ARCHIVES[1:] if mirror.address.startswith("https:"))
HTTP = next(mirror for mirror in ARCHIVES if mirror.address.startswith("http:"))
REQUIRED = [name for name in SINGLE_FILES.locations if name not in SINGLE_FILES.optional]


def host(url: str) -> str:
    return str(urlsplit(url).hostname)


def digest_like(published: str, data: bytes) -> str:
    """Return the digest of *data*, using the same algorithm as a published digest."""
    if len(published) == 40:
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {0: "", 32: hashlib.md5(data).hexdigest(), 64: hashlib.sha256(data).hexdigest()}[len(published)]


class Hosts:
    """All mirrors, with the sample files in place of the published ones.

    Attributes
    ----------
    manifest : Manifest
        The mirrors' addresses, with the digests of the sample files.
    requested : list of str
        The distinct hosts that the last fetch requested, in order.
    """

    def __init__(self, http: Server, https: Server, ca_bundle: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.requested: list[str] = []
        self.http = http
        self.https = https
        self._ca_bundle = str(ca_bundle)

    def serve(self, url: str, body: bytes, *replies: Reply) -> None:
        """Serve a file at a mirror's URL."""
        self._server(url).serve(urlsplit(url).path[1:], body, *replies)

    def requests_for(self, url: str) -> list[dict[str, str]]:
        """Return the headers of each request for a URL."""
        return self._server(url).requests_for(urlsplit(url).path[1:])

    def fetch(
        self,
        folder: Path,
        *args: str,
        down: Collection[str] = (),
        faults: Mapping[int, str] = {},
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Fetch into a folder, through a proxy for which some hosts are down."""
        with Proxy(self.http.port, self.https.port, down, faults) as proxy:
            env = {**self.env(proxy), **env}
            result = run_command(folder, "fetch", *args, manifest=self.manifest, **env)
        self.requested = list(dict.fromkeys(proxy.hosts))
        return result

    def env(self, proxy: Proxy) -> dict[str, str]:
        """Return the environment variables for a proxy."""
        return {"http_proxy": proxy.url, "https_proxy": proxy.url, "REQUESTS_CA_BUNDLE": self._ca_bundle}

    def _server(self, url: str) -> Server:
        return self.http if url.startswith("http:") else self.https


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    urls = [url for mirror in MIRRORS for url in (mirror.address, *(mirror.locations or {}).values())]
    issued = authority.issue_cert(*sorted(set(map(host, urls))))
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return folder


@pytest.fixture
def hosts(certificates: Path, sample_files: dict[str, bytes], archive: bytes) -> Iterator[Hosts]:
    digests = {name: digest_like(digest, sample_files[name]) for name, digest in MANIFEST.files.items()}
    mirrors = tuple(mirror._replace(digest=digest_like(mirror.digest, archive)) for mirror in MIRRORS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(certificates / "server.pem"))
    with Server() as http, Server(context) as https:
        made = Hosts(http, https, certificates / "authority.pem", Manifest(digests, mirrors))
        for mirror in ARCHIVES:
            made.serve(mirror.address, archive)
        for name, url in SINGLE_FILES.locations.items():
            made.serve(url, sample_files[name])
        yield made


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def pack_with(files: dict[str, bytes], **changed: bytes) -> bytes:
    """Pack the files, replacing those given as keyword arguments, with underscores for dots in their names."""
    return sample_archive.pack_files({**files, **{name.replace("_", "."): data for name, data in changed.items()}})


# Order


@pytest.mark.parametrize("down", range(len(MIRRORS)), ids="{} down".format)
def test_uses_the_first_mirror_that_works(
    down: int, hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    failing = MIRRORS[:down]
    result = hosts.fetch(tmp_path, "--result=result.json", down=[host(mirror.address) for mirror in failing])
    assert hosts.requested[: down + 1] == [host(mirror.address) for mirror in MIRRORS[: down + 1]]
    assert read_result(tmp_path) == {
        "requested": "",
        "folder": str(tmp_path / "data"),
        "source": MIRRORS[down].address,
        "verified": True,
        "files": list(MANIFEST.files),
    }
    assert read_data(tmp_path) == sample_files
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(failing)
    for mirror, warning in zip(failing, warnings):
        assert re.fullmatch(rf"warning: {re.escape(mirror.address)}: .*410 Gone", warning)


def test_reports_each_mirror_once_if_all_are_down(hosts: Hosts, tmp_path: Path) -> None:
    result = hosts.fetch(tmp_path, down=[host(mirror.address) for mirror in MIRRORS])
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[: len(MIRRORS) + 1] == [
        *(f"trying {mirror.address}" for mirror in MIRRORS),
        f"error: none of the {len(MIRRORS)} mirrors could be reached. "
        f"Download {ARCHIVE_NAME} elsewhere and pass --url=PATH "
        "(to a dependency --adr.NAME.url=PATH, without CM just PATH). Reasons:",
    ]
    reasons = lines[len(MIRRORS) + 1 :]
    assert len(reasons) == len(MIRRORS)
    for mirror, reason in zip(MIRRORS, reasons):
        assert re.fullmatch(rf"{re.escape(mirror.address)}: .*410 Gone", reason)
    assert read_data(tmp_path) == {}


def test_reasons_are_in_the_result_file_instead_of_stderr(hosts: Hosts, tmp_path: Path) -> None:
    result = hosts.fetch(tmp_path, "--result=result.json", down=[host(mirror.address) for mirror in MIRRORS])
    assert result.returncode == 0 and "410" not in result.stderr
    report = read_result(tmp_path)
    assert set(report) == {"requested", "folder", "error"}
    assert report["error"].count("410 Gone") == len(MIRRORS)


@pytest.mark.parametrize("mirror", MIRRORS, ids=lambda mirror: host(mirror.address))
def test_tries_the_requested_mirror_first(
    mirror: Source, hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    hosts.fetch(tmp_path, mirror.address, down=[host(mirror.address)])
    others = [other for other in MIRRORS if other != mirror]
    assert hosts.requested == [host(mirror.address), host(others[0].address)]
    assert read_data(tmp_path) == sample_files


def test_only_the_last_mirror_may_be_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowDownload(Download):
        def deliver(self, consume: object) -> NoReturn:
            self.report(3600.0)
            raise SourceError("the last one")

    monkeypatch.setattr("imagenet_aux.download.Download", SlowDownload)
    with pytest.raises(FetchError, match="none of the") as info:
        imagenet_aux.fetch(into=str(tmp_path / "data"))
    *first, last = str(info.value).splitlines()[1:]
    assert len(first) == len(MIRRORS) - 1 and all(": too slow: " in line for line in first)
    assert last.endswith(": the last one")


def with_upper_case_host(address: str) -> str:
    return address.replace(host(address), host(address).upper())


VARIANTS = {
    "another query": (QUERY, QUERY.address.replace("dl=1", "dl=0")),
    "no query": (QUERY, QUERY.address.partition("?")[0]),
    "slash after an archive": (HTTPS, f"{HTTPS.address}/"),
    "slash after a folder": (SINGLE_FILES, f"{SINGLE_FILES.address}/"),
    "HTTP:": (HTTP, HTTP.address.replace("http:", "HTTP:")),
    "HTTPS:": (HTTPS, HTTPS.address.replace("https:", "HTTPS:")),
    "upper-case host": (HTTPS, with_upper_case_host(HTTPS.address)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_recognizes_variants_of_a_mirrors_address(name: str, hosts: Hosts, tmp_path: Path) -> None:
    mirror, variant = VARIANTS[name]
    hosts.fetch(tmp_path, variant, "--result=result.json")
    report = read_result(tmp_path)
    assert report["source"] == mirror.address and report["requested"] == variant
    assert hosts.requested[0] == host(mirror.address)


def test_does_not_recognize_another_path_on_a_mirrors_host(hosts: Hosts, tmp_path: Path) -> None:
    hosts.fetch(tmp_path, HTTPS.address.upper().replace("HTTPS:", "https:"), "--result=result.json")
    assert "404" in read_result(tmp_path)["error"]
    assert hosts.requested == [host(HTTPS.address)]


def test_sends_the_mirrors_query_and_a_user_agent(hosts: Hosts, tmp_path: Path) -> None:
    hosts.fetch(tmp_path, QUERY.address.partition("?")[0])
    (request,) = hosts.https.requests
    assert request[1] == urlsplit(QUERY.address).path + "?dl=1"
    assert request[2]["User-Agent"].startswith("get-dataset-imagenet-aux")


def test_shows_which_host_it_waits_for(hosts: Hosts, tmp_path: Path) -> None:
    hosts.serve(MIRRORS[0].address, b"", Reply(raw=b"", then="stall"))
    with Proxy(hosts.http.port, hosts.https.port) as proxy:
        process = start_command(tmp_path, "fetch", manifest=hosts.manifest, **hosts.env(proxy))
        try:
            assert process.stderr
            lines = [process.stderr.readline() for _ in range(2)]
        finally:
            process.kill()
            process.communicate()
    assert lines[0] == f"trying {MIRRORS[0].address}\n"
    line = line_pattern(WAITING, re.escape(host(MIRRORS[0].address)), "[0-9]+")
    assert re.fullmatch(f"{line}\n", lines[1])


# Verification


@pytest.mark.measured
def test_rejects_wrong_files_from_every_archive(hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    wrong = pack_with(sample_files, val_txt=sample_files["val.txt"].replace(b" 5\n", b" 6\n"))
    for mirror in ARCHIVES:
        hosts.serve(mirror.address, wrong, Reply(length=False))
    result = hosts.fetch(tmp_path)
    assert read_data(tmp_path) == sample_files
    for mirror in ARCHIVES:
        assert len(hosts.requests_for(mirror.address)) == 1  # an intact archive is complete
        reason = (
            "differs from the published files: val.txt" if mirror.digest else "val.txt differs from the published file"
        )
        assert f"warning: {mirror.address}: {reason}\n" in result.stderr


@pytest.mark.parametrize("mirror", ARCHIVES, ids=lambda mirror: host(mirror.address))
def test_accepts_a_repacked_archive_of_the_published_files(
    mirror: Source, hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    hosts.serve(mirror.address, sample_archive.pack_files(sample_files, level=1))
    result = hosts.fetch(tmp_path, mirror.address)
    assert read_data(tmp_path) == sample_files
    assert hosts.requested == [host(mirror.address)]
    assert len(re.findall("  yes$", result.stdout, re.MULTILINE)) == len(MANIFEST.files)


def test_accepts_an_archive_that_has_the_published_digest(hosts: Hosts, tmp_path: Path) -> None:
    other = sample_archive.pack_files(dict.fromkeys(MANIFEST.files, b"other\n"))
    mirrors = [mirror._replace(digest=digest_like(mirror.digest, other)) for mirror in hosts.manifest.mirrors]
    hosts.manifest = hosts.manifest._replace(mirrors=tuple(mirrors))
    hosts.serve(MIRRORS[0].address, other)
    hosts.fetch(tmp_path, "--result=result.json")
    assert hosts.requested == [host(MIRRORS[0].address)]
    assert read_result(tmp_path)["verified"] is True


@pytest.mark.measured
def test_rejects_an_archive_without_all_files(hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    hosts.serve(MIRRORS[0].address, sample_archive.pack_files({"val.txt": sample_files["val.txt"]}))
    result = hosts.fetch(tmp_path)
    missing = ", ".join(name for name in MANIFEST.files if name != "val.txt")
    assert f"warning: {MIRRORS[0].address}: missing files: {missing}\n" in result.stderr
    assert read_data(tmp_path) == sample_files


BAD_REPLIES = {
    "404": (Reply(status=404), "404 Not Found"),
    "HTML": (Reply(body=b"<!DOCTYPE html><p>Sorry"), "HTML or XML instead of the file"),
    "not gzip": (Reply(body=b"Sorry"), "not gzip"),
    "damaged gzip": (Reply(body=b"\x1f\x8b\7" + bytes(99)), "damaged: "),
}


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_tries_the_next_mirror_after_a_bad_reply(
    name: str, hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    reply, reason = BAD_REPLIES[name]
    hosts.serve(MIRRORS[0].address, b"", reply)
    result = hosts.fetch(tmp_path)
    assert re.search(rf"^warning: {re.escape(MIRRORS[0].address)}: .*{reason}", result.stderr, re.MULTILINE)
    assert hosts.requested == [host(mirror.address) for mirror in MIRRORS[:2]]
    assert read_data(tmp_path) == sample_files


# Checksums


@pytest.mark.parametrize("source", ["", MIRRORS[0].address], ids=["no source", "a mirror"])
@pytest.mark.parametrize("is_upper_case", [False, True], ids=["lower case", "upper case"])
def test_checksum_selects_a_mirror(
    is_upper_case: bool, source: str, hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    other = sample_archive.pack_files(sample_files, level=1)
    hosts.serve(ARCHIVES[-1].address, other)
    checksum = hashlib.sha256(other).hexdigest()
    hosts.fetch(tmp_path, source, "--checksum", checksum.upper() if is_upper_case else checksum)
    assert hosts.requested == [host(mirror.address) for mirror in ARCHIVES]
    assert read_data(tmp_path) == sample_files


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_fails_if_no_mirror_has_the_checksum(algorithm: str, hosts: Hosts, tmp_path: Path, archive: bytes) -> None:
    checksum = hashlib.new(algorithm, b"other").hexdigest()
    result = hosts.fetch(tmp_path, "--checksum", checksum)
    assert result.returncode == 1
    got = hashlib.new(algorithm, archive).hexdigest()
    assert result.stderr.count(f" mismatch: expected {checksum}, got {got}. ") == len(ARCHIVES)
    assert hosts.requested == [host(mirror.address) for mirror in ARCHIVES], "single files have no checksum"
    assert read_data(tmp_path) == {}


@pytest.mark.measured
def test_rejects_a_checksum_for_a_mirror_of_single_files(hosts: Hosts, tmp_path: Path) -> None:
    result = hosts.fetch(tmp_path, SINGLE_FILES.address, "--checksum", "0" * 32)
    expected = f"error: {SINGLE_FILES.address}: --checksum requires an archive, got individual files."
    assert result.returncode == 1 and result.stderr.startswith(expected)
    assert hosts.requested == []


# Single files


@pytest.mark.parametrize("name", [REQUIRED[0], "train.txt"])
def test_rejects_a_wrong_single_file_as_soon_as_it_arrives(name: str, hosts: Hosts, tmp_path: Path) -> None:
    hosts.serve(SINGLE_FILES.locations[name], b"other\n")
    result = hosts.fetch(tmp_path, SINGLE_FILES.address, down=[host(mirror.address) for mirror in ARCHIVES])
    assert result.returncode == 1
    expected = rf"^{re.escape(SINGLE_FILES.address)}: .*\b{name} differs from the published file$"
    assert re.search(expected, result.stderr, re.MULTILINE)
    assert read_data(tmp_path) == {}
    names = list(SINGLE_FILES.locations)
    for later in names[names.index(name) + 1 :]:
        assert hosts.requests_for(SINGLE_FILES.locations[later]) == []


OPTIONAL_REPLIES = {
    "missing": (Reply(status=404), "{name}: the server responded 404 Not Found"),
    "different": (Reply(body=b"other"), "{name} differs from the published file"),
    "HTML": (Reply(body=b"<!DOCTYPE html><p>Sorry"), "{name}: HTML or XML instead of the file"),
}


@pytest.mark.measured
@pytest.mark.parametrize("case", OPTIONAL_REPLIES)
def test_continues_without_optional_files(
    case: str, hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    reply, reason = OPTIONAL_REPLIES[case]
    for name in SINGLE_FILES.optional:
        hosts.serve(SINGLE_FILES.locations[name], b"", reply)
    result = hosts.fetch(tmp_path, SINGLE_FILES.address)
    assert result.returncode == 0
    assert read_data(tmp_path) == {name: sample_files[name] for name in REQUIRED}
    for name in SINGLE_FILES.optional:
        expected = rf"^warning: {re.escape(SINGLE_FILES.address)}: .*{re.escape(reason.format(name=name))}"
        assert re.search(expected, result.stderr, re.MULTILINE)
    missing = ", ".join(name for name in MANIFEST.files if name in SINGLE_FILES.optional)
    assert f"warning: missing from the source: {missing}\n" in result.stderr


@pytest.mark.parametrize("faults", [1, 5])
def test_retries_an_optional_file(faults: int, hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]) -> None:
    name = SINGLE_FILES.optional[0]
    busy = Reply(status=503, headers={"Retry-After": "0"})
    hosts.serve(SINGLE_FILES.locations[name], sample_files[name], *[busy] * faults, Reply())
    result = hosts.fetch(tmp_path, SINGLE_FILES.address)
    assert result.returncode == 0
    is_dropped = faults == 5
    expected = {file: data for file, data in sample_files.items() if file != name or not is_dropped}
    assert read_data(tmp_path) == expected
    assert (f"warning: missing from the source: {name}\n" in result.stderr) == is_dropped
    for file, url in SINGLE_FILES.locations.items():
        requests = (5 if is_dropped else 2) if file == name else 1
        assert len(hosts.requests_for(url)) == requests, file


@pytest.mark.measured
def test_single_files_of_any_size_may_have_no_length(
    hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    for name, url in SINGLE_FILES.locations.items():
        hosts.serve(url, sample_files[name], Reply(length=False))
    hosts.fetch(tmp_path, SINGLE_FILES.address)
    assert read_data(tmp_path) == sample_files
    assert hosts.requested == [host(SINGLE_FILES.address)]


SINGLE_FILE_REPLIES = {
    "cut": (Reply(stop_at=100000), Reply()),
    "reset": (Reply(stop_at=100000, then="reset"), Reply()),
    "503": (Reply(status=503, headers={"Retry-After": "0"}), Reply()),
    "chunked": (Reply(chunked=True),),
    "no length": (Reply(length=False),),
    "cut, no length": (Reply(stop_at=100000, length=False), Reply()),
    "cut, no ranges": (Reply(stop_at=100000), Reply(ranges=False)),
    "cut, resumed at the wrong byte": (Reply(stop_at=100000), Reply(shift=5), Reply()),
    "Content-Encoding: gzip": (Reply(headers={"Content-Encoding": "gzip"}),),
}


@pytest.mark.parametrize("case", SINGLE_FILE_REPLIES)
def test_single_files_survive_connection_faults(
    case: str, hosts: Hosts, tmp_path: Path, sample_files: dict[str, bytes]
) -> None:
    hosts.serve(SINGLE_FILES.locations["train.txt"], sample_files["train.txt"], *SINGLE_FILE_REPLIES[case])
    hosts.fetch(tmp_path, SINGLE_FILES.address)
    assert read_data(tmp_path) == sample_files
    assert hosts.requested == [host(SINGLE_FILES.address)]
    for name in SINGLE_FILES.locations:
        if name != "train.txt":
            assert len(hosts.requests_for(SINGLE_FILES.locations[name])) == 1, "downloaded files are kept"


def test_limits_the_size_of_a_single_file(hosts: Hosts, tmp_path: Path) -> None:
    large = Reply(body=bytes(1 << 20), endless=True, length=False)
    hosts.serve(SINGLE_FILES.locations[REQUIRED[-1]], b"", large)
    result = hosts.fetch(tmp_path, SINGLE_FILES.address, down=[host(mirror.address) for mirror in ARCHIVES])
    assert result.returncode == 1
    assert f"{REQUIRED[-1]}: larger than 200 MiB in total" in result.stderr


# Proxies and TLS


@pytest.mark.parametrize("fault", ["refuse", "plain"])
def test_retries_a_proxy_or_tls_fault_after_a_first_response(
    fault: str, hosts: Hosts, tmp_path: Path, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    mirror = HTTPS
    hosts.serve(mirror.address, archive, Reply(stop_at=100000), Reply())
    hosts.fetch(tmp_path, mirror.address, faults={1: fault})
    assert hosts.requested == [host(mirror.address)]
    assert [request.get("Range") for request in hosts.requests_for(mirror.address)] == [None, "bytes=100000-"]
    assert read_data(tmp_path) == sample_files


def test_resumes_after_a_tls_error_in_the_body(
    hosts: Hosts, tmp_path: Path, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    hosts.serve(HTTPS.address, archive, Reply(stop_at=100000, then="corrupt"), Reply())
    assert hosts.fetch(tmp_path, HTTPS.address).returncode == 0
    assert [request.get("Range") for request in hosts.requests_for(HTTPS.address)] == [None, "bytes=100000-"]
    assert read_data(tmp_path) == sample_files


def test_requests_nothing_over_an_untrusted_connection(hosts: Hosts, tmp_path: Path) -> None:
    result = hosts.fetch(tmp_path, down=[host(HTTP.address)], REQUESTS_CA_BUNDLE="")
    assert result.returncode == 1
    for mirror in MIRRORS:
        if mirror.address.startswith("https:"):
            reason = f"TLS error for {host(mirror.address)}: .*CERTIFICATE_VERIFY_FAILED"
            assert re.search(rf"^{re.escape(mirror.address)}: .*{reason}", result.stderr, re.MULTILINE)
    assert hosts.https.requests == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_reports_an_unreachable_proxy(scheme: str, tmp_path: Path) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    result = run_command(tmp_path, "fetch", f"{scheme}://aux.invalid/a.tar.gz", **proxies)
    expected = "^error: .*: cannot reach aux.invalid through the proxy: .*refused"
    assert re.search(expected, result.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    "credentials",
    ["me:secret/x", "me:secret?x", "me:secret#x", "me:secret\\x", "me:secret/x ", "me:sec ret/x", "me@work:secret/x"],
)
def test_password_in_an_invalid_proxy_url_is_not_shown(credentials: str, tmp_path: Path) -> None:
    proxy = f"http://{credentials}@127.0.0.1:1"
    result = run_command(tmp_path, "fetch", "http://aux.invalid/a.tar.gz", http_proxy=proxy)
    expected = "error: .*: invalid URL, redirect or proxy: percent-encode special characters"
    assert re.search(expected, result.stderr) and not re.search("sec.?ret", result.stderr)

"""Test user-supplied sources, local files, and file inspection."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any, Iterable

import pytest
from cm_home import WINDOWS

from imagenet_aux import fetcher, streams
from imagenet_aux.errors import ContentError, FetchError, SourceError
from imagenet_aux.manifest import MANIFEST, Manifest, Source
from imagenet_aux.sources import resolve
from imagenet_aux.streams import LocalFile, Stream, is_http, reject_html
from imagenet_aux.verify import File, inspect_chunks, inspect_folder, missing, new_hash

NAMES = list(MANIFEST.files)


def resolve_one(source: object, checksum: str = "") -> Source:
    """Resolve a source that is not a built-in mirror."""
    (resolved,) = resolve(str(source), checksum, MANIFEST)
    return resolved


def path_source(path: Path, checksum: str = "") -> Source:
    """Return the expected source for the path of an archive."""
    return Source(str(path), digest=checksum, is_custom=True)


@pytest.fixture
def archive_path(tmp_path: Path) -> Path:
    path = tmp_path / "a b%.tar.gz"
    path.write_bytes(b"archive")
    return path


# Sources


def test_resolves_an_absolute_path(archive_path: Path) -> None:
    assert resolve_one(archive_path) == path_source(archive_path)


def test_resolves_a_relative_path(archive_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archive_path.parent)
    assert resolve_one(archive_path.name) == path_source(archive_path)


def test_resolves_a_path_in_the_home_folder(archive_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(archive_path.parent))
    monkeypatch.setenv("USERPROFILE", str(archive_path.parent))
    assert resolve_one(f"~/{archive_path.name}") == path_source(archive_path)


@pytest.mark.parametrize("prefix", ["file://", "file://localhost", "file://LOCALHOST", "file:", "FILE://", "FILE:"])
def test_resolves_a_file_url(prefix: str, archive_path: Path) -> None:
    url = archive_path.as_uri().replace("file://", prefix)
    assert resolve_one(url) == path_source(archive_path)


@pytest.mark.parametrize("url", ["http://me:secret@host/a//b@c.tar.gz", "HTTPS://me@host/a.tar.gz?x=1"])
def test_resolves_a_url(url: str) -> None:
    assert resolve_one(url) == Source(url, is_custom=True)


@pytest.mark.parametrize("length", [32, 64])
def test_archive_must_match_the_checksum(length: int, archive_path: Path) -> None:
    checksum = "abcdef0123456789" * (length // 16)
    assert resolve_one(archive_path, checksum.upper()) == path_source(archive_path, checksum)
    url = "http://host/a.tar.gz"
    assert resolve_one(url, checksum) == Source(url, digest=checksum, is_custom=True)


@pytest.mark.parametrize(
    "checksum", [" ", "0" * 31, "0" * 33, "g" * 32, "0" * 40, "0" * 63 + "g", "md5:" + "0" * 32, "0" * 999]
)
def test_rejects_an_invalid_checksum(checksum: str, archive_path: Path) -> None:
    with pytest.raises(FetchError, match=r"^checksum: expected an MD5 \(32 hex digits\) or a SHA-256 ") as caught:
        resolve_one(archive_path, checksum)
    assert len(str(caught.value)) < 300


def test_resolves_a_folder_to_the_files_in_it(tmp_path: Path) -> None:
    for name in (*NAMES[::-2], "unwanted.txt"):
        (tmp_path / name).touch()
    expected = {name: str(tmp_path / name) for name in NAMES if name in NAMES[::-2]}
    assert resolve_one(tmp_path) == Source(str(tmp_path), locations=expected, is_custom=True)


def test_rejects_a_checksum_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"--checksum requires an archive, got individual files. Omit --checksum"):
        resolve_one(tmp_path, "0" * 32)


def test_rejects_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"no such\.tar\.gz cannot be read: "):
        resolve_one(tmp_path / "no such.tar.gz")


def test_rejects_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(FetchError, match="cannot be read: Permission denied"):
        resolve_one(tmp_path)


@pytest.mark.parametrize("url", ["ftp://host/a.tar.gz", "s3://bucket/a.tar.gz"])
def test_rejects_other_schemes(url: str) -> None:
    with pytest.raises(FetchError, match="expected an http, https or file URL, or the path of an archive or folder"):
        resolve_one(url)


@pytest.mark.parametrize("url", ["file://host/a.tar.gz", "file:a.tar.gz", "file:./a.tar.gz", "file:"])
def test_rejects_a_file_url_without_a_local_absolute_path(url: str) -> None:
    with pytest.raises(FetchError, match=f"^{url}: expected a local file URL, such as file:///path$"):
        resolve_one(url)


@pytest.mark.parametrize("source", ["a\0b", "file:///a%00b", "file:/a%00b"])
def test_rejects_a_nul_character(source: str) -> None:
    with pytest.raises(FetchError, match=r"^[^\0]*a\\x00b: expected a path, got a NUL character$"):
        resolve_one(source)


@pytest.mark.skipif(not WINDOWS, reason="cmd passes a trailing backslash before a quote as a quote")
def test_resolves_a_quoted_folder_with_a_trailing_backslash(tmp_path: Path) -> None:
    assert resolve_one(f'{tmp_path}"').address == str(tmp_path)


def test_resolves_the_mirrors() -> None:
    files = {"val.txt": "https://c/val.txt", "test.txt": "https://c/test.txt"}
    mirrors = (
        Source("https://a/a.tar.gz?dl=1", "d" * 32),
        Source("https://c", locations=files, optional=("test.txt",)),
    )
    archive, single_files = mirrors
    manifest = Manifest(MANIFEST.files, mirrors)
    assert resolve("", "", manifest) == [archive, single_files]
    assert resolve("https://c", "", manifest) == [single_files, archive]
    for ordered in (mirrors, mirrors[::-1]):
        found = resolve("", "E" * 64, manifest._replace(mirrors=ordered))
        assert found == [archive._replace(digest="e" * 64, is_custom=True)]
    with pytest.raises(FetchError, match="--checksum requires an archive"):
        resolve("", "E" * 64, manifest._replace(mirrors=(single_files,)))


def test_recognizes_an_uppercase_mirror_address() -> None:
    manifest = Manifest(MANIFEST.files, (Source("https://a/a.tar.gz"), Source("HTTPS://B/A.tar.gz")))
    assert next(source.address for source in resolve("https://b/A.tar.gz", "", manifest)) == "HTTPS://B/A.tar.gz"


# Local files


class Watcher:
    """Record the received bytes at each call."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def __call__(self, stream: Stream) -> None:
        self.received.append(stream.received)


def test_reads_a_local_file(tmp_path: Path) -> None:
    data = os.urandom(600_000)
    (tmp_path / "file").write_bytes(data)
    watcher = Watcher()
    stream = LocalFile(str(tmp_path / "file"), watcher)
    assert b"".join(stream.deliver(list)) == data
    assert (stream.label, stream.size, stream.received, stream.total) == ("file", *[len(data)] * 3)
    assert len(watcher.received) > 1 and watcher.received == sorted(set(watcher.received))


def test_reads_an_empty_local_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stream = LocalFile(str(tmp_path / "file"), Watcher())
    assert stream.deliver(b"".join) == b"" and stream.size == 0


def read(path: Path) -> bytes:
    return LocalFile(str(path), Watcher()).deliver(b"".join)


def test_rejects_a_folder_as_a_local_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a regular file: expected an archive"):
        read(tmp_path)


@pytest.mark.skipif(WINDOWS, reason="Windows has no /dev")
def test_rejects_a_device_as_a_local_file() -> None:
    with pytest.raises(SourceError, match="not a regular file: expected an archive"):
        read(Path("/dev/null"))


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_closes_a_damaged_local_file(tmp_path: Path) -> None:
    """The caller's exception must not keep the file open, because Windows could not remove it."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"damaged")

    def consume(chunks: Iterable[bytes]) -> None:
        raise ContentError(str(next(iter(chunks))))

    with pytest.raises(ContentError) as caught:
        LocalFile(str(path), lambda stream: None).deliver(consume)
    descriptors = Path("/proc/self/fd").iterdir()
    assert str(path) not in [os.readlink(link) for link in descriptors if link.is_symlink()], caught.value


def test_reports_a_missing_local_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as missing:
        os.stat(tmp_path / "file")
    with pytest.raises(SourceError, match=f"^cannot be read: {missing.value.strerror}"):
        read(tmp_path / "file")


def test_reports_a_read_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()

    def fstat(_: int) -> os.stat_result:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(SourceError, match=r"^cannot be read: Input/output error$"):
        read(tmp_path / "file")


@pytest.mark.parametrize(
    "location, expected",
    [("http://a", True), ("https://a", True), ("HTTPS://a", True), ("/http://a", False), ("http:a", False)],
)
def test_distinguishes_urls_from_paths(location: str, expected: bool) -> None:
    assert is_http(location) is expected


# Limits and HTML


@pytest.mark.parametrize("size, is_accepted", [(1 << 20, True), ((1 << 20) + 1, False)])
def test_limits_the_size_of_a_folder(
    size: int, is_accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "MAX_BYTES", 2 << 20)
    monkeypatch.setattr(streams, "MAX_BYTES", 2 << 20)
    source = tmp_path / "source"
    source.mkdir()
    (source / "synsets.txt").write_bytes(bytes(1 << 20))
    (source / "val.txt").write_bytes(bytes(size))
    if is_accepted:
        fetcher.fetch(str(source), str(tmp_path / "data"))
    else:
        with pytest.raises(FetchError, match=r"val\.txt: larger than 2 MiB in total"):
            fetcher.fetch(str(source), str(tmp_path / "data"))


@pytest.mark.parametrize(
    "chunks",
    [
        [b"<!DOCTYPE html>"],
        [b"", b"<", b"html>"],
        [b"\xef", b"\xbb", b"\xbf", b"<?xml"],
        [b" \t\r\n", b"\n", b"<html>"],
        [b" " * 4096, b"<html>"],
        [b" " * 9000 + b"<html>"],
    ],
    ids=["HTML", "split", "byte order mark", "whitespace", "4 KiB of whitespace", "long first chunk"],
)
def test_rejects_html(chunks: list[bytes]) -> None:
    with pytest.raises(ContentError, match=r"^HTML or XML instead of the file: "):
        reject_html(chunks)


@pytest.mark.parametrize(
    "chunks",
    [[], [b""], [b"text <"], [b"\n", b"text", b"<html>"], [b" " * 4097, b"<html>"], [b"\x1f", b"\x8b"]],
    ids=["nothing", "empty chunk", "text", "HTML after text", "HTML after 4 KiB of whitespace", "gzip"],
)
def test_passes_other_content_through(chunks: list[bytes]) -> None:
    assert b"".join(reject_html(chunks)) == b"".join(chunks)


def test_html_check_does_not_read_ahead() -> None:
    consumed: list[bytes] = []

    def produce() -> Iterable[bytes]:
        for chunk in (b" ", b"text", b"more"):
            consumed.append(chunk)
            yield chunk

    reject_html(produce())
    assert consumed == [b" ", b"text"]


# Inspection


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def test_inspects_a_folder(tmp_path: Path) -> None:
    text, data = b"1\n2\r\n3", bytes(3 << 20) + b"\n"
    contents = {"val.txt": text, "train.txt": text, "imagenet.bet.pickle": data, "synsets.txt": b"", "other.txt": text}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    digests = {
        "train.txt": git_blob_id(text),
        "missing.txt": git_blob_id(text),
        "imagenet.bet.pickle": git_blob_id(data),
        "val.txt": hashlib.sha256(text).hexdigest(),
        "synsets.txt": hashlib.sha256(b"other").hexdigest(),
    }
    manifest = Manifest(digests, ())
    files = inspect_folder(str(tmp_path), manifest)
    assert files == [
        ("train.txt", len(text), 2, True),
        ("imagenet.bet.pickle", len(data), None, True),
        ("val.txt", len(text), 2, True),
        ("synsets.txt", 0, 0, False),
    ]
    assert missing(files, manifest) == ["missing.txt"]


def test_without_a_digest_a_file_is_only_counted() -> None:
    assert inspect_chunks("val.txt", [b"1\n2", b"\n"], "", 0) == File("val.txt", 4, 2, False)


def test_sha1_of_the_content_is_not_a_git_blob_id(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"1\n")
    manifest = Manifest({"train.txt": hashlib.sha1(b"1\n").hexdigest()}, ())
    assert [file.verified for file in inspect_folder(str(tmp_path), manifest)] == [False]


def test_inspects_regular_files_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "val.txt").mkdir()
    (tmp_path / "content").write_bytes(b"1\n")
    try:
        (tmp_path / "train.txt").symlink_to("content")
        (tmp_path / "synsets.txt").symlink_to("nowhere")
    except OSError:
        pytest.skip("creating symbolic links requires a privilege")
    assert [(file.name, file.lines) for file in inspect_folder(str(tmp_path))] == [("train.txt", 1)]


def test_reports_the_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None: ...

        def fileno(self) -> int:
            return 0

        def read(self, _: int) -> bytes:
            raise OSError(5, "Input/output error")

    (tmp_path / "val.txt").touch()
    monkeypatch.setattr("builtins.open", lambda *_: Broken())
    with pytest.raises(OSError) as caught:
        inspect_folder(str(tmp_path))
    assert caught.value.filename == str(tmp_path / "val.txt")


@pytest.mark.parametrize("name, length", [("md5", 32), ("sha1", 40), ("sha256", 64)])
def test_hashes_with_old_algorithms_in_fips_mode(name: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = hashlib.new

    def new(*args: Any, usedforsecurity: bool = True) -> Any:
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return original(*args)

    monkeypatch.setattr(hashlib, "new", new)
    assert new_hash("0" * length).name == name

"""Test the script under CM: lookup, exported keys, cache, errors and output."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sample_archive
from cm_home import KEYS, PARENT, ROOT, TAGS, WINDOWS, CmHome
from command import PROGRESS, line_pattern, read_files, write_file
from server import Reply, Server

pytestmark = pytest.mark.usefixtures("no_coverage")


def published_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in read_files(folder).items() if name in KEYS.values()}


# Lookup


@pytest.mark.parametrize(
    "command",
    [
        ("cm", "run", "script", "--tags=get,aux,dataset-aux,image-classification,imagenet-aux"),
        ("cm", "run", "script", "--tags=get,aux,imagenet-aux"),
        ("cm", "run", "script", "--tags=get,dataset-aux,image-classification"),
        ("cm", "run", "script", "get aux imagenet-aux"),
        ("cm", "run", "script", "bb2c6dd8c8c64217"),
        ("cm", "run", "script", "get-dataset-imagenet-aux"),
        ("cmr", "get aux imagenet-aux"),
        ("cmx", "run", "script", "get aux imagenet-aux"),
    ],
    ids=" ".join,
)
def test_is_found_by_tags_alias_and_uid(command: tuple[str, ...], home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    result = home.run_command(*command, f"--url={url}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(server.requests_for("a.tar.gz")) == 1
    assert sorted(read_files(home.cache_entries()[0] / "data")) == sorted(KEYS.values())


def test_runs_from_the_python_api(home: CmHome, server: Server, archive: bytes) -> None:
    result = home.run_api(tags=TAGS, url=server.serve("a.tar.gz", archive))
    assert result["return"] == 0
    assert set(KEYS) <= set(result["new_env"])


@pytest.mark.measured
def test_runs_from_cm_test_script(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    result = home.run_command("cm", "test", "script", "get-dataset-imagenet-aux", f"--url={url}")
    assert result.returncode == 0, result.stderr
    assert len(server.requests) == 1 and home.export_keys()["CM_DATASET_AUX_SOURCE"] == url


def test_meta_matches_what_dependents_use() -> None:
    meta = json.loads((ROOT / "_cm.json").read_text())
    assert (meta["alias"], meta["uid"]) == ("get-dataset-imagenet-aux", "bb2c6dd8c8c64217")
    assert (meta["automation_alias"], meta["automation_uid"]) == ("script", "5b4e0237da074764")
    assert meta["cache"] is True and meta["category"] == "AI/ML datasets"
    assert meta["tags"] == ["get", "aux", "dataset-aux", "image-classification", "imagenet-aux"]
    assert meta["new_env_keys"] == ["CM_DATASET_AUX_*"]
    assert set(meta["input_mapping"]) == set(meta["input_description"]) == {"url", "checksum"}


# Exported keys


def test_exports_every_key_and_file(
    home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    url = server.serve("a.tar.gz", archive)
    env = home.export_keys(f"--url={url}")
    data = home.cache_entries()[0] / "data"
    assert env == {
        **{key: str(data / name) for key, name in KEYS.items()},
        "CM_DATASET_AUX_PATH": str(data),
        "CM_DATASET_AUX_VER": "2012",
        "CM_DATASET_AUX_SOURCE": url,
        "CM_DATASET_AUX_VERIFIED": "no",
    }
    assert read_files(data) == sample_files
    assert home.leftovers() == []


def test_dependents_see_only_the_exported_keys(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    folder = home.add_script({**PARENT, "deps": [{"tags": TAGS, "url": url}]})
    write_file(folder / "run.sh", b"env > seen.txt\n")
    write_file(folder / "run.bat", b"@set > seen.txt\r\n")
    home.run_command("cm", "run", "script", "--tags=needs,aux", check=True)
    assert set(re.findall("^(\\w*(?:AUX|WGET)\\w*)=", (home.path / "seen.txt").read_text(), re.MULTILINE)) == {
        *KEYS,
        "CM_DATASET_AUX_PATH",
        "CM_DATASET_AUX_VER",
        "CM_DATASET_AUX_SOURCE",
        "CM_DATASET_AUX_VERIFIED",
    }


def test_cm_doc_lists_the_main_key(home: CmHome) -> None:
    folder = home.path / "docs" / "scripts" / "AI" / "ML datasets"
    folder.mkdir(parents=True)  # CM uses the category as a path, but does not create the folder
    (home.path / "call").mkdir()
    program = (
        "import os, cmind; os.chdir('call')\n"
        "call = {'action': 'doc', 'automation': 'script', 'output_dir': '.'}\n"
        "script = [('', 'bb2c6dd8c8c64217'), ('local', '')]\n"
        "assert cmind.access({**call, 'parsed_artifact': script})['return'] == 0"
    )
    home.run_command(sys.executable, "-c", program, check=True)
    listed = (home.script / "README.md").read_text(encoding="utf-8").rpartition("auto-detected from customize")[2]
    assert listed.split() == ["*", "`CM_DATASET_AUX_PATH`"]


# The cache


@pytest.mark.measured
def test_second_call_makes_no_request(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    first = home.export_keys(f"--url={url}")
    assert home.export_keys() == first
    assert len(server.requests) == 1


def test_prints_folder_source_and_verification_each_time(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    for arguments in ([f"--url={url}"], [f"--url={server.url}/other"]):  # the second call is cached
        printed = home.run_script(*arguments).stderr
        assert f"ImageNet auxiliary files: {home.cache_entries()[0] / 'data'}" in printed
        assert f"ImageNet auxiliary files fetched from: {url}" in printed
        assert "ImageNet auxiliary files verified: no" in printed


@pytest.mark.measured
def test_renew_replaces_the_files(home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]) -> None:
    home.export_keys(f"--url={server.serve('a.tar.gz', archive)}")
    fewer = {"val.txt": b"1\n", "synsets.txt": sample_files["synsets.txt"]}
    env = home.export_keys(f"--url={server.serve('b.tar.gz', sample_archive.pack_files(fewer))}", "--renew")
    assert len(home.cache_entries()) == 1
    assert read_files(home.cache_entries()[0] / "data") == fewer
    assert {key for key in env if key in KEYS} == {"CM_DATASET_AUX_VAL_PATH", "CM_DATASET_AUX_SYNSETS_PATH"}


@pytest.mark.measured
def test_fetches_again_if_the_cached_folder_is_deleted(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    shutil.rmtree(home.export_keys(f"--url={url}")["CM_DATASET_AUX_PATH"])
    env = home.export_keys(f"--url={url}")
    assert len(server.requests) == 2
    assert Path(env["CM_DATASET_AUX_VAL_PATH"]).is_file()


# The user's folders


def test_outdirname_receives_a_data_folder(home: CmHome, archive: bytes, sample_files: dict[str, bytes]) -> None:
    write_file(home.path / "a.tar.gz", archive)
    env = home.export_keys("--url=a.tar.gz", "--outdirname=mine")
    assert env["CM_DATASET_AUX_PATH"] == str(home.path / "mine" / "data")
    assert read_files(home.path / "mine" / "data") == sample_files


@pytest.mark.parametrize("arguments", [("--outdirname=mine",), ("--skip_cache",)], ids=" ".join)
@pytest.mark.measured
def test_keeps_the_users_own_files(arguments: tuple[str, ...], home: CmHome, archive: bytes) -> None:
    write_file(home.path / "a.tar.gz", archive)
    own = home.path / ("mine" if "mine" in arguments[0] else "") / "data" / "val.txt"
    write_file(own, b"my own\n")
    result = home.run_script("--url=a.tar.gz", *arguments)
    assert result.returncode != 0 and "val.txt" in result.stderr
    assert read_files(own.parent) == {"val.txt": b"my own\n"}


@pytest.mark.parametrize("meta", ["{}", "[]", "not JSON", '{"tags": ["script-artifact-0123456789abcdef"]}'])
def test_keeps_the_users_own_files_next_to_other_metadata(meta: str, home: CmHome, archive: bytes) -> None:
    write_file(home.path / "a.tar.gz", archive)
    write_file(home.path / "mine" / "_cm.json", meta.encode())
    own = write_file(home.path / "mine" / "data" / "val.txt", b"my own\n")
    result = home.run_script("--url=a.tar.gz", "--outdirname=mine")
    assert result.returncode != 0 and "contains other files named" in result.stderr
    assert own.read_bytes() == b"my own\n"


@pytest.mark.skipif(WINDOWS, reason="Windows restricts symbolic links")
def test_renewal_keeps_the_users_own_files_behind_a_link(home: CmHome, archive: bytes) -> None:
    path = write_file(home.path / "a.tar.gz", archive)
    data = Path(home.export_keys(f"--url={path}")["CM_DATASET_AUX_PATH"])
    own = write_file(home.path / "mine" / "val.txt", b"my own\n")
    shutil.rmtree(data)
    data.symlink_to(own.parent)
    result = home.run_script(f"--url={path}", "--renew")
    assert result.returncode != 0 and "contains other files named val.txt" in result.stderr
    assert read_files(own.parent) == {"val.txt": b"my own\n"}


# Checksums and digests


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
@pytest.mark.parametrize("change_case", [str.lower, str.upper])
def test_matching_checksum_verifies(
    algorithm: str, change_case: type[str], home: CmHome, server: Server, archive: bytes
) -> None:
    checksum = change_case(hashlib.new(algorithm, archive).hexdigest())
    env = home.export_keys(f"--url={server.serve('a.tar.gz', archive)}", f"--checksum={checksum}")
    assert env["CM_DATASET_AUX_VERIFIED"] == "yes"


@pytest.mark.parametrize("length", [32, 64])
def test_wrong_checksum_is_an_error_and_caches_nothing(
    length: int, home: CmHome, server: Server, archive: bytes
) -> None:
    actual = (hashlib.md5 if length == 32 else hashlib.sha256)(archive).hexdigest()
    url = server.serve("a.tar.gz", archive)
    result = home.run_script(f"--url={url}", f"--checksum={'0' * length}")
    assert result.returncode != 0
    assert "0" * length in result.stderr and actual in result.stderr
    assert home.leftovers() == [] and not list(home.cache_entries()[0].glob("data"))
    assert home.run_script(f"--url={url}").returncode == 0


def test_published_folder_is_verified(home: CmHome, published_folder: Path) -> None:
    assert home.export_keys(f"--url={published_folder}")["CM_DATASET_AUX_VERIFIED"] == "yes"


def test_archive_of_published_files_is_verified(home: CmHome, published_folder: Path, tmp_path: Path) -> None:
    path = write_file(tmp_path / "real.tar.gz", sample_archive.pack_files(published_files(published_folder)))
    assert home.export_keys(f"--url={path}")["CM_DATASET_AUX_VERIFIED"] == "yes"


def test_warns_about_a_changed_label(home: CmHome, published_folder: Path, tmp_path: Path) -> None:
    content = published_files(published_folder)
    content["val.txt"] = content["val.txt"].replace(b"00000001.JPEG 65\n", b"00000001.JPEG 66\n")
    result = home.run_script(f"--url={write_file(tmp_path / 'x.tar.gz', sample_archive.pack_files(content))}", "-j")
    assert result.returncode == 0
    assert '"CM_DATASET_AUX_VERIFIED": "no"' in result.stderr
    warning = next(line for line in result.stderr.splitlines() if "differs from the published" in line)
    assert "val.txt" in warning and "synsets.txt" not in warning


# Errors


def test_error_is_the_fetchers_message(home: CmHome, server: Server) -> None:
    url = f"{server.url}/missing.tar.gz"
    result = home.run_api(tags=TAGS, url=url)
    assert result["return"] > 0
    assert result["error"].startswith(url) and "404 Not Found" in result["error"]


def test_error_is_printed_once_without_traceback(home: CmHome, server: Server) -> None:
    result = home.run_script(f"--url={server.url}/missing.tar.gz")
    assert result.returncode != 0
    printed = result.stdout + result.stderr
    assert printed.count("404 Not Found") == 1
    assert "Traceback" not in printed and "file an issue" not in printed


def test_error_contains_the_absolute_path(home: CmHome) -> None:
    result = home.run_api(tags=TAGS, url="nowhere/a.tar.gz")
    assert str(home.path / "nowhere" / "a.tar.gz") in result["error"]
    assert home.leftovers() == []


@pytest.mark.measured
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_reports_a_killed_fetcher(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(stop_at=9, then="stall"))
    command = home.resolve_command("cm", "run", "script", f"--tags={TAGS}", f"--url={url}")
    with subprocess.Popen(command, cwd=home.path, env=home.env, stderr=subprocess.PIPE, encoding="utf-8") as engine:
        server.wait_for_requests(engine)
        os.kill(find_process(f"--result={home.cm}"), signal.SIGKILL)
        _, stderr = engine.communicate()
    assert engine.returncode != 0 and "wrote no result: it was interrupted or killed" in stderr
    assert "file an issue" not in stderr


def find_process(argument: str) -> int:
    """Return the id of the process whose command line contains this text."""
    found = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if argument in read_arguments(path)]
    assert len(found) == 1
    return int(found[0])


def read_arguments(path: Path) -> str:
    """Read the command line of a process; return an empty string if the process has ended."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# Output


def test_prints_a_table_of_the_files(
    home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    table = home.run_script(f"--url={server.serve('a.tar.gz', archive)}").stdout
    lines = sample_files["val.txt"].count(b"\n")
    assert re.search(rf"^val\.txt +{len(sample_files['val.txt']):,} +{lines:,} +no$", table, re.MULTILINE)
    size = len(sample_files["imagenet.bet.pickle"])
    assert re.search(rf"^imagenet\.bet\.pickle +{size:,} +- +no$", table, re.MULTILINE)


def test_prints_progress_of_a_slow_transfer(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(pause=5.0 * 65536 / len(archive)))
    printed = home.run_script(f"--url={url}").stderr
    number = r"\d+\.\d"
    assert re.search(line_pattern(PROGRESS, number, number, number, r"\d+:\d\d"), printed)

"""What the script does under CM: how it is called, what it exports, what it keeps."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import sample_archive
from cm_home import ROOT, TAGS, CmHome
from server import Reply, Server

KEYS = {
    "CM_DATASET_AUX_DET_SYNSET_WORDS_PATH": "det_synset_words.txt",
    "CM_DATASET_AUX_IMAGENET_BET_PATH": "imagenet.bet.pickle",
    "CM_DATASET_AUX_IMAGENET_MEAN_PATH": "imagenet_mean.binaryproto",
    "CM_DATASET_AUX_SYNSETS_PATH": "synsets.txt",
    "CM_DATASET_AUX_SYNSET_WORDS_PATH": "synset_words.txt",
    "CM_DATASET_AUX_TEST_PATH": "test.txt",
    "CM_DATASET_AUX_TRAIN_PATH": "train.txt",
    "CM_DATASET_AUX_VAL_PATH": "val.txt",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# How it is found and called


@pytest.mark.parametrize(
    "words",
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
def test_it_answers_to_each_of_its_names(words: tuple[str, ...], home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    result = home.run_command(*words, f"--url={url}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(server.requests_for("a.tar.gz")) == 1
    assert sorted(p.name for p in (home.cache_entries()[0] / "data").iterdir()) == sorted(KEYS.values())


def test_the_python_api_gets_it(home: CmHome, server: Server, archive: bytes) -> None:
    answer = home.run_api(tags=TAGS, url=server.serve("a.tar.gz", archive))
    assert answer["return"] == 0
    assert set(KEYS) <= set(answer["new_env"])


def test_dependents_see_only_the_exported_keys(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    meta = {
        "alias": "reads-aux",
        "uid": "0123456789abcdef",
        "automation_alias": "script",
        "automation_uid": "5b4e0237da074764",
        "tags": ["reads", "aux"],
        "deps": [{"tags": TAGS, "url": url}],
    }
    folder = home.script.parent / "reads-aux"
    write(folder / "_cm.json", json.dumps(meta).encode())
    write(folder / "run.sh", b"env > seen.txt\n")
    write(folder / "run.bat", b"@set > seen.txt\r\n")
    home.run_command("cm", "reindex", "repo", check=True)
    home.run_command("cm", "run", "script", "--tags=reads,aux", check=True)
    assert set(re.findall("^(\\w*(?:AUX|WGET)\\w*)=", (home.path / "seen.txt").read_text(), re.MULTILINE)) == {
        *KEYS,
        "CM_DATASET_AUX_PATH",
        "CM_DATASET_AUX_VER",
        "CM_DATASET_AUX_SOURCE",
        "CM_DATASET_AUX_VERIFIED",
    }


# What it exports


def test_every_key_is_exported_with_files_as_the_archive_held_them(
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
    assert {p.name: p.read_bytes() for p in data.iterdir()} == sample_files
    assert home.leftovers() == []


# The cache


def test_the_second_call_does_not_touch_the_network(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    first = home.export_keys(f"--url={url}")
    assert home.export_keys() == first
    assert len(server.requests) == 1


def test_renew_fetches_again_and_leaves_what_the_new_source_gave(
    home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    home.export_keys(f"--url={server.serve('a.tar.gz', archive)}")
    fewer = {"val.txt": b"1\n", "synsets.txt": sample_files["synsets.txt"]}
    env = home.export_keys(f"--url={server.serve('b.tar.gz', sample_archive.pack_files(fewer))}", "--renew")
    data = home.cache_entries()[0] / "data"
    assert len(home.cache_entries()) == 1
    assert {p.name: p.read_bytes() for p in data.iterdir()} == fewer
    assert {key for key in env if key in KEYS} == {"CM_DATASET_AUX_VAL_PATH", "CM_DATASET_AUX_SYNSETS_PATH"}


def test_a_cached_folder_that_is_gone_is_fetched_again(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    shutil.rmtree(home.export_keys(f"--url={url}")["CM_DATASET_AUX_PATH"])
    env = home.export_keys(f"--url={url}")
    assert len(server.requests) == 2
    assert Path(env["CM_DATASET_AUX_VAL_PATH"]).is_file()


# Where the source is named


@pytest.mark.parametrize("flag", ["--url=", "--const.CM_WGET_URL=", "--env.CM_WGET_URL="])
def test_the_command_line_sets_the_source(flag: str, home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    assert home.export_keys(flag + url)["CM_DATASET_AUX_SOURCE"] == url


@pytest.mark.parametrize("name", ["plain", "with space", "a=b", "données"])
@pytest.mark.parametrize("kind", ["archive", "folder", "file URL", "path from here"])
def test_a_source_on_disk_is_read_by_path_or_file_url(
    name: str, kind: str, home: CmHome, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    folder = home.path / name
    path = write(folder / "set.tar.gz", archive)
    if kind == "folder":
        path = folder
        for file, data in sample_files.items():
            write(folder / file, data)
    source = {"file URL": path.as_uri(), "path from here": f"{name}/set.tar.gz"}.get(kind, str(path))
    env = home.export_keys(f"--url={source}")
    assert {p.name: p.read_bytes() for p in Path(env["CM_DATASET_AUX_PATH"]).iterdir()} == sample_files
    assert env["CM_DATASET_AUX_SOURCE"] == str(path)


# Checksums


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_the_right_checksum_is_proof(algorithm: str, home: CmHome, server: Server, archive: bytes) -> None:
    checksum = hashlib.new(algorithm, archive).hexdigest()
    env = home.export_keys(f"--url={server.serve('a.tar.gz', archive)}", f"--checksum={checksum}")
    assert env["CM_DATASET_AUX_VERIFIED"] == "yes"


@pytest.mark.parametrize("length", [32, 64])
def test_the_wrong_checksum_is_an_error_and_caches_nothing(
    length: int, home: CmHome, server: Server, archive: bytes
) -> None:
    came = (hashlib.md5 if length == 32 else hashlib.sha256)(archive).hexdigest()
    url = server.serve("a.tar.gz", archive)
    result = home.run_script(f"--url={url}", f"--checksum={'0' * length}")
    assert result.returncode != 0
    assert "0" * length in result.stderr and came in result.stderr
    assert home.leftovers() == [] and not list(home.cache_entries()[0].glob("data"))
    assert home.run_script(f"--url={url}").returncode == 0


@pytest.mark.parametrize("checksum", ["abc", "g" * 32, "0" * 40])
def test_what_is_no_checksum_is_said_to_be_none(checksum: str, home: CmHome, archive: bytes) -> None:
    result = home.run_script(f"--url={write(home.path / 'a.tar.gz', archive)}", f"--checksum={checksum}")
    assert result.returncode != 0
    assert checksum in result.stderr and "32 hex digits" in result.stderr


# What is trusted


def test_the_real_files_are_verified_as_a_folder(home: CmHome, published_folder: Path) -> None:
    assert home.export_keys(f"--url={published_folder}")["CM_DATASET_AUX_VERIFIED"] == "yes"


def test_the_real_files_are_verified_as_an_archive(home: CmHome, published_folder: Path, tmp_path: Path) -> None:
    content = {p.name: p.read_bytes() for p in published_folder.iterdir() if p.name in KEYS.values()}
    path = write(tmp_path / "real.tar.gz", sample_archive.pack_files(content))
    assert home.export_keys(f"--url={path}")["CM_DATASET_AUX_VERIFIED"] == "yes"


def test_one_changed_label_is_warned_of_by_name(home: CmHome, published_folder: Path, tmp_path: Path) -> None:
    content = {p.name: p.read_bytes() for p in published_folder.iterdir() if p.name in KEYS.values()}
    content["val.txt"] = content["val.txt"].replace(b"00000001.JPEG 65\n", b"00000001.JPEG 66\n")
    result = home.run_script(f"--url={write(tmp_path / 'x.tar.gz', sample_archive.pack_files(content))}", "-j")
    assert result.returncode == 0
    assert '"CM_DATASET_AUX_VERIFIED": "no"' in result.stderr
    warning = next(line for line in result.stderr.splitlines() if "not the published" in line)
    assert "val.txt" in warning and "synsets.txt" not in warning


def test_an_archive_of_other_things_is_refused(home: CmHome, tmp_path: Path) -> None:
    path = write(
        tmp_path / "other.tar.gz", sample_archive.pack([(sample_archive.tar_info("notes.txt", size=2), b"hi")])
    )
    result = home.run_script(f"--url={path}")
    assert result.returncode != 0 and "none of the eight files" in result.stderr


# How it fails


def test_a_failure_is_readable_and_whole_in_the_python_api(home: CmHome, server: Server) -> None:
    url = f"{server.url}/missing.tar.gz"
    answer = home.run_api(tags=TAGS, url=url)
    assert answer["return"] > 0
    assert answer["error"] == f"{url}: the server answered 404 Not Found"


def test_a_failure_has_no_traceback_and_asks_for_no_bug_report(home: CmHome, server: Server) -> None:
    result = home.run_script(f"--url={server.url}/missing.tar.gz")
    assert result.returncode != 0
    said = result.stdout + result.stderr
    assert "404 Not Found" in said
    assert "Traceback" not in said and "file an issue" not in said


def test_a_path_that_leads_nowhere_is_named_as_seen_from_the_folder_of_the_call(home: CmHome) -> None:
    answer = home.run_api(tags=TAGS, url="nowhere/a.tar.gz")
    assert answer["error"] == f"{home.path / 'nowhere' / 'a.tar.gz'}: there is no such file or folder"


@pytest.mark.parametrize(
    "text",
    [
        '"; touch pwned; "',
        "$(touch pwned)",
        "`touch pwned`",
        "a\ntouch pwned\n",
        "${HOME}",
        "file:///%24%28touch%20pwned%29",
        "FILE:/%60touch%20pwned%60",
    ],
)
def test_shell_text_is_refused_before_any_shell_sees_it(text: str, home: CmHome) -> None:
    for key in ("url", "checksum"):
        answer = home.run_api(tags=TAGS, **{key: text})
        assert answer["return"] > 0 and repr(text) in answer["error"]
    assert not list(home.path.rglob("pwned")) and not list(home.path.rglob("tmp-run.*"))


def test_shell_text_in_the_folder_of_the_call_is_refused_before_any_shell_sees_it(
    home: CmHome, bash: str, archive: bytes
) -> None:
    folder = home.path / "$(touch pwned)"
    write(folder / "a.tar.gz", archive)
    call = f'cd "$0" && cm run script --tags={TAGS} --url=a.tar.gz'
    result = home.run_command(bash, "-c", call, folder)
    assert result.returncode != 0 and repr(str(folder / "a.tar.gz")) in result.stderr
    assert not list(home.path.rglob("pwned"))


@pytest.mark.parametrize("name", ["url", "checksum"])
def test_an_input_without_a_value_is_refused_with_what_to_say(name: str, home: CmHome) -> None:
    answer = home.run_api(tags=TAGS, **{name: True})
    assert answer["return"] > 0 and answer["error"] == f"{name} must be text, and is True: say --{name}=..."


def test_a_password_in_what_is_refused_is_not_shown(home: CmHome) -> None:
    answer = home.run_api(tags=TAGS, url="http://me:sec$ret@127.0.0.1:1/a")
    assert answer["return"] > 0 and "http://127.0.0.1:1/a" in answer["error"] and "ret@" not in answer["error"]


@pytest.mark.skipif(not shutil.which("pkill"), reason="there is no pkill")
def test_reports_a_killed_fetcher(home: CmHome, bash: str, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(stop_at=9, then="stall"))
    kill = f"until pkill -KILL -f '[-]-outcome={home.cm}'; do sleep 0.2; done & cm run script --tags={TAGS} --url={url}"
    result = home.run_command(bash, "-c", kill)
    assert result.returncode != 0 and "did not say how it went: it was killed" in result.stderr
    assert "file an issue" not in result.stdout + result.stderr


def test_cm_test_script_runs_it(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    result = home.run_command("cm", "test", "script", "get-dataset-imagenet-aux", f"--url={url}")
    assert result.returncode == 0, result.stderr
    assert len(server.requests) == 1 and home.export_keys()["CM_DATASET_AUX_SOURCE"] == url


# The native script alone


def test_run_sh_alone_leaves_data(tmp_path: Path, home: CmHome, bash: str, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    folder = tmp_path / "any folder"
    folder.mkdir()
    result = home.run_command(bash, "-c", 'cd "$0" && bash "$1"', folder, ROOT / "run.sh", CM_WGET_URL=url)
    assert result.returncode == 0, result.stderr
    assert [p.name for p in folder.iterdir()] == ["data"]
    assert sorted(p.name for p in (folder / "data").iterdir()) == sorted(KEYS.values())


def test_run_sh_alone_fails_with_a_code_where_it_could_not(
    tmp_path: Path, home: CmHome, bash: str, server: Server
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    url = f"{server.url}/missing"
    result = home.run_command(bash, "-c", 'cd "$0" && bash "$1"', folder, ROOT / "run.sh", CM_WGET_URL=url)
    assert result.returncode == 1
    assert list(folder.iterdir()) == []


# What is shown


def test_it_ends_with_a_table_of_what_was_fetched(
    home: CmHome, server: Server, archive: bytes, sample_files: dict[str, bytes]
) -> None:
    table = home.run_script(f"--url={server.serve('a.tar.gz', archive)}").stdout
    lines = sample_files["val.txt"].count(b"\n")
    assert re.search(rf"^val\.txt +{len(sample_files['val.txt']):,} +{lines:,} +no$", table, re.MULTILINE)
    assert re.search(
        rf"^imagenet\.bet\.pickle +{len(sample_files['imagenet.bet.pickle']):,} +- +no$", table, re.MULTILINE
    )


def test_long_work_says_how_far_it_is(home: CmHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive, Reply(pause=5.0 * 65536 / len(archive)))
    said = home.run_script(f"--url={url}").stderr
    assert re.search(r"\d+\.\d of \d+\.\d MB  \d+\.\d MB/s  \d+:\d\d left", said)


# The meta


def test_the_meta_is_what_dependents_know() -> None:
    meta = json.loads((ROOT / "_cm.json").read_text())
    assert (meta["alias"], meta["uid"]) == ("get-dataset-imagenet-aux", "bb2c6dd8c8c64217")
    assert (meta["automation_alias"], meta["automation_uid"]) == ("script", "5b4e0237da074764")
    assert meta["cache"] is True and meta["category"] == "AI/ML datasets"
    assert meta["tags"] == ["get", "aux", "dataset-aux", "image-classification", "imagenet-aux"]
    assert meta["new_env_keys"] == ["CM_DATASET_AUX_*"]
    assert set(meta["input_mapping"]) == set(meta["input_description"]) == {"url", "checksum"}

"""What the script does under the other engine, MLC; and what scripts that nobody here wrote make of its output."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import sample_archive
from cm_home import ROOT, TAGS, CmHome
from server import Server

sys.path.insert(0, str(ROOT / "tools"))

import generate

KEYS = {
    "MLC_DATASET_AUX_DET_SYNSET_WORDS_PATH": "det_synset_words.txt",
    "MLC_DATASET_AUX_IMAGENET_BET_PATH": "imagenet.bet.pickle",
    "MLC_DATASET_AUX_IMAGENET_MEAN_PATH": "imagenet_mean.binaryproto",
    "MLC_DATASET_AUX_SYNSETS_PATH": "synsets.txt",
    "MLC_DATASET_AUX_SYNSET_WORDS_PATH": "synset_words.txt",
    "MLC_DATASET_AUX_TEST_PATH": "test.txt",
    "MLC_DATASET_AUX_TRAIN_PATH": "train.txt",
    "MLC_DATASET_AUX_VAL_PATH": "val.txt",
}
NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}


class Mlc:
    """MLC at work in the home of a CM user, on a copy of the same folder.

    It would go to the network for scripts if it found none, and finds ours.
    """

    def __init__(self, home: CmHome) -> None:
        self.home = home
        self.repos = home.path / "MLC" / "repos"
        self.script = self.repos / "local" / "script" / home.script.name
        home.env["MLC_REPOS"] = str(self.repos)
        shutil.copytree(home.script, self.script)

    def run_api(self, **call: Any) -> dict[str, Any]:
        """The ``new_env`` that ``mlc.access`` gives for this call, in a process of its own, or its ``error``."""
        call = {"action": "run", "target": "script", "automation": "script", "tags": TAGS, "quiet": True, **call}
        program = (
            "import json, sys, mlc\n"
            "try: r = {'new_env': mlc.access(json.loads(sys.argv[1]))['new_env']}\n"
            "except mlc.script_action.ScriptExecutionError as error: r = {'error': str(error)}\n"
            "json.dump(r, open(sys.argv[2], 'w'))"
        )
        result_file = self.home.path / "result.json"
        self.home.run_command(sys.executable, "-c", program, json.dumps(call), result_file, check=True)
        result: dict[str, Any] = json.loads(result_file.read_text())
        return result

    def export_keys(self, *words: str) -> dict[str, str]:
        """The keys that ``mlcr get,aux,imagenet-aux`` with these words keeps in the cache."""
        self.home.run_command("mlcr", TAGS, *words, check=True)
        (state,) = self.repos.glob("local/cache/*/mlc-cached-state.json")
        new_env: dict[str, str] = json.loads(state.read_text())["new_env"]
        return new_env


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def mlc(home: CmHome) -> Mlc:
    return Mlc(home)


# What it exports


def test_mlc_gets_keys_of_its_own_and_no_others(mlc: Mlc, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    env = mlc.run_api(url=url)["new_env"]
    (data,) = mlc.repos.glob("local/cache/*/data")
    assert env == {
        **{key: str(data / name) for key, name in KEYS.items()},
        "MLC_DATASET_AUX_PATH": str(data),
        "MLC_DATASET_AUX_VER": "2012",
        "MLC_DATASET_AUX_SOURCE": url,
        "MLC_DATASET_AUX_VERIFIED": "no",
    }


def test_a_dependent_mlc_script_sees_these_keys_and_no_others(mlc: Mlc, server: Server, archive: bytes) -> None:
    meta = {
        "alias": "reads-aux",
        "uid": "0123456789abcdef",
        "automation_alias": "script",
        "automation_uid": "5b4e0237da074764",
        "tags": ["reads", "aux"],
        "deps": [{"tags": TAGS, "names": ["the-set"]}],
    }
    folder = mlc.script.parent / "reads-aux"
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "run.sh").write_text("env > seen.txt\n")
    (folder / "run.bat").write_text("@set > seen.txt\n")
    mlc.home.run_command("mlcr", "reads,aux", f"--adr.the-set.url={server.serve('a.tar.gz', archive)}", check=True)
    seen = re.findall("^(\\w*(?:AUX|WGET)\\w*)=", (mlc.home.path / "seen.txt").read_text(), re.MULTILINE)
    others = {f"MLC_DATASET_AUX_{name}" for name in ("PATH", "VER", "SOURCE", "VERIFIED")}
    assert set(seen) == {*KEYS, *others}


# The cache


def test_the_second_mlc_call_does_not_touch_the_network(mlc: Mlc, server: Server, archive: bytes) -> None:
    first = mlc.export_keys(f"--url={server.serve('a.tar.gz', archive)}")
    assert mlc.export_keys() == first
    assert len(server.requests) == 1


def test_a_folder_gone_from_the_mlc_cache_is_fetched_again(mlc: Mlc, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    shutil.rmtree(mlc.export_keys(f"--url={url}")["MLC_DATASET_AUX_PATH"])
    env = mlc.run_api(url=url)["new_env"]
    assert len(server.requests) == 2
    assert Path(env["MLC_DATASET_AUX_VAL_PATH"]).is_file()


def test_renewing_under_mlc_leaves_what_the_new_source_gave(mlc: Mlc, server: Server, archive: bytes) -> None:
    mlc.export_keys(f"--url={server.serve('a.tar.gz', archive)}")
    fewer = sample_archive.pack_files({"val.txt": b"1\n"})
    env = mlc.export_keys(f"--url={server.serve('b.tar.gz', fewer)}", "--renew")
    assert {key for key in env if key in KEYS} == {"MLC_DATASET_AUX_VAL_PATH"}


# What goes in


@pytest.mark.parametrize("flag", ["--url=", "--const.MLC_WGET_URL=", "--env.MLC_WGET_URL="])
def test_the_mlc_command_line_sets_the_source(flag: str, mlc: Mlc, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    assert mlc.export_keys(flag + url)["MLC_DATASET_AUX_SOURCE"] == url


def test_the_real_files_are_verified_under_mlc(mlc: Mlc, published_folder: Path) -> None:
    assert mlc.export_keys(f"--url={published_folder}")["MLC_DATASET_AUX_VERIFIED"] == "yes"


@pytest.mark.parametrize("key", ["checksum", "env"])
def test_the_right_checksum_is_proof_under_mlc(key: str, mlc: Mlc, server: Server, archive: bytes) -> None:
    checksum = md5(archive)
    call: dict[str, Any] = (
        {"checksum": checksum} if key == "checksum" else {"env": {"MLC_IMAGENET_AUX_CHECKSUM": checksum}}
    )
    env = mlc.run_api(url=server.serve("a.tar.gz", archive), **call)["new_env"]
    assert env["MLC_DATASET_AUX_VERIFIED"] == "yes"


def test_mlc_names_the_wrong_checksum(mlc: Mlc, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    error = mlc.run_api(url=url, checksum="0" * 32)["error"]
    assert error.endswith(
        f"{url}: its MD5 should be {'0' * 32}, and is {md5(archive)}: check it, or fetch the archive again"
    )
    assert not list(mlc.repos.glob("local/cache/*/data"))


def test_mlc_names_what_the_server_answered(mlc: Mlc, server: Server) -> None:
    url = f"{server.url}/missing.tar.gz"
    assert mlc.run_api(url=url)["error"].endswith(f"{url}: the server answered 404 Not Found")


def test_mlc_names_the_file_that_is_missing(mlc: Mlc) -> None:
    missing = mlc.home.path / "no" / "such.tar.gz"
    result = mlc.home.run_command("mlcr", TAGS, f"--url={missing}")
    assert result.returncode != 0
    assert f"{missing}: there is no such file or folder" in result.stdout + result.stderr


def test_no_shell_sees_shell_text_under_mlc(mlc: Mlc) -> None:
    assert repr("$(touch pwned)") in mlc.run_api(url="$(touch pwned)")["error"]
    assert not list(mlc.home.path.rglob("pwned"))


# The meta that MLC reads


def test_a_key_of_cm_without_a_place_in_the_meta_of_mlc_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = json.loads((ROOT / "_cm.json").read_text(encoding="utf-8"))
    (tmp_path / "_cm.json").write_text(json.dumps({**meta, "novelty": 1}))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="novelty"):
        generate.meta_yaml()


def test_mlc_lint_leaves_the_meta_as_it_is(mlc: Mlc) -> None:
    before = (mlc.script / "meta.yaml").read_bytes()
    mlc.home.run_command("mlc", "lint", "script", f"--tags={TAGS}", check=True)
    assert (mlc.script / "meta.yaml").read_bytes() == before


def test_mlc_finds_nothing_wrong_with_the_meta(mlc: Mlc) -> None:
    program = (
        "import sys, yaml; from mlc.meta_schema import validate_meta\n"
        "with open(sys.argv[1], encoding='utf-8') as file: print(validate_meta(yaml.safe_load(file)))"
    )
    said = mlc.home.run_command(sys.executable, "-c", program, mlc.script / "meta.yaml")
    assert said.stdout.splitlines()[-1:] == ["([], [])"], said.stderr


# Dependents that nobody here wrote


def test_an_untouched_upstream_script_preprocesses_pictures_with_the_set(home: CmHome, archive: bytes) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    pytest.importorskip("PIL", reason="pillow is not installed")
    numpy = pytest.importorskip("numpy")
    pictures = home.path / "pictures"
    pictures.mkdir()
    picture = cv2.imencode(".jpg", numpy.full((20, 30, 3), 99, "uint8"))[1].tobytes()
    for number in range(1, 501):
        (pictures / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(picture)
    (home.path / "a.tar.gz").write_bytes(archive)
    aux = home.export_keys(f"--url={home.path / 'a.tar.gz'}")
    result = home.run_command(
        "cm",
        "run",
        "script",
        "--tags=get,preprocessed,dataset,imagenet,_500,_validation,_generic-preprocessor,_resolution.16",
        f"--env.IMAGENET_PATH={pictures}",
        f"--env.CM_PYTHON_BIN_WITH_PATH={sys.executable}",
        f"--env.CM_PYTHON_BIN={sys.executable}",  # what its run.bat calls
        "--quiet",
        **NO_NETWORK,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (val_map,) = home.cm.glob("repos/local/cache/*/val_map.txt")
    assert val_map.read_bytes() == Path(aux["CM_DATASET_AUX_VAL_PATH"]).read_bytes()
    assert [path.stat().st_size for path in val_map.parent.glob("*.npy")] == [16 * 16 * 3 * 4] * 500

"""Test the script under MLC, and as a dependency of MLCommons' scripts."""

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
import yaml
from cm_home import KEYS, PARENT, ROOT, TAGS, CmHome
from mlc_home import MlcHome, validate_meta
from server import Server

sys.path.insert(0, str(ROOT / "tools"))

import generate

pytestmark = pytest.mark.usefixtures("no_coverage")
MLC_KEYS = {key.replace("CM_", "MLC_"): name for key, name in KEYS.items()}
NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def mlc(home: CmHome) -> MlcHome:
    return MlcHome(home)


# Exported keys


def test_exports_mlcs_keys(mlc: MlcHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    env = mlc.run_api(url=url)["new_env"]
    (data,) = mlc.repos.glob("local/cache/*/data")
    assert env == {
        **{key: str(data / name) for key, name in MLC_KEYS.items()},
        "MLC_DATASET_AUX_PATH": str(data),
        "MLC_DATASET_AUX_VER": "2012",
        "MLC_DATASET_AUX_SOURCE": url,
        "MLC_DATASET_AUX_VERIFIED": "no",
    }


def test_dependents_see_only_mlcs_keys(mlc: MlcHome, server: Server, archive: bytes) -> None:
    meta = {**PARENT, "deps": [{"tags": TAGS, "names": ["aux-files"]}]}
    folder = mlc.script.parent / "needs-aux"
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "run.sh").write_text("env > seen.txt\n")
    (folder / "run.bat").write_text("@set > seen.txt\n")
    mlc.home.run_command("mlcr", "needs,aux", f"--adr.aux-files.url={server.serve('a.tar.gz', archive)}", check=True)
    seen = re.findall("^(\\w*(?:AUX|WGET)\\w*)=", (mlc.home.path / "seen.txt").read_text(), re.MULTILINE)
    others = {f"MLC_DATASET_AUX_{name}" for name in ("PATH", "VER", "SOURCE", "VERIFIED")}
    assert set(seen) == {*MLC_KEYS, *others}


# The cache


def test_second_call_makes_no_request(mlc: MlcHome, server: Server, archive: bytes) -> None:
    first = mlc.export_keys(f"--url={server.serve('a.tar.gz', archive)}")
    assert mlc.export_keys() == first
    assert len(server.requests) == 1


def test_fetches_again_if_the_cached_folder_is_deleted(mlc: MlcHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    shutil.rmtree(mlc.export_keys(f"--url={url}")["MLC_DATASET_AUX_PATH"])
    env = mlc.run_api(url=url)["new_env"]
    assert len(server.requests) == 2
    assert Path(env["MLC_DATASET_AUX_VAL_PATH"]).is_file()


def test_renew_replaces_the_files(mlc: MlcHome, server: Server, archive: bytes) -> None:
    mlc.export_keys(f"--url={server.serve('a.tar.gz', archive)}")
    fewer = sample_archive.pack_files({"val.txt": b"1\n"})
    env = mlc.export_keys(f"--url={server.serve('b.tar.gz', fewer)}", "--renew")
    assert {key for key in env if key in MLC_KEYS} == {"MLC_DATASET_AUX_VAL_PATH"}


# Selecting the source


@pytest.mark.parametrize(
    "option",
    [
        "--url",
        *(
            f"--{place}.MLC_{name}"
            for place in ("const", "env")
            for name in ("WGET_URL", "PACKAGE_URL", "DOWNLOAD_LOCAL_FILE_PATH")
        ),
    ],
)
def test_command_line_selects_the_source(option: str, mlc: MlcHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    assert mlc.export_keys(f"{option}={url}")["MLC_DATASET_AUX_SOURCE"] == url


def test_published_folder_is_verified(mlc: MlcHome, published_folder: Path) -> None:
    assert mlc.export_keys(f"--url={published_folder}")["MLC_DATASET_AUX_VERIFIED"] == "yes"


@pytest.mark.parametrize("key", ["checksum", "env"])
def test_matching_checksum_verifies(key: str, mlc: MlcHome, server: Server, archive: bytes) -> None:
    checksum = md5(archive)
    call: dict[str, Any] = (
        {"checksum": checksum} if key == "checksum" else {"env": {"MLC_IMAGENET_AUX_CHECKSUM": checksum}}
    )
    env = mlc.run_api(url=server.serve("a.tar.gz", archive), **call)["new_env"]
    assert env["MLC_DATASET_AUX_VERIFIED"] == "yes"


def test_error_contains_both_checksums(mlc: MlcHome, server: Server, archive: bytes) -> None:
    url = server.serve("a.tar.gz", archive)
    error = mlc.run_api(url=url, checksum="0" * 32)["error"]
    assert url in error and "0" * 32 in error and md5(archive) in error
    assert not list(mlc.repos.glob("local/cache/*/data"))


def test_error_contains_the_servers_status(mlc: MlcHome, server: Server) -> None:
    url = f"{server.url}/missing.tar.gz"
    error = mlc.run_api(url=url)["error"]
    assert url in error and "404 Not Found" in error


def test_error_contains_the_missing_path(mlc: MlcHome) -> None:
    missing = mlc.home.path / "no" / "such.tar.gz"
    result = mlc.home.run_command("mlcr", TAGS, f"--url={missing}")
    assert result.returncode != 0
    assert f"{missing} cannot be read: No such file or directory" in result.stdout + result.stderr


@pytest.mark.parametrize("call", [{"url": "$(touch pwned)"}, {"checksum": "$(touch pwned)"}], ids=str)
def test_rejects_shell_text(call: dict[str, str], mlc: MlcHome) -> None:
    assert repr("$(touch pwned)") in mlc.run_api(**call)["error"]
    assert not list(mlc.home.path.rglob("pwned"))


@pytest.mark.parametrize("place", ["env", "const"])
@pytest.mark.parametrize("name", ["MLC_WGET_URL", "MLC_PACKAGE_URL", "MLC_IMAGENET_AUX_SOURCE", "CM_IMAGENET_AUX_INTO"])
def test_unused_inputs_do_not_reach_a_shell(place: str, name: str, mlc: MlcHome, archive: bytes) -> None:
    (mlc.home.path / "a.tar.gz").write_bytes(archive)
    path = str(mlc.home.path / "a.tar.gz")
    env = mlc.run_api(url=path, **{place: {name: "$(touch pwned)"}})["new_env"]
    assert env["MLC_DATASET_AUX_SOURCE"] == path
    assert not list(mlc.home.path.rglob("pwned"))


@pytest.mark.parametrize("place", ["env", "const"])
def test_parents_keys_do_not_select_the_source(place: str, mlc: MlcHome, archive: bytes) -> None:
    path = mlc.home.path / "a.tar.gz"
    path.write_bytes(archive)
    deps = [{"tags": TAGS, "env": {"MLC_PACKAGE_URL": str(path)}}]
    folder = mlc.script.parent / "needs-aux"
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({**PARENT, "deps": deps}))
    keys = ("WGET_URL", "PACKAGE_URL", "DOWNLOAD_LOCAL_FILE_PATH")
    others = [f"--{place}.MLC_{key}=/missing" for key in keys]
    result = mlc.home.run_command("mlcr", "needs,aux", *others)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"fetched from: {path}" in result.stdout + result.stderr


def test_skip_ssl_verification_prints_a_note(mlc: MlcHome, archive: bytes) -> None:
    (mlc.home.path / "a.tar.gz").write_bytes(archive)
    result = mlc.home.run_command("mlcr", f"{TAGS},_skip_ssl_verification", "--url=a.tar.gz", check=True)
    assert result.stderr.count("note: _skip_ssl_verification has no effect") == 1


# Target folder


@pytest.mark.measured
def test_outdirname_receives_the_files_themselves(mlc: MlcHome, archive: bytes, sample_files: dict[str, bytes]) -> None:
    (mlc.home.path / "a.tar.gz").write_bytes(archive)
    env = mlc.export_keys("--url=a.tar.gz", "--outdirname=mine")
    folder = mlc.home.path / "mine"
    assert env["MLC_DATASET_AUX_PATH"] == str(folder)
    assert {name: (folder / name).read_bytes() for name in sample_files} == sample_files
    assert not (folder / "data").exists()


def test_outdirname_keeps_the_users_own_files(mlc: MlcHome, archive: bytes) -> None:
    (mlc.home.path / "a.tar.gz").write_bytes(archive)
    own = mlc.home.path / "mine" / "val.txt"
    own.parent.mkdir()
    own.write_bytes(b"my own\n")
    result = mlc.home.run_command("mlcr", TAGS, "--url=a.tar.gz", "--outdirname=mine")
    assert result.returncode != 0 and "val.txt" in result.stdout + result.stderr
    assert own.read_bytes() == b"my own\n" and not (own.parent / "train.txt").exists()


def test_extract_path_receives_the_files(mlc: MlcHome, archive: bytes, sample_files: dict[str, bytes]) -> None:
    (mlc.home.path / "a.tar.gz").write_bytes(archive)
    env = mlc.export_keys("--url=a.tar.gz", "--env.MLC_EXTRACT_PATH=mine")
    assert env["MLC_DATASET_AUX_PATH"] == str(mlc.home.path / "mine")
    assert sorted(path.name for path in (mlc.home.path / "mine").iterdir()) == sorted(sample_files)


# MLC's metadata


def test_meta_key_without_a_section_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = json.loads((ROOT / "_cm.json").read_text(encoding="utf-8"))
    (tmp_path / "_cm.json").write_text(json.dumps({**meta, "novelty": 1}))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="novelty"):
        generate.meta_yaml()


def test_mlc_lint_leaves_the_meta_unchanged(mlc: MlcHome) -> None:
    before = (mlc.script / "meta.yaml").read_bytes()
    mlc.home.run_command("mlc", "lint", "script", f"--tags={TAGS}", check=True)
    assert (mlc.script / "meta.yaml").read_bytes() == before


def test_mlc_accepts_the_meta(mlc: MlcHome) -> None:
    assert validate_meta(mlc.home, mlc.script / "meta.yaml") == [[], []]


def test_docker_images_contain_the_files(mlc: MlcHome) -> None:
    """Without these keys the engines write a Dockerfile with --fake_run, which skips this script."""
    assert json.loads((ROOT / "_cm.json").read_text())["docker"] == {"docker_real_run": True}
    assert yaml.safe_load((ROOT / "meta.yaml").read_text())["docker"] == {"real_run": True}


# Upstream scripts that depend on this one


@pytest.fixture
def images(home: CmHome) -> Path:
    """Return a folder with 500 validation images."""
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    folder = home.path / "images"
    folder.mkdir()
    first = folder / "ILSVRC2012_val_00000001.JPEG"
    image.new("RGB", (30, 20), (99, 99, 99)).save(first)
    for number in range(2, 501):
        shutil.copy(first, folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    return folder


def test_upstream_script_preprocesses_images(home: CmHome, archive: bytes, images: Path) -> None:
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    (home.path / "a.tar.gz").write_bytes(archive)
    aux = home.export_keys(f"--url={home.path / 'a.tar.gz'}")
    result = home.run_command(
        "cm",
        "run",
        "script",
        "--tags=get,preprocessed,dataset,imagenet,_500,_validation,_generic-preprocessor,_resolution.16",
        f"--env.IMAGENET_PATH={images}",
        f"--env.CM_PYTHON_BIN_WITH_PATH={sys.executable}",
        f"--env.CM_PYTHON_BIN={sys.executable}",  # for its run.bat
        "--quiet",
        **NO_NETWORK,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (val_map,) = home.cm.glob("repos/local/cache/*/val_map.txt")
    assert val_map.read_bytes() == Path(aux["CM_DATASET_AUX_VAL_PATH"]).read_bytes()
    assert [path.stat().st_size for path in val_map.parent.glob("*.npy")] == [16 * 16 * 3 * 4] * 500


def test_upstream_application_prints_a_class_name(
    home: CmHome, archive: bytes, sample_files: dict[str, bytes], images: Path
) -> None:
    """Classify an image with cmx4mlops' application and a model that always predicts label 7."""
    model = home.path / "tiny.onnx"
    save_model(model, classes=len(sample_files["synset_words.txt"].splitlines()), label=7)
    (home.path / "a.tar.gz").write_bytes(archive)
    aux = home.export_keys(f"--url={home.path / 'a.tar.gz'}")
    result = home.run_command(
        "cm",
        "run",
        "script",
        "--tags=app,image-classification,onnx,python",
        f"--env.IMAGENET_PATH={images}",
        f"--adr.ml-model.env.CM_DOWNLOAD_LOCAL_FILE_PATH={model}",
        f"--const.CM_DOWNLOAD_CHECKSUM={md5(model.read_bytes())}",
        "--quiet",
        PIP_NO_INDEX="1",
        **NO_NETWORK,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    names = Path(aux["CM_DATASET_AUX_SYNSET_WORDS_PATH"]).read_text().splitlines()
    assert f"Top classification: {names[7]}\n" in result.stdout


def save_model(path: Path, classes: int, label: int) -> None:
    """Write an ONNX model with the inputs and outputs of upstream's ResNet-50, for images of 8 x 8 pixels."""
    numpy = pytest.importorskip("numpy")
    if int(numpy.__version__.partition(".")[0]) > 1:
        pytest.skip("the application requires numpy 1, which does not support Python 3.13")
    for name in ("onnx", "onnxruntime", "cv2"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    from onnx import TensorProto, helper, numpy_helper, save

    outputs = classes + 1  # class 0 is the background
    weights = numpy.zeros((3 * 8 * 8, outputs), "float32")
    bias = numpy.zeros(outputs, "float32")
    bias[label + 1] = 9
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input_tensor:0"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["ArgMax:0"], axis=1, keepdims=0),
            helper.make_node("Softmax", ["logits"], ["softmax_tensor:0"], axis=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("input_tensor:0", TensorProto.FLOAT, [1, 3, 8, 8])],
        [
            helper.make_tensor_value_info("ArgMax:0", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("softmax_tensor:0", TensorProto.FLOAT, [1, outputs]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    save(model, str(path))

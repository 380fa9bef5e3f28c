"""Where weights come from: files with parts, folders of runs and of timm, the hub, the home folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants as hub
from safetensors.torch import save_file

from encoders import build_encoder, random_images, trained_encoder
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.embeddings.encoding.embedder import Embedder
from reptk.models import weight_source
from reptk.models.encoder import Encoder, native_size
from reptk.models.weight_source import absolute_source, find_weights

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def same_features(source: Encoder, loaded: Encoder) -> bool:
    return torch.equal(loaded.features(random_images()), source.features(random_images()))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def source() -> Encoder:
    return trained_encoder(seed=1)


def save_for_timm(encoder: Encoder, folder: Path, **pretrained_cfg: Any) -> None:
    """Write a folder as timm and the hub have them."""
    timm.models.save_for_hf(encoder.backbone, folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"].update(pretrained_cfg)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("prefix", ["", "~/", "local-dir:", "local-dir:~/"])
@pytest.mark.parametrize("place", ["runs/1", "runs/1/model", "runs/1/model/model.safetensors"])
def test_the_model_of_a_run_is_read(
    prefix: str, place: str, source: Encoder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.save(home / "runs" / "1" / "model")
    monkeypatch.chdir(home)
    assert same_features(source, build_encoder(weights=prefix + place))


def test_a_folder_of_timm_is_read(source: Encoder, tmp_path: Path) -> None:
    save_for_timm(source, tmp_path / "folder")
    assert same_features(source, build_encoder(weights=str(tmp_path / "folder")))
    assert same_features(source, build_encoder(weights=f"local-dir:{tmp_path / 'folder'}"))


def test_a_folder_without_weights_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no weights in the folder .*needs one of: model.safetensors, model/model"):
        build_encoder(weights=str(tmp_path))


def test_a_run_is_opened_from_the_home_folder(source: Encoder, home: Path) -> None:
    source.save(home / "runs" / "1" / "model")
    assert same_features(source, Encoder.from_run("~/runs/1"))
    assert same_features(source, Embedder.open("~/runs/1").encoder.cpu())


def test_a_colon_in_a_file_name_is_part_of_it(source: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "epoch:3.pt"
    torch.save({"student": source.backbone.state_dict()}, path)
    assert find_weights(path) == (path, None)
    assert find_weights(f"{path}:student") == (path, "student")
    assert same_features(source, build_encoder(weights=f"{path}:student"))


def test_a_missing_file_is_named_with_its_part(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file of weights .*gone.pt:student"):
        build_encoder(weights=f"{tmp_path / 'gone.pt'}:student")


# The hub


@pytest.fixture
def cached_hub(source: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one repository, and no network."""
    folder = tmp_path / "hub"
    snapshot = folder / "models--someone--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    refs = folder / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    save_for_timm(source, snapshot)
    shutil.copytree(folder / "models--someone--tiny", folder / "models--timm--tiny")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.parametrize("name", ["hf-hub:someone/tiny", "hf-hub:someone/tiny@main", "hf-hub:timm/tiny", "timm/tiny"])
def test_weights_of_the_hub_are_read_from_its_cache(name: str, source: Encoder, cached_hub: Path) -> None:
    assert same_features(source, build_encoder(weights=name))
    assert absolute_source(name) == name


def test_a_model_in_several_files_of_the_hub(source: Encoder, cached_hub: Path) -> None:
    snapshot = cached_hub / "models--someone--tiny" / "snapshots" / "abc"
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match="cannot be fetched"):
        build_encoder(weights="hf-hub:someone/tiny")
    state = source.backbone.state_dict()
    file_of = {}
    for number, names in enumerate((list(state)[:9], list(state)[9:])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, snapshot / file)
        file_of |= dict.fromkeys(names, file)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    assert same_features(source, build_encoder(weights="hf-hub:someone/tiny"))
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match=r"model-00002-of-00002\.safetensors of hf-hub:someone/tiny cannot be"):
        build_encoder(weights="hf-hub:someone/tiny")


def test_a_folder_named_timm_is_a_folder(source: Encoder, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    save_for_timm(source, home / "timm" / "mine")
    assert find_weights("timm/mine") == (Path("timm/mine/model.safetensors"), None)


@pytest.mark.parametrize("name", ["hf-hub:someone/other", "hf-hub:", "hf-hub:a/b/c", "timm/nosuch"])
def test_what_the_hub_does_not_have_is_a_problem_of_the_environment(name: str, cached_hub: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"cannot be fetched: .*local-dir:FOLDER"):
        build_encoder(weights=name)


def test_an_unreachable_hub_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentProblem, match=r"http://127.0.0.1:9 does not answer"):
        build_encoder(weights="hf-hub:someone/tiny")


# Backbones that are described outside of timm


def test_a_backbone_may_be_a_folder_of_timm(source: Encoder, home: Path) -> None:
    save_for_timm(source, home / "folder", mean=[0.1, 0.2, 0.3], input_size=[3, 48, 48])
    name = "local-dir:~/folder"
    assert native_size(name) == 48
    encoder = build_encoder(name, pretrained=True)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    state = source.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in encoder.backbone.state_dict().items())
    encoder.save(home / "model")
    assert same_features(encoder, Encoder.from_run(home / "model"))
    assert same_features(encoder, Embedder.open(name, size=32, pretrained=True).encoder.cpu())


def test_a_backbone_may_be_a_repository_of_the_hub(source: Encoder, cached_hub: Path) -> None:
    assert same_features(source, build_encoder("hf-hub:someone/tiny", pretrained=True))


@pytest.mark.parametrize("name", ["timm/test_resnet.r160_in1k", "hf-hub:timm/test_resnet.r160_in1k"])
def test_a_repository_of_timm_is_the_model_of_that_name(name: str) -> None:
    assert build_encoder(name).config["backbone"] == "test_resnet.r160_in1k"


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"architecture": "nosuch"}', '{"architecture": 3}'])
def test_a_folder_that_is_no_model_of_timm_is_named(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"local-dir:.* is no model of timm .*save_for_hf"):
        build_encoder(f"local-dir:{tmp_path}")


def test_a_folder_without_the_weights_of_its_model_is_named(source: Encoder, tmp_path: Path) -> None:
    save_for_timm(source, tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").unlink()
    with pytest.raises((DataError, UsageError), match="folder"):
        build_encoder(f"local-dir:{tmp_path / 'folder'}", pretrained=True)


# Embeddings remember their weights


@pytest.mark.parametrize("form", ["{}:teacher", "~/{}:teacher"])
def test_embeddings_find_the_part_of_a_file_again(
    form: str, source: Encoder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    torch.save({"teacher": source.backbone.state_dict()}, home / "dino.pth")
    embedder = Embedder.open("test_resnet", size=32, weights=form.format("dino.pth"))
    assert embedder.origin["weights"] == f"{home.resolve()}/dino.pth:teacher"
    about = embedder.metadata()
    monkeypatch.chdir("/")
    assert Embedder.reopen(about).weights_sha256 == embedder.weights_sha256
    assert Embedder.reopen(about, f"{home}/dino.pth").weights_sha256 == embedder.weights_sha256
    (home / "dino.pth").unlink()
    with pytest.raises(DataError, match="no longer at"):
        Embedder.reopen(about)


def test_the_hub_is_asked_only_for_names_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(weight_source, "hf_hub_download", fail)
    monkeypatch.setattr(weight_source.urllib.request, "urlopen", fail)
    for name in ("weights.pt", "timmy/weights.pt", str(tmp_path)):
        with pytest.raises(DataError):
            build_encoder(weights=name)

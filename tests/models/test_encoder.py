"""The encoder: shapes and normalization, saving and loading, embedding of single images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from encoders import build_encoder, random_images, trained_encoder
from killed_processes import flip_bit, hidden_names, kill_at_every_moment, run_with_full_disk
from reptk.core import files, rng
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.file_records import file_record, manifest_text
from reptk.models.encoder import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL_FILES = ["config.json", "head.safetensors", "manifest.json", "model.safetensors"]


# Features and embeddings


@pytest.mark.parametrize(
    ("backbone", "size", "features"),
    [
        ("test_resnet", 32, 96),
        ("test_vit", 32, 64),
        ("test_vit", 48, 64),
        ("test_convnext", 40, 64),
        ("test_efficientnet", 28, 256),
        ("resnet10t", 32, 512),
        ("vit_tiny_patch16_224", 32, 192),
    ],
)
@torch.no_grad()
def test_features_and_embeddings_have_a_row_per_image(backbone: str, size: int, features: int) -> None:
    encoder = build_encoder(backbone, size=size)
    assert encoder.num_features == features
    assert encoder.features(random_images(2, size)).shape == (2, features)
    assert encoder(random_images(2, size)).shape == (2, 16)
    assert not encoder.training
    assert not encoder.backbone.training


def test_a_new_encoder_is_in_training_mode() -> None:
    assert all(module.training for module in Encoder("test_resnet", size=32).modules())


@torch.no_grad()
def test_a_vision_transformer_interpolates_its_position_embeddings_for_other_sizes(tmp_path: Path) -> None:
    """Its features are those of a transformer of that size with the embeddings that timm resamples."""
    encoder = build_encoder("vit_tiny_patch16_224", size=64, other_sizes=[32, 48])
    only_64 = build_encoder("vit_tiny_patch16_224", size=64)
    assert encoder.config == only_64.config
    assert torch.equal(encoder.features(random_images(2, 64)), only_64.features(random_images(2, 64)))
    with pytest.raises(AssertionError, match="doesn't match model"):
        only_64.features(random_images(2, 32))

    state = encoder.state_dict()
    embeddings = resample_abs_pos_embed(state["backbone.pos_embed"], [2, 2], [4, 4], num_prefix_tokens=1)
    only_32 = build_encoder("vit_tiny_patch16_224", size=32)
    only_32.load_state_dict({**state, "backbone.pos_embed": embeddings})
    torch.testing.assert_close(encoder.features(random_images(2, 32)), only_32.features(random_images(2, 32)))
    assert encoder.features(random_images(2, 48)).shape == (2, 192)

    encoder.save(tmp_path / "model")
    loaded = Encoder.from_run(tmp_path / "model")
    assert torch.equal(loaded.features(random_images(2, 64)), only_64.features(random_images(2, 64)))


@torch.no_grad()
def test_bytes_and_floats_agree() -> None:
    encoder = build_encoder()
    floats = random_images().float() / 255
    assert torch.equal(encoder.features(random_images()), encoder.features(floats))
    assert torch.equal(encoder(random_images()), encoder(floats))


@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [
        ("tf_efficientnet_lite0", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("test_efficientnet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
@torch.no_grad()
def test_images_are_normalized_as_the_backbone_expects(backbone: str, mean: list[float], std: list[float]) -> None:
    encoder = build_encoder(backbone)
    inputs: list[Tensor] = []
    encoder.backbone.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    mean_image = torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    encoder.features(mean_image)
    encoder.features(mean_image + torch.tensor(std).view(1, 3, 1, 1))
    assert torch.allclose(inputs[0], torch.zeros(1, 3, 32, 32), atol=1e-6)
    assert torch.allclose(inputs[1], torch.ones(1, 3, 32, 32), atol=1e-6)


# Save and load


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stem": "small", "head_layers": 3, "head_width": 24, "head_norm": True, "drop_path": 0.1},
        {"head_layers": 0},
        {"backbone": "test_vit", "size": 48},
    ],
)
@torch.no_grad()
def test_a_saved_encoder_is_loaded_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    size = options.get("size", 32)
    encoder = trained_encoder(**options) if size == 32 else build_encoder(**options)
    encoder.save(tmp_path / "model")
    for run in (tmp_path, tmp_path / "model", str(tmp_path)):
        loaded = Encoder.from_run(run)
        assert not loaded.training
        assert loaded.config == encoder.config
        assert torch.equal(loaded(random_images(3, size)), encoder(random_images(3, size)))
        assert torch.equal(loaded.features(random_images(3, size)), encoder.features(random_images(3, size)))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["num_features"] == encoder.num_features
    assert config["pretrained_cfg"]["mean"] == pytest.approx(encoder.mean.flatten().tolist())


def test_the_memory_format_does_not_change_what_is_saved(tmp_path: Path) -> None:
    encoder = trained_encoder().to(memory_format=torch.channels_last)
    encoder.save(tmp_path)
    loaded = Encoder.from_run(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in encoder.state_dict().items())


def test_an_interrupted_save_leaves_the_model_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build_encoder()
    old.save(tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError("broken")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(EnvironmentProblem, match=f"cannot write {tmp_path}: broken"):
        build_encoder(seed=1).save(tmp_path)
    loaded = Encoder.from_run(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in old.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == MODEL_FILES


def test_a_model_replaces_a_model_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds more than a model"):
        build_encoder().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]
    for seed in (0, 1):
        build_encoder(seed=seed).save(tmp_path / "runs" / "model")
    assert sorted(path.name for path in (tmp_path / "runs" / "model").iterdir()) == MODEL_FILES
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["model"]


def test_a_model_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    encoders = [build_encoder(seed=seed) for seed in (0, 1)]
    weights = [save(encoder.state_dict()) for encoder in encoders]
    folder = tmp_path / "model"
    written = []
    for _, killed in kill_at_every_moment(lambda: encoders[0].save(folder), lambda: encoders[1].save(folder), tmp_path):
        written.append(weights.index(save(Encoder.from_run(folder).state_dict())))
        assert killed or written[-1] == 1
    assert written == sorted(written)
    assert written.count(0) >= 10
    assert hidden_names(tmp_path) == []


def test_a_full_disk_leaves_the_model_that_was_there(tmp_path: Path) -> None:
    old = build_encoder()
    old.save(tmp_path / "model")
    message = run_with_full_disk(lambda: build_encoder(seed=1).save(tmp_path / "model"), 10_000)
    assert message.startswith(f"error: the disk of {tmp_path / 'model'} is full (File too large): ")
    assert " needed, " in message
    assert save(Encoder.from_run(tmp_path).state_dict()) == save(old.state_dict())
    assert hidden_names(tmp_path) == []


def without_manifest(damage: Callable[[Path], object]) -> Callable[[Path], None]:
    """Do the same damage to a model of an earlier version, which has no manifest."""

    def damage_without_manifest(folder: Path) -> None:
        (folder / "manifest.json").unlink()
        damage(folder)

    return damage_without_manifest


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(manifest_text(manifest | changes))


def name_a_file_outside(folder: Path) -> None:
    """Write a manifest that lists files outside of the folder, in place of its own."""
    record = file_record(Path("/etc/hostname"))
    names = ("../../../../../../../../etc/hostname", "/etc/hostname")
    change_manifest(folder, files=dict.fromkeys(names, record))


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def change_backbone(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "reptk": {**config["reptk"], "backbone": "test_vit"}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no model in .*needs model/model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json has another length"),
        (change_backbone, "config.json has another (length|hash)"),
        (truncate_weights, "model.safetensors has another length"),
        (lambda folder: flip_bit(folder / "model.safetensors", -5), "model.safetensors has another hash"),
        (lambda folder: flip_bit(folder / "head.safetensors", -5), "head.safetensors has another hash"),
        (lambda folder: (folder / "head.safetensors").unlink(), "head.safetensors is missing"),
        (lambda folder: flip_bit(folder / "config.json", 30), "config.json has another hash"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json is of something else"),
        (lambda folder: flip_bit(folder / "manifest.json", 60), "manifest.json (has another hash|cannot be read)"),
        (lambda folder: change_manifest(folder, version=3), "newer reptk"),
        (lambda folder: change_manifest(folder, version=None), "does not say of which version"),
        (lambda folder: change_manifest(folder, files=3), "has no valid 'files'"),
        (name_a_file_outside, "config.json is not listed"),
        (without_manifest(lambda folder: (folder / "config.json").unlink()), "is damaged: .*config.json"),
        (without_manifest(lambda folder: (folder / "config.json").write_text("{")), "is damaged"),
        (without_manifest(lambda folder: (folder / "config.json").write_text("{}")), "is damaged: 'backbone'"),
        (without_manifest(truncate_weights), "is damaged"),
        (without_manifest(change_backbone), "is damaged: (.|\n)*Missing key"),
    ],
)
def test_a_damaged_model_is_reported(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    build_encoder().save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(DataError, match=message):
        Encoder.from_run(tmp_path)


def test_damaged_weights_are_not_loaded_by_name(tmp_path: Path) -> None:
    build_encoder().save(tmp_path / "model")
    flip_bit(tmp_path / "model" / "model.safetensors", -5)
    for source in (tmp_path, tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        with pytest.raises(DataError, match=r"model\.safetensors has another hash"):
            build_encoder(weights=str(source))


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_model_of_an_earlier_version_is_loaded(has_manifest: bool, tmp_path: Path) -> None:
    """Backbone and head were in one file, all keys in one table, and the first models had no manifest."""
    encoder = trained_encoder()
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    about = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_features": encoder.num_features}
    (folder / "config.json").write_text(json.dumps({**encoder.config, **about}))
    if has_manifest:
        files = {name: file_record(folder / name) for name in ("encoder.safetensors", "config.json")}
        manifest = {"format": "reptk model", "version": 1, "reptk": "0.1.0", "files": files}
        (folder / "manifest.json").write_text(manifest_text(manifest))
    loaded = Encoder.from_run(tmp_path)
    assert loaded.config == encoder.config
    assert save(loaded.state_dict()) == save(encoder.state_dict())
    for source in (tmp_path, folder, folder / "encoder.safetensors"):
        started = build_encoder(weights=str(source))
        assert save(started.backbone.state_dict()) == save(encoder.backbone.state_dict())
    # It is replaced by one of this version.
    loaded.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == MODEL_FILES
    assert save(Encoder.from_run(tmp_path).state_dict()) == save(encoder.state_dict())


# embed


@pytest.mark.parametrize("training", [True, False])
def test_embed_encodes_in_evaluation_mode_and_restores_the_mode(training: bool) -> None:
    encoder = trained_encoder().train(training)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    embedded = encoder.embed(random_images(3))
    assert all(module.training == training for module in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    h = encoder.eval().features(random_images(3))
    assert torch.allclose(embedded, h / h.norm(dim=1, keepdim=True))
    assert not embedded.requires_grad


def test_embed_accepts_images_of_any_size() -> None:
    encoder = trained_encoder()
    for height, width in ((20, 20), (64, 48), (33, 100)):
        images = torch.rand(2, 3, height, width, generator=rng.generator("embed"))
        embedded = encoder.embed(images, crop=0.875)
        assert embedded.shape == (2, 96)
        assert torch.allclose(embedded.norm(dim=1), torch.ones(2))


def test_embed_restores_the_mode_when_it_fails() -> None:
    encoder = build_encoder().train()
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        encoder.embed(torch.full((1, 3, 32, 32), 255.0))
    assert encoder.training


def test_embed_leaves_frozen_modules_frozen() -> None:
    encoder = build_encoder().train()
    encoder.backbone.eval()
    encoder.embed(random_images())
    assert encoder.training
    assert not encoder.backbone.training

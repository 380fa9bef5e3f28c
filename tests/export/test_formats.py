"""reptk export: what other programs compute with what was written."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from embedding_inputs import run_command
from reptk.core.errors import NumericalError, UsageError
from reptk.export import check_images, formats, onnx_file, timm_folder
from reptk.export.check_images import CheckImages, compare
from reptk.models.classifier import read_classifier
from reptk.models.encoder import Encoder

pytestmark = [pytest.mark.usefixtures("one_thread")]

HAS_ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript or onnxruntime is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_onnx_computes_features_embeddings_and_logits_for_any_batch(
    classifier_run: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import onnxruntime

    out = tmp_path / "model.onnx"
    arguments = ["export", classifier_run, "--to", "onnx", "--out", out, "--data", photo_folder, "--images", 5]
    printed = run_command(arguments, capsys)
    assert (
        "images uint8 (batch, 3, 32, 32) -> features (batch, 96), embeddings (unit length), logits of 3 cl" in printed
    )
    assert f"with 5 images of {photo_folder}: cosine at least " in printed

    encoder = Encoder.from_run(classifier_run)
    classifier = read_classifier(classifier_run)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = IMAGES[:count]
        features, embeddings, logits = session.run(["features", "embeddings", "logits"], {"images": images.numpy()})
        h = encoder.features(images)
        np.testing.assert_allclose(features, h.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(embeddings, encoder.embed(images).numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logits, classifier.module(h).numpy(), rtol=1e-4, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["cats", "dogs", "birds"]
    assert json.loads(metadata["preprocessing"])["resize"] == "crop"


@torch.no_grad()
def test_pt2_computes_the_same_features(
    classifier_run: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "model.pt2"
    printed = run_command(["export", classifier_run, "--to", "pt2", "--out", out, "--data", photo_folder], capsys)
    assert f"12 images of {photo_folder}: the same features, bit for bit" in printed
    loaded = torch.export.load(out).module()
    encoder = Encoder.from_run(classifier_run)
    for count in (1, 3):
        features, embeddings, logits = loaded(IMAGES[:count])
        assert torch.equal(features, encoder.features(IMAGES[:count]))
        torch.testing.assert_close(embeddings, encoder.embed(IMAGES[:count]))
        assert logits.shape == (count, 3)


@torch.no_grad()
def test_timm_and_safetensors_hold_the_backbone(
    classifier_run: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    encoder = Encoder.from_run(classifier_run)
    folder, file = tmp_path / "of_timm", tmp_path / "weights.safetensors"
    for name, out in (("timm", folder), ("safetensors", file)):
        printed = run_command(["export", classifier_run, "--to", name, "--out", out, "--data", photo_folder], capsys)
        assert "the same features, bit for bit" in printed
    images = (IMAGES.float() / 255 - encoder.mean) / encoder.std
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    overlay = {"file": str(file)}
    loaded = timm.create_model("test_resnet", pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(opened(images), encoder.features(IMAGES))
    assert torch.equal(loaded(images), encoder.features(IMAGES))
    # The folder is the model of a run, too.
    assert torch.equal(Encoder.from_run(folder)(IMAGES), encoder(IMAGES))
    assert read_classifier(folder).classes == ("cats", "dogs", "birds")


def test_without_the_images_of_the_run_random_ones_are_compared(
    classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "weights.safetensors"
    with pytest.warns(UserWarning, match="checked with random images, since .*To name others: --data FOLDER"):
        formats.export_model(classifier_run, "safetensors", out, num_images=2)
    capsys.readouterr()


@torch.no_grad()
def test_the_small_stem_is_written_as_pt2_and_refused_for_timm(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    encoder = Encoder("test_resnet", size=32, stem="small", head_layers=0)
    encoder.save(tmp_path / "model")
    options = ["--data", photo_folder, "--images", 2]
    message = run_command(["export", tmp_path, "--to", "timm", "--out", tmp_path / "out", *options], capsys, 2)
    assert "timm cannot hold " in message
    assert "encoder.stem=small replaces the first convolution of test_resnet" in message
    assert not (tmp_path / "out").exists()
    printed = run_command(["export", tmp_path, "--to", "pt2", "--out", tmp_path / "out.pt2", *options], capsys)
    assert "bit for bit" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--to", "onxx", "--out", "m.onnx"],
            2,
            "--to 'onxx' is no format of encoders (onnx, pt2,",
        ),
        (["--to", "host=h password=geheim dbname=d", "--out", "m.onnx"], 2, "error: --to is no format of encoders ("),
        (["--to", "onnx"], 2, "--to onnx writes a file or folder, which --out names"),
        (["--to", "pt2", "--out", "m.onnx"], 2, "--out: a file of pt2 ends in .pt2, got 'm.onnx'"),
        (["--to", "pt2", "--out", "full.pt2"], 2, "full.pt2 exists. Choose another --out"),
        (["--to", "timm", "--out", "thesis"], 2, "thesis exists. Choose another --out"),
        (["--to", "timm", "--out", "thesis", "--force"], 2, "thesis holds more than a model, which would be lost"),
        (["--to", "pt2", "--out", "no/m.pt2"], 4, "there is no folder"),
        (["--to", "pt2", "--out", "m.pt2", "--data", "nothing"], 3, "there is no folder or file nothing"),
    ],
)
def test_mistakes_end_in_one_message(
    arguments: list[str],
    code: int,
    message: str,
    classifier_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("thesis").mkdir()
    Path("thesis/thesis.tex").touch()
    Path("full.pt2").touch()
    before = sorted(tmp_path.iterdir())
    assert message in run_command(["export", classifier_run, *arguments], capsys, code)
    assert sorted(tmp_path.iterdir()) == before


def test_a_timm_name_is_no_run(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    message = run_command(["export", "test_resnet", "--to", "pt2", "--out", tmp_path / "m.pt2"], capsys, 2)
    assert "a run is exported, or its model folder, and test_resnet is neither" in message


def test_a_missing_package_is_named(
    classifier_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    message = run_command(["export", classifier_run, "--to", "onnx", "--out", tmp_path / "m.onnx"], capsys, 4)
    assert (
        "--to onnx needs onnx and onnxscript and onnxruntime, not installed here: pip install 'reptk[export]'"
        in message
    )


def test_what_computes_something_else_is_not_left_behind(
    classifier_run: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.rand(4, 8)
    images = CheckImages(IMAGES, "4 images")
    with pytest.raises(NumericalError, match="nothing was written: timm computes other features"):
        compare(features, features.flip(0), images, "timm")
    with pytest.raises(NumericalError):
        compare(features, features * torch.nan, images, "timm")
    monkeypatch.setattr(check_images, "MIN_COSINE", 2.0)
    with pytest.raises(NumericalError, match="nothing was written"):
        formats.export_model(classifier_run, "timm", tmp_path / "out", data=str(photo_folder))
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_read_end_in_one_message(
    classifier_run: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    # The only image that is chosen.
    first = min(path for path in folder.rglob("*") if path.is_file())
    first.write_bytes(b"no image")
    out = tmp_path / "m.safetensors"
    arguments = ["export", classifier_run, "--to", "safetensors", "--out", out, "--data", folder, "--images", 1]
    message = run_command(arguments, capsys, 3)
    assert f"none of 1 image of {folder} can be read: " in message
    assert "To compare more images: --images N" in message
    assert not out.exists()


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_any_number_of_images_is_tried_with_a_single_one(
    name: str, classifier_run: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "onnx" and not HAS_ONNX:
        pytest.skip("onnx, onnxscript or onnxruntime is not installed")
    encoder = Encoder.from_run(classifier_run)
    sizes = []

    def single_images_alone(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        features = encoder.features(images)
        if len(images) > 1:
            features = features.flip(1)
        return features

    program = SimpleNamespace(module=lambda: lambda images: (single_images_alone(images),))
    monkeypatch.setattr(torch.export, "load", lambda _: program)
    monkeypatch.setattr(onnx_file, "_run", lambda _, images: single_images_alone(images))
    with pytest.raises(NumericalError, match="nothing was written"):
        formats.export_model(classifier_run, name, tmp_path / f"m.{name}", data=str(photo_folder), num_images=1)
    assert sizes == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_torch_cannot_trace_is_refused(
    classifier_run: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Could not guard on data-dependent expression\nand many more lines")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(
        UsageError, match=r"torch.export cannot trace test_resnet: Could not guard on data-dependent expr"
    ):
        formats.export_model(classifier_run, "pt2", tmp_path / "m.pt2", data=str(photo_folder))
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_an_earlier_version_is_written_anew(
    classifier_run: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    encoder = Encoder.from_run(classifier_run)
    folder = tmp_path / "old" / "model"
    folder.mkdir(parents=True)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    (folder / "config.json").write_text(json.dumps(encoder.config))
    shutil.copy(classifier_run / "recipe.toml", folder.parent)
    formats.export_model(folder.parent, "timm", tmp_path / "new", data=str(photo_folder))
    opened = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True)
    assert opened.state_dict().keys() == encoder.backbone.state_dict().keys()
    assert timm_folder.timm_problem("test_resnet", "timm") is None

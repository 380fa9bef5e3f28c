"""reptk embed --update: only new and changed images are embedded, and the rows are those of a full run."""

import os
import random
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import both_formats, draw_image, run_command
from reptk.core.errors import DataError, UsageError
from reptk.embeddings import Embeddings

pytestmark = [pytest.mark.usefixtures("one_thread")]


def assert_equals_full_run(actual: Embeddings, encoder: Path, data: Path, **options: object) -> None:
    expected = reptk.embed(encoder, data, **options)
    assert list(actual.ids) == list(expected.ids)
    assert list(actual.paths) == list(expected.paths)
    assert actual.labels.tolist() == expected.labels.tolist()
    assert actual.classes == expected.classes
    assert torch.equal(actual.file_stats, expected.file_stats)
    assert actual.vectors.dtype == expected.vectors.dtype
    # Those of another batch differ by rounding.
    tolerance = 1e-3 if actual.vectors.dtype == torch.float16 else 1e-6
    torch.testing.assert_close(actual.vectors, expected.vectors, atol=tolerance, rtol=0)


@both_formats
@pytest.mark.parametrize("half", [False, True])
def test_only_new_and_changed_images_are_embedded(
    suffix: str, half: bool, photos: Path, encoder_run: Path, tmp_path: Path, encoded: list[int]
) -> None:
    out = tmp_path / f"e{suffix}"
    before = reptk.embed(encoder_run, photos, out=out, half=half)
    first, second, *_ = before.paths
    draw_image(50).save(photos / "cats" / "00-new.png")
    draw_image(51).save(photos / "zebras.png")
    draw_image(52).save(photos / second)
    (photos / first).unlink()
    (photos / "new class").mkdir()
    draw_image(53).save(photos / "new class" / "x.png")
    encoded.clear()
    lines: list[str] = []
    after = reptk.embed(encoder_run, photos, out=out, half=half, update=True, report=lines.append, batch_size=3)
    assert sum(encoded) == 4
    assert lines[-1] == "  update: 10 unchanged, 3 new, 1 changed, 1 removed"
    assert_equals_full_run(after, encoder_run, photos, half=half)
    old_row, new_row = list(before.ids).index("ünï/11.png"), list(after.ids).index("ünï/11.png")
    assert torch.equal(after.vectors[new_row], before.vectors[old_row])
    assert_equals_full_run(Embeddings.load(out), encoder_run, photos, half=half)


def test_random_changes(photos: Path, encoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    reptk.embed(encoder_run, photos, out=out)
    draw = random.Random(0)
    for number in range(6):
        paths = sorted(photos.rglob("*.png"))
        for path in draw.sample(paths, 3):
            path.unlink()
        for index in range(draw.randrange(1, 6)):
            draw_image(100 * number + index).save(photos / "cats" / f"{draw.randrange(100):02}.png")
        after = reptk.embed(encoder_run, photos, out=out, update=True, batch_size=draw.randrange(1, 5))
        assert_equals_full_run(after, encoder_run, photos)


def test_without_changes_nothing_is_embedded(
    photos: Path, encoder_run: Path, tmp_path: Path, encoded: list[int], capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "e.safetensors"
    arguments = ["embed", encoder_run, "--data", photos, "--out", out, "--update"]
    assert "update" not in run_command(arguments, capsys), "there is nothing to update yet"
    before = Embeddings.load(out)
    encoded.clear()
    printed = run_command(arguments, capsys)
    assert "  update: 12 unchanged, 0 new, 0 changed, 0 removed" in printed
    assert "12 embeddings of" in printed
    assert encoded == []
    assert torch.equal(Embeddings.load(out).vectors, before.vectors)


def test_a_file_with_the_same_size_and_another_time_is_embedded_again(
    photos: Path, encoder_run: Path, tmp_path: Path, encoded: list[int]
) -> None:
    out = tmp_path / "e.safetensors"
    reptk.embed(encoder_run, photos, out=out)
    stat = (photos / "cats" / "00.png").stat()
    os.utime(photos / "cats" / "00.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    encoded.clear()
    reptk.embed(encoder_run, photos, out=out, update=True)
    assert encoded == [1]


def test_unreadable_images_are_tried_again(photos: Path, encoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    (photos / "cats" / "05.jpg").write_bytes(b"no image")
    first = reptk.embed(encoder_run, photos, out=out)
    again = reptk.embed(encoder_run, photos, out=out, update=True)
    assert [len(first), len(again)] == [12, 12]
    assert again.metadata["skipped"]["count"] == 1
    draw_image(60).save(photos / "cats" / "05.jpg")
    assert_equals_full_run(reptk.embed(encoder_run, photos, out=out, update=True), encoder_run, photos)


def test_labels_are_those_of_the_table_as_it_is_now(
    photos: Path, encoder_run: Path, tmp_path: Path, encoded: list[int]
) -> None:
    table, out = photos / "t.csv", tmp_path / "e.safetensors"
    table.write_text("path,label,id\ncats/00.png,a,x\ncats/03.png,b,y\n")
    reptk.embed(encoder_run, table, out=out)
    table.write_text("path,label,id\ncats/03.png,c,z\ncats/00.png,a,x\n")
    encoded.clear()
    after = reptk.embed(encoder_run, table, out=out, update=True)
    assert encoded == []
    assert list(after.ids) == ["z", "x"]
    assert [after.class_of(row) for row in range(2)] == ["c", "a"]
    assert_equals_full_run(after, encoder_run, table)


def test_other_encoders_and_options_are_refused(photos: Path, encoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    reptk.embed(encoder_run, photos, out=out)
    content = out.read_bytes()

    def refused(message: str, *, encoder: object = encoder_run, data: object = photos, **options: object) -> None:
        with pytest.raises(DataError, match=f"cannot be updated: .*{message}.*--force instead of --update"):
            reptk.embed(encoder, data, out=out, update=True, **options)

    other = reptk.Encoder.from_run(encoder_run)
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1)
    refused("the encoder has other weights", encoder=other)
    refused("dtype was float32, now float16", half=True)
    refused(
        r"range was \[0, 65535\], now \[0, 4095\]", data={"name": "folder", "root": str(photos), "range": (0, 4095)}
    )
    refused("background was white, now black", data={"name": "folder", "root": str(photos), "background": "black"})
    refused("root was .*photos, now .*cats", data=photos / "cats")
    assert out.read_bytes() == content


def test_what_cannot_be_updated_is_named(photos: Path, encoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    with pytest.raises(UsageError, match="--update is for images that are files"):
        reptk.embed(encoder_run, {"name": "digits"}, out=out, update=True)
    for options in ({}, {"out": out, "force": True}):
        with pytest.raises(UsageError, match="does not go with --force"):
            reptk.embed(encoder_run, photos, update=True, **options)
    embeddings = reptk.embed(encoder_run, photos)
    old = Embeddings(embeddings.vectors, embeddings.ids, embeddings.paths, metadata=embeddings.metadata)
    old.save(out)
    with pytest.raises(DataError, match="does not say which files it was computed of"):
        reptk.embed(encoder_run, photos, out=out, update=True)

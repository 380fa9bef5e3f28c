"""reptk embed --out FOLDER: parts, which are not computed again once they are there."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import reptk
from embedding_inputs import assert_same_embeddings, change_manifest, draw_image, run_command
from killed_processes import flip_bit, hidden_names, kill_at_every_moment
from parts_of_embeddings import embed_in_parts, part_inodes, write_tars
from reptk.cli import main
from reptk.core.errors import DataError, UsageError
from reptk.embeddings import Embedder, Embeddings
from reptk.embeddings.files import parts_manifest

pytestmark = [pytest.mark.usefixtures("one_thread", "caches")]


def assert_same_rows(actual: Embeddings, expected: Embeddings, *, tolerance: float = 0.0) -> None:
    """Compare rows by id: new parts are at the end."""
    assert sorted(actual.ids) == sorted(expected.ids)
    order = [expected.row_of(image_id) for image_id in actual.ids]
    # Of other batches, vectors differ by rounding.
    torch.testing.assert_close(actual.vectors[:], expected.vectors[order], atol=tolerance, rtol=0)
    classes = [actual.class_of(row) for row in range(len(actual))]
    assert classes == [expected.class_of(row) for row in order]
    assert torch.equal(actual.file_stats, expected.file_stats[order])


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def emb(encoder_run: Path, photos: Path, tmp_path: Path) -> Path:
    """The photos in three parts: 5, 5 and 2."""
    embed_in_parts(encoder_run, photos, tmp_path / "emb")
    return tmp_path / "emb"


@pytest.mark.parametrize("half", [False, True])
def test_parts_are_the_rows_of_one_file(half: bool, photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    parts, printed = embed_in_parts(encoder_run, photo_folder, tmp_path / "emb", half=half)
    assert "3 parts to write, 12 images to embed" in printed
    expected = reptk.embed(encoder_run, photo_folder, out=tmp_path / "e.safetensors", half=half, batch_size=5)
    assert torch.equal(parts.vectors[:], expected.vectors)
    assert torch.equal(parts.labels, expected.labels)
    assert torch.equal(parts.file_stats, expected.file_stats)
    assert (list(parts.ids), list(parts.paths)) == (list(expected.ids), list(expected.paths))
    assert parts.classes == expected.classes
    assert parts.metadata["encoder"] == expected.metadata["encoder"]
    assert parts.metadata["preprocessing"] == expected.metadata["preprocessing"]
    manifest = json.loads((tmp_path / "emb" / "manifest.json").read_text())
    assert manifest["rows"] == 12
    assert manifest["encoder_sha256"] == expected.metadata["encoder"]["sha256"]
    assert [part["rows"] for part in manifest["parts"]] == [5, 5, 2]
    # Each part is a file of embeddings, and the folder one that is copied into such a file.
    part = Embeddings.load(tmp_path / "emb" / "part-000001.safetensors")
    assert torch.equal(part.vectors, expected.vectors[5:10])
    assert_same_embeddings(Embeddings.load(parts.save(tmp_path / "copy.safetensors")), parts)


def test_parts_that_are_there_are_not_computed_again(
    emb: Path, photos: Path, encoder_run: Path, encoded: list[int]
) -> None:
    before, inodes = Embeddings.load(emb), part_inodes(emb)
    _, printed = embed_in_parts(encoder_run, photos, emb)
    assert "3 parts of 12 embeddings verified, 0 parts to write, 0 images to embed" in printed
    assert encoded == []
    assert part_inodes(emb) == inodes
    # As after an interruption: the manifest is written last.
    (emb / "manifest.json").unlink()
    (emb / "part-000001.safetensors").unlink()
    with pytest.raises(
        DataError, match=r"no manifest.json, since embedding was interrupted after 2 parts\. Run the same"
    ):
        Embeddings.load(emb)
    after, _ = embed_in_parts(encoder_run, photos, emb)
    assert encoded == [5]
    assert torch.equal(after.vectors[:], before.vectors[:])
    assert list(after.ids) == list(before.ids)


def test_an_interruption_loses_at_most_the_parts_in_work(
    photos: Path, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    embed_images = Embedder.embed_images

    def interrupted(self: Embedder, images: torch.Tensor) -> torch.Tensor:
        if len(list((tmp_path / "emb").glob("part-*"))) == 1:
            os.kill(os.getpid(), 10)  # SIGUSR1
        return embed_images(self, images)

    monkeypatch.setattr(Embedder, "embed_images", interrupted)
    arguments = [
        "embed",
        encoder_run,
        "--data",
        photos,
        "--out",
        tmp_path / "emb",
        "--images-per-part",
        5,
        "--workers",
        0,
    ]
    assert main([str(argument) for argument in arguments]) == 143
    assert f"stopped by SIGUSR1; {tmp_path / 'emb'} has 1 part. To go on: the same command" in capsys.readouterr().out
    assert sorted(content_of(tmp_path / "emb")) == ["part-000000.safetensors"]
    assert hidden_names(tmp_path / "emb") == []
    monkeypatch.undo()
    printed = run_command(arguments, capsys)
    assert "1 part of 5 embeddings verified, 2 parts to write, 7 images to embed" in printed
    assert "emb: 12 embeddings of 64 values" in printed


def test_only_new_changed_and_removed_images_change_anything(
    emb: Path, photos: Path, encoder_run: Path, encoded: list[int]
) -> None:
    paths = list(Embeddings.load(emb).paths)
    inodes = part_inodes(emb)
    draw_image(50).save(photos / paths[6])  # changed, in the second part
    (photos / paths[11]).unlink()  # of the third part
    for number in range(10):
        draw_image(60 + number).save(photos / "cats" / f"new {number}.png")
    (photos / "ants").mkdir()  # a class before all others, whose labels it shifts
    draw_image(80).save(photos / "ants" / "first.png")
    after, printed = embed_in_parts(encoder_run, photos, emb)
    assert (
        "1 part of 5 embeddings verified, 5 parts to write, 12 images to embed; 1 image changed, 1 removed" in printed
    )
    assert sum(encoded) == 12
    full = reptk.embed(encoder_run, photos)
    assert_same_rows(after, full, tolerance=1e-6)
    assert after.classes == full.classes
    # The first part is the file that it was, the other two are gone.
    assert part_inodes(emb)["part-000000.safetensors"] == inodes["part-000000.safetensors"]
    assert sorted(part_inodes(emb)) == [f"part-{number:06}.safetensors" for number in (0, 3, 4, 5, 6, 7)]
    encoded.clear()
    _, printed = embed_in_parts(encoder_run, photos, emb)
    assert "6 parts of 22 embeddings verified, 0 parts to write" in printed
    assert encoded == []


def test_a_reader_finds_the_earlier_parts_until_the_manifest_lists_the_new_ones(
    emb: Path, photos: Path, encoder_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Embeddings.load(emb)
    draw_image(50).save(photos / before.paths[6])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts_manifest, "write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed_in_parts(encoder_run, photos, emb)
    assert_same_embeddings(Embeddings.load(emb, verify=True), before)
    # What was computed is not computed again, and what it replaces is removed.
    after, printed = embed_in_parts(encoder_run, photos, emb)
    assert "3 parts of 12 embeddings verified, 0 parts to write" in printed
    assert_same_rows(after, reptk.embed(encoder_run, photos), tolerance=1e-6)
    assert sorted(part_inodes(emb)) == [f"part-{number:06}.safetensors" for number in (0, 2, 3)]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip_bit(path, -3), "part-000001.safetensors has another hash than when it was written"),
        (lambda path: flip_bit(path, 3), r"part-000001.safetensors (cannot be read|has another hash)"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "part-000001.safetensors cannot be read"),
        (lambda path: path.write_bytes(b""), "part-000001.safetensors cannot be read"),
        (lambda path: path.unlink(), "part-000001.safetensors is missing"),
        (lambda path: flip_bit(path.with_name("manifest.json"), 50), None),
    ],
)
def test_a_damaged_part_is_computed_again(
    damage: Callable[[Path], object], reason: str | None, emb: Path, photos: Path, encoder_run: Path, encoded: list[int]
) -> None:
    before = content_of(emb)
    damage(emb / "part-000001.safetensors")
    with pytest.raises(DataError, match=r"are not complete: .*Run the same reptk embed .* --out .* again"):
        Embeddings.load(emb)
    after, printed = embed_in_parts(encoder_run, photos, emb)
    assert encoded == [5] * (reason is not None)
    if reason is not None:
        assert re.search(f"computed again, since 1 part is not whole: {reason}", printed), printed
        assert printed.count("not whole") == 1
    vectors = {name: Embeddings.load(emb / name).vectors for name in before if name.startswith("part")}
    for name, expected in vectors.items():
        (emb / name).write_bytes(before[name])
        assert torch.equal(Embeddings.load(emb / name).vectors, expected)
    assert len(after) == 12


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost(photo_folder: Path, encoder_run: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photo_folder.rglob("*.png"))[:2]:
        shutil.copy(path, few)
    whole = tmp_path / "whole" / "emb"
    whole.parent.mkdir()
    expected, _ = embed_in_parts(encoder_run, few, whole, images_per_part=1)
    draw_image(70).save(few / "new.png")
    (few / expected.paths[0]).unlink()
    work = tmp_path / "work"

    def prepare() -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole.parent, work)

    complete: list[int] = []
    for _ in kill_at_every_moment(
        prepare, lambda: embed_in_parts(encoder_run, few, work / "emb", images_per_part=1), work
    ):
        # The earlier embeddings or the new ones, unless the parts that no manifest lists are being removed.
        complete.append(len(Embeddings.load(work / "emb", verify=True)))
    assert set(complete) == {2}
    after, _ = embed_in_parts(encoder_run, few, work / "emb", images_per_part=1)
    assert_same_rows(after, reptk.embed(encoder_run, few), tolerance=1e-6)
    assert hidden_names(work) == []


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"encoder": "test_resnet"}, "the encoder has other weights"),
        ({"crop": 0.5}, r"crop was 0\.875, now 0\.5"),
        ({"resize": "pad"}, "resize was crop, now pad"),
        ({"half": True}, "dtype was float32, now float16"),
        ({"split": "train"}, "data.split was all, now train"),
    ],
)
@pytest.mark.filterwarnings("ignore:test_resnet has random weights")
def test_parts_of_another_kind_are_never_mixed(
    options: dict, difference: str, emb: Path, photos: Path, encoder_run: Path
) -> None:
    before = content_of(emb)
    if "split" in options:
        _make_a_split(photos, "train")
    options = dict(options)
    encoder = options.pop("encoder", encoder_run)
    if encoder != encoder_run:
        options["size"] = 32
    with pytest.raises(DataError) as error:
        embed_in_parts(encoder, photos, emb, **options)
    message = str(error.value)
    assert re.search(difference, message), message
    assert message.endswith("Choose another --out, or embed all images again: --force")
    assert "\n" not in message
    assert content_of(emb) == before
    after, _ = embed_in_parts(encoder, photos, emb, force=True, **options)
    assert len(after) == len(reptk.embed(encoder, photos, **options))


def _make_a_split(root: Path, name: str) -> None:
    """Move all folders of a folder into one of it, with this name."""
    folders = list(root.iterdir())
    (root / name).mkdir()
    for folder in folders:
        folder.rename(root / name / folder.name)


@pytest.mark.parametrize("damage", ["missing", "other rows", "not ours"])
def test_a_manifest_that_does_not_fit_is_one_message(damage: str, emb: Path, capsys: pytest.CaptureFixture) -> None:
    manifest = json.loads((emb / "manifest.json").read_text())
    if damage == "missing":
        for path in list(emb.glob("part-*"))[1:]:
            path.unlink()
        expected = "are not complete: part-00000"
    elif damage == "other rows":
        manifest["parts"][0]["rows"] = 4
        change_manifest(emb, parts=manifest["parts"])
        expected = "part-000000.safetensors holds other rows than manifest.json says"
    else:
        manifest["parts"][0]["name"] = "../photos.safetensors"
        change_manifest(emb, parts=manifest["parts"])
        expected = "manifest.json is incomplete"
    for command in (
        ["index", emb, "--out", emb.with_suffix(".index")],
        ["search", emb, "--id", "0"],
        ["evaluate", emb],
    ):
        message = run_command(command, capsys, exit_code=3)
        assert expected in message
        assert message.count("\n") == 1


def test_images_that_cannot_be_read_are_skipped_and_counted(
    photos: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = sorted(photos.rglob("*.png"))
    for path in paths[:6]:
        path.write_bytes(b"no image")
    command = ["embed", encoder_run, "--data", photos, "--out", tmp_path / "emb", "--images-per-part", 5]
    printed = run_command(command, capsys)
    assert "skipped: 6, because" in printed
    assert len(Embeddings.load(tmp_path / "emb")) == 6
    # A part without a row is no file.
    assert [path.name for path in sorted((tmp_path / "emb").glob("part*"))] == [
        "part-000001.safetensors",
        "part-000002.safetensors",
    ]
    message = run_command([*command, "--strict"], capsys, exit_code=3)
    assert "To skip such images: without --strict" in message
    for path in paths:
        path.write_bytes(b"no image")
    message = run_command([*command[:5], tmp_path / "none"], capsys, exit_code=3)
    assert "none of 12 images can be embedded" in message


def test_one_bank_for_index_search_duplicates_and_evaluation(
    photos: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(photos / "cats" / "00.png", photos / "cats" / "copy.png")
    embed_in_parts(encoder_run, photos, tmp_path / "emb")
    reptk.embed(encoder_run, photos, out=tmp_path / "e.safetensors", batch_size=5)
    query = photos / "cats" / "00.png"
    outputs = []
    for source in (tmp_path / "emb", tmp_path / "e.safetensors"):
        index = tmp_path / f"{source.stem}.index"
        commands = [
            ["index", source, "--out", index],
            ["search", index, query, "--k", 3, "--no-html"],
            ["search", source, query, "--k", 3, "--no-html"],
            ["search", source, "--id", "cats/03.png", "--k", 2, "--no-html"],
            ["search", source, "--duplicates", "--no-html", "--no-images", "--threshold", 0.99],
            ["evaluate", source, "eval.knn.k=[1,3]", "--only", "knn"],
        ]
        printed = "".join(run_command(command, capsys) for command in commands)
        outputs.append(printed.replace(str(index), "INDEX").replace(str(source), "SOURCE"))
    assert "copy.png" in outputs[0]
    assert outputs[0].split("MB")[1:] == outputs[1].split("MB")[1:]


@pytest.mark.parametrize("evaluator", ["linear", "few_shot"])
@pytest.mark.filterwarnings("ignore:12 of 12 queries share an id", "ignore:no class has 10 images")
def test_every_evaluator_takes_parts(evaluator: str, emb: Path, capsys: pytest.CaptureFixture) -> None:
    run_command(["evaluate", emb, "--only", evaluator, "--queries", emb], capsys)


def test_what_the_folder_may_be(photos: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    command = ["embed", encoder_run, "--data", photos, "--out"]
    assert "holds other files than embeddings in parts" in run_command(
        [*command, other, "--force"], capsys, exit_code=2
    )
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in run_command([*command, tmp_path / "file"], capsys, exit_code=2)
    message = run_command([*command, tmp_path / "e.index"], capsys, exit_code=2)
    assert "or in a folder, whose name has no suffix" in message
    message = run_command([*command, tmp_path / "e.parquet", "--images-per-part", 3], capsys, exit_code=2)
    assert "images_per_part is for a folder of parts" in message


def test_another_run_in_the_same_folder_is_refused(emb: Path, photos: Path, encoder_run: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (emb / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process embeds into"):
            embed_in_parts(encoder_run, photos, emb)
    embed_in_parts(encoder_run, photos, emb)


def test_two_images_with_one_id_are_refused(photos: Path, encoder_run: Path, tmp_path: Path) -> None:
    (photos / "t.csv").write_text("cats/00.png\ncats/03.png\ncats/00.png\n")
    with pytest.raises(DataError, match=r"two images with the id 'cats/00\.png'"):
        embed_in_parts(encoder_run, photos / "t.csv", tmp_path / "emb")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_force_keeps_the_earlier_parts_until_the_new_ones_are_complete(
    emb: Path, photos: Path, encoder_run: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Embeddings.load(emb)
    with monkeypatch.context() as patch:
        patch.setattr(parts_manifest, "write_manifest", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed_in_parts(encoder_run, photos, emb, force=True, crop=0.5)
    assert sum(encoded) == 12
    assert_same_embeddings(Embeddings.load(emb, verify=True), before)
    # Without --force it goes on.
    after, printed = embed_in_parts(encoder_run, photos, emb, crop=0.5)
    assert "3 parts of 12 embeddings verified, 0 parts to write" in printed
    assert_same_rows(after, reptk.embed(encoder_run, photos, crop=0.5), tolerance=1e-6)
    assert sorted(part_inodes(emb)) == [f"part-{number:06}.safetensors" for number in (3, 4, 5)]
    assert sorted(path.name for path in emb.glob(".*")) == [".lock"]


def test_force_removes_nothing_if_no_image_can_be_read(emb: Path, photos: Path, encoder_run: Path) -> None:
    before, inodes = Embeddings.load(emb), part_inodes(emb)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 12 images can be embedded"):
        embed_in_parts(encoder_run, photos, emb, force=True)
    assert_same_embeddings(Embeddings.load(emb, verify=True), before)
    assert part_inodes(emb) == inodes
    assert sorted(path.name for path in emb.glob(".*")) == [".lock"]


def test_many_embeddings_are_removed_on_request_only(
    encoder_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("reptk.embeddings.files.output_path.MAX_REMOVED_ROWS", 2)
    shards, emb = tmp_path / "shards", tmp_path / "emb"
    write_tars(shards, range(4))
    embed_in_parts(encoder_run, shards, emb)
    before = content_of(emb)
    shards.joinpath("b").rename(tmp_path / "b")
    with pytest.raises(DataError, match=r"8 of the 16 embeddings in .* are of images that are not in --data.*--prune"):
        embed_in_parts(encoder_run, shards, emb)
    assert content_of(emb) == before
    embeddings, _ = embed_in_parts(encoder_run, shards, emb, prune=True)
    assert len(embeddings) == 8
    assert len(part_inodes(emb)) == 2
    # Images in files, in a folder and in a file.
    for out, options in ((tmp_path / "parts", []), (tmp_path / "e.safetensors", ["--update"])):
        command = ["embed", encoder_run, "--data", photos, "--out", out, *options]
        run_command(command, capsys)
        (photos / "cats").rename(tmp_path / "cats")
        assert "embeddings in" in run_command(command, capsys, exit_code=3)
        assert len(Embeddings.load(out)) == 12
        run_command([*command, "--prune"], capsys)
        assert len(Embeddings.load(out)) == 8
        (tmp_path / "cats").rename(photos / "cats")
    assert "--prune is for" in run_command([*command[:5], tmp_path / "x.safetensors", "--prune"], capsys, exit_code=2)

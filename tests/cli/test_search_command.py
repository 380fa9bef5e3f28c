"""reptk index and reptk search, as commands: what they print and the pages they write."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import reptk
from embedding_inputs import draw_image, run_command
from reptk.cli import main
from reptk.core import distributed

pytestmark = [pytest.mark.usefixtures("one_thread")]


def test_search_prints_neighbors_and_writes_a_page(
    photo_folder: Path, photo_embeddings: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    index, html = tmp_path / "e.index", tmp_path / "found.html"
    run_command(["index", photo_embeddings, "--out", index], capsys)
    query = tmp_path / "copy <i>.png"
    shutil.copy(photo_folder / "cats" / "00.png", query)
    printed = run_command(["search", index, query, "--id", "ünï/02.png", "--k", "3", "--html", html], capsys)
    assert re.search(r"1  1\.000  cats .*00\.png  \(the same bytes\)", printed)
    page = html.read_text()
    assert page.count("<img src=") == 2 * (1 + 3)
    assert page.count("data:image/") == 8
    assert "copy &lt;i&gt;.png" in page
    assert "<b>." not in page.replace("<b>1.", "").replace("<b>2.", "").replace("<b>3.", "")
    assert "dogs <b>" not in page
    assert "://" not in page, "nothing is loaded from elsewhere"
    by_option = run_command(["search", query, "--index", index, "--k", "3", "--html", html], capsys)
    assert by_option.splitlines()[2:6] == printed.splitlines()[2:6], "the index may be named as an option"
    html.write_text("<p>mine</p>")
    assert "not written by reptk" in run_command(["search", index, query, "--html", html], capsys, exit_code=2)
    assert html.read_text() == "<p>mine</p>"


def test_images_of_a_data_set_are_drawn_from_it(
    encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    html = tmp_path / "found.html"
    printed = run_command(["search", encoder_run, "--id", "query/3", "--k", "2", "--html", html], capsys)
    assert "embedding what" in printed
    assert html.read_text().count("data:image/png") == 3


def test_images_that_are_gone_are_marked(
    photo_folder: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(photo_folder, tmp_path / "photos")
    embeddings, html = tmp_path / "e.safetensors", tmp_path / "found.html"
    reptk.embed(encoder_run, tmp_path / "photos", out=embeddings)
    shutil.rmtree(tmp_path / "photos")
    run_command(["search", embeddings, photo_folder / "cats" / "00.png", "--k", "3", "--html", html], capsys)
    assert html.read_text().count("no image") == 3


@pytest.fixture
def folder_with_copy(photo_folder: Path, encoder_run: Path, tmp_path: Path) -> Path:
    """Embeddings of the photos with a copy of one of them in another class."""
    shutil.copytree(photo_folder, tmp_path / "photos")
    shutil.copy(photo_folder / "cats" / "00.png", tmp_path / "photos" / "ünï" / "copy.png")
    out = tmp_path / "e.safetensors"
    reptk.embed(encoder_run, tmp_path / "photos", out=out)
    return out


def test_duplicates_within_a_set(folder_with_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table, html = tmp_path / "d.csv", tmp_path / "d.html"
    options = ["--duplicates", "--threshold", "0.99999", "--out", table, "--html", html]
    printed = run_command(["search", folder_with_copy, *options], capsys)
    assert "1 group of near duplicates" in printed
    assert "1 candidate for removal among 13 images: check before deleting" in printed
    assert (
        "2 hold the same bytes as another, 0 the same pixels, 0 are turned or mirrored, 0 are only similar; "
        "groups with images of different labels: 1"
    ) in printed
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["nearest"], row["copy"]) for row in rows] == [
        ("cats/00.png", "ünï/copy.png", "bytes"),
        ("ünï/copy.png", "cats/00.png", "bytes"),
    ]
    assert [(row["group"], row["label"], row["nearest_label"]) for row in rows] == [
        ("1", "cats", "ünï"),
        ("1", "ünï", "cats"),
    ]
    assert html.read_text().count("<img src=") == 2
    assert "--force" in run_command(["search", folder_with_copy, *options], capsys, exit_code=2)
    printed = run_command(["search", folder_with_copy, "--duplicates", "--threshold", "1", "--no-html"], capsys)
    assert "1 group" in printed
    assert "threshold 1: as requested" in printed
    printed = run_command(["search", "--no-html", "--duplicates", folder_with_copy], capsys)
    assert "1 group" in printed
    assert "threshold 0.95: fewer than 20 images are too few to measure random pairs; changed copies" in printed


def test_a_table_is_not_written_into_a_page(folder_with_copy: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["search", str(folder_with_copy), "--duplicates", "--out", "d.html"]) == 2
    assert capsys.readouterr().err == "error: --out writes a CSV file; for the page: --html d.html\n"


def test_duplicates_between_sets(
    photo_folder: Path, encoder_run: Path, folder_with_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    test_set, html, table = tmp_path / "test.safetensors", tmp_path / "d.html", tmp_path / "d.csv"
    reptk.embed(encoder_run, photo_folder, out=test_set)
    options = ["--threshold", "0.99999", "--html", html, "--out", table]
    printed = run_command(["search", folder_with_copy, "--duplicates", test_set, *options], capsys)
    assert "12 of 12 images" in printed
    assert "12 hold the same bytes" in printed
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == [str(number) for number in range(1, 13)]
    assert {row["copy"] for row in rows} == {"bytes"}


def test_turned_copies_and_blank_images(
    photo_folder: Path, encoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photos, table, html = tmp_path / "photos", tmp_path / "d.csv", tmp_path / "d.html"
    shutil.copytree(photo_folder, photos)
    draw_image(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / "cats" / "mirrored.png")
    for name in ("white.png", "paper.png"):
        Image.new("RGB", (50, 40), "white").save(photos / "cats" / name)
    embeddings = tmp_path / "e.safetensors"
    reptk.embed(encoder_run, photos, out=embeddings)
    options = ["--duplicates", "--threshold", "1", "--html", html, "--out", table]
    printed = run_command(["search", embeddings, *options], capsys)
    assert "0 the same pixels, 2 are turned or mirrored, 0 are only similar" in printed
    assert re.search(r"mirrored\.png  \(mirrored copy of cats/00\.png\)", printed)
    assert re.search(r"2 blank images, compared with no other: .*paper\.png, .*white\.png", printed)
    with table.open(newline="") as file:
        rows = [(row["id"], row["copy"], row["copy_of"]) for row in csv.DictReader(file)]
    assert rows == [
        ("cats/00.png", "mirrored", "cats/mirrored.png"),
        ("cats/mirrored.png", "mirrored", "cats/00.png"),
        ("cats/paper.png", "blank", ""),
        ("cats/white.png", "blank", ""),
    ]
    page = html.read_text()
    assert "mirrored copy of cats/00.png" in page
    assert "2 blank images" in page
    assert page.count("<img src=") == 2
    printed = run_command(
        ["search", embeddings, "--duplicates", "--threshold", "1", "--no-images", "--no-html"], capsys
    )
    assert "2 hold the same bytes as another, 0 the same pixels, 0 are turned or mirrored" in printed
    assert "go with --duplicates" in run_command(["search", embeddings, "--no-images"], capsys, exit_code=2)


def test_ranks_that_share_a_gpu_exchange_what_is_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """NCCL takes neither tensors on the CPU nor two ranks on one GPU."""
    joined = []

    def join(backend: str, **options: object) -> None:
        joined.append(backend)
        raise torch.distributed.DistError("no other ranks")

    monkeypatch.setattr(distributed, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "no other ranks" in run_command(["search", "photos.index", "--id", "3", "--no-html"], capsys, exit_code=4)
    assert joined == ["gloo"]

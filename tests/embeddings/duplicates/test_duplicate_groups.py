"""Near duplicates within a set and between two sets."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from embedding_inputs import unit_vectors
from reptk.embeddings import Duplicates, Embeddings, near_duplicates
from reptk.embeddings.duplicates import complete_linkage, pair_comparison
from reptk.embeddings.duplicates.exact_copies import exact_copies
from reptk.embeddings.duplicates.pair_comparison import ConnectedComponents

pytestmark = [pytest.mark.usefixtures("one_thread")]


def brute_force_groups(vectors: Tensor, threshold: float) -> list[list[int]]:
    """Groups by complete linkage, row by row: each joins the group of the most similar row that it may join."""
    similarities = vectors @ vectors.T
    limit = threshold - 1e-6
    groups: list[list[int]] = []
    for row in range(len(vectors)):
        open_groups = [group for group in groups if (similarities[row, group] >= limit).all()]
        if open_groups:
            max(open_groups, key=lambda group: float(similarities[row, group].max())).append(row)
        else:
            groups.append([row])
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


@pytest.mark.parametrize("block", [3, 7, 600])
@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.95])
@pytest.mark.parametrize("max_pending", [5, 1 << 22])
def test_groups_equal_brute_force(
    block: int, threshold: float, max_pending: int, clustered: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = Embeddings(clustered.vectors[:150], clustered.ids[:150])
    monkeypatch.setattr(pair_comparison, "BLOCK", block)
    monkeypatch.setattr(pair_comparison, "MAX_PENDING_PAIRS", max_pending)
    groups = near_duplicates(embeddings, threshold=threshold).groups
    assert [[duplicate.row for duplicate in group] for group in groups] == brute_force_groups(
        embeddings.vectors, threshold
    )
    assert groups
    similarities = (embeddings.vectors @ embeddings.vectors.T).fill_diagonal_(-1)
    for group in groups:
        for duplicate in group:
            assert duplicate.nearest == similarities[duplicate.row].argmax()
            assert duplicate.similarity == pytest.approx(float(similarities[duplicate.row].max()), abs=1e-5)


@pytest.mark.parametrize("block", [7, 600])
def test_leaks_equal_brute_force(block: int, clustered: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Embeddings(clustered.vectors[:200], clustered.ids[:200])
    test = Embeddings(clustered.vectors[200:320], clustered.ids[200:320])
    monkeypatch.setattr(pair_comparison, "BLOCK", block)
    leaks = near_duplicates(train, test, threshold=0.92).leaks
    best = (test.vectors @ train.vectors.T).max(1)
    expected_rows = (best.values >= 0.92 - 1e-6).nonzero().flatten().tolist()
    assert 0 < len(leaks) < 120
    assert {leak.row for leak in leaks} == set(expected_rows)
    assert [leak.nearest for leak in leaks] == [int(best.indices[leak.row]) for leak in leaks]
    similarities = [leak.similarity for leak in leaks]
    assert similarities == sorted(similarities, reverse=True)


@pytest.mark.parametrize("block", [2, 256])
def test_a_chain_is_not_one_group(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of a zoom: each is like the next one, and the first is not like the last."""
    monkeypatch.setattr(complete_linkage, "BLOCK", block)
    angles = torch.arange(60) * 0.1
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    frames = Embeddings(vectors, [str(row) for row in range(60)])
    groups = near_duplicates(frames, threshold=0.95).groups
    rows = [[duplicate.row for duplicate in group] for group in groups]
    for group in rows:
        assert (vectors[group] @ vectors[group].T >= 0.95 - 1e-6).all()
    # Each frame is in a group, and none of them is longer than the threshold allows: 0.318 radians.
    assert sorted(row for group in rows for row in group) == list(range(60))
    assert max(map(len, rows)) == 4


def test_exact_copies_are_told_from_similar_images(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    other = picture.copy()
    other.putpixel((0, 0), (0, 0, 0))
    picture.save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    picture.save(tmp_path / "c.bmp")
    other.save(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes(b"no image")
    names = ["a.png", "b.png", "c.bmp", "d.png", "e.png"]
    files = {row: tmp_path / name for row, name in enumerate(names)}
    expected = {0: "bytes", 1: "bytes", 2: "pixels", 3: "", 4: ""}
    assert exact_copies(files, range(5)) == expected
    # Images that are not similar enough are not decoded.
    assert exact_copies(files, [3]) == {**expected, 2: ""}
    assert exact_copies({0: None, 1: files[0], 2: tmp_path / "gone.png"}, range(3)) == {0: "", 1: "", 2: ""}


@pytest.mark.parametrize("block", [1, 9, 256])
@pytest.mark.parametrize("large_group", [1, 4, 1000])
@pytest.mark.parametrize("threshold", [0.8, 0.9, 0.95])
def test_complete_linkage_equals_brute_force(
    block: int, large_group: int, threshold: float, clustered: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complete_linkage, "BLOCK", block)
    monkeypatch.setattr(complete_linkage, "LARGE_GROUP", large_group)
    # With copies of some vectors, in between and at the end.
    vectors = torch.cat(
        [clustered.vectors[:100], clustered.vectors[20:40], clustered.vectors[100:180], clustered.vectors[:9]]
    )
    groups = complete_linkage.complete_linkage(vectors, threshold - 1e-6)
    assert sorted(row for group in groups for row in group.tolist()) == list(range(len(vectors)))
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    large_groups = sorted((group.tolist() for group in groups if len(group) > 1), key=lambda rows: (-len(rows), rows))
    assert large_groups == brute_force_groups(vectors, threshold)


def test_many_copies_of_one_image_are_one_group() -> None:
    embeddings = Embeddings(torch.ones(5000, 4) / 2, [str(row) for row in range(5000)])
    groups = near_duplicates(embeddings, threshold=1).groups
    assert [len(group) for group in groups] == [5000]
    assert {duplicate.nearest for duplicate in groups[0]} == {0, 1}


def test_components_do_not_depend_on_when_edges_are_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_comparison, "MAX_PENDING_PAIRS", 0)
    components = ConnectedComponents(9)
    for nodes, others in (([8, 7], [7, 6]), ([0] * 10, [3] * 10), ([5], [5]), ([6] * 10, [2] * 10)):
        components.connect(np.array(nodes), np.array(others))
    assert [nodes.tolist() for nodes in components.groups()] == [[2, 6, 7, 8], [0, 3]]
    assert ConnectedComponents(3).groups() == []


def test_names_that_a_spreadsheet_would_run_are_escaped(tmp_path: Path) -> None:
    names = ["=1+1.png", "+a.png", "-b.png", "@c.png", "a-b.png"]
    vectors = torch.ones(5, 3) / 3**0.5
    embeddings = Embeddings(vectors, names, names, torch.zeros(5, dtype=torch.long), ("-1",))
    near_duplicates(embeddings).save(tmp_path / "d.csv")
    with (tmp_path / "d.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["'=1+1.png", "'+a.png", "'-b.png", "'@c.png", "a-b.png"]
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())
    assert {row["label"] for row in rows} == {"-1"}, "a number is no formula"


def embeddings_of_files(folder: Path, vectors: Tensor | None = None) -> Embeddings:
    """Embeddings of all files of a folder, by default so different that none is a near duplicate."""
    names = sorted(path.name for path in folder.iterdir())
    if vectors is None:
        vectors = unit_vectors(len(names), 64)
    return Embeddings(vectors, names, names, metadata={"root": str(folder)})


def detailed_image(number: int) -> Image.Image:
    """An image with details at all places."""
    noise = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)


def kinds(duplicates: Duplicates) -> list[dict[str, tuple[str, str]]]:
    """By id, the kind of copy and the id of the original, of each group."""
    originals = duplicates.first
    groups = []
    for group in duplicates.groups or [duplicates.leaks]:
        kinds_of_group = {}
        for duplicate in group:
            original = originals.ids[duplicate.copy_of] if duplicate.copy_of >= 0 else ""
            kinds_of_group[duplicate.id] = (duplicate.copy, original)
        groups.append(kinds_of_group)
    return groups


def test_turned_and_mirrored_copies_are_near_duplicates_whatever_their_embeddings(tmp_path: Path) -> None:
    image = detailed_image(0)
    image.save(tmp_path / "a.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.jpg", quality=80)
    image.transpose(Image.Transpose.ROTATE_90).resize((72, 72)).save(tmp_path / "c.png")
    detailed_image(1).save(tmp_path / "d.png")
    detailed_image(1).transpose(Image.Transpose.ROTATE_180).save(tmp_path / "e.png")
    detailed_image(2).save(tmp_path / "f.png")
    embeddings = embeddings_of_files(tmp_path)
    duplicates = near_duplicates(embeddings, threshold=0.95)
    assert kinds(duplicates) == [
        {"a.png": ("mirrored", "b.jpg"), "b.jpg": ("mirrored", "a.png"), "c.png": ("turned_270", "a.png")},
        {"d.png": ("turned_180", "e.png"), "e.png": ("turned_180", "d.png")},
    ]
    assert duplicates.count_turned() == 5
    similarity = float(embeddings.vectors[3] @ embeddings.vectors[4])
    assert duplicates.groups[1][0].similarity == pytest.approx(similarity, abs=1e-6)
    assert duplicates.groups[1][0].nearest == 4
    described = [duplicate.describe_copy(embeddings) for duplicate in duplicates.groups[0]]
    assert described == ["mirrored copy of b.jpg", "mirrored copy of a.png", "copy of a.png turned by 270° clockwise"]
    assert near_duplicates(embeddings, threshold=0.95, read_images=False).count == 0


def test_a_turned_copy_joins_the_group_of_its_original(tmp_path: Path) -> None:
    image = detailed_image(0)
    image.save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    image.save(tmp_path / "c.jpg", quality=60)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "d.png")
    vectors = unit_vectors(4, 64)
    vectors[1:3] = vectors[0]
    duplicates = near_duplicates(embeddings_of_files(tmp_path, vectors), threshold=0.95)
    assert kinds(duplicates) == [
        {"a.png": ("bytes", ""), "b.png": ("bytes", ""), "c.jpg": ("", ""), "d.png": ("turned_90", "a.png")}
    ]


def test_turned_copies_between_sets(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    for number in range(3):
        detailed_image(number).save(tmp_path / "train" / f"{number}.png")
    for name in ("x", "y"):
        detailed_image(1).transpose(Image.Transpose.TRANSPOSE).save(tmp_path / "test" / f"{name}.png")
    detailed_image(9).save(tmp_path / "test" / "z.png")
    first = embeddings_of_files(tmp_path / "train")
    second = embeddings_of_files(tmp_path / "test", unit_vectors(3, 64, key=1))
    duplicates = near_duplicates(first, second, threshold=0.95)
    # Mirrored left to right and turned counterclockwise, rows become columns.
    assert kinds(duplicates) == [dict.fromkeys(("x.png", "y.png"), ("mirrored_turned_270", "1.png"))]


def panorama(left: int, center: int, right: int) -> Image.Image:
    picture = Image.new("RGB", (288, 96))
    for column, number in enumerate((left, center, right)):
        picture.paste(detailed_image(number), (96 * column, 0))
    return picture


def test_pictures_that_share_their_center_alone_are_no_duplicates(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
    panorama(1, 0, 2).save(tmp_path / "train" / "a.png")
    panorama(3, 0, 4).save(tmp_path / "train" / "b.jpg")
    detailed_image(0).save(tmp_path / "train" / "c.png")
    panorama(1, 0, 2).save(tmp_path / "train" / "d.jpg", quality=60)
    panorama(5, 0, 6).save(tmp_path / "test" / "x.png")
    # As encoders see them that are shown the centers.
    first = embeddings_of_files(tmp_path / "train", torch.ones(4, 4) / 2)
    duplicates = near_duplicates(first, threshold=0.95)
    assert kinds(duplicates) == [{"a.png": ("", ""), "d.jpg": ("", "")}]
    assert [duplicate.nearest for duplicate in duplicates.groups[0]] == [3, 0]
    second = embeddings_of_files(tmp_path / "test", torch.ones(1, 4) / 2)
    assert near_duplicates(first, second, threshold=0.95).count == 0
    assert near_duplicates(first, threshold=0.95, read_images=False).count == 4


def test_a_picture_that_is_not_square_is_turned_as_a_whole(tmp_path: Path) -> None:
    panorama(1, 0, 2).save(tmp_path / "a.png")
    panorama(1, 0, 2).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg")
    # The same center, turned, between other sides.
    panorama(3, 0, 4).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "c.png")
    duplicates = near_duplicates(embeddings_of_files(tmp_path), threshold=0.95)
    assert kinds(duplicates) == [{"a.png": ("turned_90", "b.jpg"), "b.jpg": ("turned_270", "a.png")}]


def test_blank_images_are_in_no_group(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (40, 30), (250, 250, 250 - number)).save(tmp_path / f"blank{number}.png")
    detailed_image(0).save(tmp_path / "d.png")
    shutil.copy(tmp_path / "d.png", tmp_path / "e.png")
    embeddings = embeddings_of_files(tmp_path, torch.ones(6, 4) / 2)
    duplicates = near_duplicates(embeddings, threshold=0.95)
    assert kinds(duplicates) == [dict.fromkeys(("d.png", "e.png"), ("bytes", ""))]
    assert duplicates.blank == [0, 1, 2, 3]
    duplicates.save(tmp_path / "d.csv")
    with (tmp_path / "d.csv").open(newline="") as file:
        rows = [(row["group"], row["id"], row["copy"]) for row in csv.DictReader(file)]
    assert rows[0] == ("1", "d.png", "bytes")
    assert rows[2:] == [("", f"blank{number}.png", "blank") for number in range(4)]
    # Between two sets, blank images are no leaks.
    leaks = near_duplicates(embeddings, embeddings, threshold=0.95)
    assert [leak.id for leak in leaks.leaks] == ["d.png", "e.png"]
    assert {leak.nearest for leak in leaks.leaks} == {4}
    assert leaks.blank == [0, 1, 2, 3]

"""Near duplicates within a set and between two."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import reptk
from catalogue_parts import said
from reptk.embeddings import Embeddings, duplicates, near_duplicates

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*has random weights")]


def brute_force(vectors: Tensor, threshold: float) -> list[list[int]]:
    """Groups by walking from image to image."""
    near = (vectors @ vectors.T >= threshold - 1e-6).tolist()
    left, groups = set(range(len(vectors))), []
    while left:
        group, ahead = set(), [min(left)]
        while ahead:
            one = ahead.pop()
            group.add(one)
            ahead += [other for other in left - group if near[one][other]]
        left -= group
        groups.append(sorted(group))
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


@pytest.mark.parametrize("block", [3, 7, 600])
@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.95])
def test_groups_are_those_of_brute_force(
    block: int, threshold: float, many: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Embeddings(many.vectors[:150], many.ids[:150])
    monkeypatch.setattr(duplicates, "BLOCK", block)
    found = near_duplicates(some, threshold=threshold)
    assert [[one.number for one in group] for group in found.groups] == brute_force(some.vectors, threshold)
    assert found.groups
    similarities = (some.vectors @ some.vectors.T).fill_diagonal_(-1)
    for group in found.groups:
        for one in group:
            assert one.nearest == similarities[one.number].argmax()
            assert one.similarity == pytest.approx(float(similarities[one.number].max()), abs=1e-5)


@pytest.mark.parametrize("block", [7, 600])
def test_leaks_are_those_of_brute_force(block: int, many: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = (Embeddings(many.vectors[part], many.ids[part]) for part in (slice(0, 200), slice(200, 320)))
    monkeypatch.setattr(duplicates, "BLOCK", block)
    found = near_duplicates(train, test, threshold=0.92)
    best = (test.vectors @ train.vectors.T).max(1)
    assert 0 < len(found.leaks) < 120
    assert {one.number for one in found.leaks} == set((best.values >= 0.92 - 1e-6).nonzero().flatten().tolist())
    assert [one.nearest for one in found.leaks] == [int(best.indices[one.number]) for one in found.leaks]
    values = [one.similarity for one in found.leaks]
    assert values == sorted(values, reverse=True)


def test_a_thousand_times_the_same_is_one_group() -> None:
    found = near_duplicates(Embeddings(torch.ones(5000, 4) / 2, [str(one) for one in range(5000)]), threshold=1)
    assert [len(group) for group in found.groups] == [5000]
    assert {one.nearest for one in found.groups[0]} == {0, 1}


def test_duplicates_by_the_command(photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(photos / "cats" / "00.png", tmp_path / "photos" / "ünï" / "copy.png")
    out, table, html = tmp_path / "e.safetensors", tmp_path / "d.csv", tmp_path / "d.html"
    reptk.embed(tmp_path / "photos", encoder=run, out=out)
    arguments = ["search", out, "--duplicates", "--threshold", "0.99999", "--out", table, "--html", html]
    printed = said(arguments, capsys)
    assert "1 group of near duplicates" in printed
    assert "1 of 13 images could go; 2 hold the same bytes as another; 1 in whose images the labels differ" in printed
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["nearest"], row["identical"]) for row in rows] == [
        ("cats/00.png", "ünï/copy.png", "yes"),
        ("ünï/copy.png", "cats/00.png", "yes"),
    ]
    assert html.read_text().count("<img") == 2
    assert "--force" in said(arguments, capsys, code=2)
    reptk.embed(photos, encoder=run, out=tmp_path / "test.safetensors")
    leaks = ["search", out, "--duplicates", tmp_path / "test.safetensors", "--threshold", "0.99999", "--html", html]
    printed = said(leaks, capsys)
    assert "12 of 12 images" in printed
    assert "12 hold the same bytes" in printed
    printed = said(["search", out, "--duplicates", "--threshold", "1", "--no-html"], capsys)
    assert "1 group" in printed

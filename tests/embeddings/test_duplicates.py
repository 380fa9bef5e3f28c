"""Near duplicates within a set and between two sets."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reptk.embeddings import Embeddings, duplicates, near_duplicates
from reptk.embeddings.duplicates import ConnectedComponents

pytestmark = [pytest.mark.usefixtures("one_thread")]


def brute_force_groups(vectors: Tensor, threshold: float) -> list[list[int]]:
    """Groups by walking from image to image."""
    is_near = (vectors @ vectors.T >= threshold - 1e-6).tolist()
    unvisited = set(range(len(vectors)))
    groups = []
    while unvisited:
        group: set[int] = set()
        stack = [min(unvisited)]
        while stack:
            row = stack.pop()
            group.add(row)
            stack += [other for other in unvisited - group if is_near[row][other]]
        unvisited -= group
        groups.append(sorted(group))
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


@pytest.mark.parametrize("block", [3, 7, 600])
@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.95])
@pytest.mark.parametrize("max_pending", [5, 1 << 22])
def test_groups_equal_brute_force(
    block: int, threshold: float, max_pending: int, clustered: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = Embeddings(clustered.vectors[:150], clustered.ids[:150])
    monkeypatch.setattr(duplicates, "BLOCK", block)
    monkeypatch.setattr(duplicates, "MAX_PENDING_PAIRS", max_pending)
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
    monkeypatch.setattr(duplicates, "BLOCK", block)
    leaks = near_duplicates(train, test, threshold=0.92).leaks
    best = (test.vectors @ train.vectors.T).max(1)
    expected_rows = (best.values >= 0.92 - 1e-6).nonzero().flatten().tolist()
    assert 0 < len(leaks) < 120
    assert {leak.row for leak in leaks} == set(expected_rows)
    assert [leak.nearest for leak in leaks] == [int(best.indices[leak.row]) for leak in leaks]
    similarities = [leak.similarity for leak in leaks]
    assert similarities == sorted(similarities, reverse=True)


def test_many_copies_of_one_image_are_one_group() -> None:
    embeddings = Embeddings(torch.ones(5000, 4) / 2, [str(row) for row in range(5000)])
    groups = near_duplicates(embeddings, threshold=1).groups
    assert [len(group) for group in groups] == [5000]
    assert {duplicate.nearest for duplicate in groups[0]} == {0, 1}


def test_components_do_not_depend_on_when_edges_are_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_PENDING_PAIRS", 0)
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

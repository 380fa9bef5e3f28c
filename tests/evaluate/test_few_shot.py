"""Few-shot classification against its definition; its examples."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from probe_problems import clusters
from reptk.evaluate import few_shot
from reptk.evaluate.metrics.few_shot import draw_examples


def test_examples_are_n_of_each_class_and_repeat() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0, -1, 2, 2, 2, 1, 0, 0, -1, 4])
    examples = draw_examples(labels, 2, 0)
    assert torch.bincount(labels[examples], minlength=5).tolist() == [2, 2, 2, 0, 1]
    assert len(examples.unique()) == len(examples)
    assert torch.equal(examples, draw_examples(labels, 2, 0))
    assert len({tuple(draw_examples(labels, 2, draw).tolist()) for draw in range(20)}) > 3
    assert set(draw_examples(labels, 1, 0).tolist()) <= set(examples.tolist())


def test_few_shot_matches_its_definition() -> None:
    bank, labels = clusters(60, 6)
    queries, query_labels = clusters(30, 6, seed=1)
    bank, queries = (functional.normalize(rows.float(), dim=1) for rows in (bank, queries))
    metrics = few_shot(bank, labels, queries, query_labels, shots=[3], draws=4)
    accuracies = []
    for draw in range(4):
        examples = draw_examples(labels, 3, draw).tolist()
        means = []
        for label in range(4):
            means.append(bank[[row for row in examples if labels[row] == label]].numpy().mean(0))
        means = np.stack(means)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        accuracies.append(((queries.numpy() @ means.T).argmax(1) == query_labels.numpy()).mean())
    assert metrics["few_shot@3"] == pytest.approx(np.mean(accuracies))
    assert metrics["few_shot_std@3"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-6)


def test_a_query_that_is_an_example_does_not_count() -> None:
    bank, labels = clusters(12, 6)
    exclude = torch.arange(12)
    value = few_shot(bank, labels, bank, labels, shots=[1], draws=1, exclude=exclude)["few_shot@1"]
    assert torch.equal(value.values.isnan().nonzero()[:, 0], draw_examples(labels, 1, 0).sort().values)


def test_nothing_to_draw_is_refused() -> None:
    bank, labels = clusters(12, 6)
    with pytest.raises(ValueError, match="needs labels"):
        few_shot(bank, labels - 10, bank, labels)
    with pytest.raises(ValueError, match="at least 1"):
        few_shot(bank, labels, bank, labels, shots=[0])


def test_exclude_has_one_row_for_each_query() -> None:
    bank = torch.eye(4)
    labels = torch.arange(4)
    with pytest.raises(ValueError, match="exclude must hold 4 row numbers"):
        few_shot(bank, labels, bank, labels, shots=[1], exclude=torch.arange(3))


def test_more_shots_than_any_class_has_are_lowered_with_a_warning() -> None:
    bank, labels = clusters(12, 6)
    largest = int(torch.bincount(labels).max())
    with pytest.warns(UserWarning, match=f"no class has 500 images; .* with {largest} instead"):
        metrics = few_shot(bank, labels, bank, labels, shots=[1, 500])
    assert [name for name in metrics if "std" not in name] == ["few_shot@1", f"few_shot@{largest}"]

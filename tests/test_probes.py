"""Probes against scikit-learn, closed forms and definitions written out; the encoder in front of them never moves."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from reptk.data.sources.generated import generated
from reptk.evaluate import FewShot, ImageFeatures, LinearProbe, LinearStage, few_shot, linear
from reptk.evaluate.metrics.few_shot import draw_examples
from reptk.evaluate.metrics.linear import fit
from reptk.evaluate.metrics.linear_stage import LinearClassifiers
from reptk.models.encoder import Encoder, eval_mode


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


def clusters(count: int, width: int, classes: int = 4, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Loosely clustered rows, some dimensions far larger than others, float64."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    rows = 0.5 * centres[labels] + spread * torch.randn(count, width, generator=draw)
    return rows.double() * torch.logspace(-1, 1, width).double(), labels


# The linear probe


@pytest.mark.parametrize(("count", "width"), [(200, 9), (40, 60)], ids=["more rows", "more dimensions"])
@pytest.mark.parametrize("decay", [0.3, 0.003])
def test_the_probe_is_scikit_learns(count: int, width: int, decay: float) -> None:
    h, labels = clusters(count, width)
    probe = fit(h, labels, decays=[decay], steps=3000, tolerance=1e-9)
    standard = ((h - h.mean(0)) / h.std(0, unbiased=False)).numpy()
    expected = LogisticRegression(C=1 / (count * decay), tol=1e-10, max_iter=10_000).fit(standard, labels.numpy())
    np.testing.assert_allclose(probe.weight.numpy(), expected.coef_, atol=2e-3 * np.abs(expected.coef_).max())
    answers = probe(h).softmax(1).numpy()
    np.testing.assert_allclose(answers, expected.predict_proba(standard), atol=2e-3)


def test_chunks_do_not_change_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    h, labels = clusters(100, 6)
    whole = fit(h, labels, decays=[0.1], tolerance=1e-8)
    monkeypatch.setattr(importlib.import_module("reptk.evaluate.metrics.linear"), "CHUNK", 7)
    torch.testing.assert_close(fit(h, labels, decays=[0.1], tolerance=1e-8).weight, whole.weight, rtol=1e-5, atol=1e-7)


def test_the_decay_is_chosen_on_rows_kept_back() -> None:
    """Forty rows of pure noise but for one dimension: hardly any decay fits all of it by heart."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 2
    h = torch.randn(60, 40, generator=draw)
    h[:, 0] = 2 * labels - 1 + 0.5 * torch.randn(60, generator=draw)
    probe = fit(h, labels)
    assert probe.decay >= 0.1
    assert 0.6 < probe.held_out_accuracy <= 1
    assert fit(h, labels, decays=[0.01]).decay == 0.01


def test_a_constant_dimension_and_rows_of_no_class_do_no_harm() -> None:
    h, labels = clusters(80, 5)
    queries, asked = clusters(40, 5, seed=1)
    expected = linear(h, labels, queries, asked, decays=[0.1])["linear"]
    flat = [torch.cat([rows, torch.full((len(rows), 1), 3.0).double()], 1) for rows in (h, queries)]
    assert linear(flat[0], labels, flat[1], asked, decays=[0.1])["linear"] == expected
    unlabelled = torch.cat([h, 100 * h[:5]]), torch.cat([labels, torch.full((5,), -1)])
    assert linear(*unlabelled, queries, asked, decays=[0.1])["linear"] == expected


def test_what_a_probe_cannot_fit_is_said() -> None:
    h, labels = clusters(20, 5)
    with pytest.raises(ValueError, match="at least 2 classes in the bank, got 1"):
        linear(h, torch.zeros_like(labels), h, labels)
    with pytest.raises(ValueError, match="no query row has a label"):
        linear(h, labels, h, labels - 10)
    with pytest.raises(ValueError, match=r"1 of 20 rows of bank .* first \[3\]"):
        linear(torch.where(torch.arange(20)[:, None] == 3, torch.nan, h), labels, h, labels)


# Few-shot


def test_examples_are_n_of_each_class_and_repeat() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0, -1, 2, 2, 2, 1, 0, 0, -1, 4])
    chosen = draw_examples(labels, 2, 0)
    assert torch.bincount(labels[chosen], minlength=5).tolist() == [2, 2, 2, 0, 1]
    assert len(chosen.unique()) == len(chosen)
    assert torch.equal(chosen, draw_examples(labels, 2, 0))
    assert len({tuple(draw_examples(labels, 2, draw).tolist()) for draw in range(20)}) > 3
    assert set(draw_examples(labels, 1, 0).tolist()) <= set(chosen.tolist())


def test_few_shot_is_its_definition() -> None:
    bank, labels = clusters(60, 6)
    queries, asked = clusters(30, 6, seed=1)
    bank, queries = (nn.functional.normalize(rows.float(), dim=1) for rows in (bank, queries))
    found = few_shot(bank, labels, queries, asked, shots=[3], draws=4)
    shares = []
    for draw in range(4):
        chosen = draw_examples(labels, 3, draw)
        means = np.stack([bank[[row for row in chosen.tolist() if labels[row] == c]].numpy().mean(0) for c in range(4)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        shares.append(((queries.numpy() @ means.T).argmax(1) == asked.numpy()).mean())
    assert found["few_shot@3"] == pytest.approx(np.mean(shares))
    assert found["few_shot_std@3"] == pytest.approx(np.std(shares, ddof=1), abs=1e-6)


def test_a_query_that_is_an_example_is_passed_over() -> None:
    bank, labels = clusters(12, 6)
    own = torch.arange(12)
    found = few_shot(bank, labels, bank, labels, shots=[1], draws=1, exclude=own)["few_shot@1"]
    assert torch.equal(found.values.isnan().nonzero()[:, 0], draw_examples(labels, 1, 0).sort().values)


def test_few_shot_refuses_nothing_to_draw() -> None:
    bank, labels = clusters(12, 6)
    with pytest.raises(ValueError, match="needs labels"):
        few_shot(bank, labels - 10, bank, labels)
    with pytest.raises(ValueError, match="at least 1"):
        few_shot(bank, labels, bank, labels, shots=[0])


# The linear stage


def tiny_problem() -> tuple[Encoder, object]:
    torch.manual_seed(0)
    return Encoder("test_resnet", size=16, head_layers=0), generated(train=48, bank=150, query=30, classes=3, size=16)


def test_the_linear_stage_learns_and_the_encoder_stays() -> None:
    encoder, data = tiny_problem()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    numbers = []
    with eval_mode(encoder):
        for _ in range(2):
            encode = ImageFeatures(encoder.features, size_px=16)
            result = LinearStage(epochs=8, batch_size=16)(encode, data)
            numbers.append(result.metrics)
    assert numbers[0] == numbers[1]
    assert numbers[0]["linear_stage"] > 0.6
    assert result.notes["linear_stage"]["lr"] in LinearStage().lr
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_every_learning_rate_trains_a_classifier_of_its_own() -> None:
    h, labels = clusters(32, 5)
    together = LinearClassifiers(h.float(), 4, [0.1, 0.5], "cpu")
    alone = [LinearClassifiers(h.float(), 4, [rate], "cpu") for rate in (0.1, 0.5)]
    for heads in (together, *alone):
        optimizer = torch.optim.SGD(heads.parameter_groups(), momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            heads.loss(h.float(), labels).backward()
            optimizer.step()
    for number, heads in enumerate(alone):
        torch.testing.assert_close(together.weights[number], heads.weights[0])
    assert not torch.allclose(together.weights[0], together.weights[1])


# As evaluators


@pytest.mark.parametrize("evaluator", [LinearProbe(), FewShot(shots=(2,)), LinearStage(epochs=1, batch_size=16)])
def test_evaluators_answer_labelled_queries_only(evaluator: object) -> None:
    encoder, data = tiny_problem()
    labels = torch.where(torch.arange(len(data.query)) % 4 == 0, -1, data.query.labels)
    partly = replace(data, query=replace(data.query, labels=labels))
    with eval_mode(encoder):
        metrics = evaluator(ImageFeatures(encoder.features, size_px=16), partly).metrics
    name, value = next(iter(metrics.items()))
    assert len(value.values) == int((labels >= 0).sum()), name


def test_leave_one_out_fits_one_half_and_asks_the_other() -> None:
    encoder, data = tiny_problem()
    with eval_mode(encoder):
        found = LinearProbe()(ImageFeatures(encoder.features, size_px=16), replace(data, query=data.bank)).metrics
    assert len(found["linear"].values) == len(data.bank) // 2

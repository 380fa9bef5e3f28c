"""The linear probe against scikit-learn; the choice of its regularization; the evaluators on partly labeled queries."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from probe_problems import clusters, tiny_encoder
from reptk.evaluate import Evaluator, FewShot, ImageFeatures, LinearProbe, LinearStage, linear
from reptk.evaluate.metrics.linear import fit
from reptk.models.encoder import eval_mode

linear_module = importlib.import_module("reptk.evaluate.metrics.linear")


@pytest.mark.parametrize(("count", "width"), [(200, 9), (40, 60)], ids=["more rows", "more dimensions"])
@pytest.mark.parametrize("decay", [0.3, 0.003])
def test_the_probe_equals_scikit_learn(count: int, width: int, decay: float) -> None:
    h, labels = clusters(count, width)
    probe = fit(h, labels, decays=[decay], steps=3000, tolerance=1e-9)
    standardized = ((h - h.mean(0)) / h.std(0, unbiased=False)).numpy()
    expected = LogisticRegression(C=1 / (count * decay), tol=1e-10, max_iter=10_000)
    expected.fit(standardized, labels.numpy())
    np.testing.assert_allclose(probe.weight.numpy(), expected.coef_, atol=2e-3 * np.abs(expected.coef_).max())
    probabilities = probe(h).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected.predict_proba(standardized), atol=2e-3)


def test_chunks_do_not_change_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    h, labels = clusters(100, 6)
    expected = fit(h, labels, decays=[0.1], tolerance=1e-8)
    monkeypatch.setattr(linear_module, "CHUNK", 7)
    probe = fit(h, labels, decays=[0.1], tolerance=1e-8)
    torch.testing.assert_close(probe.weight, expected.weight, rtol=1e-5, atol=1e-7)


def test_the_decay_is_chosen_on_held_out_rows() -> None:
    """Rows of noise but for one dimension: with hardly any decay the probe fits all of it by heart."""
    stream = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 2
    h = torch.randn(60, 40, generator=stream)
    h[:, 0] = 2 * labels - 1 + 0.5 * torch.randn(60, generator=stream)
    probe = fit(h, labels)
    assert probe.decay >= 0.1
    assert 0.6 < probe.held_out_accuracy <= 1
    assert fit(h, labels, decays=[0.01]).decay == 0.01


def test_a_constant_dimension_and_unlabeled_rows_change_nothing() -> None:
    h, labels = clusters(80, 5)
    queries, query_labels = clusters(40, 5, seed=1)
    expected = linear(h, labels, queries, query_labels, decays=[0.1])["linear"]
    constant = [torch.cat([rows, torch.full((len(rows), 1), 3.0).double()], 1) for rows in (h, queries)]
    assert linear(constant[0], labels, constant[1], query_labels, decays=[0.1])["linear"] == expected
    with_unlabeled = torch.cat([h, 100 * h[:5]]), torch.cat([labels, torch.full((5,), -1)])
    assert linear(*with_unlabeled, queries, query_labels, decays=[0.1])["linear"] == expected


def test_what_a_probe_cannot_be_fitted_to_is_refused() -> None:
    h, labels = clusters(20, 5)
    with pytest.raises(ValueError, match="at least 2 classes in the bank, got 1"):
        linear(h, torch.zeros_like(labels), h, labels)
    with pytest.raises(ValueError, match="no query row has a label"):
        linear(h, labels, h, labels - 10)
    with pytest.raises(ValueError, match=r"1 of 20 rows of bank .* first \[3\]"):
        linear(torch.where(torch.arange(20)[:, None] == 3, torch.nan, h), labels, h, labels)


# Evaluators


@pytest.mark.parametrize("evaluator", [LinearProbe(), FewShot(shots=(2,)), LinearStage(epochs=1, batch_size=16)])
def test_probes_classify_labeled_queries_only(evaluator: Evaluator) -> None:
    encoder, data = tiny_encoder()
    labels = torch.where(torch.arange(len(data.query)) % 4 == 0, -1, data.query.labels)
    partly_labeled = replace(data, query=replace(data.query, labels=labels))
    with eval_mode(encoder):
        result = evaluator(ImageFeatures(encoder.features, size_px=16), partly_labeled)
    name, value = next(iter(result.metrics.items()))
    assert len(value.values) == int((labels >= 0).sum()), name


def test_leave_one_out_fits_one_half_and_classifies_the_other() -> None:
    encoder, data = tiny_encoder()
    with eval_mode(encoder):
        result = LinearProbe()(ImageFeatures(encoder.features, size_px=16), replace(data, query=data.bank))
    assert len(result.metrics["linear"].values) == len(data.bank) // 2
    assert set(result.notes["linear"]) == {"decay", "held_out_accuracy"}

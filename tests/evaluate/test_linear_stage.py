"""The linear stage: it learns, the encoder in front of it never changes, and classifiers do not influence each other."""

from typing import Any

import pytest
import torch

from probe_problems import clusters, tiny_encoder
from reptk.core.errors import UsageError
from reptk.evaluate import ImageFeatures, LinearStage
from reptk.evaluate.metrics.linear_stage import LinearClassifiers
from reptk.models.encoder import eval_mode
from reptk.views import ViewPipeline


def test_it_learns_and_the_encoder_does_not_change() -> None:
    encoder, data = tiny_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    results = []
    with eval_mode(encoder):
        for _ in range(2):
            features = ImageFeatures(encoder.features, size_px=16)
            results.append(LinearStage(epochs=8, batch_size=16)(features, data))
    assert results[0].metrics == results[1].metrics
    assert results[0].metrics["linear_stage"] > 0.6
    assert results[1].notes["linear_stage"]["lr"] in LinearStage().lr
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def accuracy(**arguments: Any) -> float:
    encoder, data = tiny_encoder()
    with eval_mode(encoder):
        features = ImageFeatures(encoder.features, size_px=16)
        return LinearStage(epochs=2, batch_size=16, lr=(0.1,), **arguments)(features, data).metrics["linear_stage"]


@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_published_views_are_the_default(scale: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random resized crops and flips, fused, one view of each image."""
    built = []
    pipeline_init = ViewPipeline.__init__

    def recorded_init(self: ViewPipeline, *arguments: Any, **options: Any) -> None:
        pipeline_init(self, *arguments, **options)
        built.append((self, arguments[0]))

    monkeypatch.setattr(ViewPipeline, "__init__", recorded_init)
    accuracy(scale=scale)
    [(views, [operations])] = built
    assert [operation["name"] for operation in operations] == ["RandomResizedCrop", "RandomHorizontalFlip"]
    assert operations[0]["scale"] == [scale or 0.2, 1.0]
    assert (views.count, views.sizes, views.description) == (1, (16,), "fused")


def test_other_views_are_chosen_by_name() -> None:
    values = [accuracy(views=views) for views in ("resized_crop_flip", "none", "digits")]
    assert all(0 < value <= 1 for value in values)
    assert len(set(values)) > 1
    assert accuracy(views="resized_crop_flip", scale=0.2) == accuracy()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": "resized_crop"}, r"no views 'resized_crop'\. Nearest: resized_crop_flip"),
        ({"views": "none", "scale": 0.5}, r"views\.scale"),
        ({"views": "kornia"}, r"views\.operations"),
    ],
)
def test_views_that_cannot_be_used_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LinearStage(**arguments)


def test_each_learning_rate_trains_its_own_classifier() -> None:
    h, labels = clusters(32, 5)
    joint = LinearClassifiers(h.float(), 4, [0.1, 0.5], "cpu")
    alone = [LinearClassifiers(h.float(), 4, [lr], "cpu") for lr in (0.1, 0.5)]
    for classifiers in (joint, *alone):
        optimizer = torch.optim.SGD(classifiers.parameter_groups(), momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            classifiers.loss(h.float(), labels).backward()
            optimizer.step()
    for number, classifiers in enumerate(alone):
        torch.testing.assert_close(joint.weights[number], classifiers.weights[0])
    assert not torch.allclose(joint.weights[0], joint.weights[1])


def test_a_classifier_that_is_not_finite_predicts_nothing() -> None:
    """The largest of scores that are NaN would be the first class."""
    h, labels = torch.randn(6, 3), torch.zeros(6, dtype=torch.long)
    classifiers = LinearClassifiers(h, 2, [0.1, 0.2, 0.3], "cpu")
    with torch.no_grad():
        classifiers.weights[1][0, 2] = torch.nan
        classifiers.biases[2][0] = torch.inf
    assert classifiers.are_finite().tolist() == [True, False, False]
    assert classifiers.correct(h, labels).tolist() == [[1] * 6, [0] * 6, [0] * 6]

"""The linear stage: it learns, the encoder in front of it never changes, and classifiers do not influence each other."""

import torch

from probe_problems import clusters, tiny_encoder
from reptk.evaluate import ImageFeatures, LinearStage
from reptk.evaluate.metrics.linear_stage import LinearClassifiers
from reptk.models.encoder import eval_mode


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

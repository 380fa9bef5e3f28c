"""Health of embeddings against its definitions; concerns that name what is wrong, and nothing else."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from reptk.core.errors import NonFiniteValues
from reptk.evaluate import concerns, effective_rank, health
from reptk.evaluate.diagnostics import prototypes_message, shortcut_message, softmax_flatness
from reptk.methods.prototypes import assignment_entropies


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_effective_rank_counts_dimensions() -> None:
    orthogonal = torch.linalg.qr(normal(64, 16)).Q
    assert effective_rank(torch.ones(32, 8)) == pytest.approx(1, abs=0.01)
    assert effective_rank(orthogonal[:1] * torch.arange(1, 51)[:, None]) == pytest.approx(1, abs=0.01)
    assert effective_rank(orthogonal) == pytest.approx(16, rel=1e-3)
    assert effective_rank(functional.pad(orthogonal[:, :4], (0, 12))) == pytest.approx(4, rel=1e-3)
    assert effective_rank(1000 * orthogonal.bfloat16()) == pytest.approx(16, rel=1e-2)
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    scaled = orthogonal[:, :4] * torch.tensor(shares, dtype=torch.float32)
    assert effective_rank(scaled) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)


def test_rows_that_are_not_finite_are_refused_and_long_ones_are_not() -> None:
    z = normal(20, 6)
    expected = health(z)
    assert health(z * 1e25) == pytest.approx(expected, rel=1e-4)
    z[3, 2] = math.nan
    for measure in (health, effective_rank, lambda z: concerns(z, None)):
        with pytest.raises(NonFiniteValues, match=r"^1 of 20 rows of [hz] hold NaN or infinity, first \[3\]"):
            measure(z)


def test_health_matches_its_definitions() -> None:
    z = normal(30, 7)
    ids = torch.tensor([0, 1, 2] * 8 + [-1] * 6)
    state = health(3 * z, ids)
    unit = functional.normalize(z, dim=1).double().numpy()
    squared = ((unit[:, None] - unit[None]) ** 2).sum(2)
    pairs = [(i, j) for i in range(30) for j in range(30) if i != j]
    positives = [(i, j) for i, j in pairs if ids[i] == ids[j] >= 0]
    uniformity = np.log(np.mean([np.exp(-2 * squared[pair]) for pair in pairs]))
    assert state["alignment"] == pytest.approx(np.mean([squared[pair] for pair in positives]), rel=1e-4)
    assert state["uniformity"] == pytest.approx(uniformity, rel=1e-4)
    assert state["std"] == pytest.approx(unit.std(0).mean() * math.sqrt(7), rel=1e-4)
    assert "alignment" not in health(z)
    assert "alignment" not in health(z, torch.arange(30))


def test_good_embeddings_raise_no_concerns_and_bad_ones_the_matching_one() -> None:
    z = functional.normalize(normal(256, 32), dim=1)
    ids = torch.arange(128).repeat(2)
    assert concerns(z, ids, temperature=0.1)[1] == {}
    point = 1 + 0.01 * z
    assert set(concerns(point, ids, temperature=0.1)[1]) == {"collapse"}
    line = functional.pad(torch.where(ids[:, None] % 2 == 0, 1.0, -1.0), (0, 31))
    assert set(concerns(line, ids)[1]) == {"collapse"}
    assert set(concerns(z, ids, temperature=100.0)[1]) == {"temperature"}


def test_a_low_loss_is_a_leak_only_if_the_evaluation_does_not_improve() -> None:
    leak = shortcut_message(0.01, 255, accuracy=0.3, untrained=0.4)
    assert leak is not None
    assert leak.startswith("leak: the loss is 0.01 of 5.54 for random embeddings")
    # Images that are in the data twice are negatives of each other, which makes the task harder.
    assert "duplicates" not in leak
    assert shortcut_message(0.01, 256, accuracy=0.5, untrained=0.4) is None
    assert shortcut_message(4.0, 256, accuracy=0.3, untrained=0.4) is None


def test_a_temperature_is_too_high_only_in_relation_to_the_embeddings() -> None:
    spread = functional.normalize(normal(256, 32), dim=1)
    assert concerns(spread, None, temperature=0.1)[1] == {}
    close_together = functional.normalize(0.2 * spread + functional.one_hot(torch.tensor(0), 32), dim=1)
    state, messages = concerns(close_together, None, temperature=0.3)
    assert state["std"] > 0.1
    assert messages["temperature"].startswith(
        "dead temperature: 0.3 is too high for embeddings this close together: all negatives get the same weight"
    )
    # In the usual range, training may still spread the embeddings; above it, the temperature is wrong.
    assert messages["temperature"].endswith("Lower loss.temperature if the rank does not rise within the next epochs")
    assert concerns(spread, None, temperature=50.0)[1]["temperature"].endswith("(0.05 to 0.5 is usual)")


@pytest.mark.parametrize("temperature", [0.3, 50.0])
def test_advice_on_a_temperature_names_its_key(temperature: float) -> None:
    spread = functional.normalize(normal(256, 32), dim=1)
    close_together = functional.normalize(0.2 * spread + functional.one_hot(torch.tensor(0), 32), dim=1)
    [message] = concerns(close_together, None, temperature=temperature, temperature_key="method.temperature")[
        1
    ].values()
    assert "Lower method.temperature" in message
    assert "loss." not in message


def test_softmax_flatness_matches_the_entropy_written_out() -> None:
    z = functional.normalize(normal(9, 4), dim=1).double()
    scores = np.exp((z @ z.T).numpy() / 0.5)
    np.fill_diagonal(scores, 0)
    shares = scores / scores.sum(1, keepdims=True)
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in shares]
    assert softmax_flatness(z, 0.5) == pytest.approx(np.mean(np.exp(entropy)) / 8, rel=1e-5)


def test_prototypes_that_all_images_share_are_reported() -> None:
    """One prototype for all images, all prototypes for each image; an assignment that differs from image to image is well."""
    one, even = torch.eye(4)[[0] * 8], torch.full((8, 4), 0.25)
    different = torch.eye(4).repeat(2, 1)
    messages = []
    for assignments in (one, even, different):
        entropies = assignment_entropies(assignments)
        messages.append(prototypes_message(float(entropies.of_views), float(entropies.of_mean)))
    assert "assigned to 1 of them in effect, and all images to 1," in messages[0]
    assert "assigned to 4 of them in effect, and all images to 4," in messages[1]
    assert messages[2] is None

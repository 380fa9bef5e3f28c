"""What the embeddings of a training step show that the loss does not: collapse, a dead temperature, a shortcut."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from reptk.evaluate.health import MOST_ROWS, health

COLLAPSED_STD, COLLAPSED_FEATURES_STD, COLLAPSED_SHARE = 0.1, 0.05, 0.02
"""Spread of embeddings and of features (1: even over the sphere; features after a ReLU share a direction from the start), and
share of the dimensions in use (RankMe), below which they have collapsed."""
FLAT = 0.98
"""Share of the other rows that weigh alike in the softmax from which on the temperature tells none apart."""
SOLVED = 0.02
"""Share of the loss of random embeddings, log(N - 1), below which there is next to nothing left to learn from."""

COLLAPSE = (
    "Lower optim.lr, lengthen optim.warmup_epochs, raise train.batch_size or loss.temperature, and see whether the views of "
    "one image differ (reptk views)"
)


def collapsed(state: Mapping[str, float], std: float = COLLAPSED_STD) -> bool:
    """Whether `health` shows embeddings that lie at a point, on a line or in few of their dimensions."""
    return state["std"] < std or state["rank"] < max(1.5, COLLAPSED_SHARE * state["dimensions"])


@torch.no_grad()
def concerns(
    z: Tensor,
    ids: Tensor | None,
    loss: float,
    *,
    temperature: float | None = None,
    accuracy: float | None = None,
    untrained: float | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """The health of a step's embeddings, and what is wrong with them: a sentence that says what to change, by kind.

    Args:
        z: (N, D) embeddings of the global batch.
        ids: (N,) rows that share one are positives.
        loss: of that step.
        temperature: of the loss, if it has one.
        accuracy, untrained: the headline number now and before training, where it was measured after this epoch.

    Returns:
        `health`, and texts under "collapse", "temperature" and "shortcut".
    """
    state = health(z, _from_zero(ids))
    if collapsed(state):
        said = f"the embeddings use {state['rank']:.1f} of {z.shape[1]} dimensions, spread {state['std']:.2f} of an even one"
        return state, {"collapse": f"collapse: {said}. {COLLAPSE}"}
    found = {}
    chance = math.log(max(len(z) - 1, 2))
    if temperature is not None and (share := weighing_alike(z, temperature)) > FLAT:
        found["temperature"] = (
            f"dead temperature: at {temperature:g}, {100 * share:.0f} % of a batch weighs alike whatever its similarity, so "
            "near and far images push with the same force. Lower loss.temperature (0.05 to 0.5 is usual)"
        )
    if loss < SOLVED * chance and accuracy is not None and untrained is not None and accuracy <= untrained:
        found["shortcut"] = (
            f"leak: the loss is {loss:.3g} of {chance:.3g} for random embeddings, so the task is solved, yet the evaluation is "
            "no better than before training. Something gives the answer away: stronger colour changes and smaller crops "
            "(views.strength, views.scale), images that are in the data more than once (reptk search --duplicates), or on "
            "several GPUs BatchNorm statistics of each rank's own (train.sync_batchnorm=true)"
        )
    return state, found


def weighing_alike(z: Tensor, temperature: float) -> float:
    """exp of the entropy of softmax(similarity / temperature) over the other rows, as a share of their number; the mean."""
    z = functional.normalize(z[:MOST_ROWS].float(), dim=1)
    scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf).log_softmax(1)
    entropy = -(scores.exp() * scores.nan_to_num(neginf=0.0)).sum(1)
    return (entropy.exp().mean() / max(len(z) - 1, 1)).item()


def _from_zero(ids: Tensor | None) -> Tensor | None:
    """Ids as `health` wants them; those of unlabelled images in a batch of classes are negative."""
    return None if ids is None else ids.unique(return_inverse=True)[1]

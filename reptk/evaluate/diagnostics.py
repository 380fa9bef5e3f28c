"""What the loss alone does not show: alignment, uniformity, rank; collapse, divergence, a dead temperature, a shortcut."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reptk.losses import normalize
from reptk.neighbors import check_vectors

MAX_ROWS = 4096
"""Rows that are used at most, since products of all pairs are computed."""

COLLAPSED_STD = 0.1
"""Spread of embeddings (1: even over the sphere) below which they have collapsed."""

COLLAPSED_FEATURES_STD = 0.05
"""The same for features: after a ReLU they share a direction from the start."""

COLLAPSED_RANK_SHARE = 0.02
"""Share of the dimensions in use (RankMe) below which embeddings have collapsed."""

FLAT_SOFTMAX = 0.98
"""Share of the other rows with equal weight in the softmax above which the temperature does not discriminate."""

USUAL_TEMPERATURE = 0.5
"""The largest temperature in use; with a lower one, embeddings that are too close together may still spread by training."""

SOLVED_LOSS = 0.02
"""Share of the loss of random embeddings, log(N - 1), below which the task is solved."""

COLLAPSE_ADVICE = (
    "Lower optim.lr, lengthen optim.warmup_epochs, raise train.batch_size, and see whether the views of one image differ "
    "(reptk views)"
)

MIN_INFORMATION = 0.05
"""What an assignment to prototypes tells of its image, in nats, below which all images have the same one."""

PROTOTYPES_ADVICE = "Lower optim.lr or lengthen optim.warmup_epochs"
"""The advice that holds for every method with prototypes; a method adds its keys by `Method.prototypes_advice`."""

MAX_LOSS_RATIO = 1.5
"""Cross-entropy, as a multiple of that of equal scores for all classes, above which a classifier diverges."""

SCALE_REASON = (
    "the classifier sees the features as they are, not normalized, so a rate that suits one backbone may be far off for "
    "another"
)

DIVERGENCE_ADVICE = f"Lower optim.lr, e.g. to a tenth: {SCALE_REASON}"

LOSS_TEMPERATURE = "loss.temperature"
"""The key of the temperature in a recipe, unless the method takes no loss."""

SHORTCUT_ADVICE = (
    "Something gives the answer away: stronger color changes and smaller crops (views.strength, views.scale), or on several "
    "GPUs BatchNorm statistics of each rank's own (train.sync_batchnorm=true)"
)


def temperature_advice(key: str = LOSS_TEMPERATURE) -> str:
    """Return the advice on a temperature that is far too high; `key` is that of the recipe.

    It never contradicts `COLLAPSE_ADVICE`: a higher temperature helps neither.
    """
    return f"Lower {key} (0.05 to 0.5 is usual)"


def health(h: Tensor, ids: Tensor | None = None) -> dict[str, float]:
    """Compute alignment, uniformity, rank and spread of embeddings.

    Args:
        h: (n, F) embeddings of any scale, of which the first `MAX_ROWS` are looked at.
        ids: (n,) rows that share an id (from 0) are positives; -1 for a row without one. Without ids, or without
            positives, there is no alignment.

    Returns:
        `alignment`: mean squared distance between unit rows that share an id; 0 is perfect, 2 is chance.
        `uniformity`: log of the mean Gaussian potential exp(-2 d^2) of all pairs; 0 is collapse, about -4 the best.
        (Both: Wang and Isola 2020, arXiv 2005.10242, alpha = 2, t = 2.)
        `rank`: see `effective_rank`; `dimensions`: its maximum, min(n, F).
        `std`: standard deviation of unit rows over the sample, averaged over dimensions, times sqrt(F): 1 if spread
        evenly, 0 for collapse.

    Raises:
        NonFiniteValues: a ValueError: rows hold NaN or infinity.
    """
    check_vectors("h", h[:MAX_ROWS].float())
    z = normalize(h[:MAX_ROWS])
    # Of unit rows; rounding could make the distance of equal ones negative.
    squared_distance = (2 - 2 * z @ z.T).clamp_min_(0)
    is_pair = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    values = {
        "uniformity": squared_distance[is_pair].mul(-2).exp_().mean().log().item(),
        "rank": effective_rank(z),
        "dimensions": float(min(z.shape)),
        "std": z.std(0, unbiased=False).mean().item() * z.shape[1] ** 0.5,
    }
    if ids is None:
        return values
    ids = ids[:MAX_ROWS].to(z.device)
    is_positive = (ids[:, None] == ids) & (ids >= 0) & is_pair
    if not is_positive.any():
        return values
    return {"alignment": squared_distance[is_positive].mean().item(), **values}


def effective_rank(z: Tensor) -> float:
    """Return exp of the entropy of the singular values of (N, D) embeddings: 1 if all are parallel, at most min(N, D).

    RankMe (Garrido et al. 2023, arXiv 2210.02885); a value that falls towards 1 means collapse.

    Raises:
        NonFiniteValues: a ValueError: rows hold NaN or infinity.
    """
    # torch's error about them would speak of an algorithm that does not converge.
    check_vectors("z", z.float())
    values = torch.linalg.svdvals(z.float())
    # 1e-7 as in the paper, so that the logarithm of an unused dimension is finite.
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def is_collapsed(state: Mapping[str, float], min_std: float = COLLAPSED_STD) -> bool:
    """Whether `health` shows embeddings at a point, on a line or in few of their dimensions."""
    # A line has rank 1, whatever the number of dimensions.
    min_rank = max(1.5, COLLAPSED_RANK_SHARE * state["dimensions"])
    return state["std"] < min_std or state["rank"] < min_rank


@torch.no_grad()
def concerns(
    z: Tensor, ids: Tensor | None, *, temperature: float | None = None, temperature_key: str = LOSS_TEMPERATURE
) -> tuple[dict[str, float], dict[str, str]]:
    """Compute the health of a training step's embeddings, and what is wrong with them.

    Args:
        z: (N, D) embeddings of the global batch.
        ids: (N,) rows that share one are positives.
        temperature: of the loss, if it has one.
        temperature_key: its key in the recipe, for the advice.

    Returns:
        `health`, and messages that say what to change, under "collapse" and "temperature".
    """
    if ids is not None:
        # `health` reads negative ids as none, but those of unlabeled images in a batch of classes are negative.
        ids = ids.unique(return_inverse=True)[1]
    # A collapse explains everything else, so it is reported alone.
    state = health(z, ids)
    if is_collapsed(state):
        usage = f"the embeddings use {state['rank']:.1f} of {z.shape[1]} dimensions, spread {state['std']:.2f} of an even one"
        return state, {"collapse": f"collapse: {usage}. {COLLAPSE_ADVICE}"}
    messages = {}
    if temperature is not None:
        flatness = softmax_flatness(z, temperature)
        if flatness > FLAT_SOFTMAX:
            messages["temperature"] = _dead_temperature(temperature, flatness, temperature_key)
    return state, messages


def divergence_message(cross_entropy: float, num_classes: int) -> str | None:
    """Return a message if the cross-entropy of a training step is far above that of a classifier that knows nothing.

    Args:
        cross_entropy: natural logarithm.
        num_classes: C; equal scores for all classes have a cross-entropy of log(C), whatever the targets.
    """
    equal_scores = math.log(num_classes)
    if not cross_entropy > MAX_LOSS_RATIO * equal_scores:
        return None
    return (
        f"divergence: the cross-entropy is {cross_entropy:.1f}, and equal scores for all {num_classes} classes have "
        f"{equal_scores:.1f}. {DIVERGENCE_ADVICE}"
    )


def prototypes_message(of_views: float, of_mean: float, advice: str = PROTOTYPES_ADVICE) -> str | None:
    """Return a message if all images of a training step are assigned to the same prototypes, in the same shares.

    The difference of the two entropies is the mutual information of images and prototypes. It is 0 for both forms of collapse
    that DINO can have (arXiv 2104.14294, section 5.3): to one prototype, and to all of them equally.

    Args:
        of_views: mean entropy of the assignments, in nats.
        of_mean: entropy of the mean assignment, in nats.
        advice: what to change, a sentence.
    """
    if of_mean - of_views >= MIN_INFORMATION:
        return None
    return (
        f"collapse of the prototypes: each image is assigned to {math.exp(of_views):.0f} of them in effect, and all images to "
        f"{math.exp(of_mean):.0f}, so that an assignment tells nothing of its image. {advice}"
    )


def shortcut_message(loss: float, num_candidates: int, *, accuracy: float, untrained: float) -> str | None:
    """Return a message if the loss of a training step is near 0 and the evaluation is no better than before training.

    Args:
        loss: NT-Xent, SupCon or a similar one.
        num_candidates: rows that each embedding of the step is compared with.
        accuracy, untrained: the headline metric now and before training.
    """
    # Of random embeddings: all candidates have about the same probability.
    chance_loss = math.log(max(num_candidates, 2))
    is_solved = loss < SOLVED_LOSS * chance_loss
    if not is_solved or accuracy > untrained:
        return None
    return (
        f"leak: the loss is {loss:.3g} of {chance_loss:.3g} for random embeddings, so the task is solved, yet the "
        f"evaluation is no better than before training. {SHORTCUT_ADVICE}"
    )


def _dead_temperature(temperature: float, flatness: float, key: str) -> str:
    """Return the message about a temperature that weighs all negatives equally."""
    message = (
        f"dead temperature: {temperature:g} is too high for embeddings this close together: all negatives get the same weight "
        f"(in effect {100 * flatness:.0f} % of a batch)"
    )
    if temperature > USUAL_TEMPERATURE:
        return f"{message}. {temperature_advice(key)}"
    return f"{message}. Lower {key} if the rank does not rise within the next epochs"


def softmax_flatness(z: Tensor, temperature: float) -> float:
    """Return the perplexity of softmax(similarity / temperature) over the other rows as a share of their number, averaged."""
    z = normalize(z[:MAX_ROWS])
    log_p = (z @ z.T / temperature).fill_diagonal_(-torch.inf).log_softmax(1)
    # The diagonal is -inf with probability 0, and 0 times -inf would be NaN.
    entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(1)
    return (entropy.exp().mean() / max(len(z) - 1, 1)).item()

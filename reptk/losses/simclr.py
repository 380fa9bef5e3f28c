"""NT-Xent, the loss of SimCLR."""

from torch import Tensor, nn

from reptk.config.registry import LOSSES
from reptk.losses.arguments import PositiveFloat, current_value, logit_scale_of, temperature_argument
from reptk.losses.core.row_statistics import RowStatistics, Term, mean_over_anchors


def simclr(
    z: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> Tensor:
    """NT-Xent (Chen et al. 2020, arXiv 2002.05709, equation 1).

    With unit rows and s_ij = z_i . z_j, for an anchor i and each other view p of the same image:

        l(i, p) = -log( exp(s_ip / t) / sum_{a != i} exp(s_ia / t) )

    averaged over p, then over the anchors: the paper's 1/(2N) sum for two views, and SupCon's `out` form for more.
    Google's code returns twice the paper's value (the sum of both directions); this returns the paper's.

    Args:
        z: (N, D) embeddings of any scale and floating type.
        ids: (N,) integers: the image each row is a view of.
        temperature: t > 0; a scalar tensor gets its gradient.
        keys: (K, D) further rows to compare with, e.g. a queue; they are not anchors and get no gradient.
        key_ids: (K,) their ids.

    Returns:
        Scalar in float32 or wider; 0, attached to the graph, if no row has a second view.

    Raises:
        ValueError: wrong shapes or types, temperature not positive.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(simclr(z, torch.tensor([0, 1, 0, 1]), temperature=0.5).item(), 4)
        0.2395
    """
    logit_scale = logit_scale_of(temperature)
    rows = RowStatistics(z, ids, keys, key_ids)
    mean_similarity, log_denominator = rows.measure(Term("others", logit_scale))
    return mean_over_anchors(log_denominator - logit_scale * mean_similarity, rows.positives())


@LOSSES.register("simclr")
class SimCLR(nn.Module):
    """SimCLR's loss (NT-Xent, Chen et al. 2020), `simclr` as a module: forward(z (N, D), ids (N,)) -> scalar.

    Args:
        temperature: t > 0; where learning starts, if it is learned.
        learn_temperature: learn the temperature, through its logarithm.
    """

    computes_local_rows = True

    def __init__(self, temperature: PositiveFloat = 0.5, learn_temperature: bool = False) -> None:
        super().__init__()
        self.temperature = temperature_argument(temperature, learn_temperature)

    def forward(self, z: Tensor, ids: Tensor, keys: Tensor | None = None, key_ids: Tensor | None = None) -> Tensor:
        return simclr(z, ids, temperature=current_value(self.temperature), keys=keys, key_ids=key_ids)

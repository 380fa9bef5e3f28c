"""Supervised contrastive loss, both summation forms."""

from typing import Literal

from torch import Tensor, nn

from reptk.config.registry import LOSSES
from reptk.losses.arguments import PositiveFloat, current_value, logit_scale_of, temperature_argument
from reptk.losses.core.row_statistics import RowStatistics, Term, mean_over_anchors


def supcon(
    z: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    form: Literal["out", "in"] = "out",
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> Tensor:
    """SupCon loss (Khosla et al. 2020, arXiv 2004.11362, equations 2 and 3).

    With unit rows, s_ij = z_i . z_j, P(i) the other rows that share i's id and A(i) all rows but i:

        out:  L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) )
        in:   L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) )

    The result is the mean of L_i over the anchors that have a positive. The paper sums over anchors; the authors' code
    takes the mean over all of them and multiplies it by temperature / base_temperature. This function does neither.

    Args:
        z: (N, D) embeddings of any scale and floating type.
        ids: (N,) integers; rows that share an id are positives.
        temperature: t > 0; a scalar tensor gets its gradient.
        form: `"out"` (the paper's choice) or `"in"`; in <= out.
        keys: (K, D) further rows to compare with, e.g. a queue; they are not anchors and get no gradient.
        key_ids: (K,) their ids.

    Returns:
        Scalar in float32 or wider; 0, attached to the graph, if no row has a positive.

    Raises:
        ValueError: wrong shapes or types, temperature not positive, unknown form.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(supcon(z, torch.tensor([0, 0, 1, 1]), temperature=0.5).item(), 4)
        0.2395
    """
    logit_scale = logit_scale_of(temperature)
    _check_form(form)
    rows = RowStatistics(z, ids, keys, key_ids)
    num_positives = rows.positives()
    others, positives = Term("others", logit_scale), Term("positives", logit_scale)
    if form == "out":
        mean_similarity, log_denominator = rows.measure(others)
        per_anchor = log_denominator - logit_scale * mean_similarity
    else:
        _, log_denominator, log_numerator = rows.measure(others, positives)
        # The 1 keeps rows without positives finite; `mean_over_anchors` leaves them out.
        log_count = num_positives.clamp_min(1).to(log_denominator.dtype).log()
        per_anchor = log_denominator - log_numerator + log_count
    return mean_over_anchors(per_anchor, num_positives)


def _check_form(form: str) -> str:
    if form not in ("out", "in"):
        raise ValueError(f"form must be 'out' or 'in', got {form!r}")
    return form


@LOSSES.register("supcon")
class SupCon(nn.Module):
    """The supervised contrastive loss (Khosla et al. 2020), `supcon` as a module: forward(z (N, D), ids (N,)) -> scalar.

    Args:
        temperature: t > 0; where learning starts, if it is learned.
        form: `"out"` or `"in"`.
        learn_temperature: learn the temperature, through its logarithm.
    """

    computes_local_rows = True

    def __init__(
        self, temperature: PositiveFloat = 0.1, form: Literal["out", "in"] = "out", learn_temperature: bool = False
    ) -> None:
        super().__init__()
        self.temperature = temperature_argument(temperature, learn_temperature)
        self.form = _check_form(form)

    def forward(self, z: Tensor, ids: Tensor, keys: Tensor | None = None, key_ids: Tensor | None = None) -> Tensor:
        return supcon(z, ids, temperature=current_value(self.temperature), form=self.form, keys=keys, key_ids=key_ids)

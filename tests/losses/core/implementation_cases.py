"""Batches of a size that no tile or block divides, and losses at ordinary and low temperatures, for all implementations."""

from functools import partial

import pytest
import torch

from loss_batches import value_and_gradient
from reptk.losses import RowStatistics, Term, implementation, simclr, supcon, tcl
from reptk.plugins.dcl import DCL

N = 61  # a prime

ID_LAYOUTS = {
    "one class": torch.zeros(N, dtype=torch.long),
    "all distinct": torch.arange(N),
    "pairs": torch.arange(N) // 2,
    "five classes": torch.arange(N) % 5,
    "unbalanced": (torch.arange(N).double().sqrt().long() * 7) % 11,
}
every_id_layout = pytest.mark.parametrize("ids", ID_LAYOUTS.values(), ids=ID_LAYOUTS)

CASES = {
    "supcon out": partial(supcon, temperature=0.1),
    "supcon in": partial(supcon, temperature=0.1, form="in"),
    "supcon cold": partial(supcon, temperature=0.001),
    "tcl": partial(tcl, temperature=0.1, k1=5000.0, k2=1.0),
    "tcl k2=3": partial(tcl, temperature=0.1, k1=5.0, k2=3.0),
    "tcl cold": partial(tcl, temperature=0.01, k1=5.0, k2=0.5),
    "simclr": partial(simclr, temperature=0.5),
    "dcl": DCL(temperature=0.1),
}
every_case = pytest.mark.parametrize("loss", CASES.values(), ids=CASES)


def value_and_gradient_by(name, loss, z, ids):
    with implementation(name):
        return value_and_gradient(loss, z, ids)


def sum_of_all_statistics(z, ids, keys, key_ids, temperature):
    """All kinds of sums with all kinds of weights, as one number."""
    statistics = RowStatistics(z, ids, keys, key_ids).measure(
        Term("others", 1 / temperature),
        Term("negatives", 1 / temperature),
        Term("positives", -1.0),
        [Term("positives", 1 / temperature, 1.0)],
    )
    weights = torch.linspace(1, 2, len(z), dtype=z.dtype)
    return sum((torch.where(values.isinf(), 0.0, values) * weights).sum() for values in statistics)

"""Losses on embeddings: loss(z (N, D), ids (N,)) -> scalar. Rows that share an id are positives of each other."""

from reptk.losses.operators import implementation, own_rows
from reptk.losses.rows import Rows, Term, mean_over_anchors, normalize
from reptk.losses.simclr import SimCLR, simclr
from reptk.losses.supcon import SupCon, supcon
from reptk.losses.tcl import TCL, tcl

__all__ = [
    "TCL",
    "Rows",
    "SimCLR",
    "SupCon",
    "Term",
    "implementation",
    "mean_over_anchors",
    "normalize",
    "own_rows",
    "simclr",
    "supcon",
    "tcl",
]

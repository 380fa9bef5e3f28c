"""Losses on embeddings: loss(z (N, D), ids (N,)) returns a scalar. Rows that share an id are positives of each other."""

from reptk.losses.core.implementations import implementation, local_rows
from reptk.losses.core.row_statistics import RowStatistics, Term, mean_over_anchors, normalize
from reptk.losses.protocol import Loss
from reptk.losses.proxy_anchor import ProxyAnchor, proxy_anchor
from reptk.losses.siglip import SigLIP, siglip
from reptk.losses.simclr import SimCLR, simclr
from reptk.losses.smooth_ap import SmoothAP, smooth_ap
from reptk.losses.subcenter_arcface import SubCenterArcFace, subcenter_arcface
from reptk.losses.supcon import SupCon, supcon
from reptk.losses.tcl import TCL, tcl

__all__ = [
    "TCL",
    "Loss",
    "ProxyAnchor",
    "RowStatistics",
    "SigLIP",
    "SimCLR",
    "SmoothAP",
    "SubCenterArcFace",
    "SupCon",
    "Term",
    "implementation",
    "local_rows",
    "mean_over_anchors",
    "normalize",
    "proxy_anchor",
    "siglip",
    "simclr",
    "smooth_ap",
    "subcenter_arcface",
    "supcon",
    "tcl",
]

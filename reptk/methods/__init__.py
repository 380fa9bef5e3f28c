"""Methods are the modules that the training loop trains: method(batch, step) -> {"loss": ..., ...}."""

from reptk.methods.barlow_twins import BarlowTwins
from reptk.methods.byol import BYOL
from reptk.methods.classify import Classify
from reptk.methods.contrastive import Contrastive, class_ids, has_positives
from reptk.methods.dino import DINO
from reptk.methods.distill import Distill
from reptk.methods.ema import cosine_momentum, momentum_copy, update_momentum_copy
from reptk.methods.joint import Joint
from reptk.methods.lejepa import LeJEPA
from reptk.methods.moco import MoCo
from reptk.methods.moco_v3 import MoCoV3
from reptk.methods.protocol import Batch, Method, Step, needs_full_images
from reptk.methods.prototypes import Prototypes
from reptk.methods.queue import Queue
from reptk.methods.simsiam import SimSiam
from reptk.methods.sinkhorn import sinkhorn
from reptk.methods.swav import SwAV
from reptk.methods.vicreg import VICReg
from reptk.methods.xbm import XBM
from reptk.models.mlp import final_batch_norm, mlp

__all__ = [
    "BYOL",
    "DINO",
    "XBM",
    "BarlowTwins",
    "Batch",
    "Classify",
    "Contrastive",
    "Distill",
    "Joint",
    "LeJEPA",
    "Method",
    "MoCo",
    "MoCoV3",
    "Prototypes",
    "Queue",
    "SimSiam",
    "Step",
    "SwAV",
    "VICReg",
    "class_ids",
    "cosine_momentum",
    "final_batch_norm",
    "has_positives",
    "mlp",
    "momentum_copy",
    "needs_full_images",
    "sinkhorn",
    "update_momentum_copy",
]

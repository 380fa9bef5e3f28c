"""Methods are the modules that the training loop trains: method(batch, step) -> {"loss": ..., ...}."""

from reptk.methods.classify import Classify
from reptk.methods.contrastive import Contrastive, class_ids, has_positives
from reptk.methods.ema import cosine_momentum, momentum_copy, update_momentum_copy
from reptk.methods.joint import Joint
from reptk.methods.mlp import final_batch_norm, mlp
from reptk.methods.protocol import Batch, Method, Step, draws_on_whole_pictures
from reptk.methods.queue import Queue
from reptk.methods.xbm import XBM

__all__ = [
    "XBM",
    "Batch",
    "Classify",
    "Contrastive",
    "Joint",
    "Method",
    "Queue",
    "Step",
    "class_ids",
    "cosine_momentum",
    "draws_on_whole_pictures",
    "final_batch_norm",
    "has_positives",
    "mlp",
    "momentum_copy",
    "update_momentum_copy",
]

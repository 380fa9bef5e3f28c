"""Methods: what the training loop trains. method(batch, step) -> {"loss": ..., ...}."""

from reptk.methods.contrastive import Contrastive, class_ids, has_positives
from reptk.methods.protocol import Batch, Method, Step

__all__ = ["Batch", "Contrastive", "Method", "Step", "class_ids", "has_positives"]

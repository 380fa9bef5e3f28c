"""Methods: what the training loop trains. method(batch, step) -> {"loss": ..., ...}."""

from reptk.methods.contrastive import Contrastive

__all__ = ["Contrastive"]

"""A moving average of the encoder's weights (EMA), which may be evaluated and exported instead of the trained ones."""

from timm.utils import ModelEmaV3

from reptk.methods import Step
from reptk.models.encoder import Encoder


def average_weights(encoder: Encoder, decay: float) -> ModelEmaV3 | None:
    """Return a moving average of an encoder, which begins with its weights; None if `decay` is 0.

    It is timm's `ModelEmaV3` with its warm-up: the decay of step number n is at most 1 - (n + 1)^(-2/3), so that a run of a few
    hundred steps forgets the random weights of the head. Running statistics of BatchNorm are averaged as the weights are. The
    momentum encoders of `reptk.methods` differ in that: they see images in training, and compute statistics of their own.

    Args:
        encoder: on its device.
        decay: of the average from step to step.
    """
    if not decay:
        return None
    ema = ModelEmaV3(encoder, decay=decay, use_warmup=True)
    return ema.requires_grad_(False)


def update_average(ema: ModelEmaV3, encoder: Encoder, step: Step) -> None:
    """Update the average after a step of the optimizer; the first step's weights replace the initial ones."""
    ema.update(encoder, step.number + 1)

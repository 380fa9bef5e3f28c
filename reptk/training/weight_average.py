"""A moving average of the weights (EMA), which may be evaluated and exported instead of the trained ones."""

from timm.utils import ModelEmaV3
from torch import nn

from reptk.methods import Method, Step

ENCODER, CLASSIFIER = "encoder", "classifier"
"""Names of the modules in the average."""


def average_weights(method: Method, decay: float) -> ModelEmaV3 | None:
    """Return a moving average of a method's encoder and classifier, which begins with their weights; None if `decay` is 0.

    It is timm's `ModelEmaV3` with its warm-up: the decay of step number n is at most 1 - (n + 1)^(-2/3), so that a run of a few
    hundred steps forgets the random weights of the head. Running statistics of BatchNorm are averaged as the weights are. The
    momentum encoders of `reptk.methods` differ in that: they see images in training, and compute statistics of their own.

    Args:
        method: on its device.
        decay: of the average from step to step.
    """
    if not decay:
        return None
    ema = ModelEmaV3(_averaged_modules(method), decay=decay, use_warmup=True)
    return ema.requires_grad_(False)


def update_average(ema: ModelEmaV3, method: Method, step: Step) -> None:
    """Update the average after a step of the optimizer; the first step's weights replace the initial ones."""
    ema.update(_averaged_modules(method), step.number + 1)


def _averaged_modules(method: Method) -> nn.ModuleDict:
    modules: dict[str, nn.Module] = {ENCODER: method.encoder}
    if method.classifier is not None:
        modules[CLASSIFIER] = method.classifier
    return nn.ModuleDict(modules)

"""A method's encoders: which of them is trained, and their parameters that the optimizer treats apart."""

from torch import nn

from reptk.methods import Method
from reptk.models.encoder import Encoder


def trained_encoder(method: Method) -> Encoder:
    """Return the first encoder of a method that is trained, or, if none is, the one that is evaluated.

    The one that is evaluated may be a moving average of the trained one.
    """
    for encoder in _encoders(method):
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            return encoder
    return method.encoder


def layer_scales(method: Method, decay: float) -> list[tuple[nn.Parameter, float]]:
    """Return the parameters of all backbones that are trained, with the factors of their layers on the learning rate.

    Args:
        method: of the run.
        decay: of the learning rate from each layer to the one below; see `Encoder.layer_scales`.

    Raises:
        UsageError: timm does not define the layers of a backbone.
    """
    scales = []
    for encoder in _encoders(method):
        # The one that is evaluated may be a moving average, which is not trained.
        if any(parameter.requires_grad for parameter in encoder.backbone.parameters()):
            scales += encoder.layer_scales(decay)
    return scales


def undecayed_parameters(method: Method) -> list[nn.Parameter]:
    """Return the parameters of all encoders, besides norms and biases, that get no weight decay."""
    parameters = []
    for encoder in _encoders(method):
        parameters += encoder.undecayed_parameters()
    return parameters


def _encoders(method: Method) -> list[Encoder]:
    return [module for module in method.modules() if isinstance(module, Encoder)]

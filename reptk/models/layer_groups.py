"""The layers of a backbone in the order of its computation, as timm groups them: stem, then stages or blocks."""

from types import SimpleNamespace

from timm.models import group_parameters
from torch import nn

from reptk.core.errors import UsageError

UNMATCHED = "reptk_head.weight"
"""A name of no backbone, for models that name no classifier."""


def layer_groups(backbone: nn.Module, key: str) -> list[list[str]]:
    """Return the names of the parameters of the stem and of each stage or block, by `timm.models.group_parameters`.

    What follows the last stage (a norm, a last convolution) belongs to it, or is a group of its own, as timm has it.

    Args:
        backbone: of timm.
        key: of the recipe that needs the groups, for the message.

    Raises:
        UsageError: timm defines no groups for this backbone.
    """
    _check_has_groups(backbone, key)
    return list(group_parameters(backbone, backbone.group_matcher(coarse=True)).values())


def layer_scales(backbone: nn.Module, decay: float, key: str) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter: `decay` to the power of its layer's distance from the head.

    The factors are those of `timm.optim.param_groups_layer_decay` for the backbone with a classifier, which the projection
    head stands in for: the last layer has `decay`, the one before `decay ** 2`, ..., the stem the smallest. What timm groups
    with the classifier, e.g. the last norm of a ConvNeXt, has 1.

    Source: BEiT, arXiv 2106.08254, appendix; ELECTRA, arXiv 2003.10555, section 3.1.

    Args:
        backbone: of timm.
        decay: of the learning rate from each layer to the one below.
        key: of the recipe, for the message.

    Returns:
        Factors by the names of the parameters.

    Raises:
        UsageError: timm defines no groups for this backbone.
    """
    _check_has_groups(backbone, key)
    classifier = backbone.pretrained_cfg.get("classifier") or ""
    if isinstance(classifier, tuple | list):
        classifier = classifier[0]
    head = UNMATCHED
    if classifier:
        head = f"{classifier}.weight"
    names = [name for name, _ in backbone.named_parameters()]
    # The name of the classifier's weight, as if the backbone had one, so that the head is a layer as well. Of a module, timm's
    # function uses the names of the parameters alone.
    with_head = SimpleNamespace(named_parameters=lambda: [(name, None) for name in [*names, head]])
    layer_of = group_parameters(with_head, backbone.group_matcher(coarse=False), reverse=True)
    last_layer = max(layer_of.values())
    return {name: decay ** (last_layer - layer_of[name]) for name in names}


def _check_has_groups(backbone: nn.Module, key: str) -> None:
    # timm defines the groups of nearly all of its models; there is no base class that says so.
    if not hasattr(backbone, "group_matcher"):
        architecture = backbone.pretrained_cfg.get("architecture", type(backbone).__name__)
        raise UsageError(
            f"{key} needs the layers of {architecture}, and timm does not say which they are (it has no group_matcher). "
            "Leave the key out, or use another encoder.backbone"
        )

"""The stem for small images: backbones for 224 px reduce the resolution fourfold before their first stage."""

from torch import nn

from reptk.core.errors import UsageError

FIRST_POOLINGS = ("maxpool", "features.pool0", "stem.pool", "layer0.pool")
"""What timm's models call the pooling after the first convolutions."""


def use_small_stem(backbone: nn.Module, name: str) -> str:
    """Replace the first convolution by a 3 x 3 one with stride 1, and remove the pooling after it.

    The new convolution has initial weights, unless the old one had the same shape, whose weights it then takes over.

    Args:
        backbone: of timm, changed in place.
        name: of the backbone, for messages.

    Returns:
        The name of the new weight in the state dict.

    Raises:
        UsageError: the backbone does not begin with a convolution of stride 2.
    """
    path = backbone.pretrained_cfg.get("first_conv")
    old = None
    if isinstance(path, str):  # it is a tuple where the first layer has several parts
        old = backbone.get_submodule(path)
    if not isinstance(old, nn.Conv2d) or old.stride != (2, 2):
        raise UsageError(
            f"encoder.stem: 'small' is for backbones that start with a convolution of stride 2; {name} does not. "
            "Use encoder.stem=timm, with a small patch size in the name if there is one"
        )
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=old.bias is not None)
    # timm's initialization of convolutions in ResNets.
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.weight.shape == old.weight.shape:
        new.load_state_dict(old.state_dict())
    backbone.set_submodule(path, new)
    module_paths = {module_path for module_path, _ in backbone.named_modules(remove_duplicate=False)}
    for pooling in FIRST_POOLINGS:
        if pooling in module_paths:
            backbone.set_submodule(pooling, nn.Identity())
    return f"{path}.weight"

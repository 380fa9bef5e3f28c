"""Names that projects give to the tensors of an encoder, and which encoder of a file they evaluate."""

import re
from collections.abc import Callable

PREFERRED = (
    ("encoder_q", "encoder_k"),  # MoCo v1 and v2: the encoder of the queries
    ("base_encoder", "momentum_encoder"),  # MoCo v3
    ("backbone", "momentum_backbone"),  # solo-learn
    ("encoder", "momentum_encoder"),  # solo-learn before 1.0.5, and reptk's MoCo
    ("encoder", "target"),  # reptk's BYOL
    ("encoder", "student"),  # reptk's DINO
    ("backbone", "backbone_momentum"),  # lightly: MoCo, BYOL
    ("teacher_backbone", "student_backbone"),  # lightly: DINO
    ("teacher", "student"),  # DINO, DINOv2 and iBOT evaluate the teacher
    ("online_encoder", "target_encoder"),  # BYOL
    ("online_network", "target_network"),  # BYOL
    ("model_ema", "model"),  # timm evaluates the moving average
    ("state_dict_ema", "state_dict"),  # timm
)
"""Which encoder is used where a file has both: the one that its project evaluates."""


def timm_names(name: str) -> str:
    """Names as timm has them; torchvision's ResNets, DINO, MAE and MoCo have the same.

    - MoCo v1, v2 (facebookresearch/moco): `state_dict` / `module.encoder_q.`, `module.encoder_k.`, `module.queue`
    - MoCo v3 (facebookresearch/moco-v3): `state_dict` / `module.base_encoder.`, `module.momentum_encoder.`
    - DINO (facebookresearch/dino): `student` / `module.backbone.`, `teacher` / `backbone.`; released backbones without
    - MAE (facebookresearch/mae): `model` / the encoder's names and `mask_token`, `decoder_...`
    - solo-learn (vturrisi/solo-learn): `state_dict` / `backbone.`, `momentum_backbone.`
    """
    return name


def supcontrast_names(name: str) -> str:
    """HobbitLong/SupContrast: `model` / `encoder.` or `encoder.module.`; the ResNets call the downsampling `shortcut`."""
    return name.replace(".shortcut.", ".downsample.")


LIGHTLY_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def lightly_names(name: str) -> str:
    """lightly-ai/lightly: `backbone.`, an `nn.Sequential` of the children of torchvision's ResNet, numbered."""
    number, dot, rest = name.partition(".")
    return LIGHTLY_CHILDREN.get(number, number) + dot + rest


def dinov2_names(name: str) -> str:
    """facebookresearch/dinov2: `teacher` / `backbone.`; training divides the blocks into chunks, `blocks.CHUNK.BLOCK.`."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


LAYOUTS: tuple[Callable[[str], str], ...] = (timm_names, supcontrast_names, lightly_names, dinov2_names)

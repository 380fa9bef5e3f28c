"""LoRA: low-rank updates of linear layers whose own weights are frozen (Hu et al. 2021, arXiv 2106.09685).

A layer computes W x + b + (alpha / rank) B A dropout(x) with A (rank, in) and B (out, rank), and A and B alone are trained. B
begins with zeros, so that the first step sees the pretrained model.

PEFT's layer is not used: it needs transformers and accelerate, and it renames the wrapped layers. In neither can a layer be
updated whose weight a model uses without calling the layer, as BEiT does with its `qkv`; here that is an error.
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from reptk.core.errors import UsageError
from reptk.core.name_lists import first_names

KEY = "encoder.lora_layers"
PARAMETERS = ("lora_a", "lora_b")
"""Names of A and B in a layer."""

MAX_LISTED_LAYERS = 12


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank update, which keeps the weight and bias of the layer that it replaces, and their names.

    Args:
        linear: the layer to replace.
        rank: of the update.
        alpha: the update is multiplied by alpha / rank.
        dropout: of the update's input in training.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        # No weights are drawn on the device "meta"; they are those of the layer.
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.lora_dropout = nn.Dropout(dropout)
        # As microsoft/LoRA and PEFT initialize A: like torch's linear layers.
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        update = functional.linear(functional.linear(self.lora_dropout(x), self.lora_a), self.lora_b)
        return super().forward(x) + self.scale * update

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return the weight (out, in) of the linear layer that computes the same in evaluation mode."""
        return self.weight + self.scale * (self.lora_b @ self.lora_a)


def add_lora(
    backbone: nn.Module,
    names: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    frozen: Collection[str] = (),
) -> list[str]:
    """Give linear layers a low-rank update, and stop training everything else in the backbone.

    Args:
        backbone: changed in place.
        names: of the layers, without the path before them: `qkv` for `blocks.0.attn.qkv` and those of the other blocks.
        rank, alpha, dropout: see `LoRALinear`.
        frozen: names of parameters that are frozen already; their layers get no update.

    Returns:
        The paths of the layers.

    Raises:
        UsageError: a name matches no linear layer, or encoder.freeze leaves none to train.
    """
    linear_layers = {path: layer for path, layer in backbone.named_modules() if isinstance(layer, nn.Linear)}
    _check_names(backbone, names, list(linear_layers))
    backbone.requires_grad_(False)
    paths = []
    for path, layer in linear_layers.items():
        if _last(path) in names and f"{path}.weight" not in frozen:
            backbone.set_submodule(path, LoRALinear(layer, rank, alpha, dropout))
            paths.append(path)
    if not paths:
        raise UsageError(
            f"encoder.lora_rank: encoder.freeze leaves no layer called {' or '.join(names)} to train; freeze fewer layers, or "
            "leave encoder.freeze out, since LoRA trains none of the backbone's own weights"
        )
    return paths


def layers_not_called(backbone: nn.Module, images: Tensor, paths: Sequence[str]) -> list[str]:
    """Return the layers of a backbone that encoding images does not call, so that their updates would have no effect.

    Args:
        backbone: in evaluation mode.
        images: (B, 3, H, W).
        paths: of the layers.
    """
    called: set[str] = set()
    hooks = []
    for path in paths:
        layer = backbone.get_submodule(path)
        hooks.append(layer.register_forward_hook(lambda *_, path=path: called.add(path)))
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [path for path in paths if path not in called]


def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the same module without LoRA: updates are added to the weights, and A and B are left out."""
    state = module.state_dict()
    for path, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            prefix = f"{path}." if path else ""
            state[f"{prefix}weight"] = layer.merged_weight()
            for name in PARAMETERS:
                del state[f"{prefix}{name}"]
    return state


def _check_names(backbone: nn.Module, names: Sequence[str], paths: Sequence[str]) -> None:
    known = list(dict.fromkeys(map(_last, paths)))
    missing = [name for name in names if name not in known]
    if not missing and names:
        return
    architecture = backbone.pretrained_cfg.get("architecture", type(backbone).__name__)
    listed = first_names(known, MAX_LISTED_LAYERS) or "none"
    reason = f"{architecture} has no linear layer called {' or '.join(missing)}"
    if not names:
        reason = "no layers are named"
    raise UsageError(
        f"{KEY}: {reason} (its linear layers: {listed}). LoRA is for the attention of vision transformers (qkv, proj) and "
        "their MLPs (fc1, fc2); train other backbones whole, or in part by encoder.freeze"
    )


def _last(path: str) -> str:
    return path.rpartition(".")[2]

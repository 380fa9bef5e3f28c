"""What losses with learned vectors of each class share: labels as ids, and a parameter group of their own."""

from typing import Any

import torch
from torch import Tensor, nn

from reptk.losses.core.normalization import normalize
from reptk.losses.unit_rows import unit_rows


def initial_proxies(count: int, dimension: int) -> nn.Parameter:
    """Return `count` random vectors (count, D), drawn as in the code of Proxy-Anchor: Kaiming's normal, by the fan out."""
    proxies = torch.empty(count, dimension)
    nn.init.kaiming_normal_(proxies, mode="fan_out")
    return nn.Parameter(proxies)


def proxy_group(proxies: nn.Parameter, lr_scale: float) -> dict[str, Any]:
    """Return the parameter group of proxies: a learning rate of their own, and no weight decay, since only their
    directions count."""
    return {"params": [proxies], "lr_scale": lr_scale, "weight_decay": 0.0}


def similarities(z: Tensor, ids: Tensor, proxies: Tensor) -> Tensor:
    """Return the cosines (N, P) of rows z (N, D) with proxies (P, D), in float32 or wider.

    Raises:
        TypeError, ValueError: wrong shapes or types; see `unit_rows`.
    """
    unit = unit_rows(z, ids)
    if unit.shape[1] != proxies.shape[1]:
        raise ValueError(f"z must be as wide as the proxies, got {unit.shape[1]} and {proxies.shape[1]}")
    unit_proxies = normalize(proxies)
    dtype = torch.promote_types(unit.dtype, unit_proxies.dtype)
    with torch.autocast(z.device.type, enabled=False):
        return (unit.to(dtype) @ unit_proxies.to(dtype).T).to(unit.dtype)

"""Operations run by kornia: parameters are drawn for the global batch, then applied to this rank's rows.

Only the images that drew an operation are put through it. What reptk recognises is drawn by reptk and handed to kornia, so
that both ways of running make the same views; everything else kornia draws, under a key of its own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import kornia.augmentation as ka
import torch
from kornia.augmentation.auto import AutoAugment
from torch import Tensor, nn

from reptk.config.registry import unknown
from reptk.core import rng
from reptk.views.recognised import NEUTRAL, Blur, Crop, Flip, Gray, Jitter, Operation, Recognised, ResizedCrop

# Drawn once for a whole batch, so never cut along with it; the input shape is written anew for each cut.
_SHARED = ("order", "forward_input_shape", "idx")


class Drawn:
    """One kornia operation, drawn for `total` images and applied to the given rows of them.

    Args:
        operation: kornia's.
        recognised: who draws for it, if not kornia itself, with its `salts`.
    """

    def __init__(self, operation: nn.Module, recognised: Recognised | None = None, salts: Sequence[int] = ()) -> None:
        self.operation, self.recognised = operation, recognised
        self.salts = torch.tensor(salts, dtype=torch.int64)
        self.is_resize = isinstance(operation, ka.Resize)

    def __call__(self, images: Tensor, rows: Tensor, total: int, key: int, own_key: int) -> Tensor:
        """(n, 3, H, W) floats in 0..1, their rows (n,) in the global batch.

        Args:
            key: what recognised operations draw with, told apart by their salts.
            own_key: what kornia draws with here.
        """
        if self.is_resize and images.shape[-2:] == tuple(self.operation.flags["size"]):
            return images
        with rng.seeded(own_key, "draw"):
            params = self.operation.forward_parameters((total, *images.shape[1:]))
        if self.recognised is not None:
            u = rng.uniform(key, self.salts, torch.arange(total))
            drawn = self.recognised.draw(u, tuple(images.shape[-2:]))
            _put_in(params, self.recognised, drawn)
        drew = params["batch_prob"][rows] > 0.5
        with rng.seeded(own_key, "apply"):
            return self._apply_to(images, params, rows, drew)

    @torch.no_grad()
    def on_all(self, images: Tensor) -> Tensor:
        """As if every image drew it; for trying out.

        Raises:
            ValueError: it changes the size of some batches only.
        """
        rows = torch.arange(len(images))
        with rng.seeded("try out"):
            params = self.operation.forward_parameters(images.shape)
            changed = self.operation(images, params=_cut(params, rows, images.shape, images.device))
        kernel = getattr(self.operation, "op", self.operation)
        if changed.shape != images.shape and min(kernel.p, kernel.p_batch) < 1:
            raise ValueError(f"{type(self.operation).__name__} changes the size; give it p = 1")
        return changed

    def _apply_to(self, images: Tensor, params: dict[str, Tensor], rows: Tensor, drew: Tensor) -> Tensor:
        orders = params.pop("order of each", None)
        if orders is not None:  # one order a call is all that kornia knows
            for order in orders[rows[drew]].unique(dim=0):
                in_order = drew & (orders[rows] == order).all(1)
                images = self._apply_to(images, {**params, "order": order}, rows, in_order)
            return images
        if drew.all():
            return self.operation(images, params=_cut(params, rows, images.shape, images.device))
        if not drew.any():
            return images
        chosen = drew.nonzero().flatten()
        there = chosen.to(images.device)
        part = images[there]
        changed = self.operation(part, params=_cut(params, rows[chosen], part.shape, part.device))
        return images.index_copy(0, there, changed)


class OneOf:
    """Every image draws one of several sequences of operations (AutoAugment's sub-policies)."""

    def __init__(self, sequences: list[list[nn.Module]]) -> None:
        self.sequences = [[Drawn(operation) for operation in sequence] for sequence in sequences]

    def on_all(self, images: Tensor) -> Tensor:
        for sequence in self.sequences:
            for operation in sequence:
                operation.on_all(images)
        return images

    def __call__(self, images: Tensor, rows: Tensor, total: int, key: int, own_key: int) -> Tensor:
        choice = torch.randint(len(self.sequences), (total,), generator=rng.generator(own_key, "choice"))[rows]
        images = images.clone()
        for number, sequence in enumerate(self.sequences):
            chosen = (choice == number).nonzero().flatten()
            if len(chosen):
                there = chosen.to(images.device)
                part = images[there]
                for position, operation in enumerate(sequence):
                    part = operation(part, rows[chosen], total, key, rng.key(own_key, number, position))
                images[there] = part
        return images


def _cut(params: dict[str, Tensor], rows: Tensor, shape: torch.Size, device: torch.device) -> dict[str, Tensor]:
    """The parameters of some rows, all of which drew the operation, on the images' device."""
    cut = {name: value if name in _SHARED else value[rows].to(device) for name, value in params.items()}
    cut["batch_prob"] = torch.ones(len(rows), device=device)
    cut["forward_input_shape"] = torch.tensor(shape)
    if "batch_idx" in params:  # RandomChannelDropout: the number of each row
        cut["batch_idx"] = torch.arange(len(rows), device=device)[:, None]
    if "idx" in params:  # RandomMotionBlur: a row to read the kernel size from, which is the same in all
        cut["idx"] = torch.zeros(1, dtype=torch.long)
    return cut


def operation_of(table: Operation, recognised: Recognised | None, salts: Sequence[int]) -> Drawn | OneOf:
    """kornia's operation of a table.

    Raises:
        ValueError: kornia has none of that name, or refuses the arguments.
    """
    arguments = {name: _tuples(value) for name, value in table.items() if name != "name"}
    name = table.get("name")
    factory = getattr(ka, str(name), None)
    is_known = isinstance(factory, type) and issubclass(factory, ka.AugmentationBase2D)
    if name != "AutoAugment" and not is_known:
        raise ValueError(unknown("kornia operation", str(name), ["AutoAugment", *_known()]))
    try:
        return _auto_augment(**arguments) if name == "AutoAugment" else Drawn(factory(**arguments), recognised, salts)
    except Exception as cause:
        raise ValueError(f"kornia's {name} refuses {arguments}: {cause}") from cause


def _put_in(params: dict[str, Tensor], recognised: Recognised, drawn: Tensor) -> None:
    """Write what a recognised operation drew into kornia's parameters."""
    always = torch.ones(len(drawn))
    match recognised:
        case ResizedCrop() | Crop():
            padding = recognised.padding if isinstance(recognised, Crop) else 0
            params["src"], params["batch_prob"] = _corners(drawn, padding), always
        case Flip() | Gray():
            params["batch_prob"] = drawn[:, 0]
        case Blur():
            params["sigma"], params["batch_prob"] = drawn[:, 0], (drawn[:, 0] > 0).float()
        case Jitter():
            names = ("brightness", "contrast", "saturation", "hue")
            params |= {f"{name}_factor": drawn[:, column] for column, name in enumerate(names)}
            params["batch_prob"] = (drawn[:, :4] != drawn.new_tensor(NEUTRAL)).any(1).float()
            params["order of each"] = drawn[:, 4:].long()


def _corners(boxes: Tensor, padding: int) -> Tensor:
    """(n, 4) top, left, height, width -> (n, 4, 2) x and y of the corner pixels, clockwise, in the padded image."""
    top, left, height, width = boxes.unbind(1)
    top, left = top + padding, left + padding
    bottom, right = top + height - 1, left + width - 1
    return torch.stack([left, top, right, top, right, bottom, left, bottom], dim=1).view(-1, 4, 2)


def _auto_augment(policy: str = "cifar10") -> OneOf:
    if policy not in ("cifar10", "svhn", "imagenet"):
        raise ValueError(f"policy must be 'cifar10', 'svhn' or 'imagenet', got {policy!r}")
    return OneOf([list(sub_policy) for sub_policy in AutoAugment(policy).children()])


def _known() -> Iterator[str]:
    for name in dir(ka):
        thing = getattr(ka, name)
        if isinstance(thing, type) and issubclass(thing, ka.AugmentationBase2D) and "Base" not in name:
            yield name


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value

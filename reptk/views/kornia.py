"""Views run by kornia: parameters are drawn for the global batch, then applied to this rank's rows.

Every operation of every view draws under a key of its own, so what one operation consumes never shifts another, and
only the images that drew an operation are put through it.
"""

from collections.abc import Iterator
from typing import Any

import kornia.augmentation as ka
import torch
from kornia.augmentation.auto import AutoAugment
from torch import Tensor, nn

from reptk.keyed import fold, generator, keyed
from reptk.registry import unknown
from reptk.views.plain import to_float

Operation = dict[str, Any]

# Drawn once for a whole batch, so never cut along with it; the input shape is written anew for each cut.
_SHARED = ("order", "forward_input_shape", "idx")


class KorniaViews:
    """`len(lists)` views of every image, one list of operations each.

    Not an `nn.Module`: kornia's operations carry parameters and buffers that are neither trained nor saved.

    Args:
        lists: per view, the operations as tables `{name, ...arguments}`.
        size: side in pixels that the operations must produce.

    Raises:
        ValueError: an operation kornia does not have, arguments it refuses, or another size than asked for.
    """

    def __init__(self, lists: list[list[Operation]], size: int) -> None:
        self.lists = [[_operation(table) for table in tables] for tables in lists]
        self.count = len(lists)
        self.size = size
        self.rank, self.world = 0, 1
        self._try_out()

    def shard(self, rank: int, world: int) -> "KorniaViews":
        """Let each call receive the rank-th of `world` equal parts of a global batch."""
        self.rank, self.world = rank, world
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, key: int) -> Tensor:
        """(B, 3, H, W) uint8, or floats in 0..1 -> (V, B, 3, size, size) float; the same for the same images and key."""
        with torch.autocast(images.device.type, enabled=False):
            return self._drawn(to_float(images), key)

    def _drawn(self, images: Tensor, key: int) -> Tensor:
        total = len(images) * self.world
        rows = torch.arange(len(images)) + len(images) * self.rank
        views = []
        for number, operations in enumerate(self.lists):
            view = images
            for position, operation in enumerate(operations):
                view = operation(view, rows, total, fold(key, number, position))
            self._check_size(view)
            views.append(view)
        return torch.stack(views).clamp_(0, 1)

    def _try_out(self) -> None:
        """Apply every operation, whatever its p, so that what fails does so now and not in the middle of a run."""
        for operations in self.lists:
            view = torch.zeros(2, 3, self.size, self.size)
            try:
                for operation in operations:
                    view = operation.on_all(view)
            except ValueError:
                raise
            except Exception as cause:
                raise ValueError(f"kornia cannot run these operations at {self.size} px: {cause}") from cause
            self._check_size(view)

    def _check_size(self, view: Tensor) -> None:
        height, width = view.shape[-2:]
        if (height, width) != (self.size, self.size):
            raise ValueError(
                f"the operations give {width} x {height} px, but size is {self.size}; "
                "start with one that changes the size, e.g. Resize, and give it p = 1"
            )


class _Drawn:
    """One kornia operation, drawn for `total` images and applied to the given rows of them."""

    def __init__(self, operation: nn.Module) -> None:
        self.operation = operation
        self.is_resize = isinstance(operation, ka.Resize)

    def __call__(self, images: Tensor, rows: Tensor, total: int, key: int) -> Tensor:
        if self.is_resize and images.shape[-2:] == tuple(self.operation.flags["size"]):
            return images
        with keyed(key, "draw"):
            params = self.operation.forward_parameters((total, *images.shape[1:]))
        drew = params["batch_prob"][rows] > 0.5
        with keyed(key, "apply"):
            return self._apply_to(images, params, rows, drew)

    @torch.no_grad()
    def on_all(self, images: Tensor) -> Tensor:
        """As if every image drew it; for trying out.

        Raises:
            ValueError: it changes the size of some batches only.
        """
        rows = torch.arange(len(images))
        with keyed("try out"):
            params = self.operation.forward_parameters(images.shape)
            changed = self.operation(images, params=_cut(params, rows, images.shape, images.device))
        kernel = getattr(self.operation, "op", self.operation)
        if changed.shape != images.shape and min(kernel.p, kernel.p_batch) < 1:
            raise ValueError(f"{type(self.operation).__name__} changes the size; give it p = 1")
        return changed

    def _apply_to(self, images: Tensor, params: dict[str, Tensor], rows: Tensor, drew: Tensor) -> Tensor:
        if drew.all():
            return self.operation(images, params=_cut(params, rows, images.shape, images.device))
        if not drew.any():
            return images
        chosen = drew.nonzero().flatten()
        there = chosen.to(images.device)
        part = images[there]
        changed = self.operation(part, params=_cut(params, rows[chosen], part.shape, part.device))
        return images.index_copy(0, there, changed)


class _OneOf:
    """Every image draws one of several sequences of operations (AutoAugment's sub-policies)."""

    def __init__(self, sequences: list[list[nn.Module]]) -> None:
        self.sequences = [[_Drawn(operation) for operation in sequence] for sequence in sequences]

    def on_all(self, images: Tensor) -> Tensor:
        for sequence in self.sequences:
            for operation in sequence:
                operation.on_all(images)
        return images

    def __call__(self, images: Tensor, rows: Tensor, total: int, key: int) -> Tensor:
        choice = torch.randint(len(self.sequences), (total,), generator=generator(key, "choice"))[rows]
        images = images.clone()
        for number, sequence in enumerate(self.sequences):
            chosen = (choice == number).nonzero().flatten()
            if len(chosen):
                there = chosen.to(images.device)
                part = images[there]
                for position, operation in enumerate(sequence):
                    part = operation(part, rows[chosen], total, fold(key, number, position))
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


def _operation(table: Operation) -> "_Drawn | _OneOf":
    arguments = {name: _tuples(value) for name, value in table.items() if name != "name"}
    name = table.get("name")
    factory = getattr(ka, str(name), None)
    is_known = isinstance(factory, type) and issubclass(factory, ka.AugmentationBase2D)
    if name != "AutoAugment" and not is_known:
        raise ValueError(unknown("kornia operation", str(name), ["AutoAugment", *_known()]))
    try:
        return _auto_augment(**arguments) if name == "AutoAugment" else _Drawn(factory(**arguments))
    except Exception as cause:
        raise ValueError(f"kornia's {name} refuses {arguments}: {cause}") from cause


def _auto_augment(policy: str = "cifar10") -> _OneOf:
    if policy not in ("cifar10", "svhn", "imagenet"):
        raise ValueError(f"policy must be 'cifar10', 'svhn' or 'imagenet', got {policy!r}")
    return _OneOf([list(sub_policy) for sub_policy in AutoAugment(policy).children()])


def _known() -> Iterator[str]:
    for name in dir(ka):
        thing = getattr(ka, name)
        if isinstance(thing, type) and issubclass(thing, ka.AugmentationBase2D) and "Base" not in name:
            yield name


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value

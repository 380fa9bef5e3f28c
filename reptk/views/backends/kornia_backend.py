"""The operations by kornia's own classes; and those that only kornia has, which kornia draws as well.

Only the images that drew an operation are put through it. Whatever kornia draws is drawn for the global batch, under a key
of its own, and then cut to the images of this rank.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import kornia.augmentation as ka
import torch
from kornia.augmentation.auto import AutoAugment
from torch import Tensor, nn

from reptk.config.registry import unknown
from reptk.core import rng
from reptk.core.images import scale_to_unit
from reptk.views.crops import RandomCrop, RandomResizedCrop
from reptk.views.operations import ColorJitter, RandomGaussianBlur, ViewOperation
from reptk.views.tables import Operation

KorniaParams = dict[str, Tensor]

# Entries of kornia's parameters that have no row for each image.
_WHOLE_BATCH = ("order", "forward_input_shape", "idx")
_JITTER_FACTORS = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")


class BatchRows(NamedTuple):
    """The images of this rank: `count` of the `total` images of the global batch, from number `first`."""

    first: int
    count: int
    total: int

    def numbers(self, device: torch.device | str = "cpu") -> Tensor:
        """(count,) numbers of the images in the global batch."""
        return torch.arange(self.count, device=device) + self.first


class KorniaBackend:
    """A `Backend` of kornia's operations, given the parameters that reptk drew.

    Args:
        operations: reptk's, whose parameters are passed to the modules.
        modules: kornia's, of the same operations.
    """

    def __init__(self, operations: Sequence[ViewOperation], modules: Sequence[nn.Module]) -> None:
        self.operations, self.modules = operations, modules

    def run(self, images: Tensor, params: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        images = scale_to_unit(images)
        # kornia draws values that are then replaced; the block restores the state of torch's generator.
        with rng.seeded("kornia"):
            for operation, module, table in zip(self.operations, self.modules, params, strict=True):
                images = _run_native(images, operation, module, table)
        return images

    def try_out(self, images: Tensor) -> Tensor:
        """See `KorniaOperation.try_out`."""
        for module in self.modules:
            images = _try_out(module, images)
        return images


def _run_native(images: Tensor, operation: ViewOperation, module: nn.Module, table: Tensor) -> Tensor:
    if _is_resized(module, images):
        return images
    # What is not random, such as where the corners of a crop go, is kornia's.
    params = module.forward_parameters(images.shape)
    is_applied = operation.is_applied(table)
    if isinstance(operation, RandomResizedCrop):
        params["src"] = _corners(table, 0)
    elif isinstance(operation, RandomCrop):
        params["src"] = _corners(table, operation.padding)
    elif isinstance(operation, RandomGaussianBlur):
        params["sigma"] = table[:, 0]
    elif isinstance(operation, ColorJitter):
        for column, name in enumerate(_JITTER_FACTORS):
            params[name] = table[:, column]
        # kornia has one order for all images of a call.
        orders = table[:, 4:].long()
        for order in orders[is_applied].unique(dim=0):
            has_order = is_applied & (orders == order).all(1)
            images = _apply_to(images, module, {**params, "order": order}, torch.arange(len(images)), has_order)
        return images
    return _apply_to(images, module, params, torch.arange(len(images)), is_applied)


def _corners(boxes: Tensor, padding: int) -> Tensor:
    """(n, 4) top, left, height, width -> (n, 4, 2) x and y of the corner pixels, clockwise, in the padded image."""
    top, left, height, width = boxes.unbind(1)
    top, left = top + padding, left + padding
    bottom, right = top + height - 1, left + width - 1
    return torch.stack([left, top, right, top, right, bottom, left, bottom], dim=1).view(-1, 4, 2)


class KorniaOperation:
    """One operation of kornia, drawn by kornia for the global batch."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, images: Tensor, numbers: Tensor, total: int, key: int) -> Tensor:
        """Apply the operation to images (n, 3, H, W), floats in 0..1.

        Args:
            numbers: (n,) numbers of the images in the global batch, on the CPU, where kornia draws.
            total: images in the global batch.
        """
        if _is_resized(self.module, images):
            return images
        # For all images of all ranks, so that each rank gets the rows that a single process would.
        with rng.seeded(key, "draw"):
            params = self.module.forward_parameters((total, *images.shape[1:]))
        is_applied = params["batch_prob"][numbers] > 0.5
        # Some operations, such as noise, also draw while they are applied.
        with rng.seeded(key, "apply"):
            return _apply_to(images, self.module, params, numbers, is_applied)

    def try_out(self, images: Tensor) -> Tensor:
        """Apply the operation as if every image drew it.

        Raises:
            ValueError: it changes the size of some batches only.
        """
        return _try_out(self.module, images)


class KorniaChoice:
    """One of several sequences of operations for each image (AutoAugment's sub-policies)."""

    def __init__(self, sequences: Sequence[Sequence[nn.Module]]) -> None:
        self.sequences: list[list[KorniaOperation]] = []
        for sequence in sequences:
            self.sequences.append([KorniaOperation(module) for module in sequence])

    def __call__(self, images: Tensor, numbers: Tensor, total: int, key: int) -> Tensor:
        """See `KorniaOperation`."""
        choices = torch.randint(len(self.sequences), (total,), generator=rng.generator(key, "choice"))[numbers]
        images = images.clone()  # written to below
        for choice, sequence in enumerate(self.sequences):
            rows = (choices == choice).nonzero().flatten()
            if len(rows) == 0:
                continue
            device_rows = rows.to(images.device)
            chosen = images[device_rows]
            for position, operation in enumerate(sequence):
                chosen = operation(chosen, numbers[rows], total, rng.key(key, choice, position))
            images[device_rows] = chosen
        return images

    def try_out(self, images: Tensor) -> Tensor:
        """Apply every operation of every sequence to the images, and return these as they were."""
        for sequence in self.sequences:
            for operation in sequence:
                operation.try_out(images)
        return images


def build_kornia(table: Operation) -> KorniaOperation | KorniaChoice:
    """Return kornia's operation for a table.

    Raises:
        ValueError: kornia has none of that name, or refuses the arguments.
    """
    name = str(table.get("name"))
    arguments = {argument: _with_tuples(value) for argument, value in table.items() if argument != "name"}
    # kornia's AutoAugment is a container and no augmentation; reptk draws a sub-policy for each image itself.
    factory = _auto_augment
    if name != "AutoAugment":
        factory = _kornia_class(name)
        if factory is None:
            raise ValueError(unknown("kornia operation", name, ["AutoAugment", *_kornia_names()]))
    try:
        operation = factory(**arguments)
    except Exception as cause:  # kornia raises errors of many types
        raise ValueError(f"kornia's {name} refuses {arguments}: {cause}") from cause
    if isinstance(operation, KorniaChoice):
        return operation
    return KorniaOperation(operation)


def _auto_augment(policy: str = "cifar10") -> KorniaChoice:
    if policy not in ("cifar10", "svhn", "imagenet"):
        raise ValueError(f"policy must be 'cifar10', 'svhn' or 'imagenet', got {policy!r}")
    return KorniaChoice([list(sub_policy) for sub_policy in AutoAugment(policy).children()])


def _kornia_class(name: str) -> type[nn.Module] | None:
    # kornia has no list of its operations: they are the subclasses of one class in its namespace.
    value = getattr(ka, name, None)
    if isinstance(value, type) and issubclass(value, ka.AugmentationBase2D):
        return value
    return None


def _kornia_names() -> Iterator[str]:
    for name in dir(ka):
        if "Base" not in name and _kornia_class(name) is not None:
            yield name


def _with_tuples(value: Any) -> Any:
    """kornia expects tuples where a table has lists."""
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value


def _is_resized(module: nn.Module, images: Tensor) -> bool:
    """Return whether a Resize would change nothing."""
    return isinstance(module, ka.Resize) and images.shape[-2:] == tuple(module.flags["size"])


def _apply_to(images: Tensor, module: nn.Module, params: KorniaParams, numbers: Tensor, is_applied: Tensor) -> Tensor:
    """Apply a module to the images (n,) for which `is_applied`; `numbers` (n,) are their rows in the parameters."""
    if is_applied.all():
        return module(images, params=_take_rows(params, numbers, images.shape, images.device))
    if not is_applied.any():
        return images
    rows = is_applied.nonzero().flatten()
    device_rows = rows.to(images.device)
    part = images[device_rows]
    changed = module(part, params=_take_rows(params, numbers[rows], part.shape, part.device))
    return images.index_copy(0, device_rows, changed)


def _take_rows(params: KorniaParams, rows: Tensor, shape: torch.Size, device: torch.device) -> KorniaParams:
    """The parameters of some images, all of which drew the operation, on the images' device."""
    taken = {}
    for name, value in params.items():
        if name in _WHOLE_BATCH:
            taken[name] = value
        else:
            taken[name] = value[rows].to(device)
    taken["batch_prob"] = torch.ones(len(rows), device=device)
    taken["forward_input_shape"] = torch.tensor(shape)
    if "batch_idx" in params:  # RandomChannelDropout: the number of each image
        taken["batch_idx"] = torch.arange(len(rows), device=device)[:, None]
    if "idx" in params:  # RandomMotionBlur: the image whose kernel size holds for all
        taken["idx"] = torch.zeros(1, dtype=torch.long)
    return taken


@torch.no_grad()
def _try_out(module: nn.Module, images: Tensor) -> Tensor:
    with rng.seeded("try out"):
        params = module.forward_parameters(images.shape)
        changed = module(images, params=_take_rows(params, torch.arange(len(images)), images.shape, images.device))
    # AutoAugment's operations wrap the one that has the probabilities.
    wrapped = getattr(module, "op", module)
    if changed.shape != images.shape and min(wrapped.p, wrapped.p_batch) < 1:
        raise ValueError(f"{type(module).__name__} changes the size; give it p = 1")
    return changed

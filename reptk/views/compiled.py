"""ViewPipeline from lists of operations: what is recognised is fused, the rest is kornia's; the order of each list is kept.

Everything is drawn for the global batch, under a key, and each operation of each view by itself: what one consumes never
shifts another, and a rank draws for its own rows what one process would.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.images import float_type, scale_to_unit, to_float
from reptk.views.fused import Fused
from reptk.views.kornia import Drawn, OneOf, operation_of
from reptk.views.recognised import Operation, recognise
from reptk.views.room import Lent

Backend = Literal["auto", "fused", "kornia"]
"""Who runs the operations: reptk those it recognises ("auto"); reptk all, or an error ("fused"); kornia all."""


class ViewPipeline:
    """`len(lists)` views of every image, one list of operations each.

    Not an `nn.Module`: the operations carry parameters and buffers that are neither trained nor saved.

    Args:
        lists: per view, the operations as tables `{name, ...arguments}`.
        size: side in pixels that the operations must produce; or one for each list, views of one size together.
        backend: "auto": recognised operations are fused, the others run by kornia; "fused": an operation that is not
            recognised is an error; "kornia": kornia runs all, from the same draws.
        exact_hue: colour as torchvision and kornia have it: after each operation values are cut to 0..1, and hue is
            shifted in HSV. Fused colour is otherwise one matrix, and a cut at the end. kornia is always exact.

    Raises:
        ValueError: an operation kornia does not have, arguments it refuses, another size than asked for, or one that is
            not recognised although `backend` is "fused".
    """

    def __init__(
        self,
        lists: list[list[Operation]],
        size: int | Sequence[int],
        *,
        backend: Backend = "auto",
        exact_hue: bool = False,
    ) -> None:
        self.sizes = [size] * len(lists) if isinstance(size, int) else list(size)
        self.size = self.sizes[0]
        self.count = len(lists)
        self.backend = backend
        self.rank, self.world = 0, 1
        self._making = ViewPipeline._make
        self.room = Lent(kept=2 * len(set(self.sizes)))  # those of the last step are there while the next are made
        self.lists = [_steps(tables, number, backend, exact_hue) for number, tables in enumerate(lists)]
        self._try_out()

    @property
    def how(self) -> str:
        """Who runs the operations, in a word or two."""
        kinds = {"fused" if isinstance(step, Fused) else "kornia" for steps in self.lists for _, step in steps}
        return " and ".join(sorted(kinds)) or "as they are"

    def shard(self, rank: int, world: int) -> "ViewPipeline":
        """Let each call receive the rank-th of `world` equal parts of a global batch."""
        self.rank, self.world = rank, world
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, key: int) -> Any:
        """(B, 3, H, W) uint8, or floats in 0..1 -> (V, B, 3, size, size) float; the same for the same images and key.

        ViewPipeline of several sizes come as a list of such tensors, neighbours of one size together.

        Raises:
            ValueError: another shape, floats outside 0..1.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"views are made of images (B, 3, H, W), got {tuple(images.shape)}")
        return self._making(self, images, key)

    def compile(self) -> None:
        """Let `torch.compile` have what a GPU is to do; where kornia has a part in it, leave all as it is."""
        if self.how == "fused":
            self._making = torch.compile(ViewPipeline._make)

    @torch.no_grad()
    def _make(self, images: Tensor, key: int) -> Any:
        with torch.autocast(images.device.type, enabled=False):
            if images.dtype != torch.uint8:
                images = to_float(images)
            rows = torch.arange(len(images), device=images.device) + len(images) * self.rank
            groups, number = [], 0
            for size, group in groupby(self.sizes):
                members = range(number, number + len(list(group)))
                number = members.stop
                views = self._empty((len(members), len(images), 3, size, size), images)
                for view, member in zip(views, members, strict=True):
                    self._draw_into(view, member, images, rows, key)
                groups.append(views)
        return groups[0] if len(groups) == 1 else groups

    def _empty(self, shape: tuple[int, ...], images: Tensor) -> Tensor:
        if images.device.type == "cpu" and not torch.compiler.is_compiling():
            return self.room.empty(shape, float_type(images))
        return torch.empty(shape, dtype=float_type(images), device=images.device)

    def _draw_into(self, view: Tensor, number: int, images: Tensor, rows: Tensor, key: int) -> None:
        """View `number` of the images, written to `view` (n, 3, size, size); rows (n,): their numbers in the batch."""
        made, count = images, len(images)
        for position, step in self.lists[number]:
            if not isinstance(step, Fused):
                # kornia draws on the host, for all ranks: what it takes from `rows` must not wait for a GPU.
                own = torch.arange(count) + count * self.rank
                made = step(scale_to_unit(made), own, count * self.world, key, rng.key(key, number, position))
            elif step is self.lists[number][-1][1] and step.out_shape(made.shape[-2:]) == view.shape[-2:]:
                made = step(made, rows, key, out=view)
            else:
                made = step(made, rows, key)
        _check_size(made, self.sizes[number])
        if made is not view:
            torch.clamp(scale_to_unit(made), 0, 1, out=view)

    def _try_out(self) -> None:
        """Apply every operation, whatever its p, so that what fails does so now and not in the middle of a run."""
        for size, steps in zip(self.sizes, self.lists, strict=True):
            view = torch.zeros(2, 3, size, size)
            try:
                for _, step in steps:
                    if isinstance(step, Fused):
                        view = step.on_batch(view, step.draw(0, torch.arange(2), view.shape[-2:]))
                    else:
                        view = step.on_all(view)
            except ValueError:
                raise
            except Exception as cause:
                raise ValueError(f"kornia cannot run these operations at {size} px: {cause}") from cause
            _check_size(view, size)


def _steps(
    tables: list[Operation], number: int, backend: Backend, exact_hue: bool
) -> list[tuple[int, Fused | Drawn | OneOf]]:
    """What runs the operations of view `number`, each with the place of its first one in the list."""
    members = []
    for position, table in enumerate(tables):
        recognised = recognise(table)
        columns = recognised.columns if recognised is not None else 0
        salts = [rng.key("views", number, position, column) for column in range(columns)]
        # kornia is asked in any case: whether the name exists and the arguments are valid is its to say.
        members.append((position, recognised, salts, operation_of(table, recognised, salts)))
        if backend == "fused" and recognised is None:
            raise ValueError(f"{table['name']} with these arguments is kornia's to run: set views.backend to 'auto'")
    if backend == "kornia":
        return [(position, operation) for position, _, _, operation in members]
    steps: list[tuple[int, Fused | Drawn | OneOf]] = []
    for is_kornias, run in groupby(members, lambda member: member[1] is None):
        if is_kornias:
            steps += [(position, operation) for position, _, _, operation in run]
        else:
            positions, operations, salts, _ = zip(*run, strict=True)
            steps.append((positions[0], Fused(operations, salts, exact_hue)))
    return steps


def _check_size(view: Tensor, size: int) -> None:
    height, width = view.shape[-2:]
    if (height, width) != (size, size):
        raise ValueError(
            f"the operations give {width} x {height} px, but size is {size}; "
            "start with one that changes the size, e.g. Resize, and give it p = 1"
        )

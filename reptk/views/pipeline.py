"""ViewPipeline: views from lists of operations.

Operations that reptk has (`operations`) are drawn here and executed by a backend, neighbors at once; all others are drawn
and executed by kornia. The order of each list is kept.

Everything is drawn for the global batch, under a key, and each operation of each view by itself: what one of them draws
never shifts another, and a rank draws for its images what a single process would.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.images import float_type, scale_to_unit, to_float
from reptk.core.numba_jit import load_kernels
from reptk.views.backends import Backend
from reptk.views.backends.kornia_backend import BatchRows, KorniaBackend, KorniaChoice, KorniaOperation, build_kornia
from reptk.views.backends.torch_backend import TorchBackend, is_batched
from reptk.views.buffers import BufferPool
from reptk.views.crops import CenterSquare, Resize
from reptk.views.operations import RandomFlip, Shape, ViewOperation
from reptk.views.passes import COLORS, group_into_passes
from reptk.views.tables import Operation, native_operation

BackendName = Literal["auto", "fused", "kornia"]
"""What executes the operations; see `ViewPipeline`."""


class ViewPipeline:
    """`len(lists)` views of every image, one list of operations each (a `reptk.views.protocol.Views`).

    Not an `nn.Module`: the operations carry parameters and buffers that are neither trained nor saved.

    Args:
        lists: for each view, the operations as tables `{name, ...arguments}`.
        size: side in pixels of what the operations return; or one for each list, with views of one size next to each other.
        backend: "auto": operations that reptk has are fused, the others executed by kornia; "fused": an operation that
            reptk does not have is an error; "kornia": kornia executes all, with the same parameters.
        exact_hue: color as in torchvision and kornia: values are cut to 0..1 after each operation, and the hue is shifted in
            HSV. Fused color is otherwise one matrix, and a cut at the end. kornia is always exact.

    Raises:
        ValueError: no list, or another number of sizes; an operation kornia does not have, arguments it refuses, another
            size than `size`, or an operation that reptk does not have although `backend` is "fused".
    """

    def __init__(
        self,
        lists: list[list[Operation]],
        size: int | Sequence[int],
        *,
        backend: BackendName = "auto",
        exact_hue: bool = False,
    ) -> None:
        if isinstance(size, int):
            size = [size] * len(lists)
        if not lists or len(size) != len(lists):
            raise ValueError(f"views need lists of operations and a size for each, got {len(lists)} and {len(size)}")
        self.sizes = tuple(size)
        self.size = self.sizes[0]
        self.count = len(lists)
        self.backend = backend
        self.rank, self.world_size = 0, 1
        self.steps = [_build_steps(tables, view, backend, exact_hue) for view, tables in enumerate(lists)]
        # The views of the last step are still in use while the next ones are computed.
        self._buffers = BufferPool(capacity=2 * len(set(self.sizes)))
        # Not a bound method: in a cycle of references, the buffers would stay until the garbage collector runs.
        self._compute = ViewPipeline._compute_views
        self._try_out()

    @property
    def description(self) -> str:
        """What executes the operations: "fused", "kornia", or both; "unchanged" without any."""
        names = {step.description for steps in self.steps for step in steps}
        return " and ".join(sorted(names)) or "unchanged"

    def shard(self, rank: int, world_size: int) -> "ViewPipeline":
        """Let each call receive the images of this rank, one of `world_size` equal parts of the global batch."""
        self.rank, self.world_size = rank, world_size
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, key: int, aspect_ratios: Tensor | None = None) -> Any:
        """(B, 3, H, W) uint8, or floats in 0..1 -> (V, B, 3, size, size) float; the same for the same images and key.

        Views of several sizes are a list of such tensors, one for each size.

        Args:
            aspect_ratios: (B,) width / height of the full images that were squashed into these images. Crops are drawn on the
                full images, and views have their proportions. Operations that cannot do so get the center squares.

        Raises:
            ValueError: another shape, floats outside 0..1.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"views are made of images (B, 3, H, W), got {tuple(images.shape)}")
        return self._compute(self, images, key, aspect_ratios)

    def compile(self) -> None:
        """Compile with `torch.compile`, for a GPU. Without effect if kornia executes any operation."""
        if self.description == "fused":
            self._compute = torch.compile(ViewPipeline._compute_views)

    @torch.no_grad()
    def _compute_views(self, images: Tensor, key: int, aspect_ratios: Tensor | None = None) -> Any:
        # Products in bfloat16 would round pixels to 8 bits.
        with torch.autocast(images.device.type, enabled=False):
            if images.dtype != torch.uint8:
                images = to_float(images)
            batch = len(images)
            rows = BatchRows(batch * self.rank, batch, batch * self.world_size)
            squares = None
            if aspect_ratios is not None and not all(map(_crop_full_images, self.steps)):
                squares = center_squares(images, aspect_ratios)
            groups = []
            view = 0
            for size, group in groupby(self.sizes):
                out = self._empty((len(list(group)), batch, 3, size, size), images)
                for view_out in out:
                    if squares is None or _crop_full_images(self.steps[view]):
                        self._compute_view(view_out, view, images, rows, key, aspect_ratios)
                    else:
                        self._compute_view(view_out, view, squares, rows, key)
                    view += 1
                groups.append(out)
        if len(groups) == 1:
            return groups[0]
        return groups

    def _empty(self, shape: tuple[int, ...], images: Tensor) -> Tensor:
        if is_batched(images):
            return torch.empty(shape, dtype=float_type(images), device=images.device)
        return self._buffers.empty(shape, float_type(images))

    def _compute_view(
        self,
        out: Tensor,
        view: int,
        images: Tensor,
        rows: BatchRows,
        key: int,
        aspect_ratios: Tensor | None = None,
    ) -> None:
        """Write view number `view` of the images to `out` (B, 3, size, size)."""
        steps = self.steps[view]
        last = len(steps) - 1
        for position, step in enumerate(steps):
            step_out = out if position == last else None
            images = step.run(images, rows, key, step_out, aspect_ratios)
            # What comes out of the first step has its proportions.
            aspect_ratios = None
        _check_size(images, self.sizes[view])
        if images is not out:
            torch.clamp(scale_to_unit(images), 0, 1, out=out)

    def _try_out(self) -> None:
        """Apply every operation, whatever its p, so that what fails does so now and not in the middle of a run."""
        for size, steps in zip(self.sizes, self.steps, strict=True):
            images = torch.zeros(2, 3, size, size)
            try:
                for step in steps:
                    images = step.try_out(images)
            except ValueError:  # already says what to change
                raise
            except Exception as cause:
                raise ValueError(f"kornia cannot run these operations at {size} px: {cause}") from cause
            _check_size(images, size)


class NativeStep:
    """Consecutive operations of reptk's: drawn here, executed by a backend.

    Args:
        operations: in order.
        salts: for each operation, one number for each of its uniform numbers, different from all others of the pipeline.
        exact_hue: see `ViewPipeline`.
        kornia: the backend, if kornia executes them.
    """

    def __init__(
        self,
        operations: Sequence[ViewOperation],
        salts: Sequence[Sequence[int]],
        *,
        exact_hue: bool = False,
        kornia: KorniaBackend | None = None,
    ) -> None:
        self.operations = list(operations)
        self.passes = group_into_passes(operations, exact_hue=exact_hue)
        self.torch = TorchBackend(self.passes)
        self.kornia = kornia
        self.description = "fused" if kornia is None else "kornia"
        flat_salts = [salt for salts_of_operation in salts for salt in salts_of_operation]
        self._salts = {torch.device("cpu"): torch.tensor(flat_salts, dtype=torch.int64)}
        self._first_crop = _first_crop(operations)

    @property
    def crops_full_images(self) -> bool:
        """Whether the images may be squashed."""
        return self._first_crop is not None

    def output_shape(self, shape: Shape) -> Shape:
        """Return the size of the images it makes of images of this size."""
        for operation in self.operations:
            shape = operation.output_shape(shape)
        return shape

    def run(
        self,
        images: Tensor,
        rows: BatchRows,
        key: int,
        out: Tensor | None = None,
        aspect_ratios: Tensor | None = None,
    ) -> Tensor:
        """(n, 3, H, W) uint8, or floats in 0..1 -> (n, 3, h, w) floats in 0..1, in `out` if it has their shape and the
        backend can write there."""
        shape = tuple(images.shape[-2:])
        if out is not None and self.output_shape(shape) != tuple(out.shape[-2:]):
            out = None
        # kornia decides on the host what it applies to which images.
        device = images.device if self.kornia is None else torch.device("cpu")
        if aspect_ratios is not None:
            aspect_ratios = aspect_ratios.to(device)
        params = self.sample(key, rows.numbers(device), shape, aspect_ratios)
        return self.choose_backend(images, out).run(images, params, out)

    def sample(self, key: int, numbers: Tensor, shape: Shape, aspect_ratios: Tensor | None = None) -> list[Tensor]:
        """Return the parameters of each operation, for images of this size; `numbers` (n,) are theirs in the batch."""
        if numbers.device not in self._salts:
            # Once, because a copy from pageable memory synchronises with the GPU.
            self._salts[numbers.device] = self._salts[torch.device("cpu")].to(numbers.device)
        u = rng.uniform(key, self._salts[numbers.device], numbers)
        params, first = [], 0
        for position, operation in enumerate(self.operations):
            u_of_operation = u[:, first : first + operation.num_uniforms]
            if position == self._first_crop:
                params.append(operation.sample(u_of_operation, shape, aspect_ratios))
            else:
                params.append(operation.sample(u_of_operation, shape))
            shape = operation.output_shape(shape)
            first += operation.num_uniforms
        return params

    def choose_backend(self, images: Tensor, out: Tensor | None = None) -> Backend:
        """Return kornia's backend, if the step was built with one; otherwise the fastest that can process the images."""
        if self.kornia is not None:
            return self.kornia
        is_compiled_type = float_type(images) in (torch.float32, torch.float64)
        if is_batched(images) or not is_compiled_type or not (out is None or out.is_contiguous()):
            return self.torch
        numba_backend = load_kernels("reptk.views.backends.numba_backend")
        if numba_backend is None:
            return self.torch
        return numba_backend.NumbaBackend(self.passes)

    def try_out(self, images: Tensor) -> Tensor:
        """Apply the operations to images, drawn or not."""
        params = self.sample(0, torch.arange(len(images)), tuple(images.shape[-2:]))
        if self.kornia is not None:
            return self.kornia.try_out(images)
        return self.torch.run_batch(images, params)


class KorniaStep:
    """One operation that only kornia has: drawn and executed by kornia.

    Args:
        operation: kornia's.
        view, position: which view it belongs to, and its place in the list of that view.
    """

    description = "kornia"
    crops_full_images = False

    def __init__(self, operation: KorniaOperation | KorniaChoice, view: int, position: int) -> None:
        self.operation = operation
        self.view, self.position = view, position

    def run(
        self,
        images: Tensor,
        rows: BatchRows,
        key: int,
        out: Tensor | None = None,
        aspect_ratios: Tensor | None = None,
    ) -> Tensor:
        """(n, 3, H, W) uint8, or floats in 0..1 -> (n, 3, h, w) floats."""
        # A key of its own, so that what kornia draws for one operation does not depend on the others.
        step_key = rng.key(key, self.view, self.position)
        return self.operation(scale_to_unit(images), rows.numbers(), rows.total, step_key)

    def try_out(self, images: Tensor) -> Tensor:
        """Apply the operation as if every image drew it."""
        return self.operation.try_out(images)


class _ListedOperation(NamedTuple):
    position: int
    kornia: KorniaOperation | KorniaChoice
    native: ViewOperation | None


def center_squares(images: Tensor, aspect_ratios: Tensor) -> Tensor:
    """Return the center squares (B, 3, H, W) of images that were squashed into squares (B, 3, H, W), as floats in 0..1.

    Args:
        images: uint8, or floats in 0..1.
        aspect_ratios: (B,) width / height of the full images.
    """
    # Nothing about a center square is drawn, so that neither the key nor the place in the global batch matters.
    rows = BatchRows(0, len(images), len(images))
    return NativeStep([CenterSquare(tuple(images.shape[-2:]))], [[]]).run(images, rows, 0, None, aspect_ratios)


def _build_steps(
    tables: Sequence[Operation], view: int, backend: BackendName, exact_hue: bool
) -> list[NativeStep | KorniaStep]:
    """Return what runs the operations of view number `view`."""
    listed = []
    for position, table in enumerate(tables):
        # Built in any case, because kornia checks whether the name exists and the arguments are valid.
        kornia = build_kornia(table)
        native = native_operation(table)
        if backend == "fused" and native is None:
            raise ValueError(f"{table['name']} with these arguments is kornia's to run: set views.backend to 'auto'")
        listed.append(_ListedOperation(position, kornia, native))
    steps: list[NativeStep | KorniaStep] = []
    for is_native, group in groupby(listed, _is_native):
        if is_native:
            steps.append(_native_step(list(group), view, backend, exact_hue))
        else:
            steps += [KorniaStep(each.kornia, view, each.position) for each in group]
    return steps


def _is_native(listed: _ListedOperation) -> bool:
    return listed.native is not None


def _native_step(group: list[_ListedOperation], view: int, backend: BackendName, exact_hue: bool) -> NativeStep:
    operations = [each.native for each in group]
    salts = []
    for each in group:
        salts.append([rng.key("views", view, each.position, column) for column in range(each.native.num_uniforms)])
    kornia = None
    if backend == "kornia":
        kornia = KorniaBackend(operations, [each.kornia.module for each in group])
    return NativeStep(operations, salts, exact_hue=exact_hue, kornia=kornia)


def _crop_full_images(steps: Sequence["NativeStep | KorniaStep"]) -> bool:
    return bool(steps) and steps[0].crops_full_images


def _first_crop(operations: Sequence[ViewOperation]) -> int | None:
    """Return the position of the operation that gets the aspect ratios; None if one before depends on proportions."""
    resize = None
    for position, operation in enumerate(operations):
        if isinstance(operation, Resize) and operation.size[0] == operation.size[1]:
            # From square to square: a crop that follows is drawn on the full image.
            resize = position
        elif operation.crops_full_images:
            return position
        # Flips and colors are the same for squashed images.
        elif not isinstance(operation, (RandomFlip, *COLORS)):
            return resize
    return resize


def _check_size(images: Tensor, size: int) -> None:
    height, width = images.shape[-2:]
    if (height, width) != (size, size):
        raise ValueError(
            f"the operations give {width} x {height} px, but size is {size}; "
            "start with one that changes the size, e.g. Resize, and give it p = 1"
        )

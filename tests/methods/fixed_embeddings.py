"""Methods on embeddings that a test chooses, and what every rank computes of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reptk.core import rng
from reptk.methods import Batch, Method, Step
from reptk.testing.simulated_ranks import run_on_ranks

STEP = Step(number=3, total=10, key=rng.key("fixed embeddings"))


class FixedEncoder(nn.Module):
    """Returns the rows of `z` (V, B, D), a parameter, whose numbers the views hold in their first pixel."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z.clone())

    def forward(self, images: Tensor) -> Tensor:
        rows = images[:, 0, 0, 0].long()
        return self.z.flatten(0, 1)[rows]


class RowNumbers:
    """Views whose pixels are the number of the row of z: v * images + index. One size for each count in `counts`."""

    sizes: tuple[int, ...] = ()

    def __init__(self, *counts: int, images: int) -> None:
        self.counts = counts
        self.count = sum(counts)
        self.images = images

    def __call__(self, images: Tensor, key: int) -> list[Tensor]:
        # The pixels of an image are its number in the batch of all ranks.
        numbers = images[:, :, :1, :1].double()
        groups = []
        first = 0
        for count in self.counts:
            offsets = self.images * torch.arange(first, first + count, dtype=torch.float64)
            groups.append(numbers + offsets[:, None, None, None, None])
            first += count
        return groups


def numbered_batch(first: int, count: int) -> Batch:
    index = torch.arange(first, first + count)
    images = index.to(torch.uint8)[:, None, None, None].expand(count, 3, 2, 2).contiguous()
    return Batch(images, torch.full((count,), -1), index)


def loss_and_gradient(
    factory: Callable[..., Method],
    z: Tensor,
    *,
    counts: tuple[int, ...] | None = None,
    step: Step = STEP,
    **arguments: float,
) -> tuple[Tensor, Tensor]:
    """The loss of the embeddings z (V, B, D) and its gradient, by a single process."""
    method = build(factory, z, counts, arguments)
    loss = method(numbered_batch(0, z.shape[1]), step)["loss"]
    loss.backward()
    return loss.detach(), method.encoder.z.grad


def on_ranks(
    factory: Callable[..., Method],
    z: Tensor,
    world_size: int,
    *,
    counts: tuple[int, ...] | None = None,
    **arguments: float,
) -> tuple[list[Tensor], Tensor]:
    """The loss on every rank, of which each has a part of the images, and the gradient that DDP makes of theirs."""

    def compute(method: Method, rank: int) -> tuple[Tensor, Tensor]:
        share = z.shape[1] // world_size
        loss = method(numbered_batch(rank * share, share), STEP)["loss"]
        loss.backward()
        return loss.detach(), method.encoder.z.grad

    results = run_on_ranks(build(factory, z, counts, arguments), compute, world_size=world_size)
    gradients = [gradient for _, gradient in results]
    return [loss for loss, _ in results], torch.stack(gradients).mean(0)


def build(
    factory: Callable[..., Method], z: Tensor, counts: tuple[int, ...] | None, arguments: dict[str, float]
) -> Method:
    views = RowNumbers(*(counts or (len(z),)), images=z.shape[1])
    return factory(FixedEncoder(z), views, **arguments)


def random_views(num_views: int, num_images: int, dimensions: int) -> Tensor:
    """Embeddings (V, B, D) in float64 of views that resemble each other, with correlated dimensions and a mean."""
    generator = rng.generator("random views", num_views, num_images, dimensions)
    images = torch.randn(num_images, dimensions, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_views, num_images, dimensions, generator=generator, dtype=torch.float64)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return (images + 0.3 * noise) @ mixing / dimensions**0.5 + 0.5

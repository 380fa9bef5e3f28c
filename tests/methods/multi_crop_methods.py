"""Methods on views of two sizes, with a tiny encoder, batches for one or several ranks, and prototypes with given scores."""

from typing import Any

import torch
from torch import Tensor

from reptk import Encoder
from reptk.core import rng
from reptk.methods import Batch, Method, Prototypes, Step
from reptk.testing.simulated_ranks import run_on_ranks
from reptk.views.sets import multi_crop

SIZES_PX = (32, 16)
NUM_LARGE, NUM_SMALL = 2, 2


def build(factory: type[Method], backbone: str = "test_vit", drop_path: float = 0.0, **arguments: Any) -> Method:
    """The method in float32, on two views of 32 px and two of 16 px of each image."""
    with rng.seeded("method"):
        encoder = Encoder(backbone, size=32, other_sizes=[16], head_width=32, head_out=8, drop_path=drop_path)
        views = multi_crop(count=NUM_LARGE, size=32, small_count=NUM_SMALL, small_size=16)
        return factory(encoder, views, **arguments).train()


def batch(number: int = 0, count: int = 4) -> Batch:
    images = torch.randint(256, (count, 3, 32, 32), generator=rng.generator("images", number)).to(torch.uint8)
    index = torch.arange(number * count, (number + 1) * count)
    return Batch(images, index % 2, index)


def step(number: int = 0, total: int = 10, steps_per_epoch: int = 5) -> Step:
    return Step(number, total, rng.key("step", number), steps_per_epoch)


def train(method: Method, steps: range, lr: float = 0.1) -> None:
    """Train with SGD and weight decay, as the loop does."""
    parameters = [parameter for group in method.parameter_groups() for parameter in group["params"]]
    optimizer = torch.optim.SGD(parameters, lr=lr, weight_decay=0.1)
    for number in steps:
        method(batch(number), step(number))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            method.after_step(step(number))


def train_on_ranks(method: Method, num_steps: int, world_size: int) -> dict[str, Tensor]:
    """Return the state after some steps on ranks whose gradients are averaged, as by DDP; all ranks must agree on it."""

    def train_rank(method: Method, rank: int) -> dict[str, Tensor]:
        method.views.shard(rank, world_size)
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        for number in range(num_steps):
            whole = batch(number)
            size = len(whole.index) // world_size
            part = slice(rank * size, (rank + 1) * size)
            rank_batch = Batch(whole.images[part], whole.labels[part], whole.index[part])
            method(rank_batch, step(number))["loss"].backward()
            with torch.no_grad():
                for parameter in parameters:
                    if world_size > 1:
                        torch.distributed.all_reduce(parameter.grad)
                    parameter.sub_(0.5 * parameter.grad / world_size)
                    parameter.grad = None
                method.after_step(step(number))
        return method.state_dict()

    if world_size == 1:
        return train_rank(method, 0)
    first, *others = run_on_ranks(method, train_rank, world_size=world_size)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    return first


class FixedScores(Prototypes):
    """Prototypes that give the same scores to any embeddings."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__(scores.shape[1], 8)
        self.scores = scores

    def forward(self, z: Tensor) -> Tensor:
        return self.scores


def sines(rows: int, prototypes: int, phase: float) -> Tensor:
    """The scores for which the published codes were run."""
    return torch.sin(torch.arange(rows * prototypes, dtype=torch.float64) * 0.7 + phase).reshape(rows, prototypes)

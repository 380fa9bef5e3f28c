"""Steps whose loss, embeddings or gradient are not finite, in this process or on two ranks."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rank_processes import run_on_ranks
from torch import Tensor, nn

from reptk.config import Recipe
from reptk.core import distributed
from reptk.core.errors import NonFiniteStep
from reptk.methods import Batch
from reptk.training.build import build
from reptk.training.load_data import load_data
from reptk.training.parts import Parts
from reptk.training.step import train_step, wrap_in_ddp
from tiny_runs import tiny

BAD_IMAGE = 5
"""Position in the batch of the image whose views are not finite."""

METHODS = {
    "contrastive": {"method": {"name": "contrastive", "positives": "instance"}},
    "byol": {"method": {"name": "byol", "predictor_width": 16, "predictor_norm": False}, "loss": None},
    "moco": {"method": {"name": "moco", "queue_size": 24}},
}


class NanGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.full_like(grad, torch.nan)


def recipe_of(method: str, *overrides: str) -> Recipe:
    """The tiny recipe with a transformer, whose embeddings are independent of each other."""
    return tiny("encoder.backbone=test_vit", *overrides, **METHODS[method])


def built(recipe: Recipe, device: str = "cpu") -> Parts:
    parts = build(recipe, load_data(recipe), torch.device(device))
    parts.method.train()
    return parts


def inject(parts: Parts, fault: str) -> None:
    """Let every further step have a fault: "view", "loss", "infinite loss", "gradient"."""
    method = parts.method
    if fault == "view":
        views = method.views

        def with_nan(images: Tensor, key: int) -> Tensor:
            drawn = views(images, key).clone()
            drawn[0, BAD_IMAGE, 1, 3, 4] = torch.nan
            return drawn

        method.views = with_nan
        method.crops_full_images = False
    else:
        forward = method.forward
        change = {
            "loss": lambda loss: loss * torch.nan,
            "infinite loss": lambda loss: loss + torch.inf,
            "gradient": NanGradient.apply,
        }[fault]

        def changed(batch: Batch, step: Any) -> dict[str, Tensor]:
            outputs = forward(batch, step)
            return outputs | {"loss": change(outputs["loss"])}

        method.forward = changed


def train_steps(parts: Parts, model: nn.Module, first: int, last: int) -> None:
    batches = parts.loader.batches(first, last)
    for number in range(first, last):
        batch = Batch(*(tensor.to(parts.device) for tensor in next(batches)))
        parts.schedule.set_step(number)
        train_step(parts, model, batch, parts.step(number))


def bad_step(parts: Parts, model: nn.Module, number: int) -> NonFiniteStep:
    try:
        train_steps(parts, model, number, number + 1)
    except NonFiniteStep as error:
        return error
    raise AssertionError("the step was done")


def state_of(parts: Parts) -> dict[str, Tensor]:
    """Weights, buffers, and the tensors of the optimizer."""
    state = {f"method.{name}": value for name, value in parts.method.state_dict().items()}
    for number, tensors in parts.optimizer.state_dict()["state"].items():
        for name, value in tensors.items():
            state[f"optimizer.{number}.{name}"] = value
    return copy.deepcopy(state)


def names_of_batch(parts: Parts, number: int) -> list[str]:
    _, _, numbers, *_ = next(parts.loader.batches(number, number + 1))
    return [f"train/{image}" for image in numbers.tolist()]


# On ranks


def run_cases_on_ranks(cases: list[tuple[str, str]], folder: Path) -> None:
    """Run each case, (method, fault on rank 1), on two gloo ranks."""
    run_on_ranks(_run_cases, 2, cases, folder)


def _run_cases(rank: int, cases: list[tuple[str, str]], folder: Path) -> None:
    for method, fault in cases:
        (folder / f"{method} {fault} {rank}.json").write_text(json.dumps(_case_on_rank(method, fault)))


def _case_on_rank(method: str, fault: str) -> dict[str, Any]:
    parts = built(recipe_of(method))
    model = wrap_in_ddp(parts)
    train_steps(parts, model, 0, 2)
    before = state_of(parts)
    views, forward = parts.method.views, parts.method.forward
    if distributed.rank() == 1:
        inject(parts, fault)
    error = bad_step(parts, model, 2)
    after = state_of(parts)
    # As after a roll-back, the same step without the fault.
    parts.method.views, parts.method.forward = views, forward
    train_steps(parts, model, 2, 4)
    other = built(recipe_of(method))
    train_steps(other, wrap_in_ddp(other), 0, 4)
    end, expected = state_of(parts), state_of(other)
    return {
        "goes_on": all(torch.equal(end[name], expected[name]) for name in expected),
        "message": str(error),
        "step": error.step,
        "ranks": error.ranks,
        "samples": error.samples,
        "batch": names_of_batch(parts, 2),
        "is_untouched": all(torch.equal(before[name], after[name]) for name in before),
    }


def change_of(call: Callable[[], object], parts: Parts) -> list[str]:
    """The names of what a call changed."""
    before = state_of(parts)
    call()
    after = state_of(parts)
    return [name for name in after if name not in before or not torch.equal(before[name], after[name])]

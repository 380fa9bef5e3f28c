"""Which parameters decay, which optimizer a name gives, and the learning rate against its formula."""

import math

import pytest
import torch
from torch import nn

from reptk.core.errors import ReptkError, UsageError
from reptk.models.encoder import Encoder
from reptk.training.optim import create_optimizer, create_scheduler, learning_rate

NAMES = ["sgd", "lars", "adamw"]


class Model(nn.Module):
    """A weight, a bias, a norm's two vectors, a scalar; and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.frozen = nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.frozen.requires_grad_(False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(1)  # nothing is zero, so that whatever decays changes


def made(name: str = "sgd", lr: float = 0.1, **options: float) -> torch.optim.Optimizer:
    return create_optimizer([{"params": trainable(Model())}], name=name, lr=lr, **{"weight_decay": 0.5, **options})


# Weight decay


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_norms_and_biases_decay_only_if_all_do(name: str, decay_all: bool) -> None:
    model = Model()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizing = create_optimizer([{"params": trainable(model)}], name=name, lr=0.1, weight_decay=0.5, decay_all=decay_all)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that only the decay moves anything
    optimizing.step()
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    every = {"linear.weight", "linear.bias", "norm.weight", "norm.bias", "scale"}
    assert moved == (every if decay_all else {"linear.weight"})


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_every_trainable_parameter_of_an_encoder_is_in_one_group(backbone: str) -> None:
    encoder = Encoder(backbone, size=32, head_norm=True)
    encoder.head[0].requires_grad_(False)
    groups = create_optimizer([{"params": trainable(encoder)}], name="sgd", lr=0.1, weight_decay=0.01).param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in encoder.parameters() if parameter.requires_grad)
    for group in groups:
        decays = {parameter.ndim > 1 for parameter in group["params"]}
        assert decays == {group["weight_decay"] > 0}


@pytest.mark.parametrize("layer", [nn.Linear(3, 2, bias=False), nn.LayerNorm(3)])
def test_a_model_of_one_kind_of_parameter_has_one_group(layer: nn.Module) -> None:
    assert len(optimizer(layer, name="sgd", lr=0.1, weight_decay=0.1).param_groups) == 1


# Names


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("lars", "Lars"), ("adamw", "AdamW"), ("lamb", "Lamb")])
def test_an_optimizer_by_name(name: str, kind: str) -> None:
    assert type(made(name)).__name__ == kind
    assert {group["lr"] for group in made(name, lr=0.3).param_groups} == {0.3}


def test_momentum_is_for_those_that_have_it() -> None:
    assert {group["momentum"] for name in ("sgd", "lars") for group in made(name, momentum=0.8).param_groups} == {0.8}
    assert made("adamw", momentum=0.8).param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(("name", "meant"), [("adamww", "adamw"), ("LARS", "lars"), ("sdg", "sgd")])
def test_an_unknown_name_suggests(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"no optimizer '{name}'\. Nearest: .*\b{meant}\b.*There are: .*adamw"):
        made(name)


def test_an_optimizer_that_cannot_be_had_is_reported() -> None:
    with pytest.raises(ReptkError, match="fusedadam"):
        made("fusedadam")


# Learning rate


def formula(step: int, kind: str, steps: int, warmup: int, lr: float, first: float, last: float) -> float:
    """Linear from `first` to `lr`, then half a cosine from `lr` to `last`: SGDR's eq. 5 (arXiv 1608.03983)."""
    if step < warmup:
        return first + (lr - first) * step / warmup
    if kind == "constant":
        return lr
    return last + (lr - last) * (1 + math.cos(math.pi * (step - warmup) / max(2, steps - warmup))) / 2


COURSES = [
    # steps, warm-up, lr, first, last
    (100, 0, 0.1, 0.0, 0.0001),
    (100, 10, 0.1, 0.0, 0.0001),
    (100, 10, 0.1, 0.05, 0.0),
    (50, 49, 3.0, 0.001, 0.003),
    (20, 20, 0.1, 0.0, 0.0),
    (10, 30, 0.1, 0.0, 0.01),
    (3, 1, 0.1, 0.0, 0.01),
    (2, 0, 0.1, 0.0, 0.01),
    (1, 0, 0.1, 0.0, 0.01),
    (1, 1, 0.1, 0.02, 0.01),
]


def course(kind: str, steps: int, warmup: int, lr: float, first: float, last: float) -> list[float]:
    optimizing = made(lr=lr)
    follow = schedule(optimizing, kind=kind, steps=steps, warmup_steps=warmup, warmup_lr=first, final_lr=last)
    rates = []
    for step in range(steps):
        follow.step_update(step)
        assert {group["lr"] for group in optimizing.param_groups} == {learning_rate(optimizing)}
        rates.append(learning_rate(optimizing))
    return rates


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("asked", COURSES)
def test_learning_rate_is_its_formula(asked: tuple[int, int, float, float, float], kind: str) -> None:
    expected = [formula(step, kind, *asked) for step in range(asked[0])]
    assert course(kind, *asked) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_formula_can_disagree() -> None:
    asked = (100, 10, 0.1, 0.0, 0.0001)
    expected = [formula(step, "cosine", 100, 11, 0.1, 0.0, 0.0001) for step in range(100)]
    assert course("cosine", *asked) != pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_course_begins_peaks_and_ends_where_it_should() -> None:
    rates = course("cosine", 1000, 100, 0.1, 0.02, 0.001)
    assert rates[0] == 0.02
    assert max(rates) == rates[100] == pytest.approx(0.1)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.001, rel=1e-3)
    assert set(course("constant", 1000, 100, 0.1, 0.02, 0.001)[100:]) == {0.1}


def test_the_rate_depends_on_the_step_alone() -> None:
    """What lets a run resume: no step before has to be replayed."""
    whole = course("cosine", 40, 5, 0.1, 0.0, 0.001)
    for step in (0, 3, 5, 17, 39):
        optimizing = made(lr=0.1)
        follow = schedule(optimizing, kind="cosine", steps=40, warmup_steps=5, warmup_lr=0.0, final_lr=0.001)
        follow.step_update(step)
        assert learning_rate(optimizing) == whole[step]

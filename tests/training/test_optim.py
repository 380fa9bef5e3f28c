"""Weight decay by parameter, optimizers by name, and the learning rate against its formula."""

import math

import pytest
import torch
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn

from reptk.core.errors import ReptkError, UsageError
from reptk.models.encoder import Encoder
from reptk.training.optim import Schedule, create_optimizer, learning_rate, with_groups_of_loss

NAMES = ["sgd", "lars", "adamw"]


class SmallModel(nn.Module):
    """A weight, a bias, a norm's two vectors, a scalar; and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.frozen.requires_grad_(False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(1)  # a zero would not show that it decays


def groups_of(model: nn.Module) -> list[dict]:
    return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]


def build_optimizer(name: str = "sgd", lr: float = 0.1, **options: float) -> torch.optim.Optimizer:
    return create_optimizer(groups_of(SmallModel()), name=name, lr=lr, **{"weight_decay": 0.5, **options})


# Weight decay


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_norms_and_biases_decay_only_with_decay_all(name: str, decay_all: bool) -> None:
    model = SmallModel()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = create_optimizer(groups_of(model), name=name, lr=0.1, weight_decay=0.5, decay_all=decay_all)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that only the decay moves anything
    optimizer.step()
    changed = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    all_trained = {"linear.weight", "linear.bias", "norm.weight", "norm.bias", "scale"}
    assert changed == (all_trained if decay_all else {"linear.weight"})


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("test_vit", {"cls_token", "pos_embed"}),
        ("test_vit3", {"reg_token", "pos_embed"}),
        ("swin_tiny_patch4_window7_224", {"layers.0.blocks.0.attn.relative_position_bias_table"}),
        ("test_resnet", set()),
    ],
)
def test_tokens_and_positions_do_not_decay(backbone: str, expected: set[str]) -> None:
    encoder = Encoder(backbone, size=224 if "swin" in backbone else 160)
    undecayed = encoder.undecayed_parameters()
    options = {"name": "sgd", "lr": 0.1, "weight_decay": 0.5, "undecayed": undecayed}
    groups = create_optimizer(groups_of(encoder), **options).param_groups
    not_decayed = {id(parameter) for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    names = {name for name, parameter in encoder.backbone.named_parameters() if id(parameter) in not_decayed}
    assert expected <= names
    assert {name for name, parameter in encoder.backbone.named_parameters() if parameter.ndim <= 1} <= names
    [group] = create_optimizer(groups_of(encoder), **options, decay_all=True).param_groups
    assert group["weight_decay"] == 0.5


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_every_trainable_parameter_of_an_encoder_is_in_one_group(backbone: str) -> None:
    encoder = Encoder(backbone, size=32, head_norm=True)
    encoder.head[0].requires_grad_(False)
    groups = create_optimizer(groups_of(encoder), name="sgd", lr=0.1, weight_decay=0.01).param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in encoder.parameters() if parameter.requires_grad)
    for group in groups:
        decays = {parameter.ndim > 1 for parameter in group["params"]}
        assert decays == {group["weight_decay"] > 0}


@pytest.mark.parametrize("layer", [nn.Linear(3, 2, bias=False), nn.LayerNorm(3)])
def test_model_with_one_kind_of_parameter_has_one_group(layer: nn.Module) -> None:
    assert len(create_optimizer(groups_of(layer), name="sgd", lr=0.1, weight_decay=0.1).param_groups) == 1


# Names


@pytest.mark.parametrize(
    ("name", "class_name"), [("sgd", "SGD"), ("lars", "Lars"), ("adamw", "AdamW"), ("lamb", "Lamb")]
)
def test_optimizer_is_created_by_name(name: str, class_name: str) -> None:
    assert type(build_optimizer(name)).__name__ == class_name
    assert {group["lr"] for group in build_optimizer(name, lr=0.3).param_groups} == {0.3}


def test_momentum_applies_to_optimizers_that_have_it() -> None:
    for name in ("sgd", "lars"):
        assert {group["momentum"] for group in build_optimizer(name, momentum=0.8).param_groups} == {0.8}
    assert build_optimizer("adamw", momentum=0.8).param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(("name", "nearest"), [("adamww", "adamw"), ("LARS", "lars"), ("sdg", "sgd")])
def test_unknown_name_suggests_near_ones(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=rf"no optimizer '{name}'\. Nearest: .*\b{nearest}\b.*There are: .*adamw"):
        build_optimizer(name)


def test_optimizer_that_cannot_be_built_is_reported() -> None:
    with pytest.raises(ReptkError, match="fusedadam"):
        build_optimizer("fusedadam")


@pytest.mark.parametrize("name", [name for name in list_optimizers() if get_optimizer_info(name).second_order])
def test_optimizers_that_need_second_derivatives_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"optimizer '{name}' needs second derivatives"):
        build_optimizer(name)


# Learning rate


def formula(step: int, kind: str, steps: int, warmup: int, lr: float, first: float, last: float) -> float:
    """Linear from above `first` to `lr`, then half a cosine from `lr` to `last`: SGDR's eq. 5 (arXiv 1608.03983)."""
    warmup = min(warmup, steps - 1)
    if step < warmup:
        return first + (lr - first) * (step + 1) / warmup
    peak = max(warmup - 1, 0)
    if kind == "constant" or steps == 1:
        return lr
    return last + (lr - last) * (1 + math.cos(math.pi * (step - peak) / (steps - 1 - peak))) / 2


SCHEDULES = [
    # steps, warm-up, lr, first, last
    (100, 0, 0.1, 0.0, 0.0001),
    (100, 1, 0.1, 0.0, 0.0001),
    (100, 10, 0.1, 0.0, 0.0001),
    (100, 10, 0.1, 0.05, 0.0),
    (50, 49, 3.0, 0.001, 0.003),
    (20, 20, 0.1, 0.0, 0.0),
    (10, 30, 0.1, 0.0, 0.01),
    (3, 1, 0.1, 0.0, 0.01),
    (2, 1, 0.1, 0.0, 0.01),
    (2, 0, 0.1, 0.0, 0.01),
    (1, 0, 0.1, 0.0, 0.01),
    (1, 1, 0.1, 0.02, 0.01),
]


def learning_rates(kind: str, steps: int, warmup: int, lr: float, first: float, last: float) -> list[float]:
    optimizer = build_optimizer(lr=lr)
    schedule = Schedule(optimizer, kind=kind, steps=steps, warmup_steps=warmup, warmup_lr=first, final_lr=last)
    rates = []
    for step in range(steps):
        schedule.set_step(step)
        assert {group["lr"] for group in optimizer.param_groups} == {learning_rate(optimizer)}
        rates.append(learning_rate(optimizer))
    return rates


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("settings", SCHEDULES)
def test_learning_rate_is_its_formula(settings: tuple[int, int, float, float, float], kind: str) -> None:
    expected = [formula(step, kind, *settings) for step in range(settings[0])]
    assert learning_rates(kind, *settings) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_other_formula_is_detected() -> None:
    settings = (100, 10, 0.1, 0.0, 0.0001)
    expected = [formula(step, "cosine", 100, 11, 0.1, 0.0, 0.0001) for step in range(100)]
    assert learning_rates("cosine", *settings) != pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("settings", SCHEDULES)
def test_no_step_is_lost(settings: tuple[int, int, float, float, float], kind: str) -> None:
    """The first step trains, and the last one has the final learning rate exactly."""
    steps, _, lr, _, last = settings
    rates = learning_rates(kind, *settings)
    assert rates[0] > 0
    if steps > 1:
        assert rates[-1] == (last if kind == "cosine" else lr)


def test_learning_rate_begins_peaks_and_ends_as_configured() -> None:
    rates = learning_rates("cosine", 1000, 100, 0.1, 0.0, 0.001)
    assert rates[:2] == pytest.approx([0.001, 0.002])
    assert max(rates) == rates[99] == 0.1
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert rates[-1] == 0.001
    assert learning_rates("cosine", 1000, 100, 0.1, 0.02, 0.001)[0] == pytest.approx(0.0208)
    assert set(learning_rates("constant", 1000, 100, 0.1, 0.02, 0.001)[99:]) == {0.1}


def test_learning_rate_depends_on_the_step_alone() -> None:
    """A resumed run need not replay the steps before."""
    every_step = learning_rates("cosine", 40, 5, 0.1, 0.0, 0.001)
    for step in (0, 3, 5, 17, 39):
        optimizer = build_optimizer(lr=0.1)
        schedule = Schedule(optimizer, kind="cosine", steps=40, warmup_steps=5, warmup_lr=0.0, final_lr=0.001)
        schedule.set_step(step)
        assert learning_rate(optimizer) == every_step[step]


# Groups of a method


def test_group_with_a_weight_decay_is_not_split() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    groups = [{"params": list(layers[0].parameters())}, {"params": list(layers[1].parameters()), "weight_decay": 0.3}]
    optimizer = create_optimizer(groups, name="sgd", lr=0.1, weight_decay=0.1)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [
        (1, 0.1),
        (1, 0.0),
        (2, 0.3),
    ]


def test_lr_scale_multiplies_the_scheduled_rate() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    groups = [{"params": list(layers[0].parameters())}, {"params": list(layers[1].parameters()), "lr_scale": 0.1}]
    optimizer = create_optimizer(groups, name="sgd", lr=1.0, weight_decay=0.0)
    schedule = Schedule(optimizer, kind="cosine", steps=10, warmup_steps=0, warmup_lr=0.0, final_lr=0.0)
    for step in range(10):
        schedule.set_step(step)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(0.1 * first)


@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_multistep_is_torchs(steps_per_epoch: int) -> None:
    """The milestones of SupContrast's linear stage."""
    optimizer, other = build_optimizer(lr=5.0), build_optimizer(lr=5.0)
    steps = 100 * steps_per_epoch
    schedule = Schedule(
        optimizer,
        kind="multistep",
        steps=steps,
        warmup_steps=0,
        warmup_lr=0.0,
        final_lr=0.0,
        milestones=(0.6, 0.75, 0.9),
        gamma=0.2,
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(other, milestones=[60, 75, 90], gamma=0.2)
    for step in range(steps):
        schedule.set_step(step)
        assert learning_rate(optimizer) == pytest.approx(learning_rate(other), rel=1e-12)
        if step % steps_per_epoch == steps_per_epoch - 1:
            other.step()
            scheduler.step()


def test_parameters_of_a_loss_move_to_groups_of_their_own() -> None:
    backbone, proxies, frozen = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    method_groups = [{"params": [backbone, proxies], "lr_scale": 0.5}, {"params": []}]
    loss_groups = [{"params": [proxies, frozen], "lr_scale": 100.0, "weight_decay": 0.0}]
    first, second = with_groups_of_loss(method_groups, loss_groups)
    assert first == {"params": [backbone], "lr_scale": 0.5}
    assert [parameter is proxies for parameter in second["params"]] == [True]
    assert (second["lr_scale"], second["weight_decay"]) == (100.0, 0.0)
    assert method_groups[0]["params"] == [backbone, proxies]

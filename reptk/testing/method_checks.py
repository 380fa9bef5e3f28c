"""The check of methods, whose steps must be functions of the method's state, the batch and the step."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reptk.config.registry import METHODS
from reptk.core import rng
from reptk.data.sources.generated import generated
from reptk.losses import SimCLR
from reptk.methods import Batch, Method, Step
from reptk.models.encoder import Encoder
from reptk.testing.requirements import Outcome, Requirement, qualified_name, raise_violations, try_requirements
from reptk.views import Views
from reptk.views.sets import crop_flip, simclr_small

SIZE_PX = 16
NUM_CLASSES = 3
BATCH_SIZE = 6
TOTAL_STEPS = 8

RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers that layers of torch write in their forward pass."""


def check_method(
    factory: Callable[..., Method], *, loss: nn.Module | None = None, backbone: str = "test_vit", **arguments: Any
) -> None:
    """Check a method against `METHOD_REQUIREMENTS`, with a tiny encoder on generated images of 16 px.

    Args:
        factory: the method's class or factory, called with those of `encoder`, `views`, `loss` and `num_classes` that it takes.
        loss: for a method that takes one; SimCLR by default.
        backbone: timm name of the encoder's backbone. One with BatchNorm checks that running statistics are saved.
        arguments: further arguments of the factory.

    Raises:
        AssertionError: one line for each violated requirement.

    Example:
        >>> from reptk.methods import Contrastive
        >>> check_method(Contrastive, positives="class")
    """
    outcomes = try_method(factory, arguments, loss=loss, backbone=backbone)
    raise_violations(outcomes, "a method", qualified_name(factory))


def try_method(
    factory: Callable[..., Method],
    arguments: Mapping[str, Any],
    *,
    loss: nn.Module | None = None,
    backbone: str = "test_vit",
) -> list[Outcome]:
    """Try `METHOD_REQUIREMENTS`, and return what came of each; see `check_method`."""
    if loss is None:
        loss = SimCLR()
    builder = _MethodBuilder(factory, loss, backbone, arguments)
    with rng.seeded("check_method"):
        return try_requirements(builder, METHOD_REQUIREMENTS)


class _MethodBuilder:
    """Builds a new instance of the method for each requirement, with initial weights that depend on the seed alone."""

    def __init__(
        self, factory: Callable[..., Method], loss: nn.Module, backbone: str, arguments: Mapping[str, Any]
    ) -> None:
        self.factory = factory
        self.loss = loss
        self.backbone = backbone
        self.arguments = arguments

    def build(self, seed: int = 0, views: Views | None = None) -> Method:
        if views is None:
            views = crop_flip(count=2, size=SIZE_PX)
        with rng.seeded("check_method", seed):
            encoder = Encoder(self.backbone, size=SIZE_PX, head_width=32, head_out=16)
            # A copy, since a loss may have parameters, which training changes.
            loss = copy.deepcopy(self.loss)
            parts = {"encoder": encoder, "views": views, "loss": loss, "num_classes": NUM_CLASSES}
            # As `Registry.build` does for a recipe.
            parameters = inspect.signature(self.factory).parameters
            supplied = {name: parts[name] for name in METHODS.supplied if name in parameters}
            return self.factory(**supplied, **self.arguments).train()


def _batch(number: int, *, labeled: bool = True) -> Batch:
    data = generated(classes=NUM_CLASSES, size=SIZE_PX, train=BATCH_SIZE * TOTAL_STEPS).train
    index = torch.arange(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)
    labels = data.labels[index]
    if not labeled:
        labels = torch.full_like(labels, -1)
    return Batch(data.images.fetch(index).contiguous(), labels, index)


def _step(number: int) -> Step:
    return Step(number, TOTAL_STEPS, rng.key("check_method", number))


def _forward(method: Method, number: int, batch: Batch | None = None) -> dict[str, Tensor]:
    # The training loop seeds the global stream before every step, for dropout.
    torch.manual_seed(number)
    if batch is None:
        batch = _batch(number)
    return method(batch, _step(number))


def _create_optimizer(method: Method) -> torch.optim.Optimizer:
    # torch ignores further keys of a group, such as `lr_scale`, which is timm's.
    groups = [dict(group) for group in method.parameter_groups()]
    return torch.optim.SGD(groups, lr=0.05)


def _train(method: Method, steps: range, optimizer: torch.optim.Optimizer) -> None:
    """Train as the training loop does."""
    for number in steps:
        _forward(method, number)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            method.after_step(_step(number))


def _not_a_method(builder: _MethodBuilder) -> str | None:
    method = builder.build()
    if not isinstance(method, Method):
        return f"it is a {type(method).__qualname__}; subclass reptk.Method"
    if not isinstance(method.encoder, nn.Module):
        return f"its encoder is a {type(method.encoder).__qualname__}"
    saved = method.state_dict()
    missing = [name for name in method.encoder.state_dict() if f"encoder.{name}" not in saved]
    if missing:
        return f"the encoder's {missing[0]} is not in its state_dict"
    return None


def _wrong_outputs(builder: _MethodBuilder) -> str | None:
    outputs = _forward(builder.build(), 0)
    if not isinstance(outputs, dict):
        return f"it returned {type(outputs).__name__}"
    if "loss" not in outputs:
        return f"it returned {sorted(outputs)}"
    loss = outputs["loss"]
    if loss.ndim or not loss.is_floating_point() or not loss.isfinite() or not loss.requires_grad:
        return f"the loss is {loss}"
    for name, value in outputs.items():
        if not isinstance(value, Tensor):
            return f"{name} is a {type(value).__name__}"
        if name != "loss" and value.requires_grad:
            return f"{name} is attached to the graph; return it detached"
    return None


def _wrong_embeddings(builder: _MethodBuilder) -> str | None:
    outputs = _forward(builder.build(), 0)
    z, ids = outputs.get("z"), outputs.get("ids")
    if ids is not None and z is None:
        return "it returned ids without z"
    if z is not None and z.ndim != 2:
        return f"z has shape {tuple(z.shape)}"
    if ids is not None and ids.shape != z.shape[:1]:
        return f"z has shape {tuple(z.shape)}, ids {tuple(ids.shape)}"
    return None


def _untrained_parameters(builder: _MethodBuilder) -> str | None:
    method = builder.build()
    _forward(method, 0)["loss"].backward()
    grouped = [parameter for group in method.parameter_groups() for parameter in group["params"]]
    if len({id(parameter) for parameter in grouped}) != len(grouped):
        return "a parameter is in two groups"
    in_groups = {id(parameter) for parameter in grouped}
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            # DDP would wait for this gradient.
            return f"{name} requires a gradient and gets none"
        if id(parameter) not in in_groups:
            return f"{name} requires a gradient and is in no group"
    return None


def _depends_on_more(builder: _MethodBuilder) -> str | None:
    first = _forward(builder.build(), 0)["loss"]
    second = _forward(builder.build(), 0)["loss"]
    if not torch.equal(first, second):
        return f"it gave {first.item():.9g}, then {second.item():.9g}"
    return None


def _ignores_key(builder: _MethodBuilder) -> str | None:
    # The same global seed for both, so that only the key can make a difference.
    method = builder.build()
    torch.manual_seed(0)
    first = method(_batch(0), _step(0))["loss"]
    method = builder.build()
    torch.manual_seed(0)
    second = method(_batch(0), _step(0)._replace(key=1))["loss"]
    if torch.equal(first, second):
        return "another key gave the same loss"
    return None


def _writes_to_batch(builder: _MethodBuilder) -> str | None:
    # Equal, since the images are generated.
    batch, before = (_batch(0)._replace(aspect_ratios=torch.full((BATCH_SIZE,), 1.5)) for _ in range(2))
    _forward(builder.build(), 0, batch)
    for name, value, expected in zip(Batch._fields, batch, before, strict=True):
        if not torch.equal(value, expected):
            return f"{name} was written to"
    return None


def _forward_changes_state(builder: _MethodBuilder) -> str | None:
    method = builder.build()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    _forward(method, 0)["loss"].backward()
    for name, value in method.state_dict().items():
        if name.rpartition(".")[2] in RUNNING_STATISTICS:
            continue
        if not torch.equal(value, before[name]):
            return f"{name} changed; change it in after_step, which is not called if the step is not finite"
    return None


def _ignores_aspect_ratios(builder: _MethodBuilder) -> str | None:
    if not builder.build().crops_full_images:
        return None
    losses = []
    # Views whose crops depend on the proportions.
    views = simclr_small(count=2, size=SIZE_PX)
    for aspect_ratio in (0.5, 2.0):
        batch = _batch(0)._replace(aspect_ratios=torch.full((BATCH_SIZE,), aspect_ratio))
        losses.append(_forward(builder.build(views=views), 0, batch)["loss"])
    if torch.equal(*losses):
        return "other aspect ratios gave the same loss; draw the views by batch.draw_views(self.views, step.key)"
    return None


def _fails_without_labels(builder: _MethodBuilder) -> str | None:
    loss = _forward(builder.build(), 0, _batch(0, labeled=False))["loss"]
    if not loss.isfinite():
        return f"the loss is {loss.item()}"
    return None


def _resumes_differently(builder: _MethodBuilder) -> str | None:
    """Compare four steps with two steps, whose state is loaded into a method with other initial weights, and two more."""
    uninterrupted = builder.build()
    _train(uninterrupted, range(4), _create_optimizer(uninterrupted))

    interrupted = builder.build()
    optimizer = _create_optimizer(interrupted)
    _train(interrupted, range(2), optimizer)

    resumed = builder.build(seed=1)
    resumed.load_state_dict(interrupted.state_dict())
    resumed_optimizer = _create_optimizer(resumed)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    _train(resumed, range(2, 4), resumed_optimizer)
    for name, value in uninterrupted.state_dict().items():
        if not torch.equal(value, resumed.state_dict()[name]):
            return f"{name} differs: what a step depends on must be a parameter or a registered buffer"
    return None


METHOD_REQUIREMENTS = (
    Requirement(
        "it is a Method whose state_dict holds its encoder",
        _not_a_method,
        "Training refuses it, or a run has no weights to export and to resume from.",
    ),
    Requirement(
        "forward returns a finite scalar loss with a graph; all else is detached tensors",
        _wrong_outputs,
        "Training cannot call backward on it, cannot log it, or holds the graph of every step in memory.",
    ),
    Requirement(
        "z (N, D) and ids (N,), if returned, belong together",
        _wrong_embeddings,
        "The health of every epoch (collapse, alignment) cannot be measured.",
    ),
    Requirement(
        "every parameter that requires a gradient gets one, and is in one group",
        _untrained_parameters,
        "The parameter is not trained, or several ranks wait for its gradient: use requires_grad_(False) if that is meant.",
    ),
    Requirement(
        "the same state, batch and step give the same loss",
        _depends_on_more,
        "A run that is repeated, or resumed, ends in other weights.",
    ),
    Requirement(
        "the step's key decides what is drawn",
        _ignores_key,
        "Every epoch trains on the same views: pass step.key to batch.draw_views.",
    ),
    Requirement(
        "the batch is not written to",
        _writes_to_batch,
        "Data sets in memory are changed by training, and evaluation measures other images.",
    ),
    Requirement(
        "forward changes nothing but running statistics of BatchNorm",
        _forward_changes_state,
        "A step that is not finite leaves its traces in the last checkpoint.",
    ),
    Requirement(
        "with crops_full_images, views depend on the aspect ratios",
        _ignores_aspect_ratios,
        "Photographs that are not square are trained on squashed.",
    ),
    Requirement(
        "images without labels give a finite loss",
        _fails_without_labels,
        "Training stops at the first image without a label (-1), as in data labeled in part: leave it out of the loss.",
    ),
    Requirement(
        "a run resumed from its state_dict ends in the same weights and buffers",
        _resumes_differently,
        "A run that was interrupted gives another result than one that was not.",
    ),
)
"""What a method must do."""

"""What a method must do: one step at a time, as a function of its state, the batch and the step."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reptk.config.registry import METHODS
from reptk.core import rng
from reptk.data.sources.generated import generated
from reptk.losses import SimCLR
from reptk.methods import Batch, Method, Step
from reptk.models.encoder import Encoder
from reptk.testing.requirements import Requirement, check_requirements
from reptk.views.sets import crop_flip

SIZE_PX = 16
BATCH_SIZE = 6
TOTAL_STEPS = 8


def check_method(
    factory: Callable[..., Method], *, loss: nn.Module | None = None, backbone: str = "test_vit", **arguments: Any
) -> None:
    """Check a method against `METHOD_REQUIREMENTS`, with a tiny encoder on generated images of 16 px.

    Args:
        factory: the method's class or factory, called with those of `encoder`, `views` and `loss` that it takes.
        loss: for a method that takes one; SimCLR by default.
        backbone: timm name of the encoder's backbone. One with BatchNorm checks that running statistics are saved.
        arguments: further arguments of the factory.

    Raises:
        AssertionError: one line for each violated requirement.

    Example:
        >>> from reptk.methods import Contrastive
        >>> check_method(Contrastive, positives="class")
    """
    with rng.seeded("check_method"):
        check_requirements(
            factory, "a method", METHOD_REQUIREMENTS, _Builder(factory, loss or SimCLR(), backbone, arguments)
        )


class _Builder:
    """Builds the method anew, with the same initial weights each time."""

    def __init__(
        self, factory: Callable[..., Method], loss: nn.Module, backbone: str, arguments: dict[str, Any]
    ) -> None:
        self.factory = factory
        self.loss = loss
        self.backbone = backbone
        self.arguments = arguments

    def build(self, seed: int = 0) -> Method:
        with rng.seeded("check_method", seed):
            encoder = Encoder(self.backbone, size=SIZE_PX, head_width=32, head_out=16)
            parts = {"encoder": encoder, "views": crop_flip(count=2, size=SIZE_PX), "loss": self.loss}
            parameters = inspect.signature(self.factory).parameters
            supplied = {name: parts[name] for name in METHODS.supplied if name in parameters}
            return self.factory(**supplied, **self.arguments).train()


def _batch(number: int, *, labelled: bool = True) -> Batch:
    data = generated(classes=3, size=SIZE_PX, train=BATCH_SIZE * TOTAL_STEPS).train
    index = torch.arange(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)
    labels = data.labels[index] if labelled else torch.full((BATCH_SIZE,), -1)
    return Batch(data.images.fetch(index).contiguous(), labels, index)


def _step(number: int) -> Step:
    return Step(number, TOTAL_STEPS, rng.key("check_method", number))


def _forward(method: Method, number: int, batch: Batch | None = None) -> dict[str, Tensor]:
    # The training loop seeds the global stream before every step, for dropout.
    torch.manual_seed(number)
    return method(_batch(number) if batch is None else batch, _step(number))


def _train(method: Method, steps: range, optimizer: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    if optimizer is None:
        groups = [
            {key: value for key, value in group.items() if key != "lr_scale"} for group in method.parameter_groups()
        ]
        optimizer = torch.optim.SGD(groups, lr=0.05)
    for number in steps:
        _forward(method, number)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            method.after_step(_step(number))
    return optimizer


def _not_a_method(factory: Any, builder: _Builder) -> str | None:
    method = builder.build()
    if not isinstance(method, Method):
        return f"it is a {type(method).__qualname__}; subclass reptk.Method"
    if not isinstance(method.encoder, nn.Module):
        return f"its encoder is a {type(method.encoder).__qualname__}"
    saved = method.state_dict()
    missing = [name for name in method.encoder.state_dict() if f"encoder.{name}" not in saved]
    return f"the encoder's {missing[0]} is not in its state_dict" if missing else None


def _wrong_outputs(factory: Any, builder: _Builder) -> str | None:
    outputs = _forward(builder.build(), 0)
    if not isinstance(outputs, dict) or "loss" not in outputs:
        return f"it returned {sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__}"
    loss = outputs["loss"]
    if loss.ndim or not loss.is_floating_point() or not loss.isfinite() or not loss.requires_grad:
        return f"the loss is {loss}"
    for name, value in outputs.items():
        if not isinstance(value, Tensor):
            return f"{name} is a {type(value).__name__}"
        if name != "loss" and value.requires_grad:
            return f"{name} is attached to the graph; return it detached"
    return None


def _wrong_embeddings(factory: Any, builder: _Builder) -> str | None:
    outputs = _forward(builder.build(), 0)
    z, ids = outputs.get("z"), outputs.get("ids")
    if ids is not None and z is None:
        return "it returned ids without z"
    if z is not None and z.ndim != 2:
        return f"z has shape {tuple(z.shape)}"
    if ids is not None and ids.shape != z.shape[:1]:
        return f"z has shape {tuple(z.shape)}, ids {tuple(ids.shape)}"
    return None


def _untrained_parameters(factory: Any, builder: _Builder) -> str | None:
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
            return f"{name} requires a gradient and gets none"
        if id(parameter) not in in_groups:
            return f"{name} requires a gradient and is in no group"
    return None


def _depends_on_more(factory: Any, builder: _Builder) -> str | None:
    first, second = _forward(builder.build(), 0)["loss"], _forward(builder.build(), 0)["loss"]
    return None if torch.equal(first, second) else f"it gave {first.item():.9g}, then {second.item():.9g}"


def _ignores_key(factory: Any, builder: _Builder) -> str | None:
    method = builder.build()
    torch.manual_seed(0)
    first = method(_batch(0), _step(0))["loss"]
    method = builder.build()
    torch.manual_seed(0)
    second = method(_batch(0), _step(0)._replace(key=1))["loss"]
    return "another key gave the same loss" if torch.equal(first, second) else None


def _writes_to_batch(factory: Any, builder: _Builder) -> str | None:
    batch, before = _batch(0), _batch(0)
    _forward(builder.build(), 0, batch)
    for name, value, expected in zip(Batch._fields, batch, before, strict=True):
        if not torch.equal(value, expected):
            return f"{name} was written to"
    return None


def _fails_without_labels(factory: Any, builder: _Builder) -> str | None:
    loss = _forward(builder.build(), 0, _batch(0, labelled=False))["loss"]
    return None if loss.isfinite() else f"the loss is {loss.item()}"


def _resumes_differently(factory: Any, builder: _Builder) -> str | None:
    """Four steps in one go, and two, saved, loaded into a method that was initialised otherwise, and two more."""
    whole = builder.build()
    _train(whole, range(4))
    first_half = builder.build()
    optimizer = _train(first_half, range(2))
    saved = {name: value.clone() for name, value in first_half.state_dict().items()}
    resumed = builder.build(seed=1)
    resumed.load_state_dict(saved)
    resumed_optimizer = torch.optim.SGD([{**group} for group in resumed.parameter_groups()], lr=0.05)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    _train(resumed, range(2, 4), resumed_optimizer)
    for name, value in whole.state_dict().items():
        if not torch.equal(value, resumed.state_dict()[name]):
            return f"{name} differs: what a step depends on must be a parameter or a registered buffer"
    return None


METHOD_REQUIREMENTS = (
    Requirement("it is a Method whose state_dict holds its encoder", _not_a_method),
    Requirement("forward returns a finite scalar loss with a graph; all else is detached tensors", _wrong_outputs),
    Requirement("z (N, D) and ids (N,), if returned, belong together", _wrong_embeddings),
    Requirement("every parameter that requires a gradient gets one, and is in one group", _untrained_parameters),
    Requirement("the same state, batch and step give the same loss", _depends_on_more),
    Requirement("the step's key decides what is drawn", _ignores_key),
    Requirement("the batch is not written to", _writes_to_batch),
    Requirement("images without labels give a finite loss", _fails_without_labels),
    Requirement("a run resumed from its state_dict ends in the same weights and buffers", _resumes_differently),
)
"""What a method must do."""

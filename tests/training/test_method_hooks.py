"""What the loop calls of a method, and when: parameter_groups once, then forward, the optimizer, after_step."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from reptk import METHODS
from reptk.methods import Batch, Method, Step
from tiny_runs import logged_losses, metric_rows, result_metrics, run_silently, tiny

STEPS = 6


class Call(NamedTuple):
    """One call by the loop.

    step: its number; total_steps: of the run; weight: value of a trained parameter; has_gradient: whether that parameter
    holds a gradient.
    """

    hook: str
    step: int
    total_steps: int
    grad_enabled: bool
    weight: float
    has_gradient: bool


class RecordingMethod(Method):
    """A method without a loss of the registry; it records how it is called.

    `weight` is trained by a group of its own, `not_grouped` is in no group, though it gets a gradient.
    """

    def __init__(self, encoder, views) -> None:
        super().__init__()
        self.encoder = encoder
        self.views = views
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.not_grouped = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("steps_done", torch.tensor(0))
        self.calls: list[Call] = []

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        self._record("forward", step)
        z = self.encoder(self.views(batch.images, step.key)[0])
        loss = z.square().mean() + self.weight * self.not_grouped
        return {"loss": loss, "margin": torch.tensor(step.number + 0.5), "center": z.detach().mean(0)}

    def after_step(self, step: Step) -> None:
        self._record("after_step", step)
        self.steps_done += 1

    def parameter_groups(self) -> list[dict[str, Any]]:
        self.calls.append(Call("parameter_groups", -1, 0, torch.is_grad_enabled(), self.weight.item(), False))
        return [
            {"params": list(self.encoder.parameters()), "lr_scale": 0.5},
            {"params": [self.weight], "weight_decay": 0.0},
        ]

    def _record(self, hook: str, step: Step) -> None:
        has_gradient = self.weight.grad is not None
        call = Call(hook, step.number, step.total, torch.is_grad_enabled(), self.weight.item(), has_gradient)
        self.calls.append(call)


class Run(NamedTuple):
    """A finished run: its method as it was built and trained, and its folder."""

    method: RecordingMethod
    folder: Path


@pytest.fixture
def run(tmp_path: Path, restored_registries: None) -> Run:
    methods = []

    @METHODS.register("recording")
    def recording(encoder, views) -> Method:
        methods.append(RecordingMethod(encoder, views))
        return methods[-1]

    options = ["train.baselines=false", "train.report=false", "optim.name=sgd", "optim.lr=0.1", "optim.momentum=0"]
    run_silently(tiny(*options, method={"name": "recording"}, loss=None), tmp_path / "run")
    return Run(methods[0], tmp_path / "run")


def test_hooks_are_called_in_this_order(run: Run) -> None:
    hooks = [(call.hook, call.step) for call in run.method.calls]
    expected = [("parameter_groups", -1)]
    for number in range(STEPS):
        expected += [("forward", number), ("after_step", number)]
    assert hooks == expected
    assert {call.total_steps for call in run.method.calls[1:]} == {STEPS}


def test_after_step_is_called_without_gradients_and_after_the_optimizers_step(run: Run) -> None:
    calls = run.method.calls[1:]
    for forward, after_step in zip(calls[::2], calls[1::2], strict=True):
        assert forward.grad_enabled
        assert not after_step.grad_enabled
        assert not after_step.has_gradient
        assert after_step.weight < forward.weight
    for after_step, next_forward in zip(calls[1::2], calls[2::2], strict=False):
        assert after_step.weight == next_forward.weight


def test_parameters_of_the_groups_alone_are_trained(run: Run) -> None:
    assert run.method.not_grouped.item() == 1.0
    assert run.method.weight.item() < 1.0


def test_scalars_are_logged_and_other_tensors_are_not(run: Run) -> None:
    rows = [row for row in metric_rows(run.folder) if "loss" in row]
    assert [row["margin"] for row in rows] == [number + 0.5 for number in range(STEPS)]
    assert not any("center" in row for row in rows)


def test_method_without_embeddings_has_no_diagnostics(run: Run) -> None:
    rows = metric_rows(run.folder)
    assert not any("rank" in row for row in rows)
    assert [row["epoch"] for row in rows if "waiting" in row] == [1, 2]
    assert "steps_without_positives" not in (run.folder / "metrics.jsonl").read_text()


def test_method_without_a_loss_table_trains_and_is_evaluated(run: Run) -> None:
    assert len(logged_losses(run.folder)) == STEPS
    assert set(result_metrics(run.folder)) == {"trained"}
    assert "[loss]" not in (run.folder / "recipe.toml").read_text()


def test_checkpoint_holds_the_buffers_of_the_method(run: Run) -> None:
    state = torch.load(run.folder / "checkpoints" / f"step_{STEPS:08d}" / "state.pt", weights_only=True)
    assert state["method"]["steps_done"] == STEPS
    assert state["method"]["weight"] == run.method.weight


def test_default_group_holds_what_requires_a_gradient() -> None:
    class Two(Method):
        def __init__(self) -> None:
            super().__init__()
            self.trained = nn.Linear(2, 3)
            self.frozen = nn.Linear(2, 3).requires_grad_(False)

    method = Two()
    (group,) = method.parameter_groups()
    assert {id(parameter) for parameter in group["params"]} == {id(method.trained.weight), id(method.trained.bias)}
    assert method.after_step(Step(0, 1, 0)) is None

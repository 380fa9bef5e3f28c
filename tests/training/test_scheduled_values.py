"""Scheduled arguments in runs: each step trains with its value, and a constant schedule is the number itself."""

from pathlib import Path

import pytest
import torch

from reptk import LOSSES
from reptk.config.plugins import load_plugin
from reptk.core.errors import UsageError
from reptk.losses import tcl
from reptk.training.build import build
from reptk.training.load_data import load_data
from reptk.training.parts import Parts
from tiny_runs import are_equal, exported_weights, logged_losses, metric_rows, run_silently, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "restored_registries")

QUICK = ("train.baselines=false", "train.report=false", "eval.knn.every_epochs=0", "encoder.backbone=test_vit")


def built(*overrides: str, **tables: dict | None) -> Parts:
    recipe = tiny(*overrides, **tables)
    return build(recipe, load_data(recipe), torch.device("cpu"))


def test_a_constant_schedule_is_the_number_itself(tmp_path: Path) -> None:
    number = tiny(*QUICK, "loss.temperature=0.2", "loss.k1=30", "optim.weight_decay=0.1")
    table = tiny(
        *QUICK,
        "loss.temperature={start=0.2, end=0.2}",
        "loss.k1={start=30, end=30, schedule='exponential'}",
        "optim.weight_decay={start=0.1, end=0.1, schedule='linear'}",
    )
    changing = tiny(*QUICK, "loss.temperature={start=0.2, end=0.1}", "loss.k1=30", "optim.weight_decay=0.1")
    for name, recipe in (("number", number), ("table", table), ("changing", changing)):
        run_silently(recipe, tmp_path / name)
    assert are_equal(exported_weights(tmp_path / "number"), exported_weights(tmp_path / "table"))
    assert not are_equal(exported_weights(tmp_path / "number"), exported_weights(tmp_path / "changing"))
    assert logged_losses(tmp_path / "number") == logged_losses(tmp_path / "table")


def test_every_step_has_its_value_and_logs_it(tmp_path: Path) -> None:
    overrides = ("loss.temperature={start=0.5, end=0.1, schedule='linear'}", "optim.weight_decay={start=0, end=0.5}")
    run_silently(tiny(*QUICK, *overrides), tmp_path / "run")
    rows = [row for row in metric_rows(tmp_path / "run") if "loss" in row]
    temperatures = [row["loss.temperature"] for row in rows]
    assert temperatures == pytest.approx([0.5, 0.42, 0.34, 0.26, 0.18, 0.1])
    assert [row["temperature"] for row in rows] == pytest.approx(temperatures), "what the loss itself says"
    assert (rows[0]["optim.weight_decay"], rows[-1]["optim.weight_decay"]) == (0, 0.5)


def test_the_loss_of_a_step_is_computed_with_its_values() -> None:
    parts = built(
        "loss.temperature={start=0.5, end=0.1}", "loss.k1={start=0, end=100}", "loss.k2={start=2, end=0, epochs=1}"
    )
    z = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(12) // 3
    for step in (0, 2, 5):
        parts.scheduled_values.set_step(step)
        values = parts.scheduled_values.at_step(step)
        expected = tcl(z, ids, temperature=values["loss.temperature"], k1=values["loss.k1"], k2=values["loss.k2"])
        assert parts.method.loss(z, ids) == expected
    assert values == {"loss.temperature": 0.1, "loss.k1": 100, "loss.k2": 0}


def test_the_weight_decay_of_norms_biases_and_fixed_groups_remains() -> None:
    parts = built("optim.weight_decay={start=0, end=0.4}")
    groups = parts.optimizer.param_groups
    before = [group["weight_decay"] for group in groups]
    assert sorted(before) == [0, 0.4]
    parts.scheduled_values.set_step(0)
    assert [group["weight_decay"] for group in groups] == [0, 0]
    # As a checkpoint does it, which replaces the groups.
    parts.optimizer.load_state_dict(parts.optimizer.state_dict())
    parts.scheduled_values.set_step(5)
    assert [group["weight_decay"] for group in parts.optimizer.param_groups] == before


def test_a_longer_run_says_that_the_schedules_follow_its_length(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from reptk.training.loop import train

    overrides = (*QUICK, "loss.temperature={start=0.1, end=0.05}", "loss.k1={start=1, end=2, epochs=1}")
    run_silently(tiny(*overrides), tmp_path / "run")
    train(tiny(*overrides, "train.epochs=3"), tmp_path / "run", resume=True)
    assert (
        "train.epochs=3 instead of 2 (also the length of the schedule of loss.temperature)" in capsys.readouterr().out
    )


PLUGIN = """
import torch
from reptk import LOSSES

@LOSSES.register("margin")
class Margin(torch.nn.Module):
    def __init__(self, margin: float = 0.2, hidden: float = 0.1, untyped=0.5):
        super().__init__()
        self.margin = margin
        self.untyped = untyped
        self._hidden = hidden

    def forward(self, z, ids):
        z = torch.nn.functional.normalize(z, dim=1)
        return torch.relu(z @ z.T - self.margin * self.untyped).mean()
"""


@pytest.fixture
def margin_table(tmp_path: Path) -> dict:
    (tmp_path / "margin.py").write_text(PLUGIN)
    load_plugin(str(tmp_path / "margin.py"))
    assert "margin" in LOSSES.names()
    return {"name": "margin"}


def test_arguments_of_a_plugin_may_have_a_schedule(margin_table: dict) -> None:
    parts = built("loss.margin={start=1, end=0}", "loss.untyped={start=2.0, end=0.5}", loss=margin_table)
    assert (parts.method.loss.margin, parts.method.loss.untyped) == (1, 2)
    parts.scheduled_values.set_step(5)
    assert (parts.method.loss.margin, parts.method.loss.untyped) == (0, 0.5)


def test_an_argument_without_an_attribute_is_explained(margin_table: dict) -> None:
    with pytest.raises(
        UsageError, match=r"loss\.hidden cannot follow a schedule: Margin keeps no number as its attribute"
    ):
        built("loss.hidden={start=1, end=0}", loss=margin_table)


def test_a_learned_temperature_has_no_schedule() -> None:
    with pytest.raises(UsageError, match=r"loss\.temperature cannot follow a schedule, since it is learned"):
        built("loss.temperature.end=0.1", "loss.learn_temperature=true", "loss.temperature.start=0.2")
    built("loss.k1={start=1, end=2}", "loss.learn_temperature=true")


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("byol", "momentum"),
        ("dino", "momentum"),
        ("moco_v3", "momentum"),
        ("dino", "frozen_epochs"),
        ("swav", "frozen_epochs"),
        ("swav", "queue_start_epochs"),
    ],
)
def test_what_a_method_schedules_itself_has_no_other_schedule(name: str, argument: str) -> None:
    message = rf"method\.{argument} cannot follow a schedule: .* read the value once, or change it .*: use a number"
    with pytest.raises(UsageError, match=message):
        built(method={"name": name, argument: {"start": 0.9, "end": 1.0}}, loss=None)


def test_the_momentum_of_a_method_may_have_a_schedule() -> None:
    method = {"name": "moco", "queue_size": 16, "momentum": {"start": 0.9, "end": 1.0}}
    parts = built(method=method, loss={"name": "simclr"})
    assert parts.method.momentum == 0.9
    parts.scheduled_values.set_step(5)
    assert parts.method.momentum == 1.0


def test_what_is_read_once_has_no_schedule() -> None:
    with pytest.raises(UsageError, match=r"method\.encoder_lr_scale cannot follow a schedule"):
        built("method.encoder_lr_scale={start=0.1, end=1}", method={"name": "classify"}, loss=None)

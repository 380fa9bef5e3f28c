"""Values of a run that follow a schedule: arguments of its loss and its method, and the weight decay."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from reptk.config.value_schedule import ValueSchedule, schedules_in
from reptk.core.errors import UsageError


class ScheduledValue(NamedTuple):
    """A value by its key in the recipe, e.g. `loss.temperature`, its schedule, and what sets it."""

    key: str
    schedule: ValueSchedule
    set_value: Callable[[float], None]


class ScheduledValues:
    """Sets every value that a recipe schedules, before the step that uses it.

    All of them are functions of the number of the step, so that a checkpoint holds nothing of them.

    Args:
        values: what is scheduled.
        total_steps, steps_per_epoch: of the run.
    """

    def __init__(self, values: Iterable[ScheduledValue], *, total_steps: int, steps_per_epoch: int) -> None:
        self._values = list(values)
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch

    def set_step(self, step: int) -> None:
        """Set the values of a step, counted from 0."""
        for value in self._values:
            value.set_value(self._value(value, step))

    def at_step(self, step: int) -> dict[str, float]:
        """Return the values of a step, counted from 0, by their keys in the recipe."""
        return {value.key: self._value(value, step) for value in self._values}

    @property
    def keys_of_whole_run(self) -> list[str]:
        """Keys of the values that change during the whole run, and so depend on its length."""
        return [value.key for value in self._values if value.schedule.epochs is None]

    def _value(self, value: ScheduledValue, step: int) -> float:
        return value.schedule.value(step, total_steps=self._total_steps, steps_per_epoch=self._steps_per_epoch)


def scheduled_arguments(
    table: str, part: Mapping[str, Any], factory: Callable[..., Any], built: object
) -> list[ScheduledValue]:
    """Return the scheduled arguments of a loss or of a method. Each sets the attribute of the argument's name.

    Args:
        table: "loss" or "method".
        part: that table of the recipe.
        factory: that has built the part.
        built: the part.

    Raises:
        UsageError: the part keeps no number as an attribute of that name.
    """
    values = []
    for name, schedule in schedules_in(factory, part).items():
        key = f"{table}.{name}"
        # Not hasattr: of an nn.Module, that also finds parameters and inner modules, which are no numbers to set.
        attribute = vars(built).get(name)
        if isinstance(attribute, bool) or not isinstance(attribute, int | float):
            raise UsageError(_no_attribute_message(key, name, part, built))

        def set_value(value: float, name: str = name) -> None:
            setattr(built, name, value)

        values.append(ScheduledValue(key, ValueSchedule.model_validate(schedule), set_value))
    return values


def scheduled_weight_decay(
    schedule: ValueSchedule, optimizer: torch.optim.Optimizer, fixed_parameters: Iterable[nn.Parameter]
) -> ScheduledValue:
    """Return the schedule of the weight decay of all groups of an optimizer that are decayed.

    Args:
        schedule: of the weight decay.
        optimizer: built with the larger one of the schedule's ends, so that decayed groups have a weight decay above 0.
        fixed_parameters: those whose weight decay the method sets itself, which remains.
    """
    fixed_ids = set(map(id, fixed_parameters))
    decayed = []
    for number, group in enumerate(optimizer.param_groups):
        is_fixed = any(id(parameter) in fixed_ids for parameter in group["params"])
        if group["weight_decay"] > 0 and not is_fixed:
            decayed.append(number)

    def set_value(value: float) -> None:
        # By number: loading a checkpoint replaces the groups.
        for number in decayed:
            optimizer.param_groups[number]["weight_decay"] = value

    return ScheduledValue("optim.weight_decay", schedule, set_value)


def _no_attribute_message(key: str, name: str, part: Mapping[str, Any], built: object) -> str:
    message = f"{key} cannot follow a schedule"
    if part.get(f"learn_{name}"):
        return f"{message}, since it is learned; use a number, or set {key.partition('.')[0]}.learn_{name}=false"
    return (
        f"{message}: {type(built).__qualname__} keeps no number as its attribute {name!r}, which the schedule would set. It "
        "may read the value once, or change it during the run itself: use a number. A class of your own does "
        f"self.{name} = {name} in __init__ and reads self.{name} in forward"
    )

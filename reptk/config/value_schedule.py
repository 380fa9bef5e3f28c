"""Values that change during a run: `loss.temperature = {start = 0.2, end = 0.05, schedule = "cosine"}`.

A table of this form may take the place of a number in `[loss]`, in `[method]` and at `optim.weight_decay`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reptk.config.signature import takes_float


class ValueSchedule(BaseModel):
    """A number as a function of the step: from `start` in the first step to `end`.

    With progress p, which rises from 0 in the first step to 1 in the last of `epochs`:

        linear        start + (end - start) p
        cosine        start + (end - start) (1 - cos(pi p)) / 2
        exponential   start (end / start)^p, for two numbers above 0
        cycles        the cosine to `end` and back to `start` within `epochs`, again and again, as Kukleva et al. 2023
                      (arXiv 2303.13664) vary the temperature

    After `epochs`, the first three stay at `end`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    start: float = Field(description="the value in the first step")
    end: float = Field(description="the value in the last of `epochs`")
    schedule: Literal["cosine", "linear", "exponential", "cycles"] = Field("cosine", description="its form")
    epochs: float | None = Field(
        None, gt=0, description="over which it changes, or of a cycle; unset: those of the whole run"
    )

    @model_validator(mode="after")
    def _check_exponential(self) -> Self:
        if self.schedule == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError(
                f"an exponential schedule needs start and end above 0, got {self.start:g} and {self.end:g}; schedule = "
                '"linear" or "cosine" takes any'
            )
        return self

    def value(self, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
        """Return the value of a step, counted from 0.

        Args:
            step: number of the step.
            total_steps: of the run.
            steps_per_epoch: of the run.
        """
        num_steps = float(total_steps)
        if self.epochs is not None:
            num_steps = self.epochs * steps_per_epoch
        if self.schedule == "cycles":
            return self._between((1 - math.cos(2 * math.pi * step / num_steps)) / 2)
        # The last step of the schedule has the end exactly, as that of the learning rate has.
        progress = min(1.0, step / max(1.0, num_steps - 1))
        if progress == 1:
            return self.end
        if self.schedule == "cosine":
            return self._between((1 - math.cos(math.pi * progress)) / 2)
        if self.schedule == "exponential":
            return self.start * (self.end / self.start) ** progress
        return self._between(progress)

    def describe(self) -> str:
        """Return the schedule in a few words, e.g. `0.2 to 0.05 (cosine, 10 epochs)`."""
        details = self.schedule
        if self.epochs is not None:
            details += f", {self.epochs:g} epochs"
        return f"{self.start:g} to {self.end:g} ({details})"

    def _between(self, share: float) -> float:
        return self.start + (self.end - self.start) * share


def schedules_in(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the arguments of a part that are tables in place of a number, by name.

    Args:
        factory: whose parameters of type float may have a schedule.
        arguments: of the part.
    """
    scheduled = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and takes_float(factory, name):
            scheduled[name] = value
    return scheduled


def describe_value(value: Any) -> str:
    """Return an argument of a part as text, with a schedule in words."""
    if isinstance(value, Mapping) and {"start", "end", "schedule"} <= set(value) <= set(ValueSchedule.model_fields):
        return ValueSchedule.model_validate(value).describe()
    return str(value)


def at_start(factory: Callable[..., Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of a part with the start of each schedule in its place, to build the part from."""
    numbers = {name: table["start"] for name, table in schedules_in(factory, part).items()}
    return {**part, **numbers}

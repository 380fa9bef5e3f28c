"""Settings of a sweep over their seeds: a dot and an interval for each, next to the numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reptk.core.metric_names import display_name
from reptk.report.formatting import MINUS, format_number, format_percent
from reptk.report.training_curves import rounded_range


@dataclass(frozen=True)
class ComparedSetting:
    """A setting in one metric.

    Args:
        count: runs with a result, e.g. "3" or "2 of 3".
        mean: over the runs, a share; NaN without a result.
        low, high: of its 95 % interval; NaN without one.
        values: of the single runs.
        interval: `low` and `high` as text, with what they are over.
        difference: to the setting that the others are compared with, as text; empty for that one.
        duration: of a run, as text.
    """

    name: str
    count: str
    mean: float
    low: float
    high: float
    values: list[float]
    interval: str
    difference: str
    duration: str


@dataclass(frozen=True)
class ComparedSettings:
    """What a comparison of settings over seeds has computed; the best setting is first.

    Args:
        title: of the page.
        about: what is compared, in a few words.
        sentence: the result in plain words.
        metric: name of the metric.
        difference_heading: of the column of differences; empty without one.
        notes: what a reader of the numbers has to know, a line each.
        run_names: what the runs on the page are called, in their order.
        differences: lines that say what differs between the settings; empty if their names say it.
    """

    title: str
    about: str
    sentence: str
    metric: str
    difference_heading: str
    settings: list[ComparedSetting]
    notes: list[str]
    run_names: list[str]
    differences: Sequence[str] = ()


@dataclass(frozen=True)
class AxisTick:
    """A tick of the axis; the position is a CSS percentage."""

    text: str
    position: str


@dataclass(frozen=True)
class SettingLine:
    """A row; positions are CSS percentages, and those of the interval are empty without one.

    Args:
        is_single: of one run, so that there are no dots of single runs.
    """

    name: str
    count: str
    value: str
    interval: str
    difference: str
    duration: str
    position: str
    low: str
    high: str
    dots: list[str]
    is_single: bool


@dataclass(frozen=True)
class SettingsSection:
    """What templates/settings.html.j2 shows."""

    metric: str
    difference_heading: str
    ticks: list[AxisTick]
    lines: list[SettingLine]
    notes: list[str]


def settings_section(compared: ComparedSettings | None) -> SettingsSection | None:
    """Return the chart and the table of a comparison; None without one, or if no setting has a result."""
    if compared is None:
        return None
    shown = []
    for setting in compared.settings:
        shown += [value for value in (setting.mean, setting.low, setting.high) if math.isfinite(value)]
        shown += setting.values
    if not shown:
        return None
    axis, ticks = rounded_range(min(shown), max(shown))
    return SettingsSection(
        metric=display_name(compared.metric),
        difference_heading=compared.difference_heading,
        ticks=[AxisTick(format_number(100 * tick), _position(tick, axis)) for tick in ticks],
        lines=[_line(setting, axis) for setting in compared.settings],
        notes=compared.notes,
    )


def _line(setting: ComparedSetting, axis: Sequence[float]) -> SettingLine:
    position, value = "", "failed"
    if math.isfinite(setting.mean):
        position, value = _position(setting.mean, axis), format_percent(setting.mean)
    low, high = "", ""
    if math.isfinite(setting.low):
        low, high = _position(setting.low, axis), _position(setting.high, axis)
    dots = []
    if len(setting.values) > 1:
        dots = [_position(single, axis) for single in setting.values]
    return SettingLine(
        name=setting.name,
        count=setting.count,
        value=value,
        interval=setting.interval,
        difference=setting.difference.replace("-", MINUS),
        duration=setting.duration,
        position=position,
        low=low,
        high=high,
        dots=dots,
        is_single=len(setting.values) == 1,
    )


def _position(value: float, axis: Sequence[float]) -> str:
    """Return where a value lies between the ends of the axis, as a CSS percentage."""
    low, high = axis
    return f"{100 * (value - low) / (high - low):.2f}%"

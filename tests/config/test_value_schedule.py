"""Numbers that change during a run, in a recipe: their values, their bounds, and what is said about them."""

import math
import tomllib

import pytest

from recipe_files import TINY, load_error, write
from reptk.config import load, validate
from reptk.config.value_schedule import ValueSchedule, describe_value

RUN = {"total_steps": 41, "steps_per_epoch": 10}


def values(schedule: ValueSchedule) -> list[float]:
    return [schedule.value(step, **RUN) for step in range(RUN["total_steps"])]


# Values


@pytest.mark.parametrize("kind", ["cosine", "linear", "exponential"])
def test_the_first_and_the_last_step_have_the_ends_exactly(kind):
    numbers = values(ValueSchedule(start=0.3, end=0.07, schedule=kind))
    assert (numbers[0], numbers[-1]) == (0.3, 0.07)
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("kind", "middle"), [("cosine", 0.25), ("linear", 0.25), ("exponential", math.sqrt(0.4 * 0.1))]
)
def test_the_middle_is_the_mean_that_the_kind_says(kind, middle):
    assert values(ValueSchedule(start=0.4, end=0.1, schedule=kind))[20] == pytest.approx(middle, rel=1e-12)


def test_a_cosine_is_flat_at_its_ends():
    numbers = values(ValueSchedule(start=0.0, end=1.0))
    assert numbers[1] < 0.01
    assert numbers[39] > 0.99


def test_after_its_epochs_a_schedule_stays_at_its_end():
    numbers = values(ValueSchedule(start=1.0, end=3.0, schedule="linear", epochs=2))
    assert numbers[19:] == [3.0] * 22
    assert numbers[:20] == pytest.approx([1 + 2 * step / 19 for step in range(20)])


def test_cycles_return_to_the_start():
    numbers = values(ValueSchedule(start=0.1, end=1.0, schedule="cycles", epochs=2))
    assert numbers[:20] == pytest.approx(numbers[20:40])
    assert (numbers[0], numbers[10]) == (0.1, pytest.approx(1.0))


@pytest.mark.parametrize("kind", ["cosine", "linear", "exponential", "cycles"])
@pytest.mark.parametrize("number", [0.1, 0.07, 4999.9])
def test_equal_ends_are_the_number_itself(kind, number):
    assert values(ValueSchedule(start=number, end=number, schedule=kind)) == [number] * 41


def test_a_run_of_one_step_has_the_start():
    assert ValueSchedule(start=0.2, end=0.1).value(0, total_steps=1, steps_per_epoch=1) == 0.2


# In a recipe

TABLE = {"start": 0.2, "end": 0.05, "schedule": "cosine"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.temperature={start=0.2, end=0.05}"],
        ["loss.temperature.start=0.2", "loss.temperature.end=0.05"],
        ["loss.temperature.end=0.05"],  # the recipe has 0.2
        ["loss.temperature.end=0.05", "loss.temperature.schedule=cosine"],
    ],
)
def test_a_schedule_may_be_a_table_or_single_keys(overrides):
    recipe = load(write("tiny.toml"), overrides)
    assert recipe.loss["temperature"] == TABLE
    assert validate(tomllib.loads(recipe.dump())) == recipe


def test_a_number_replaces_a_schedule():
    text = TINY.replace("temperature = 0.2", "temperature = {start = 0.2, end = 0.1}")
    assert load(write("tiny.toml", text)).loss["temperature"]["end"] == 0.1
    assert load(write("tiny.toml", text), ["loss.temperature=0.3"]).loss["temperature"] == 0.3


def test_a_number_replaces_a_schedule_among_the_overrides_of_a_recipe():
    path = write("tiny.toml", load(write("tiny.toml"), ["loss.temperature.end=0.05"]).dump())
    assert load(path, ["loss.temperature=0.3"]).overrides == ("loss.temperature=0.3",)


def test_the_weight_decay_may_have_a_schedule():
    recipe = load(write("tiny.toml"), ["optim.weight_decay={start=0.04, end=0.4, epochs=3}"])
    assert recipe.optim.weight_decay == ValueSchedule(start=0.04, end=0.4, epochs=3)
    assert validate(tomllib.loads(recipe.dump())) == recipe


def test_a_schedule_is_described_in_words():
    assert describe_value(TABLE) == "0.2 to 0.05 (cosine)"
    assert describe_value({**TABLE, "epochs": 10.0}) == "0.2 to 0.05 (cosine, 10 epochs)"
    assert describe_value(0.1) == "0.1"


MISTAKES = {
    "end out of the argument's range": (
        ["loss.temperature={start=0.2, end=0}"],
        "  loss.temperature.end  must be greater than 0, got 0.0",
    ),
    "start out of the argument's range": (
        ["loss.k1={start=-1, end=0}"],
        "  loss.k1.start  must be greater than or equal to 0, got -1.0",
    ),
    "no end": (["loss.temperature={start=0.2}"], "  loss.temperature.end  is missing"),
    "typo": (
        ["loss.temperature={start=0.2, ende=0.1}"],
        "  loss.temperature.end   is missing\n"
        "  loss.temperature.ende  unknown key; did you mean 'end'? (known: start, end, schedule, epochs)",
    ),
    "no such kind": (
        ["loss.temperature={start=0.2, end=0.1, schedule='step'}"],
        "  loss.temperature.schedule  must be 'cosine', 'linear', 'exponential' or 'cycles', got 'step'",
    ),
    "no positive number of epochs": (
        ["loss.temperature={start=0.2, end=0.1, epochs=0}"],
        "  loss.temperature.epochs  must be greater than 0, got 0",
    ),
    "exponential from 0": (
        ["loss.k1={start=0, end=10, schedule='exponential'}"],
        '  loss.k1  an exponential schedule needs start and end above 0, got 0 and 10; schedule = "linear" or "cosine" '
        "takes any",
    ),
    "an argument that is no number": (
        ["loss.learn_temperature={start=0, end=1}"],
        "  loss.learn_temperature  must be a valid boolean",
    ),
    "weight decay below 0": (
        ["optim.weight_decay={start=0.1, end=-0.1}"],
        "  optim.weight_decay  start and end must be at least 0, got 0.1 and -0.1",
    ),
    "typo in that of weight decay": (
        ["optim.weight_decay={start=0.1, end=0.1, epoch=1}"],
        "  optim.weight_decay.epoch  unknown key; did you mean 'epochs'? (known: start, end, schedule, epochs)",
    ),
    "learning rate": (["optim.lr={start=0.1, end=0.2}"], "  optim.lr  must be a valid number"),
}


@pytest.mark.parametrize(("pairs", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_explained(pairs, message):
    assert load_error(*pairs) == f"tiny does not validate\n{message}"

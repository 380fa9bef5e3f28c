"""Random command lines and overrides end with an exit code and one message, and write where they are told to alone."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

import reptk
from command_checks import WRITES, Writes, check_one_message, explain, run
from random_command_lines import draw_command_line, draw_overrides, read_options, recipe_keys, write_inputs
from reptk import cli
from reptk.config import override_notes
from reptk.core.errors import UsageError

NUM_COMMAND_LINES = 1000
NUM_OVERRIDE_SETS = int(os.environ.get("REPTK_OVERRIDE_SETS", "1000"))
"""The whole number is 5000: REPTK_OVERRIDE_SETS=5000."""
NUM_BLOCKS = 4
"""Test functions among which each number is divided, so that several processes can share them."""

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of all commands, two folders below one that nothing else is in."""
    folder = tmp_path_factory.mktemp("commands") / "home" / "work"
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs(folder)
    return folder


@pytest.fixture
def working_directory(inputs: Path, restored_registries: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("HOME", str(inputs.parent))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(inputs.parent / "hub"))
    return inputs


@pytest.fixture
def options(capfd: pytest.CaptureFixture) -> dict[str, dict[str, bool]]:
    """The options of every verb, and whether they take a value."""
    options = {}
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as end:
            cli.main([verb, "--help"])
        assert end.value.code == 0
        options[verb] = read_options(capfd.readouterr().out)
    return options


@pytest.fixture
def writes(inputs: Path) -> Iterator[Writes]:
    WRITES.folder, WRITES.outside = inputs.parent.parent.resolve(), []
    yield WRITES
    WRITES.folder = None


@pytest.mark.parametrize("block", range(NUM_BLOCKS))
def test_a_random_command_line_ends_with_an_exit_code_and_one_message(
    block: int,
    working_directory: Path,
    options: dict[str, dict[str, bool]],
    writes: Writes,
    capfd: pytest.CaptureFixture,
) -> None:
    draw = random.Random(f"command lines {block}")
    keys = recipe_keys(reptk.load("tcl_sup_photos"))
    ends = Counter()
    writes.outside.clear()  # pytest opened files of its own
    for _ in range(NUM_COMMAND_LINES // NUM_BLOCKS):
        arguments = draw_command_line(draw, options, keys)
        code = run(cli.main, arguments)
        stderr = capfd.readouterr().err
        explain(check_one_message, arguments, code, stderr)
        assert not writes.outside, arguments
        ends[arguments[0], code] += 1
    assert {code for _, code in ends} >= {0, 2, 3}
    for verb in cli.VERBS:
        assert ends[verb, 2], "each verb is used wrongly"
    used_rightly = [verb for verb in cli.VERBS if ends[verb, 0]]
    assert len(used_rightly) >= len(cli.VERBS) - 3, "nearly each verb is also used rightly"


@pytest.mark.parametrize("block", range(NUM_BLOCKS))
def test_random_overrides_are_accepted_or_refused_in_one_message(block: int, working_directory: Path) -> None:
    draw = random.Random(f"overrides {block}")
    keys = recipe_keys(reptk.load("tcl_sup_photos"))
    outcomes = Counter()
    for _ in range(NUM_OVERRIDE_SETS // NUM_BLOCKS):
        name = draw.choice(["simclr_digits", "tcl_sup_photos", "tiny.toml"])
        overrides = draw_overrides(draw, keys)
        try:
            loaded = reptk.load(name, overrides)
        except UsageError:
            outcomes["refused"] += 1
            continue
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}, of {overrides}")
        outcomes["accepted"] += 1
        assert override_notes(name, overrides, loaded) is not None
        # What was accepted can be written, and read again.
        Path("again.toml").write_text(loaded.dump(), "utf-8", "surrogateescape")
        again = reptk.load("again.toml")
        assert again.model_dump(exclude={"expect"}) == loaded.model_dump(exclude={"expect"}), overrides
    assert min(outcomes["accepted"], outcomes["refused"]) > 10


# The checks of this file


@pytest.mark.parametrize(
    ("code", "stderr"),
    [
        (1, "error: a"),
        (2, ""),
        (2, "usage: reptk"),
        (2, "error: a\nerror: b"),
        (0, "error: a"),
        (3, "error: \nTraceback"),
    ],
)
def test_an_end_without_exactly_one_message_is_detected(code: int, stderr: str) -> None:
    with pytest.raises(AssertionError):
        check_one_message(code, stderr)
    check_one_message(2, "warning: a\nerror: b\n  c")
    check_one_message(0, "warning: a")


def test_a_write_elsewhere_is_detected(inputs: Path, writes: Writes, tmp_path: Path) -> None:
    writes.outside.clear()
    (inputs / "inside").write_text("")
    (inputs / "inside").unlink()
    assert not writes.outside
    (tmp_path / "outside").write_text("")
    assert writes.outside == [str((tmp_path / "outside").resolve())]


def test_an_exception_is_detected(working_directory: Path) -> None:
    def failing(arguments: list[str]) -> int:
        raise RuntimeError("out of luck")

    with pytest.raises(pytest.fail.Exception, match="RuntimeError: out of luck, of"):
        run(failing, ["x"])


def test_options_are_read_from_the_help(options: dict[str, dict[str, bool]]) -> None:
    assert options["pull"] == {"--help": False, "--out": True, "--force": False}
    assert options["index"]["--kind"]
    assert not options["index"]["--force"]
    assert options["search"]["--duplicates"]
    assert not options["recipe"]["--check"]

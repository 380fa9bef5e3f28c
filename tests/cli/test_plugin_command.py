"""reptk plugin: what `new` writes works as it is, `check` says what a part does wrong, and `list` lists every part."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from killed_processes import hidden_names, kill_at_every_moment, run_with_full_disk
from reptk import recipe as recipe_command
from reptk.cli import main
from reptk.config.part_catalog import KINDS, recipe_table
from reptk.config.registry import REGISTRIES

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ["train.epochs=1", "encoder.backbone=test_vit", "train.report=false", "train.baselines=false", "--out", "run"]
"""What makes the printed run take a second or two, of a data set; other parts are tried on generated images (--smoke)."""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_registries: None) -> None:
    """Run in an empty folder; what a test registers or imports from there is undone."""
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> int:
    return main(["plugin", *words])


def output(capsys: pytest.CaptureFixture, *words: str, exit_code: int = 0) -> str:
    """What a command prints; its error message, if it is to fail with 2 or 3."""
    capsys.readouterr()
    assert run(*words) == exit_code
    printed = capsys.readouterr()
    if exit_code > 1:
        assert printed.out == ""
        assert printed.err.count("error: ") == 1
        return printed.err
    return printed.out


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


# new


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_part_is_registered_under_its_name_and_passes_its_check(kind: str, capsys: pytest.CaptureFixture) -> None:
    printed = output(capsys, "new", kind, "fresh_part", "--out", "new parts/of mine")
    folder = Path("new parts/of mine")
    assert sorted(path.name for path in folder.iterdir()) == ["fresh_part.py", "test_fresh_part.py"]
    for path in folder.iterdir():
        assert not re.search(r"my_|\bMy[A-Z]", path.read_text()), "no name of the template is left"
    commands = [shlex.split(line) for line in printed.splitlines() if line.startswith("  ")]
    second = "python"
    if kind == "store":
        second = "reptk"
    assert [command[0] for command in commands] == ["reptk", second, "pytest"]
    assert main(commands[0][1:]) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert "fresh_part" in KINDS[kind].names()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"store"}))
def test_the_printed_recipe_trains(kind: str, capsys: pytest.CaptureFixture) -> None:
    printed = output(capsys, "new", kind, "fresh_part")
    [command] = [shlex.split(line) for line in printed.splitlines() if line.startswith("  python")]
    assert command[:3] == ["python", "-m", "reptk.recipe"]
    if kind != "dataset":
        command.append("--smoke")
    assert recipe_command.main([*command[3:], *SHORT]) == 0
    assert "fresh_part" in Path("run/recipe.toml").read_text()
    assert Path("run/plugins/fresh_part.py").is_file() or Path("run/fresh_part.py").is_file()


@pytest.mark.parametrize(
    ("kind", "name", "class_line"),
    [
        ("loss", "focal_nce2", "class FocalNce2(nn.Module):"),
        ("loss", "tensor", "class TensorLoss(nn.Module):"),
        ("method", "method", "class MethodMethod(Method):"),
        ("views", "views", "class ViewsViews:"),
    ],
)
def test_the_class_has_the_name_of_the_part_unless_that_is_taken(kind: str, name: str, class_line: str) -> None:
    assert run("new", kind, name) == 0
    assert class_line in Path(f"{name}.py").read_text().splitlines()


@pytest.mark.parametrize("existing", ["fresh.py", "test_fresh.py"])
def test_nothing_is_written_over(existing: str, capsys: pytest.CaptureFixture) -> None:
    write(existing, "mine")
    assert f"{existing} exists, and nothing was written" in output(capsys, "new", "loss", "fresh", exit_code=2)
    assert [path.name for path in Path().iterdir()] == [existing]
    assert Path(existing).read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("loss", "Fresh", "use lower-case letters"),
        ("loss", "2nd", "use lower-case letters"),
        ("loss", "a-b", "use lower-case letters"),
        ("loss", "ﬁt", "use lower-case letters"),
        ("loss", "../x", "use lower-case letters"),
        ("loss", "lambda", "no keyword of Python"),
        ("loss", "tcl", "there is a loss 'tcl' already: reptk plugin list --kind loss tcl"),
        ("method", "byol", "there is a method 'byol' already"),
        ("loss", "random", "a module is called 'random' already"),
        ("lost", "fresh", "invalid choice: 'lost'"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(
    kind: str, name: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert message in output(capsys, "new", kind, name, exit_code=2)
    assert list(Path().iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    message = run_with_full_disk(lambda: run("new", "loss", "fresh"), max_file_bytes=100)
    assert "error: the disk of" in message
    assert hidden_names(tmp_path) == []
    assert not Path("fresh.py").exists()


@pytest.mark.slow
def test_a_killed_command_can_be_repeated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("new", "loss", "fresh") == 0
    written = {path.name: path.read_text() for path in Path().iterdir()}

    def remove() -> None:
        for path in Path().glob("*.py"):
            path.unlink()

    num_moments = 0
    for _, killed in kill_at_every_moment(remove, lambda: run("new", "loss", "fresh"), tmp_path):
        num_moments += 1
        if not Path("fresh.py").exists():
            assert killed
            assert run("new", "loss", "fresh") == 0
            assert hidden_names(tmp_path) == []
        assert {path.name: path.read_text() for path in Path().glob("*.py")} == written
    assert num_moments > 5


# check

NORM_LOSS = """
import torch
from reptk import LOSSES

@LOSSES.register("norm_loss")
class NormLoss(torch.nn.Module):
    def __init__(self, margin: float, scale: float = 1.0):
        super().__init__()
        self.margin = margin

    def forward(self, z, ids):
        if self.margin < 0:
            raise KeyError("margin")
        is_positive = ids[:, None] == ids[None, :]
        return (z @ z.T)[is_positive].mean() * self.margin
"""

WITHOUT_PROMISES = """
from reptk import EVALUATORS, VIEWS

@VIEWS.register("unsized")
class Unsized:
    def __call__(self, images, key): ...

@EVALUATORS.register("refusing")
class Refusing:
    def __init__(self):
        raise KeyError("nothing")
"""


def test_violations_are_explained(capsys: pytest.CaptureFixture) -> None:
    printed = output(capsys, "check", write("norms.py", NORM_LOSS), "margin=1", exit_code=1)
    lines = printed.splitlines()
    assert lines[0] == "norms.py: loss norm_loss (margin=1.0, scale=1.0)"
    position = lines.index("  FAIL  the length of a row does not matter")
    assert lines[position + 1].startswith("        observed: it gave ")
    assert lines[position + 2].startswith("        so: The encoder can lower the loss by scaling its embeddings")
    assert "  ok    the order of the rows does not matter" in lines
    num_failed = len([line for line in lines if line.startswith("  FAIL")])
    assert lines[-1] == f"  {num_failed} of 17 requirements violated"


def test_a_scheduled_argument_is_checked_with_its_first_value(capsys: pytest.CaptureFixture) -> None:
    printed = output(capsys, "check", "reptk.losses.tcl", "temperature={start = 0.5, end = 0.1}")
    assert printed.startswith("reptk.losses.tcl: loss tcl (temperature=0.5, ")


def test_what_fails_always_is_said_once(capsys: pytest.CaptureFixture) -> None:
    printed = output(capsys, "check", write("norms.py", NORM_LOSS), "margin=-1", exit_code=1)
    assert printed.splitlines()[1:] == [
        "  FAIL  none of 17 requirements could be tried: it raised KeyError: 'margin' (norms.py, line 13)"
    ]


def test_a_part_that_cannot_be_built_is_named_with_the_line(capsys: pytest.CaptureFixture) -> None:
    printed = output(capsys, "check", write("promises.py", WITHOUT_PROMISES), "refusing", exit_code=1)
    assert "FAIL  it cannot be built: KeyError: 'nothing' (promises.py, line 11)" in printed


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (
            NORM_LOSS,
            [],
            "loss 'norm_loss' needs margin, without a default: reptk plugin check p.py norm_loss margin=...",
        ),
        (NORM_LOSS, ["margin=x"], "loss.margin  must be a valid number"),
        (NORM_LOSS, ["margin=1", "scal=2"], "did you mean 'scale'?"),
        (NORM_LOSS, ["name=x"], "name is no argument"),
        (NORM_LOSS, ["norm_los"], "p.py: no part 'norm_los'. Nearest: norm_loss."),
        (NORM_LOSS, ["a", "b"], "one part at a time"),
        (WITHOUT_PROMISES, ["k=1"], "p.py registers views unsized, evaluator refusing. Say which"),
        (WITHOUT_PROMISES, ["unsized"], "views 'unsized' say no size"),
        ("x = 1", [], "plugin p.py registers nothing. A part is registered with a decorator"),
        ("1 / 0", [], "p.py:1: ZeroDivisionError: division by zero. Correct the code"),
        ("raise SystemExit(0)", [], "p.py:1: SystemExit: 0"),
        (
            NORM_LOSS.replace("norm_loss", "tcl"),
            [],
            "loss 'tcl' is registered twice: by reptk.losses.tcl.TCL and by p.py",
        ),
        (None, [], "plugin p.py: no such file"),
    ],
)
def test_what_cannot_be_checked_is_one_message(
    text: str | None, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    if text is not None:
        write("p.py", text)
    capsys.readouterr()
    assert run("check", "p.py", *words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("error: ") == 1


TRACKER = """
from reptk import TRACKERS

@TRACKERS.register("my_track")
class MyTrack:
    def __init__(self, level: int = 1) -> None:
        pass
"""


def test_a_kind_without_a_check_is_named(capsys: pytest.CaptureFixture) -> None:
    message = (
        "track.py: there is no check for tracker my_track. "
        "What can be checked: loss, method, dataset, views, evaluator, store"
    )
    capsys.readouterr()
    assert run("check", write("track.py", TRACKER)) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    text = TRACKER + NORM_LOSS.replace("norm_loss", "other_norm")
    # What the loss lacks is another matter; its arguments need no name, since nothing else is checked.
    printed = output(capsys, "check", write("both.py", text.replace("my_track", "track_2")), "margin=1", exit_code=1)
    assert "both.py: loss other_norm (margin=1.0, scale=1.0)" in printed
    assert "both.py: there is no check for tracker track_2." in printed
    assert re.search(r"^trackers\n", output(capsys, "list", "my_track"), re.MULTILINE)


def test_missing_images_are_an_error_of_the_data(capsys: pytest.CaptureFixture) -> None:
    text = """
from pathlib import Path
from reptk import DATASETS

@DATASETS.register("listed")
def listed(root: str):
    Path(root, "list.csv").read_text()
"""
    capsys.readouterr()
    assert run("check", write("lists.py", text), "root=2024") == 3
    assert "error: listed: " in capsys.readouterr().err


def test_fixed_views_are_checked_as_such(capsys: pytest.CaptureFixture) -> None:
    assert "FAIL  another key gives other views" in output(capsys, "check", "reptk.views.sets", "none", exit_code=1)
    assert "ok    the key does not matter" in output(capsys, "check", "reptk.views.sets", "none", "--fixed")


def test_a_plugin_that_imports_another_answers_for_its_parts_alone(capsys: pytest.CaptureFixture) -> None:
    text = "import reptk.plugins.dcl\n" + NORM_LOSS
    assert "dcl" not in output(capsys, "check", write("norms.py", text), "margin=1", exit_code=1)


# list


def test_every_part_is_listed_with_its_arguments(capsys: pytest.CaptureFixture) -> None:
    printed = output(capsys, "list", "--plugin", write("norms.py", NORM_LOSS))
    for registry in REGISTRIES:
        for name in registry.names():
            assert f"\n  {name}  (" in printed
    assert "tcl  (reptk 0.1.0, reptk.losses.tcl.TCL)" in printed
    assert "dcl  (reptk 0.1.0, plugins/dcl.py)" in printed
    assert f"norm_loss  ({Path('norms.py').resolve()})" in printed
    assert "arguments: margin (required), scale=1.0" in printed
    assert "broken" not in printed


def test_the_list_is_limited_by_kind_and_pattern(capsys: pytest.CaptureFixture) -> None:
    names = re.findall(r"^  (\w+)  \(", output(capsys, "list", "--kind", "loss"), re.MULTILINE)
    assert {"dcl", "simclr", "supcon", "tcl"} <= set(names)
    assert "byol" not in names
    assert re.findall(r"^  (\w+)  \(", output(capsys, "list", "SIM*", "--kind", "views"), re.MULTILINE) == [
        "simclr",
        "simclr_small",
    ]
    assert "no loss has a name like 'tlc'. Nearest: tcl" in output(capsys, "list", "tlc", "--kind", "loss", exit_code=2)


def test_broken_plugins_are_listed_with_their_reason(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    printed = output(capsys, "list", "tcl", "--plugin", write("broken.py", "import no_such_package"))
    assert "  broken.py\n      BROKEN: broken.py:1: ModuleNotFoundError: No module named 'no_such_package'" in printed
    assert "tcl  (reptk" in printed
    assert printed.endswith("1 part, 1 broken\n")
    assert "broken" not in sys.modules


def test_tables_of_a_recipe() -> None:
    tables = {kind: recipe_table(registry, "x") for kind, registry in KINDS.items() if kind != "store"}
    assert tables == {"loss": "loss", "method": "method", "dataset": "data", "views": "views", "evaluator": "eval.x"}

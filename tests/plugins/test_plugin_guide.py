"""The guide to plugins: its examples pass the checks that it runs on them, and it lists the contributed files."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import reptk.testing
from reptk import DATASETS, EVALUATORS, LOSSES, METHODS, VIEWS, Encoder, load, train
from reptk.cli import main as reptk_command
from reptk.config.plugins import load_plugin
from reptk.core.console import Logger
from reptk.recipe import main as recipe_command

FOLDER = Path(__file__).parents[2] / "plugins"
GUIDE = (FOLDER / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
REGISTRIES = {"LOSSES": LOSSES, "METHODS": METHODS, "VIEWS": VIEWS, "DATASETS": DATASETS, "EVALUATORS": EVALUATORS}

RUN = [
    "method.name=my_simsiam",
    "method.predictor_width=32",
    "data.name=stripes",
    "views.name=noisy",
    "views.size=32",
    "eval.knn.k=[1]",
    "eval.hits.k=3",
    "encoder.backbone=test_resnet",
    "train.epochs=1",
    "optim.warmup_epochs=0",
    "train.batch_size=16",
    "train.device=cpu",
    "train.baselines=false",
    "train.report=false",
]


@pytest.fixture(autouse=True)
def _restored(one_thread: None, restored_registries: None) -> None:
    """Undo what the examples register."""


def test_every_kind_of_part_has_an_example_and_its_check() -> None:
    code = "\n".join(EXAMPLES)
    assert set(re.findall(r"^@(\w+)\.register", code, re.MULTILINE)) == set(REGISTRIES)
    checks = {name for name in reptk.testing.__all__ if name.startswith("check_")}
    checks.remove("check_store")  # the example of a store is its template
    assert set(re.findall(r"^(check_\w+)\(", code, re.MULTILINE)) == checks
    num_registered = len(re.findall(r"\.register\(", code))
    assert num_registered == len(re.findall(r"^check_\w+\(", code, re.MULTILINE)) == 9


def write_listed_images(folder: Path) -> None:
    """Twelve pictures of different sizes and two classes, and the table that lists them."""
    folder.mkdir()
    lines = ["path,label"]
    for number in range(12):
        Image.new("RGB", (20 + number, 30), (20 * number, 0, 0)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'even' if number % 2 == 0 else 'odd'}")
    (folder / "images.csv").write_text("\n".join(lines))


def test_examples_pass_their_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one file, in their order, so that the checks have the parts before them."""
    write_listed_images(tmp_path / "listed_images")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "guide.py"
    file.write_text("\n".join(EXAMPLES))
    load_plugin(str(file))
    for kind, name in re.findall(r'^@(\w+)\.register\("(\w+)"\)', file.read_text(), re.MULTILINE):
        assert name in REGISTRIES[kind].names()


def test_examples_train(tmp_path: Path) -> None:
    """The method, the views, the data set and the evaluator in one run."""
    parts = [example for example in EXAMPLES if ".register(" in example]
    file = tmp_path / "parts.py"
    file.write_text("\n".join(parts))
    recipe = load("simclr_photos", RUN, plugins=[str(file)])
    assert recipe.loss is None
    metrics = train(recipe, tmp_path / "run", logger=Logger(prints=False, writes=True))
    assert 0 <= metrics["hit@3"] <= 1
    assert Encoder.from_run(tmp_path / "run").num_features > 0


def test_contributed_plugins_are_listed() -> None:
    table = GUIDE.split("## Contributed plugins")[1].split("##")[0]
    listed = re.findall(r"^\| `(\w+\.py)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.py") if path.name != "__init__.py")


def test_commands_of_the_guide_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command that the guide prints, with the first example as `my_loss.py`; runs are only shown."""
    monkeypatch.chdir(tmp_path)
    loss = next(example for example in EXAMPLES if example.startswith("# my_loss.py"))
    lines = re.findall(r"(?:^    |`)((?:reptk|python -m reptk\.recipe) [^`\n]+)", GUIDE, re.MULTILINE)
    lines = [line for line in lines if "acme" not in line and "my_parts" not in line]
    assert len(lines) >= 8
    for line in dict.fromkeys(lines):
        words = shlex.split(line)
        if words[:3] == ["reptk", "plugin", "new"]:
            assert reptk_command(words[1:]) == 0
            Path("my_loss.py").write_text(loss)
        elif words[0] == "reptk":
            if words != ["reptk", "plugin", "check"]:  # named in a sentence
                assert reptk_command(words[1:]) == 0, line
        else:
            assert recipe_command([*words[3:], "--show"]) == 0, line


def test_the_printed_violations_are_those_of_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    loss = next(example for example in EXAMPLES if example.startswith("# my_loss.py"))
    without_normalize = re.sub(r"^ +z = normalize\(z\).*\n", "", loss, flags=re.MULTILINE)
    Path("my_loss.py").write_text(without_normalize)
    assert reptk_command(["plugin", "check", "my_loss.py"]) == 1

    def without_numbers(lines: list[str]) -> list[str]:
        return [re.sub(r"\d+\.\d+", "x", line.strip()) for line in lines]

    printed = capsys.readouterr().out.splitlines()
    violations = [line for line in printed if re.match(r"\s+(FAIL|observed:|so:)", line)]
    in_guide = re.findall(r"^ {4}(?:FAIL|      (?:observed|so):) .+", GUIDE, re.MULTILINE)
    assert without_numbers(in_guide) == without_numbers(violations)

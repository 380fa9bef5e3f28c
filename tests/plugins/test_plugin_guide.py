"""The guide to plugins: its examples pass the checks that it runs on them, and it lists the contributed files."""

import re
from pathlib import Path

import pytest

import reptk.testing
from reptk import DATASETS, EVALUATORS, LOSSES, METHODS, VIEWS, Encoder, load, train
from reptk.config.plugins import load_plugin
from reptk.core.console import Logger

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
    assert set(re.findall(r"^(check_\w+)\(", code, re.MULTILINE)) == checks
    num_registered = len(re.findall(r"\.register\(", code))
    assert num_registered == len(re.findall(r"^check_\w+\(", code, re.MULTILINE)) == 6


def test_examples_pass_their_checks(tmp_path: Path) -> None:
    """All in one file, in their order, so that the checks have the parts before them."""
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

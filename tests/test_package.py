"""The package as others meet it: public names, what a wheel and an sdist hold, what the README says."""

import re
import subprocess
import sys
import tarfile
import zipfile
from inspect import signature
from pathlib import Path

import pytest

import reptk
from reptk import recipe as command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

PUBLIC = {
    "reptk": "DATASETS EVALUATORS Embeddings Encoder LOSSES METHODS Recipe VIEWS embed evaluate index load losses report "
    "search testing train",
    "reptk.losses": "Loss RowStatistics SimCLR SupCon TCL Term implementation local_rows mean_over_anchors normalize simclr "
    "supcon tcl",
    "reptk.testing": "check_evaluator check_loss check_views",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    found = __import__(module, fromlist=["*"])
    assert sorted(found.__all__, key=str.casefold) == sorted(PUBLIC[module].split(), key=str.casefold)
    assert all(getattr(found, name) is not None for name in found.__all__)


def test_public_signatures() -> None:
    assert list(signature(reptk.load).parameters)[:2] == ["name_or_path", "overrides"]
    assert list(signature(reptk.train).parameters)[:2] == ["recipe", "out"]
    assert list(signature(reptk.losses.supcon).parameters) == ["z", "ids", "temperature", "form", "keys", "key_ids"]
    assert list(signature(reptk.losses.tcl).parameters) == ["z", "ids", "temperature", "k1", "k2", "keys", "key_ids"]
    assert list(signature(reptk.losses.simclr).parameters) == ["z", "ids", "temperature", "keys", "key_ids"]
    assert callable(reptk.evaluate.knn)
    assert callable(reptk.evaluate.retrieval)


def test_train_stays_a_function_whatever_was_imported() -> None:
    import reptk.training.loop

    assert callable(reptk.train)
    assert not hasattr(reptk.train, "__path__")


def test_nothing_imports_the_contributed_plugins() -> None:
    for path in (ROOT / "reptk").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) reptk\.plugins", path.read_text(), re.MULTILINE), path


@pytest.mark.slow
def test_wheel_and_sdist_hold_recipes_and_plugins(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    made = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        sdist = archive.getnames()
    recipes = [path.name for path in (ROOT / "recipes").glob("*.toml")]
    assert len(recipes) == 28
    for name in recipes:
        assert f"reptk/recipes/{name}" in wheel
        assert any(entry.endswith(f"/recipes/{name}") for entry in sdist)
    for name in (
        "reptk/plugins/dcl.py",
        "reptk/plugins/README.md",
        "reptk/data/sources/imagenet100.txt",
        "reptk/recipe.py",
        "reptk/report/page.css",
        "reptk/report/page.js",
        "reptk/report/map.js",
        "reptk/report/templates/page.html.j2",
        "reptk/report/templates/embeddings.html.j2",
    ):
        assert name in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"reptk"}, "no top-level recipes or plugins"


def test_the_file_tree_is_true() -> None:
    tree = README.split("## Files")[1].split("```")[1]
    listed = re.findall(r"^  (\w+(?:\.py|/))", tree, re.MULTILINE)
    listed += re.findall(r"(errors\.py)", tree)
    there = [path.name + ("/" if path.is_dir() else "") for path in (ROOT / "reptk").iterdir()]
    assert sorted(listed) == sorted(name for name in there if name not in ("__init__.py", "__pycache__/"))
    for name in re.findall(r"^(\S+)", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_recipe_table_holds_what_the_recipes_expect() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| \**([\d.]+) %\** \|", README, re.MULTILINE))
    expected = {}
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        recipe = reptk.load(path.stem)
        if recipe.expect is not None:
            assert recipe.expect.epochs == recipe.train.epochs
            expected[path.stem] = f"{100 * recipe.expect.value:.1f}"
    assert expected
    assert rows == expected


COMMANDS = re.findall(r"-m reptk\.recipe ([^\n`#]+)", README)


@pytest.mark.parametrize("line", sorted({line.strip() for line in COMMANDS}))
def test_readme_commands_are_understood(line: str, capsys: pytest.CaptureFixture) -> None:
    words = [word for word in line.split() if word not in ("--plugin", "my_loss.py", "loss.name=my_loss")]
    if words[0].isupper():
        return
    flags = ["--list"] if words[0] == "--list" else [*words, "--show"]
    assert command.main(flags) == 0, capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["--help"], ["--version"], ["recipe", "--list"]])
def test_reptk_command(verb: list[str], capsys: pytest.CaptureFixture) -> None:
    from reptk.cli import main

    assert main(verb) == 0
    expected = "tcl_sup_photos" if "--list" in verb else "reptk"
    assert expected in capsys.readouterr().out


def test_unknown_verb(capsys: pytest.CaptureFixture) -> None:
    from reptk.cli import main

    assert main(["evalute"]) == 2
    assert "Nearest: evaluate" in capsys.readouterr().err

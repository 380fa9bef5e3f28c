"""The package as its users meet it: public names, light imports, contents of a wheel, what the README says."""

import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from contextlib import closing
from inspect import signature
from pathlib import Path

import pytest

import reptk
import reptk.embeddings
from embedding_inputs import make_embeddings
from reptk import recipe as recipe_command
from reptk.cli import main
from store_servers import postgres_server, require_packages

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

DUPLICATE_FILE_NAMES = ["protocol.py"]
"""Every package that has a contract has it in a file of this name."""

MAY_USE_GETATTR = {
    "__init__.py",  # lazy imports
    "config/registry.py",
    "models/backbone.py",  # timm: some backbones have a patch size
    "models/layer_groups.py",  # timm: some backbones define no groups
    "models/weight_fitting.py",  # timm: some families convert checkpoints
    "views/backends/kornia_backend.py",  # kornia: operations by name
}

PUBLIC = {
    "reptk": "Batch DATASETS EVALUATORS Embeddings Encoder EvalResult LOSSES METHODS Method Recipe STORES Step TRACKERS "
    "VIEWS distributed embed evaluate index load losses report rng search testing train",
    "reptk.losses": "Loss ProxyAnchor RowStatistics SigLIP SimCLR SmoothAP SubCenterArcFace SupCon TCL Term implementation "
    "local_rows mean_over_anchors normalize proxy_anchor siglip simclr smooth_ap subcenter_arcface supcon tcl",
    "reptk.methods": "BYOL BarlowTwins Batch Classify Contrastive DINO Distill Joint LeJEPA Method MoCo MoCoV3 Prototypes "
    "Queue SimSiam Step SwAV VICReg XBM class_ids cosine_momentum needs_full_images final_batch_norm "
    "has_positives mlp momentum_copy sinkhorn update_momentum_copy",
    "reptk.testing": "DATASET_REQUIREMENTS EVALUATOR_REQUIREMENTS FIXED_VIEWS_REQUIREMENTS LOSS_REQUIREMENTS "
    "METHOD_REQUIREMENTS RANDOM_VIEWS_REQUIREMENTS STORE_REQUIREMENTS VIEWS_REQUIREMENTS check_dataset check_evaluator "
    "check_loss check_method check_store check_views",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    imported = __import__(module, fromlist=["*"])
    assert sorted(imported.__all__, key=str.casefold) == sorted(PUBLIC[module].split(), key=str.casefold)
    assert all(getattr(imported, name) is not None for name in imported.__all__)


def test_public_signatures() -> None:
    assert list(signature(reptk.load).parameters)[:2] == ["name_or_path", "overrides"]
    assert list(signature(reptk.train).parameters)[:2] == ["recipe", "out"]
    assert list(signature(reptk.losses.supcon).parameters) == ["z", "ids", "temperature", "form", "keys", "key_ids"]
    assert list(signature(reptk.losses.tcl).parameters) == ["z", "ids", "temperature", "k1", "k2", "keys", "key_ids"]
    assert list(signature(reptk.losses.simclr).parameters) == ["z", "ids", "temperature", "keys", "key_ids"]
    assert callable(reptk.evaluate.knn)
    assert callable(reptk.evaluate.retrieval)


def test_public_names_are_imported_when_first_used() -> None:
    assert set(reptk.__all__) <= set(dir(reptk))
    with pytest.raises(AttributeError, match="module 'reptk' has no attribute 'nosuch'"):
        reptk.nosuch  # noqa: B018


@pytest.mark.parametrize(("module", "heavy_imports"), [("reptk", []), ("reptk.config", ["pydantic"])])
def test_importing_the_package_imports_nothing_heavy(module: str, heavy_imports: list[str], tmp_path: Path) -> None:
    heavy = ["torch", "torchvision", "timm", "kornia", "faiss", "pydantic", "sklearn", "PIL"]
    program = f"import sys, {module}; print(sorted(set({heavy}) & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert process.stderr == ""
    assert process.stdout.strip() == str(heavy_imports)


def test_train_is_a_function_after_its_package_is_imported() -> None:
    import reptk.training.loop

    assert callable(reptk.train)
    assert not hasattr(reptk.train, "__path__")


def test_nothing_imports_the_contributed_plugins() -> None:
    for path in (ROOT / "reptk").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) reptk\.plugins", path.read_text(), re.MULTILINE), path


@pytest.mark.slow
def test_wheel_and_sdist_contain_recipes_and_plugins(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        sdist = archive.getnames()
    recipes = [path.name for path in (ROOT / "recipes").glob("*.toml")]
    assert len(recipes) == 76
    for name in recipes:
        assert f"reptk/recipes/{name}" in wheel
        assert any(entry.endswith(f"/recipes/{name}") for entry in sdist)
    for name in (
        "reptk/plugins/dcl.py",
        "reptk/plugins/README.md",
        "reptk/plugins/templates/my_method.py",
        "reptk/plugins/templates/test_my_loss.py",
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


def test_file_tree_of_the_readme_is_true() -> None:
    tree = README.split("## Files")[1].split("```")[1]
    listed = re.findall(r"^  (\w+(?:\.py|/))", tree, re.MULTILINE)
    entries = [path.name + ("/" if path.is_dir() else "") for path in (ROOT / "reptk").iterdir()]
    assert sorted(listed) == sorted(name for name in entries if name not in ("__init__.py", "__pycache__/"))
    for name in re.findall(r"^(\S+)", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name
    for folder, description in re.findall(r"^  (\w+)/ +(.*(?:\n {17}.*)*)", tree, re.MULTILINE):
        for name in re.findall(r"\b\w+\.py\b", description):
            assert list((ROOT / "reptk" / folder).rglob(name)), f"{folder}/{name}"


def test_names_of_files_and_classes_are_unique() -> None:
    """A name in a traceback or a search result has one meaning."""
    files = [path for path in (ROOT / "reptk").rglob("*.py") if path.name != "__init__.py"]
    names = [path.name for path in files]
    assert sorted(name for name in set(names) if names.count(name) > 1) == DUPLICATE_FILE_NAMES
    classes = [name for path in files for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(), re.MULTILINE)]
    assert sorted(name for name in set(classes) if classes.count(name) > 1) == []


def test_getattr_is_used_only_on_foreign_code() -> None:
    users = set()
    for path in (ROOT / "reptk").rglob("*.py"):
        if re.search(r"\b(getattr|hasattr)\(", path.read_text()):
            users.add(str(path.relative_to(ROOT / "reptk")))
    assert users == MAY_USE_GETATTR


def test_recipe_table_of_the_readme_states_what_the_recipes_expect() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| \**([\d.]+) %\** \|", README, re.MULTILINE))
    expected = {}
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        if "start" in tomllib.loads(path.read_text()):
            continue  # of a stage, whose result depends on the run that it starts from
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
    if "--from" in words:
        assert recipe_command.main([*words, "--show"]) == 2
        assert "there is no folder" in capsys.readouterr().err
        return
    arguments = ["--list"] if words[0] == "--list" else [*words, "--show"]
    assert recipe_command.main(arguments) == 0, capsys.readouterr().err


def test_sql_of_the_documentation_finds_the_nearest_images() -> None:
    require_packages("postgresql")
    import psycopg

    text = (ROOT / "docs" / "how_to" / "databases.md").read_text()
    [query] = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    in_readme = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    assert {textwrap.dedent(other).strip() for other in in_readme} <= {query.strip()}
    embeddings = make_embeddings(["cat/0001.jpg", "cat/0002.jpg", "dog/0001.jpg"])
    with closing(reptk.embeddings.export(embeddings, f"{postgres_server()}&table=photos")):
        expected = embeddings.ids[1:]
        similarities = (embeddings.vectors[1:] @ embeddings.vectors[0]).tolist()
        if similarities[0] < similarities[1]:
            expected = expected[::-1]
        with psycopg.connect(postgres_server()) as connection:
            rows = connection.execute(query).fetchall()
            connection.execute("DROP TABLE photos")
    assert [row[0] for row in rows] == ["cat/0001.jpg", *expected]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["recipe", "--list"]])
def test_reptk_command(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 0
    expected = "tcl_sup_photos" if "--list" in arguments else "reptk"
    assert expected in capsys.readouterr().out


def test_unknown_verb_is_a_mistake(capsys: pytest.CaptureFixture) -> None:
    assert main(["evalute"]) == 2
    assert "Nearest: evaluate" in capsys.readouterr().err

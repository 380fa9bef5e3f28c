"""The pages of the documentation: their Python runs, their commands, keys and links are valid."""

import functools
import importlib
import re
import shutil
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import reptk
from documentation import (
    FOLDER,
    Command,
    command_of,
    inline_commands,
    keys_in,
    links,
    name_of,
    pages,
    plugin_files,
    python_blocks,
    shell_lines,
)
from reptk import recipe as recipe_command
from reptk.cli import VERBS
from reptk.cli import main as reptk_command
from reptk.config import signature
from reptk.config.part_tables import common_arguments
from reptk.config.plugins import load_plugin
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES, METHODS, TRACKERS, VIEWS, Registry
from reptk.config.schema import Recipe
from reptk.core.errors import UsageError
from reptk_pages import all_pages
from reptk_pages.command_parsers import parser_of
from reptk_pages.repository_pages import PAGES

TINY = [
    "encoder.backbone=test_resnet",
    "train.epochs=1",
    "train.batch_size=8",
    "train.device=cpu",
    "train.workers=0",
    "train.baselines=false",
    "train.report=false",
    "optim.warmup_epochs=0",
    "views.size=32",
    "eval.knn.k=[1]",
    "eval.knn.every_epochs=0",
]
"""What makes every run of the pages short."""

GENERATED = ["data.name=generated", "data.classes=4", "data.train=16", "data.bank=16", "data.query=8"]
"""In place of data sets that are larger."""

REGISTRIES = {"data": DATASETS, "views": VIEWS, "method": METHODS, "loss": LOSSES}

ALL_PARTS = {"eval": EVALUATORS, "trackers": TRACKERS}
"""Tables in which the second word of a key is a part."""

ACTIONS = {"--list", "--show", "--check", "--copy"}
"""Options of a recipe with which nothing is trained."""

RUNS = ["runs/mine", "runs/adapted", "runs/supcon_digits/1", "runs/tcl_sup_digits/1"]
"""Folders of finished runs that commands name."""


@pytest.fixture(autouse=True)
def _restored(one_thread: None, restored_registries: None) -> None:
    """Undo what the plugins of the pages register."""


def shorten(overrides: Sequence[str]) -> list[str]:
    """Return overrides that train a tiny encoder on few images."""
    has_data = any(pair.startswith("data.") for pair in overrides)
    if not has_data:
        return [*overrides, *GENERATED, *TINY]
    if any("my_photos" in pair for pair in overrides):
        return [*overrides, "data.size=36", *TINY]
    return [*overrides, *TINY]


def write_photos(folder: Path) -> None:
    """Two classes of small pictures, and a query."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "my_photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 255, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "my_photos" / name / f"{number:04}.png")
    shutil.copy(folder / "my_photos" / "cat" / "0001.png", folder / "query.jpg")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, and in it a run that was trained on them, and their embeddings."""
    folder = tmp_path_factory.mktemp("finished")
    write_photos(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        overrides = shorten(["data.root=my_photos"])
        reptk.train(reptk.load("supcon_folder", overrides), "runs/mine")
        encoder = reptk.Encoder.from_run("runs/mine")
        reptk.embed(encoder, "my_photos", out="photos.safetensors")
    return folder


@pytest.fixture
def world(tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the pages: images, arrays, finished runs, and embeddings."""
    shutil.copytree(finished_run / "my_photos", tmp_path / "my_photos")
    for name in ("query.jpg", "photos.safetensors"):
        shutil.copy(finished_run / name, tmp_path / name)
    for name in RUNS:
        shutil.copytree(finished_run / "runs" / "mine", tmp_path / name)
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    np.save(arrays / "images.npy", pixels)
    np.save(arrays / "labels.npy", np.arange(40) % 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_python() -> list[Path]:
    return [page for page in pages() if python_blocks(page.read_text())]


@pytest.mark.parametrize("page", with_python(), ids=name_of)
def test_python_runs(page: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page are one program, in which runs are short."""
    load = reptk.load

    def short_load(name: str, overrides: Sequence[str] = ()) -> Recipe:
        return load(name, shorten(overrides))

    monkeypatch.setitem(vars(reptk), "load", short_load)
    text = page.read_text()
    code = "\n".join(python_blocks(text))
    for out in re.findall(r'reptk\.train\(\w+, "([^"]+)"\)', code):
        shutil.rmtree(world / out, ignore_errors=True)
    for name in ("photos.safetensors", "photos.index"):
        if f'out="{name}"' in code:
            (world / name).unlink(missing_ok=True)
    # Each page is a module of its own, so that a registered part has a file.
    Path(f"page_{page.stem}.py").write_text(code)
    monkeypatch.syspath_prepend(world)
    importlib.import_module(f"page_{page.stem}")


def with_commands() -> list[Path]:
    return [page for page in pages() if shell_lines(page.read_text()) or inline_commands(page.read_text())]


@pytest.mark.parametrize("page", with_commands(), ids=name_of)
def test_commands_are_understood(page: Path, world: Path, capsys: pytest.CaptureFixture) -> None:
    """Every command of reptk is parsed, and the recipes and keys in it are validated; nothing is trained."""
    text = page.read_text()
    for name, code in plugin_files(text).items():
        Path(name).write_text(code)
    for line in dict.fromkeys([*shell_lines(text), *inline_commands(text)]):
        check_line(line, capsys)


def check_line(line: str, capsys: pytest.CaptureFixture) -> None:
    command = command_of(line)
    if command is None:
        check_other_command(line)
    else:
        CHECKS.get(command.verb, check_arguments)(command, capsys)


def check_other_command(line: str) -> None:
    """Check that a command is an installation of extras that exist."""
    match = re.fullmatch(r'pip install -e "\.\[([\w,]+)\]"', line)
    assert match is not None, f"neither a command of reptk nor an installation: {line}"
    assert set(match[1].split(",")) <= set(extras()), line


def extras() -> list[str]:
    setup = ConfigParser()
    setup.read(FOLDER.parent / "setup.cfg")
    return list(setup["options.extras_require"])


def check_arguments(command: Command, capsys: pytest.CaptureFixture) -> None:
    """Parse a command, and validate the data that it names by keys."""
    assert command.verb in VERBS
    parser = parser_of(command.verb)
    if command.verb == "plugin":
        parser.parse_args(command.words)
        return
    arguments = parser.parse_intermixed_args(command.words)
    pairs = [pair for pair in vars(arguments).get("overrides", []) if pair.startswith(("data.", "eval."))]
    for pair in pairs:
        assert is_key(pair.partition("=")[0]), pair


def check_recipe(command: Command, capsys: pytest.CaptureFixture) -> None:
    """Print the recipe of a command in place of running it."""
    words = [word for word in command.words if word not in ACTIONS]
    if "--list" in command.words:
        words = ["--list"]
    elif "--resume" not in words:
        words.append("--show")
    else:
        # argparse takes one of the two.
        position = words.index("--resume")
        words[position : position + 1 + words[position + 1 :].count("auto")] = ["--show"]
    assert recipe_command.main(words) == 0, capsys.readouterr().err


def check_sweep(command: Command, capsys: pytest.CaptureFixture) -> None:
    assert reptk_command(["sweep", *command.words, "--dry-run"]) == 0, capsys.readouterr().err


def check_views(command: Command, capsys: pytest.CaptureFixture) -> None:
    arguments = parser_of("views").parse_intermixed_args(command.words)
    reptk.load(arguments.name, arguments.overrides)


def check_verify(command: Command, capsys: pytest.CaptureFixture) -> None:
    arguments = parser_of("verify").parse_intermixed_args(command.words)
    assert reptk.load(arguments.recipe, arguments.overrides).expect is not None


CHECKS: dict[str, Callable[[Command, pytest.CaptureFixture], None]] = {
    "recipe": check_recipe,
    "sweep": check_sweep,
    "views": check_views,
    "verify": check_verify,
}
"""How commands are checked that are more than arguments."""


def is_key(key: str) -> bool:
    """Whether a recipe has this key: of a table of the schema, or of some part."""
    table, *names = key.split(".")
    if table in REGISTRIES:
        if names[0] == "name":
            return True
        return any(names[0] in arguments_of(REGISTRIES[table], part) for part in REGISTRIES[table].names())
    if table in ALL_PARTS:
        registry = ALL_PARTS[table]
        if names[0] == "NAME" or names[0] not in registry.names():
            return names[0] == "NAME"
        return names[1:] == [] or names[1] in {"name", *arguments_of(registry, names[0])}
    return bool(signature.types_of_field(Recipe, key.split(".")))


def arguments_of(registry: Registry, part: str) -> set[str]:
    return {*signature.names(registry.get(part), registry.supplied), *common_arguments(registry, part)}


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_keys_exist(page: Path, world: Path) -> None:
    text = page.read_text()
    for name, code in plugin_files(text).items():
        Path(name).write_text(code)
        load_plugin(name)
    assert sorted(key for key in keys_in(text) if not is_key(key)) == []


written_pages = functools.cache(all_pages)


def test_links_lead_to_pages() -> None:
    generated = {f"generated/{name}" for name in written_pages()}
    missing = []
    for page in pages():
        for target in links(page.read_text()):
            path = (page.parent / target).resolve()
            is_generated = path.is_relative_to(FOLDER) and path.relative_to(FOLDER).as_posix() in generated
            if not path.exists() and not is_generated:
                missing.append(f"{name_of(page)}: {target}")
    assert missing == []


def test_every_page_is_in_the_contents() -> None:
    contents = re.findall(r"^[\w/]+$", (FOLDER / "index.md").read_text(), re.MULTILINE)
    assert sorted(entry for entry in contents if contents.count(entry) > 1) == []
    written = [name_of(page).removesuffix(".md") for page in pages()]
    generated = [f"generated/{name}".removesuffix(".md") for name in written_pages() if name.count("/") == 0]
    lists = ["generated/parts/index", "generated/recipes/index", "generated/api/index"]
    assert sorted(contents) == sorted({*written, *generated, *lists} - {"index"})


def test_pages_of_the_repository_exist() -> None:
    for file in PAGES:
        assert (FOLDER.parent / file).is_file()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("reptk sweep supcon_digits loss.temprature=0.1", AssertionError),
        ("reptk embed runs/mine --nosuch", UsageError),
        ("python -m reptk.recipe nosuch", AssertionError),
        ("pip install -e '.[nosuch]'", AssertionError),
        ("ls", AssertionError),
    ],
)
def test_a_wrong_command_is_detected(
    text: str, problem: type[Exception], world: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(problem):
        check_line(text, capsys)


def test_a_wrong_key_is_detected() -> None:
    assert is_key("train.sampler.name")
    assert is_key("eval.knn.every_epochs")
    assert is_key("loss.temperature")
    assert not is_key("train.epoch")
    assert not is_key("loss.temprature")
    assert not is_key("eval.knn.ks")

"""Which runs a sweep has, and what is refused before the first one starts."""

from pathlib import Path

import pytest

from reptk.core.errors import UsageError
from reptk.sweep.grid import GridCell, draw_settings, load_cells, loading_notes, parse_grid
from sweep_runs import TINY_TOML


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY_TOML)


def cells_of(command: str, **options: int) -> list[GridCell]:
    recipes, *pairs = command.split()
    return load_cells(parse_grid(recipes, pairs), **options)


def test_every_combination_with_every_seed() -> None:
    cells = cells_of("tiny.toml loss.temperature=0.1,0.5 optim.lr=1e-3,1e-2 seed=0..1 train.epochs=3")
    values = [(cell.recipe.loss["temperature"], cell.recipe.optim.lr, cell.recipe.seed) for cell in cells]
    expected = []
    for temperature in (0.1, 0.5):
        for lr in (1e-3, 1e-2):
            expected += [(temperature, lr, 0), (temperature, lr, 1)]
    assert values == expected
    assert {cell.recipe.train.epochs for cell in cells} == {3}
    assert cells[0].label == "loss.temperature=0.1 optim.lr=1e-3 seed=0"


def test_brackets_are_one_value() -> None:
    (cell,) = cells_of("tiny.toml eval.knn.k=[1,5]")
    assert cell.recipe.eval["knn"]["k"] == [1, 5]
    cells = cells_of("tiny.toml eval.knn.k=[1,5],[2]")
    assert [cell.recipe.eval["knn"]["k"] for cell in cells] == [[1, 5], [2]]


def test_a_list_of_trackers_is_one_value() -> None:
    recipes, pair = "tiny.toml", 'train.trackers=["tensorboard", "wandb"]'
    (cell,) = load_cells(parse_grid(recipes, [pair]))
    assert cell.recipe.train.trackers == ("tensorboard", "wandb")


def test_recipes_are_a_dimension() -> None:
    cells = cells_of("supcon_digits,tcl_sup_digits seed=0..1")
    assert [cell.label for cell in cells] == [
        "supcon_digits seed=0",
        "supcon_digits seed=1",
        "tcl_sup_digits seed=0",
        "tcl_sup_digits seed=1",
    ]
    # The recipe's own settings, not the defaults of the loss.
    assert cells[2].recipe.loss["k1"] == 100.0


def test_files_of_one_name_have_different_labels(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tiny.toml").write_text(TINY_TOML.replace("1e-3", "1e-2"))
    assert [cell.label for cell in cells_of("tiny.toml,other/tiny.toml")] == [
        "tiny.toml seed=0",
        "other/tiny.toml seed=0",
    ]


def test_another_loss_takes_its_defaults_and_says_so() -> None:
    cells = cells_of("supcon_digits loss.name=supcon,tcl seed=0..2")
    assert [cell.recipe.loss.get("k1") for cell in cells] == [None, None, None, 5000.0, 5000.0, 5000.0]
    notes = loading_notes(cells)
    assert any(note.startswith("loss.name=tcl: takes the defaults of tcl: k1 5000") for note in notes)
    assert any("python -m reptk.recipe tcl_sup_digits" in note for note in notes)
    assert len(notes) == len(set(notes)), "once, not for every seed"


@pytest.mark.parametrize(
    ("command", "message"),
    {
        "unknown key": ("tiny.toml train.epoch=1,2", "did you mean 'epochs'"),
        "unknown argument": ("tiny.toml loss.temprature=1,2", "did you mean 'temperature'"),
        "unknown recipe": ("supcon_digits,supcon_digit", "no recipe 'supcon_digit'"),
        "unknown part": ("tiny.toml loss.name=supcon,tlc", "Nearest: tcl"),
        "unknown backbone": ("tiny.toml encoder.backbone=test_resnet,test_resnt", "no model 'test_resnt'"),
        "a wrong value among others": (
            "tiny.toml loss.temperature=0.1,-1,0.2",
            "in 1 run, first tiny loss.temperature=-1",
        ),
        "an argument of another part": ("tiny.toml loss.name=supcon,tcl loss.k1=1,2", "'supcon' has no argument 'k1'"),
        "a value twice": ("tiny.toml seed=0,1,0", "seed names '0' twice"),
        "a value in two spellings": ("tiny.toml loss.temperature=0.1,0.10", "are the same run"),
        "a key twice": ("tiny.toml seed=0 seed=1", "seed is named twice"),
        "no pair": ("tiny.toml seed", "'seed' is not key=value"),
        "how it is executed": ("tiny.toml train.workers=0,2", "train.workers does not change the result of a run"),
        "two trackers": (
            "tiny.toml train.trackers=tensorboard,wandb",
            """'train.trackers=["tensorboard", "wandb"]'""",
        ),
        "an argument of a tracker": ("tiny.toml trackers.wandb.project=a,b", "set it once for all runs"),
        "a name": ("tiny.toml name=a,b", "name does not change the result of a run"),
        "other data": ("supcon_digits,supcon_photos", "different data cannot be compared"),
        "too many": ("tiny.toml seed=0..5000 optim.lr=1,2", "more than 10,000"),
    }.values(),
)
def test_refused_in_one_message(command: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        cells_of(command)
    assert message in str(error.value)


def test_a_folder_by_two_paths_is_the_same_data() -> None:
    for name, root in (("a", "photos"), ("b", "./photos")):
        data = f'data = {{name = "folder", root = "{root}", size = 16}}'
        text = "\n".join(line for line in TINY_TOML.splitlines() if not line.startswith("data"))
        Path(f"{name}.toml").write_text(f"{text}\n{data}\n")
    cells = cells_of("a.toml,b.toml")
    assert [cell.recipe.data["root"] for cell in cells] == ["photos", "./photos"]
    with pytest.raises(UsageError, match="are the same run"):
        cells_of("a.toml data.root=photos,./photos")
    with pytest.raises(UsageError, match="different data cannot be compared"):
        cells_of("a.toml,b.toml data.root=photos,others")


def test_all_problems_are_listed_once() -> None:
    with pytest.raises(UsageError) as error:
        cells_of("tiny.toml loss.temprature=0.1 optim.lr=-1,2 seed=0..2")
    head, *lines = str(error.value).splitlines()
    assert head == "the sweep does not validate, and none of its 6 runs was started"
    assert len(lines) == 2


def test_a_random_draw() -> None:
    command = "tiny.toml loss.temperature=0.1,0.2,0.3 optim.lr=1,2,3 seed=0..1"
    drawn = cells_of(command, draws=4)
    settings = [cell.setting for cell in drawn]
    assert len(drawn) == 8
    assert settings[::2] == settings[1::2], "each setting with both seeds"
    assert len(set(settings)) == 4
    assert [cell.setting for cell in cells_of(command, draws=6)[:8]] == settings
    assert [cell.setting for cell in cells_of(command, draws=4, draw_seed=1)] != settings
    everything = cells_of(command, draws=100)
    assert {cell.label for cell in everything} == {cell.label for cell in cells_of(command)}


def test_a_draw_from_more_settings_than_fit_into_memory() -> None:
    numbers = draw_settings(10**15, 50, 0)
    assert len(set(numbers)) == 50
    assert all(0 <= number < 10**15 for number in numbers)

"""reptk views: the contact sheet has, pixel for pixel, the images and views of training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import reptk
from reptk import VIEWS
from reptk.cli import main
from reptk.core import rng
from reptk.core.console import Logger
from reptk.data import Loader
from reptk.training.load_data import load_data
from reptk.views.sets import simclr_small

TINY = """\
seed = 3
[data]
name = "generated"
train = 32
bank = 20
query = 10
classes = 4
size = 16
[views]
name = "recorded"
[encoder]
backbone = "test_resnet"
[method]
name = "contrastive"
[loss]
name = "simclr"
[optim]
name = "adamw"
lr = 1e-3
[train]
epochs = 2
batch_size = 16
baselines = false
device = "cpu"
[eval.knn]
k = [1]
"""

pytestmark = pytest.mark.usefixtures("restored_registries", "one_thread")


class RecordedViews:
    """Views that record every call: (images, views)."""

    calls: list[tuple[Tensor, Tensor]]

    def __init__(self, size: int, *, has_shard: bool = True) -> None:
        self.size, self.views, self.calls = size, simclr_small(2, size), []
        if has_shard:
            self.shard = self.views.shard

    def __call__(self, images: Tensor, key: int) -> Tensor:
        self.calls.append((images, self.views(images, key)))
        return self.calls[-1][1]


class Crops:
    """Views of two sizes, as a list."""

    size = 32

    def __init__(self) -> None:
        self.large, self.small = simclr_small(2, 32), simclr_small(3, 12)

    def __call__(self, images: Tensor, key: int) -> list[Tensor]:
        return [self.large(images, key), self.small(images, key + 1)]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


def register_recorded(has_shard: bool = True) -> list[RecordedViews]:
    built = []

    @VIEWS.register("recorded")
    def recorded(size: int = 16) -> RecordedViews:
        built.append(RecordedViews(size, has_shard=has_shard))
        return built[-1]

    return built


def calls_of_training(tiny: Path, built: list[RecordedViews]) -> list[tuple[Tensor, Tensor]]:
    """Per step of a training of the recipe: its images and their views."""
    reptk.train(reptk.load(tiny), "run", logger=Logger(prints=False))
    return next(views.calls for views in built if views.calls)


def first_batch(tiny: Path, *overrides: str) -> Tensor:
    recipe = reptk.load(tiny, overrides)
    loader = Loader(load_data(recipe).train, batch_size=recipe.train.batch_size, seed=recipe.seed)
    return next(loader.batches(0, 1))[0]


def as_bytes(view: Tensor) -> np.ndarray:
    """(3, s, s) float or uint8 -> (s, s, 3) uint8."""
    view = (view * 255).round().byte() if view.is_floating_point() else view
    return view.permute(1, 2, 0).numpy()


def find(sheet: np.ndarray, picture: np.ndarray, factor: int) -> list[tuple[int, int]]:
    """Every (top, left) at which the sheet holds the picture, enlarged by repeating its pixels."""
    tile = picture.repeat(factor, 0).repeat(factor, 1)
    inside = sheet[: len(sheet) - len(tile) + 1, : sheet.shape[1] - tile.shape[1] + 1]
    corners = np.argwhere((inside == tile[0, 0]).all(-1))
    return [
        (top, left)
        for top, left in corners.tolist()
        if (sheet[top : top + len(tile), left : left + tile.shape[1]] == tile).all()
    ]


def drawn(*arguments: str, out: str = "views.png") -> np.ndarray:
    assert main(["views", *arguments]) == 0
    with Image.open(out) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.array(image)


def assert_grid(sheet: np.ndarray, columns: list[list[np.ndarray]], factors: list[int]) -> None:
    """Check that each picture occurs once; that columns share their left edge, rows their upper one, both in order."""
    tops, lefts = [], []
    for column, factor in zip(columns, factors, strict=True):
        corners = []
        for picture in column:
            matches = find(sheet, picture, factor)
            assert len(matches) == 1
            corners.append(matches[0])
        tops.append([top for top, _ in corners])
        assert len({left for _, left in corners}) == 1
        lefts.append(corners[0][1])
    assert all(column == tops[0] for column in tops)
    assert tops[0] == sorted(set(tops[0]))
    assert lefts == sorted(set(lefts))


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("has_shard", [True, False])
def test_the_sheet_has_the_views_of_training(step: int, has_shard: bool, tiny: Path) -> None:
    calls = calls_of_training(tiny, register_recorded(has_shard))
    assert len(calls) == 4
    sheet = drawn("tiny.toml", "--step", str(step), "--images", "3")
    images, views = calls[step]
    columns = [[as_bytes(row) for row in column[:3]] for column in (images, *views)]
    assert_grid(sheet, columns, [8, 8, 8])
    assert not find(sheet, as_bytes(images[3]), 8), "the sheet has three images"
    other_images, other_views = calls[step - 1]
    for picture in (*other_images[:3], *other_views[0, :3]):
        assert not find(sheet, as_bytes(picture), 8), "of another step"


def test_no_more_images_are_drawn_than_are_shown(tiny: Path) -> None:
    built = register_recorded()
    drawn("tiny.toml", "--images", "3")
    assert [len(images) for images, _ in built[-1].calls] == [4]


def test_views_of_several_sizes(tiny: Path) -> None:
    VIEWS.register("crops")(Crops)
    sheet = drawn("tiny.toml", "views.name=crops", "--images", "2")
    images = first_batch(tiny, "views.name=crops")
    large, small = Crops()(images, rng.key(3, "views", 0))
    columns = [[as_bytes(row) for row in column[:2]] for column in (images, *large, *small)]
    assert_grid(sheet, columns, [8, 4, 4, 10, 10, 10])


def test_large_images_are_reduced(tiny: Path) -> None:
    sheet = drawn("tiny.toml", "data.size=300", "views.name=none", "views.size=256", "--images", "2")
    assert sheet.shape[1] < 1000
    images = first_batch(tiny, "data.size=300", "views.name=none")
    assert len(find(sheet, np.array(Image.fromarray(as_bytes(images[0])).reduce(2)), 1)) == 1


def test_a_missing_picture_fails_the_check() -> None:
    sheet = np.zeros((40, 40, 3), np.uint8)
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) + 1
    sheet[10:18, 20:28] = picture.repeat(2, 0).repeat(2, 1)
    assert find(sheet, picture, 2) == [(10, 20)]
    sheet[11, 21] += 1
    assert not find(sheet, picture, 2)
    with pytest.raises(AssertionError):
        assert_grid(sheet, [[picture]], [2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tcl_selfsup_photos", "tcl_sup_cifar100", "supcon_digits", "simclr_folder", "simclr_imagenet100"]
)
def test_smoke(name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["views", name, "--smoke"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"views.png: step 0 of {name}, ")
    assert captured.out.count("\n") == 1
    assert not captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["views.png"]


def test_a_run_is_drawn_again_and_overwritten(tiny: Path) -> None:
    register_recorded()
    first = drawn("tiny.toml", out="views.png")
    (tiny.parent / "run").mkdir()
    (tiny.parent / "run" / "recipe.toml").write_text(reptk.load(tiny).dump())
    assert (drawn("run") == first).all()
    assert (drawn("run", "--step", "1") != first).any()


def test_labels_and_names_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("写真", "a name that is much longer than the place there is for it beside the images", "unlabeled"):
        for number in range(6):
            folder = tmp_path / "my_photos" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((20, 20), 90 + number).convert("RGB").save(folder / f"{number}.png")
    few = ["views.size=16", "data.size=16", "train.batch_size=8"]
    with_labels = drawn("simclr_folder", *few)
    without = drawn("simclr_folder", *few, "data.labels=none")
    assert with_labels.shape[1] > without.shape[1]


def test_a_plugin(tiny: Path) -> None:
    (tiny.parent / "red.py").write_text(
        "import torch\n"
        "from reptk import VIEWS\n\n\n"
        '@VIEWS.register("red")\n'
        "def red(size: int = 16):\n"
        "    color = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 3, 1, 1)\n"
        "    return lambda images, key: color.expand(1, len(images), 3, size, size)\n"
    )
    sheet = drawn("tiny.toml", "views.name=red", "--plugin", "red.py", "--images", "2")
    assert ((sheet == [255, 0, 0]).all(-1).sum()) == 2 * 128 * 128


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "which recipe?"),
        (["views.size=16", "tiny.toml"], 2, "the recipe's name comes first"),
        (["simclr_photo"], 2, "Nearest: simclr_photos"),
        (["simclr_photos", "views.name=simcl"], 2, "Nearest: simclr"),
        (["simclr_photos", "views.scal=0.1"], 2, "did you mean 'scale'"),
        (["simclr_photos", "--plugin", "gone.py"], 2, "gone.py"),
        (["simclr_photos", "--images", "two"], 2, "invalid int value"),
        (["tiny.toml", "views.name=none", "--images", "0"], 2, "--images must be 1 to 16"),
        (["tiny.toml", "views.name=none", "--images", "17"], 2, "--images must be 1 to 16"),
        (["tiny.toml", "views.name=none", "--step", "4"], 2, "the steps 0 to 3"),
        (["tiny.toml", "views.name=none", "--step", "-1"], 2, "the steps 0 to 3"),
        (["tiny.toml", "views.name=none", "--out", "views.jpg"], 2, "must end in .png"),
        (["tiny.toml", "views.name=none", "data.train=8"], 3, "use e.g. train.batch_size=4"),
        (["simclr_cifar10", "data.download=false"], 3, "add --smoke"),
        (["simclr_folder"], 3, "add --smoke"),
        (["tcl_sup_imagenet100"], 3, "--smoke"),
        (["tiny.toml", "views.name=none", "--out", "no/such/folder/views.png"], 4, "cannot write"),
        (["tiny.toml", "views.name=none", "--out", "taken.png"], 4, "cannot write"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, tiny: Path, capsys: pytest.CaptureFixture) -> None:
    (tiny.parent / "taken.png").mkdir()
    assert main(["views", *arguments]) == code
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error:")
    assert message in printed.err
    assert sorted(path.name for path in tiny.parent.iterdir()) == ["taken.png", "tiny.toml"]


def test_a_missing_device(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["views", "tiny.toml", "views.name=none", "train.device=cuda"]) == 4
    assert "use cpu or auto" in capsys.readouterr().err

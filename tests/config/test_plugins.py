"""A stranger's loss and data set do all that the built-in ones do: in process, from a file, from an installed package."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import reptk
from reptk import DATASETS, LOSSES
from reptk.config.plugins import load_plugin
from reptk.core.errors import UsageError
from reptk.recipe import main
from reptk.testing import check_loss
from reptk.training import run_folder

MY_LOSS = '''\
"""Positives shall be more alike than negatives, by a margin."""

import torch
from reptk import LOSSES


@LOSSES.register("my_loss")
class MyLoss(torch.nn.Module):
    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        z = torch.nn.functional.normalize(z.float(), dim=1)
        alike, same = z @ z.T, (ids[:, None] == ids).float()
        pull = (alike * same).sum(1) / same.sum(1)
        push = (alike * (1 - same)).sum(1) / (1 - same).sum(1).clamp_min(1)
        return torch.relu(self.margin + push - pull).mean()
'''

MY_DATA = '''\
"""Stripes; who fetches them is noted down."""

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
    made = [Split(Stripes(count, log), torch.arange(count) % 4) for count in (train, 16, 8)]
    return Data(*made, ("1", "2", "3", "4"), "stripes of four widths")
'''

TINY = """\
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

ANNOUNCED = pytest.mark.filterwarnings("ignore:.*brings a plugin, which is run")

WITH_MY_LOSS = ("loss.name=my_loss", "loss.margin=0.5")


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, restored_registries):
    """A folder to work in, with a recipe; what a test registers or imports there is restored_registries after it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "my_loss.py").write_text(MY_LOSS)
    (tmp_path / "parts" / "my_data.py").write_text(MY_DATA)
    return tmp_path


def _python(*arguments: str) -> None:
    """Run Python in the current folder, in a process that knows nothing of this one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    made = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=180)
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""


def _losses(folder: str | Path) -> list[float]:
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def _recipe(folder: str | Path) -> dict:
    return tomllib.loads((Path(folder) / "recipe.toml").read_text())


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    """A run with MyLoss registered by its decorator in this process, as in a notebook."""
    place = tmp_path_factory.mktemp("in_process")
    (place / "tiny.toml").write_text(TINY)

    @LOSSES.register("my_loss")
    class MyLoss(torch.nn.Module):
        def __init__(self, margin: float = 0.2) -> None:
            super().__init__()
            self.margin = margin

        def forward(self, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            z = torch.nn.functional.normalize(z.float(), dim=1)
            alike, same = z @ z.T, (ids[:, None] == ids).float()
            pull = (alike * same).sum(1) / same.sum(1)
            push = (alike * (1 - same)).sum(1) / (1 - same).sum(1).clamp_min(1)
            return torch.relu(self.margin + push - pull).mean()

    try:
        assert "knn@1" in reptk.train(reptk.load(place / "tiny.toml", WITH_MY_LOSS), place / "run")
    finally:
        del LOSSES._registrations["my_loss"]
    return place / "run"


@pytest.fixture
def expected(in_process):
    """The losses of that run: however the loss is brought in, they are the same."""
    return pytest.approx(_losses(in_process), rel=1e-4)


def test_a_loss_registered_in_process_trains(in_process):
    assert run_folder.read_status(in_process) == {"status": "finished"}
    assert _recipe(in_process)["loss"] == {"name": "my_loss", "margin": 0.5}
    assert len(_losses(in_process)) == 2
    assert reptk.Encoder.from_run(in_process).num_features > 0
    with pytest.raises(UsageError, match="no loss 'my_loss'"):
        reptk.load(in_process)


def test_a_loss_learns_from_its_arguments(expected):
    assert main(["tiny.toml", "--plugin", "parts/my_loss.py", "loss.name=my_loss", "loss.margin=0.1"]) == 0
    assert _losses("runs/tiny/1") != expected


@ANNOUNCED
@pytest.mark.slow
def test_a_loss_from_a_file_trains_resumes_and_runs_again(place, expected, capsys):
    _python("-m", "reptk.recipe", "tiny.toml", "--plugin", "parts/my_loss.py", *WITH_MY_LOSS)
    first, again = Path("runs/tiny/1"), Path("runs/tiny/2")
    assert _losses(first) == expected
    assert _recipe(first)["plugins"] == ["plugins/my_loss.py"]
    assert (first / "plugins" / "my_loss.py").read_text() == MY_LOSS

    # The run folder is all that is needed from here on. This process has never seen the plugin.
    (place / "parts" / "my_loss.py").unlink()
    run_folder.set_status(first, "interrupted")
    assert main([str(first), "--resume"]) == 0
    assert "resumed after step 2" in capsys.readouterr().out
    assert run_folder.read_status(first) == {"status": "finished"}
    assert _losses(first) == expected

    assert main([str(first)]) == 0
    assert _recipe(again) == _recipe(first)
    assert _losses(again) == expected
    assert (again / "plugins" / "my_loss.py").read_text() == MY_LOSS


def test_a_loss_of_an_installed_distribution_trains(place, expected, monkeypatch):
    info = place / "site" / "acme-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[reptk.losses]\nmy_loss = acme_losses:MyLoss\n")
    (place / "site" / "acme_losses.py").write_text(MY_LOSS.replace('@LOSSES.register("my_loss")\n', ""))
    monkeypatch.syspath_prepend(place / "site")
    assert "my_loss" in LOSSES.names()
    assert "acme_losses" not in sys.modules
    assert main(["tiny.toml", *WITH_MY_LOSS]) == 0
    assert LOSSES.source("my_loss") == "acme 1.2"
    assert _losses("runs/tiny/1") == expected
    assert _recipe("runs/tiny/1")["plugins"] == []
    assert reptk.load("runs/tiny/1").loss == {"name": "my_loss", "margin": 0.5}


def test_a_data_set_from_a_file_trains(place):
    recipe = reptk.load("tiny.toml", ["data.name=stripes", f"data.log={place / 'log'}"], plugins=["parts/my_data.py"])
    assert "knn@1" in reptk.train(recipe, "out")
    assert set((place / "log").read_text().splitlines()) == {f"__main__ {os.getpid()}"}


def test_workers_fetch_from_a_plugins_data_set_in_this_process(place):
    """Threads, for parts of a batch; what comes of it is the same."""
    made = {}
    for workers in (0, 2):
        data = ["data.name=stripes", f"data.log={place / f'log{workers}'}", f"train.workers={workers}"]
        made[workers] = reptk.train(reptk.load("tiny.toml", data, plugins=["parts/my_data.py"]), f"out{workers}")
    assert made[0] == made[2]
    logs = [(place / f"log{workers}").read_text().splitlines() for workers in (0, 2)]
    assert {line.rsplit(" ", 1)[-1] for log in logs for line in log} == {str(os.getpid())}
    assert len(logs[1]) > len(logs[0])


@ANNOUNCED
def test_a_contributed_loss_trains_by_its_module_name(capsys):
    assert main(["tiny.toml", "--plugin", "reptk.plugins.dcl", "loss.name=dcl", "loss.temperature=0.2"]) == 0
    recipe = _recipe("runs/tiny/1")
    assert recipe["plugins"] == ["reptk.plugins.dcl"]
    assert recipe["loss"] == {"name": "dcl", "temperature": 0.2}
    assert not Path("runs/tiny/1/plugins").exists()
    assert re.search(r"loss +dcl +temperature 0\.2", capsys.readouterr().out)
    assert reptk.load("runs/tiny/1").plugins == ("reptk.plugins.dcl",)


def test_the_file_of_a_plugin_is_copied_into_the_run(capsys):
    assert main(["tiny.toml", "--plugin", "parts/my_loss.py", "loss.name=my_loss", "--out", "out"]) == 0
    assert _recipe("out")["plugins"] == ["plugins/my_loss.py"]
    assert Path("out/plugins/my_loss.py").read_text() == MY_LOSS


def test_a_plugin_named_twice_is_recorded_once():
    assert len(reptk.load("tiny.toml", plugins=["parts/my_loss.py", "parts/my_loss.py"]).plugins) == 1


def test_smoke_keeps_the_plugins(capsys):
    assert main(["tiny.toml", "--smoke", "--plugin", "parts/my_loss.py", "loss.name=my_loss"]) == 0
    assert "my_loss" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_parts_of_a_plugin_are_named_with_their_file(place):
    load_plugin("parts/my_data.py")
    assert DATASETS.source("stripes") == "my_data.py (stripes)"


def guide_examples() -> list[str]:
    guide = (Path(__file__).parents[2] / "plugins" / "README.md").read_text()
    return [code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "LOSSES.register" in code]


@pytest.mark.usefixtures("restored_registries")
@pytest.mark.parametrize("number", range(2))
def test_the_losses_of_the_guide_train(number: int, tmp_path: Path) -> None:
    examples = guide_examples()
    assert len(examples) == 2
    file = tmp_path / f"guide_{number}.py"
    file.write_text(examples[number])
    name = re.search(r'register\("(\w+)"\)', examples[number]).group(1)
    load_plugin(str(file))
    loss = LOSSES.get(name)()
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss(z, torch.arange(12) % 4).backward()
    assert z.grad.abs().sum() > 0
    if getattr(loss, "computes_local_rows", False):
        check_loss(loss)

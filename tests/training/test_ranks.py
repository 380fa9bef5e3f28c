"""Two and more gloo processes against one: the same gradients, the same loss curve, the same features."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp

from reptk.config import load, validate
from reptk.core.console import Logger
from reptk.training.loop import train

pytestmark = pytest.mark.slow

RECIPE = {
    "name": "ranks",
    "data": {"name": "generated", "train": 64, "bank": 600, "query": 40, "classes": 4, "size": 16},
    "views": {"name": "simclr_small", "size": 16, "count": 3},
    "encoder": {"backbone": "test_vit"},
    "method": {"name": "contrastive", "positives": "class"},
    "loss": {"name": "tcl", "k1": 50.0, "k2": 1.5},
    "optim": {"name": "sgd", "lr": 0.05},
    "train": {"epochs": 3, "batch_size": 16, "log_every_steps": 1, "device": "cpu"},
    "eval": {"knn": {"k": [1, 20]}},
}
LOSS_PARTS = [
    {"name": "supcon", "learn_temperature": True},
    {"name": "supcon", "form": "in"},
    {"name": "tcl", "k1": 50.0, "k2": 1.5},
    {"name": "simclr"},
    {"name": "dcl"},
    {"name": "plain"},
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def spawn(function, world: int, *arguments) -> None:
    mp.spawn(_rank, args=(world, free_port(), function, arguments), nprocs=world)


def _rank(rank: int, world: int, port: int, function, arguments) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from reptk.core import distributed

    distributed.setup("cpu")
    try:
        function(rank, *arguments)
    finally:
        distributed.cleanup()


class Plain(torch.nn.Module):
    """A loss in plain PyTorch, with a weight of its own, that knows nothing of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, z: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        z = torch.nn.functional.normalize(z, dim=1)
        same = ids[:, None] == ids[None, :]
        return torch.where(same, 1 - z @ z.T, torch.relu(z @ z.T - self.margin)).mean()


def gradients(rank: int, loss: dict, out: str, dtype: torch.dtype = torch.float64, **train: int) -> None:
    """Loss and gradients of one batch of 16 images, shared by whatever ranks there are, and what was communicated."""
    import reptk.plugins.dcl  # noqa: F401
    from reptk import LOSSES
    from reptk.core import distributed
    from reptk.training.build import build, load_data
    from reptk.training.loop import _parallel

    if "plain" not in LOSSES.names():
        LOSSES.register("plain")(Plain)
    recipe = validate(RECIPE | {"loss": loss, "train": RECIPE["train"] | train})
    built = build(recipe, load_data(recipe), torch.device("cpu"))
    built.method.to(dtype)
    real = built.method.views
    built.method.views = lambda images, key: real(images, key).to(dtype)
    model = _parallel(built)
    images, labels, index = next(built.loader.batches(1, 2))
    labels = torch.where(index % 5 == 0, -1, labels)  # partly labelled
    with Collectives() as forward:
        made = model(images, labels, index, 77)
    # DDP averages the gradients of the weights from its own threads; this counts what the loss itself asks for.
    with Collectives() as backward:
        made["loss"].backward()
    Path(f"{out}.{rank}.json").write_text(json.dumps({"forward": forward.names, "backward": backward.names}))
    if distributed.is_main():
        grads = {name: parameter.grad for name, parameter in built.method.named_parameters()}
        torch.save({"loss": made["loss"].detach(), "gradients": grads}, out)


class Collectives:
    """Names of the collective operations that Python code asks for inside the block."""

    def __enter__(self) -> "Collectives":
        self.names: list[str] = []
        self._real = {
            name: getattr(td, name) for name in ("all_gather_into_tensor", "all_gather", "all_reduce", "broadcast")
        }
        for name, call in self._real.items():
            setattr(td, name, self._counting(name, call))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self._real.items():
            setattr(td, name, call)

    def _counting(self, name: str, call: Callable) -> Callable:
        def counted(*given: object, **chosen: object) -> object:
            self.names.append(name)
            return call(*given, **chosen)

        return counted


def features(rank: int, out: str) -> None:
    """Features and random views of the bank and the queries, shared by whatever ranks there are."""
    from reptk.core import distributed
    from reptk.evaluate import ImageFeatures
    from reptk.training.build import build, load_data

    recipe = validate(RECIPE)
    built = build(recipe, load_data(recipe), torch.device("cpu"))
    built.encoder.eval()
    encode = ImageFeatures(built.encoder.features, size_px=16, views=built.evaluation_views)
    made = torch.cat(
        [encode.features(built.data.bank), encode.view(built.data.bank, 1), encode.features(built.data.query)]
    )
    if distributed.is_main():
        torch.save(made, out)


def numbers(rank: int, out: str) -> None:
    """All numbers and answers of kNN, with queries apart and leave-one-out, some images without a label."""
    from reptk.core import distributed
    from reptk.data.sources.generated import generated
    from reptk.evaluate import ImageFeatures, Knn

    data = generated(train=8, bank=600, query=300, classes=4, size=8)
    labels = torch.where(torch.arange(600) % 7 == 0, -1, data.bank.labels)
    bank = replace(data.bank, labels=labels)
    told = []
    for query in (data.query, bank):
        encode = ImageFeatures(lambda images: images[:, 0, :2, ::3].flatten(1), size_px=8)
        result = Knn(k=(1, 5), recall=(1,))(encode, replace(data, bank=bank, query=query))
        told.append({name: value.values for name, value in result.metrics.items()})
        told[-1] |= {name: value for name, value in vars(result.predictions).items() if isinstance(value, torch.Tensor)}
    if distributed.is_main():
        torch.save(told, out)


def errors(rank: int, out: str) -> None:
    """What rank 0 meets alone, all ranks write down."""
    from reptk.core import distributed
    from reptk.core.errors import UsageError

    def refuse() -> None:
        raise UsageError("main says no")

    try:
        distributed.run_on_main(refuse)
    except UsageError as error:
        Path(f"{out}.{rank}").write_text(str(error))
    assert distributed.run_on_main(lambda: {"from": distributed.rank()}) == {"from": 0}


def everything(rank: int, out: str, losses: list[dict]) -> None:
    """One start of the processes for all comparisons: starting them is what takes time."""
    for number, loss in enumerate(losses):
        gradients(rank, loss, f"{out}/gradients{number}")
    gradients(rank, {"name": "supcon"}, f"{out}/single", torch.float32)
    gradients(rank, {"name": "supcon"}, f"{out}/parts", micro_batch_size=6)
    features(rank, f"{out}/features")
    numbers(rank, f"{out}/numbers")
    errors(rank, f"{out}/said")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with what 1, 2 and 4 ranks computed."""
    folders = {world: tmp_path_factory.mktemp(f"world{world}") for world in (1, 2, 4)}
    everything(0, str(folders[1]), LOSS_PARTS)
    spawn(everything, 2, str(folders[2]), LOSS_PARTS)
    spawn(everything, 4, str(folders[4]), LOSS_PARTS)
    return folders


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_search_and_find_the_same(world: int, made: dict[int, Path]) -> None:
    """600 rows are three blocks, so that with four ranks one has no row and two have no query."""
    one, many = (torch.load(made[ranks] / "numbers", weights_only=True) for ranks in (1, world))
    for expected, found in zip(one, many, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(found[name].nan_to_num(-1), value.nan_to_num(-1)), name


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("number", range(len(LOSS_PARTS)))
def test_ranks_give_the_gradients_of_one_process(world: int, number: int, made: dict[int, Path]) -> None:
    one, many = (torch.load(made[ranks] / f"gradients{number}", weights_only=True) for ranks in (1, world))
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-12, atol=0)
    assert one["gradients"].keys() == many["gradients"].keys()
    largest = max(value.abs().max().item() for value in one["gradients"].values())
    assert largest > 0
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(many["gradients"][name], expected, rtol=1e-12, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_give_the_gradients_of_one_process_in_float32(world: int, made: dict[int, Path]) -> None:
    one, many = (torch.load(made[ranks] / "single", weights_only=True) for ranks in (1, world))
    torch.testing.assert_close(many["loss"], one["loss"], rtol=1e-6, atol=0)
    largest = max(value.abs().max().item() for value in one["gradients"].values())
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(many["gradients"][name], expected, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_micro_batches_give_the_gradients_of_the_batch(world: int, made: dict[int, Path]) -> None:
    """Each rank encodes its share in three parts."""
    whole, parts = (torch.load(path, weights_only=True) for path in (made[1] / "gradients0", made[world] / "parts"))
    torch.testing.assert_close(parts["loss"], whole["loss"], rtol=1e-7, atol=0)  # the learned temperature is a float32
    largest = max(value.abs().max().item() for value in whole["gradients"].values())
    for name, expected in parts["gradients"].items():
        torch.testing.assert_close(whole["gradients"][name], expected, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("number", range(len(LOSS_PARTS)))
def test_backward_of_a_loss_on_rows_communicates_nothing(world: int, number: int, made: dict[int, Path]) -> None:
    for rank in range(world):
        said = json.loads((made[world] / f"gradients{number}.{rank}.json").read_text())
        if LOSS_PARTS[number]["name"] == "plain":
            assert said == {"forward": ["all_gather_into_tensor"] * 2, "backward": ["all_reduce"]}
        else:
            learned = LOSS_PARTS[number].get("learn_temperature", False)
            assert said == {"forward": ["all_gather_into_tensor"] * (3 + learned), "backward": []}


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_features(world: int, made: dict[int, Path]) -> None:
    one, many = (torch.load(made[ranks] / "features", weights_only=True) for ranks in (1, world))
    torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_what_the_main_rank_meets_every_rank_learns(world: int, made: dict[int, Path]) -> None:
    said = [(made[world] / f"said.{rank}").read_text() for rank in range(world)]
    assert said == ["main says no"] * world


def torchrun(recipe: Path, ranks: int, out: Path, *arguments: str) -> subprocess.CompletedProcess:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*start, "-m", "reptk.recipe", str(recipe), "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_torchrun_gives_the_loss_curve_of_one_process(tmp_path: Path) -> None:
    recipe = tmp_path / "ranks.toml"
    recipe.write_text(validate(RECIPE).dump())
    plugin = tmp_path / "seen_by_all.py"
    plugin.write_text(
        "from reptk import LOSSES\nfrom reptk.losses import TCL\n\n"
        "@LOSSES.register('seen_by_all')\nclass Seen(TCL):\n    pass\n"
    )
    arguments = ["--plugin", str(plugin), "loss.name=seen_by_all", "loss.k1=50.0"]
    result = torchrun(recipe, 2, tmp_path / "2", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 3/3") == 1, "rank 0 alone speaks"
    train(load(recipe, arguments[2:], plugins=arguments[1:2]), tmp_path / "1", logger=Logger(prints=False, writes=True))
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == len(two) == 12
    assert two == pytest.approx(one, rel=1e-4)
    results = [json.loads((tmp_path / ranks / "results.json").read_text())["metrics"]["trained"] for ranks in "12"]
    assert results[0].keys() == results[1].keys()


def test_a_mistake_under_torchrun_is_said_once(tmp_path: Path) -> None:
    recipe = tmp_path / "ranks.toml"
    recipe.write_text(validate(RECIPE).dump())
    result = torchrun(recipe, 2, tmp_path / "out", "loss.name=no_such_loss")
    assert result.returncode != 0
    assert result.stderr.count("error: ranks does not validate") == 1
    assert not (tmp_path / "out").exists()


def test_gather_is_the_identity_on_one_process() -> None:
    from reptk.core import distributed

    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.all_gather(rows) is rows

"""What the processes of a group compute, for comparison with a single process; run by tests/training/test_ranks.py."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import reptk.plugins.dcl  # noqa: F401 (registers a loss)
from reptk import LOSSES
from reptk.config import validate
from reptk.core import distributed
from reptk.core.errors import UsageError
from reptk.data.sources.generated import generated
from reptk.evaluate import ImageFeatures, Knn
from reptk.methods import Batch, Step
from reptk.models.lora import merged_state_dict
from reptk.training.build import build
from reptk.training.load_data import load_data
from reptk.training.step import train_step, wrap_in_ddp

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
    {"name": "siglip"},
    {"name": "proxy_anchor"},
    {"name": "subcenter_arcface"},
]
METHODS_WITH_MEMORY = [{"name": "xbm", "memory_size": 64}]
METHODS_WITH_CLASSES = [
    {"name": "classify", "label_smoothing": 0.1},
    {"name": "classify", "mixup": 0.4, "cutmix": 1.0},
    {"name": "joint", "weight": 0.5},
]
COLLECTIVES = ("all_gather_single", "all_gather_into_tensor", "all_gather", "all_reduce", "broadcast")
NAMES_OF_GATHER = {"all_gather_single": "gather", "all_gather_into_tensor": "gather"}
"""One function, which has the first name since torch 2.14."""


def compute_all(rank: int, folder: Path) -> None:
    """Compute everything on this rank and save it into the folder."""
    for number, loss in enumerate(LOSS_PARTS):
        save_gradients(folder / f"gradients{number}", loss)
    save_gradients(folder / "float32", {"name": "supcon"}, torch.float32)
    save_gradients(folder / "micro_batches", {"name": "supcon"}, micro_batch_size=6)
    save_adapted_weights(folder / "adapted")
    for number, method in enumerate(METHODS_WITH_CLASSES):
        loss = {"name": "supcon"} if method["name"] == "joint" else None
        save_gradients(folder / f"classes{number}", loss, method=method)
    for number, method in enumerate(METHODS_WITH_MEMORY):
        save_gradients(folder / f"memory{number}", {"name": "supcon"}, method=method)
    save_features(folder / "features")
    save_knn(folder / "knn")
    save_error_of_main(folder / "error")


class Plain(nn.Module):
    """A loss in plain PyTorch, with a parameter, that makes no use of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, z: Tensor, ids: Tensor) -> Tensor:
        z = nn.functional.normalize(z, dim=1)
        same = ids[:, None] == ids[None, :]
        return torch.where(same, 1 - z @ z.T, torch.relu(z @ z.T - self.margin)).mean()


def save_gradients(
    file: Path, loss: dict | None, dtype: torch.dtype = torch.float64, method: dict = RECIPE["method"], **train: int
) -> None:
    """Loss and gradients of a batch of 16 images, divided among the ranks, and the names of the collectives called."""
    if "plain" not in LOSSES.names():
        LOSSES.register("plain")(Plain)
    table = RECIPE | {"method": method, "loss": loss, "train": RECIPE["train"] | train}
    recipe = validate({key: part for key, part in table.items() if part is not None})
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    parts.method.to(dtype)
    views = parts.method.views
    parts.method.views = lambda images, key: views(images, key).to(dtype)
    model = wrap_in_ddp(parts)
    images, labels, index = next(parts.loader.batches(1, 2))
    partly_labeled = torch.where(index % 5 == 0, -1, labels)
    with RecordedCollectives() as forward:
        outputs = model(Batch(images, partly_labeled, index), Step(number=1, total=12, key=77))
    # DDP averages the gradients from its own C++ threads; these are the collectives of the loss alone.
    with RecordedCollectives() as backward:
        outputs["loss"].backward()
    collectives = {"forward": forward.names, "backward": backward.names}
    file.with_name(f"{file.name}.{distributed.rank()}.json").write_text(json.dumps(collectives))
    if distributed.is_main():
        gradients = {name: parameter.grad for name, parameter in parts.method.named_parameters()}
        torch.save({"loss": outputs["loss"].detach(), "gradients": gradients}, file)


def save_adapted_weights(file: Path) -> None:
    """Weights of the moving average after three steps with LoRA, a frozen block and checkpointed activations."""
    changes = {
        "encoder": {"backbone": "test_vit", "freeze": 1, "lora_rank": 4},
        "optim": {"name": "sgd", "lr": 0.05, "layer_decay": 0.7},
        "train": {**RECIPE["train"], "grad_checkpointing": True, "ema_decay": 0.5, "evaluated_weights": "ema"},
    }
    recipe = validate(RECIPE | changes)
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    model = wrap_in_ddp(parts).train()
    for number, batch in enumerate(parts.loader.batches(0, 3)):
        parts.schedule.set_step(number)
        train_step(parts, model, Batch(*batch), parts.step(number))
    if distributed.is_main():
        torch.save(merged_state_dict(parts.encoder), file)


class RecordedCollectives:
    """Records the names of the collective operations that Python code calls inside the block."""

    def __enter__(self) -> "RecordedCollectives":
        self.names: list[str] = []
        self._functions = {name: getattr(dist, name) for name in COLLECTIVES if hasattr(dist, name)}
        for name, function in self._functions.items():
            setattr(dist, name, self._recording(name, function))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._functions.items():
            setattr(dist, name, function)

    def _recording(self, name: str, function: Callable) -> Callable:
        def recording(*args: object, **kwargs: object) -> object:
            self.names.append(NAMES_OF_GATHER.get(name, name))
            return function(*args, **kwargs)

        return recording


def save_features(file: Path) -> None:
    """Features of the bank, of random views of it, and of the queries, computed by all ranks."""
    recipe = validate(RECIPE)
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    parts.encoder.eval()
    store = ImageFeatures(parts.encoder.features, size_px=16, views=parts.evaluation_views)
    features = [store.features(parts.data.bank), store.view(parts.data.bank, 1), store.features(parts.data.query)]
    if distributed.is_main():
        torch.save(torch.cat(features), file)


def save_knn(file: Path) -> None:
    """All metrics and predictions of kNN, with separate queries and leave-one-out, some images without a label."""
    data = generated(train=8, bank=600, query=300, classes=4, size=8)
    labels = torch.where(torch.arange(600) % 7 == 0, -1, data.bank.labels)
    bank = replace(data.bank, labels=labels)
    tables = []
    for query in (data.query, bank):
        store = ImageFeatures(lambda images: images[:, 0, :2, ::3].flatten(1), size_px=8)
        result = Knn(k=(1, 5), recall=(1,))(store, replace(data, bank=bank, query=query))
        values = {name: metric.values for name, metric in result.metrics.items()}
        predictions = vars(result.predictions).items()
        tables.append(values | {name: value for name, value in predictions if isinstance(value, Tensor)})
    if distributed.is_main():
        torch.save(tables, file)


def save_error_of_main(file: Path) -> None:
    """Write what every rank catches when a function that runs on rank 0 alone raises; and check what it returns."""

    def refuse() -> None:
        raise UsageError("main refuses")

    try:
        distributed.run_on_main(refuse)
    except UsageError as error:
        file.with_name(f"{file.name}.{distributed.rank()}").write_text(str(error))
    assert distributed.run_on_main(lambda: {"from": distributed.rank()}) == {"from": 0}

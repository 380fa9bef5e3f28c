"""Files of every kind that reptk reads, each with the commands that read it."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import timm
import torch
from safetensors.torch import save_file

from embedding_inputs import draw_image
from random_command_lines import TINY
from reptk import Embeddings, Encoder, index
from reptk.cli import main
from reptk.core import rng


class Target(NamedTuple):
    """A file, and the commands that read it, each the arguments of `reptk`."""

    path: str
    commands: list[list[str]]
    hashed_by: str = ""
    """The manifest that holds its hash, which whoever changes the file can change as well."""


RECIPE = TINY.replace("baselines = false", "baselines = false, log_every_steps = 1")

EVALUATE = ["evaluate", "run", "--only", "knn,few_shot", "--no-baselines"]
EMBED = ["embed", "run", "--out", "o.safetensors", "--force"]
REPORT = ["report", "run", "--out", "o.html", "--force"]
SHOW = ["recipe", "run", "--show"]
RESUME = ["recipe", "run", "--resume", "train.epochs=2"]
VIEWS = ["views", "run", "--images", "2", "--out", "o.png"]
DATA = ["data.name=generated", "data.train=9", "data.bank=9", "data.query=4", "data.classes=3", "data.size=32"]


def targets() -> list[Target]:
    """Return all files that are mangled."""
    reads_of_run = [EVALUATE, EMBED, REPORT, SHOW, RESUME, VIEWS]
    found = [
        Target("run/recipe.toml", [*reads_of_run, ["recipe", "run", "--check"]]),
        Target("run/results.json", [REPORT]),
        Target("run/metrics.jsonl", [REPORT, RESUME]),
        Target("run/status.json", [REPORT, RESUME]),
        Target("run/evaluation.safetensors", [REPORT]),
        Target(
            "run/model/model.safetensors",
            [EVALUATE, EMBED, weights("run/model/model.safetensors")],
            "run/model/manifest.json",
        ),
        Target("run/model/config.json", [EVALUATE, EMBED], "run/model/manifest.json"),
        Target("run/bad_samples.csv", [RESUME]),
        Target("run/data.json", [RESUME]),
        Target("run/model/manifest.json", [EVALUATE, EMBED]),
        Target("run/checkpoints/step_00000002/manifest.json", [RESUME]),
        Target(
            "run/checkpoints/step_00000002/state.pt",
            [RESUME, weights("run/checkpoints/step_00000002/state.pt")],
            "run/checkpoints/step_00000002/manifest.json",
        ),
        Target(
            "tiny.toml", [["recipe", "tiny.toml", "--check"], ["recipe", "tiny.toml", "--show"], ["recipe", "--list"]]
        ),
        Target("hub/config.json", [["embed", "local-dir:hub", "--data", "photos", *EMBED[2:]]]),
        Target("hub/model.safetensors", [["embed", "local-dir:hub", "--pretrained", "--data", "photos", *EMBED[2:]]]),
        Target("photos/cats/0.png", [["check-data", "photos"], [*EMBED, "--data", "photos"]]),
        Target("a.png", [["search", "e.safetensors", "a.png", "--no-html", "--k", "1"], ["check-data", "data.csv"]]),
    ]
    found += [Target(name, [weights(name)]) for name in ("weights.pt", "old.pt", "weights.npz", "split.index.json")]
    for name in ("photos.jpg", "photo.tif", "photo.webp", "photo.gif"):
        found.append(Target(f"more/{name}", [["check-data", "more"], [*EMBED, "--data", "more"]]))
    for name in ("data.csv", "data.jsonl", "data.parquet", "shards/train-00000-of-00001.parquet"):
        source = name.partition("/")[0]
        found.append(Target(name, [["check-data", source], [*EMBED, "--data", source]]))
    for name in ("e.safetensors", "e.parquet"):
        found.append(
            Target(name, [*searches(name), ["index", name, "--out", "o.index", "--force"], ["evaluate", name]])
        )
    for folder in ("flat", "ivf"):
        found.append(Target(f"{folder}/manifest.json", searches(folder)))
        found.append(Target(f"{folder}/embeddings.safetensors", searches(folder), f"{folder}/manifest.json"))
    found.append(Target("ivf/index.faiss", searches("ivf"), "ivf/manifest.json"))
    return found


def comparison_targets() -> list[Target]:
    """Return the files of a run that are mangled before it is compared with another one, or is the recipe of a sweep."""
    compare = ["compare", "run", "run2"]
    sweep = ["sweep", "run", "seed=0,1", "--dry-run"]
    return [
        Target("run/recipe.toml", [compare, sweep]),
        Target("run/results.json", [compare]),
        Target("run/metrics.jsonl", [compare]),
        Target("run/evaluation.safetensors", [compare]),
    ]


def weights(name: str) -> list[str]:
    return ["embed", "test_resnet", "--weights", name, "--data", "photos", "size=32", *EMBED[2:]]


def searches(name: str) -> list[list[str]]:
    duplicates = [
        "search",
        name,
        "--duplicates",
        "--html",
        "duplicates.html",
        "--out",
        "o.csv",
        "--force",
        "--threshold",
        "0.5",
    ]
    commands = [
        ["search", name, "--id", "1", "--k", "2", "--html", "found.html"],
        duplicates,
        [*duplicates, "--no-images"],
    ]
    if name != "ivf":  # its vectors are not those of images
        commands.append(["search", name, "a.png", "--k", "2", "--no-html"])
    return commands


def write_files(folder: Path) -> None:
    """Write all targets, and what they need, into the working directory."""
    for number in range(6):
        path = folder / "photos" / ("cats", "dogs")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_image(number).save(path)
    draw_image(0).save(folder / "a.png")
    (folder / "more").mkdir()
    for name in ("photos.jpg", "photo.tif", "photo.webp", "photo.gif"):
        draw_image(1).save(folder / "more" / name)
    os.mkfifo(folder / "pipe.png")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "endless.png").symlink_to("/dev/zero")
    _write_tables(folder)
    (folder / "tiny.toml").write_text(RECIPE)
    # The second image is not in the run's data, so that the page has something to show.
    assert main(["recipe", "tiny.toml", "--out", "run"]) == 0
    (folder / "run" / "bad_samples.csv").write_text("image,reason\nphotos/cats/0.png,it is damaged\n")
    shutil.copytree(folder / "run", folder / "run2")
    assert main([*EMBED[:2], "--data", "photos", "--out", "e.safetensors"]) == 0
    assert main([*EMBED[:2], "--data", "photos", "--out", "e.parquet"]) == 0
    assert main(["index", "e.safetensors", "--out", "flat"]) == 0
    many = torch.nn.functional.normalize(torch.randn(80, 96, generator=rng.generator("many")), dim=1)
    Embeddings(many, list(map(str, range(80)))).save(folder / "many.safetensors")
    index(folder / "many.safetensors", out=folder / "ivf", kind="IVF2,Flat")
    _write_weights(folder)


def _write_tables(folder: Path) -> None:
    rows = [("a.png", "cat", "train"), ("photos/cats/0.png", "dog", "train"), ("photos/dogs/1.png", "cat", "test")]
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    objects = [dict(zip(("path", "label", "split"), row, strict=True)) for row in rows]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), folder / "data.parquet")
    (folder / "shards").mkdir()
    images = [
        {"image": {"bytes": (folder / row[0]).read_bytes(), "path": row[0]}, "label": i} for i, row in enumerate(rows)
    ]
    shard = pyarrow.Table.from_pylist(images)
    pyarrow.parquet.write_table(shard, folder / "shards" / "train-00000-of-00001.parquet")


def _write_weights(folder: Path) -> None:
    backbone = Encoder("test_resnet", size=32).backbone
    state = backbone.state_dict()
    torch.save({"model": state, "epoch": 3}, folder / "weights.pt")
    torch.save({"model": state}, folder / "old.pt", _use_new_zipfile_serialization=False)
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in state.items()})
    save_file(state, folder / "part.safetensors")
    weight_map = dict.fromkeys(state, "part.safetensors")
    (folder / "split.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = timm.create_model("test_resnet", num_classes=0)
    timm.models.save_for_hf(model, folder / "hub", safe_serialization=True)

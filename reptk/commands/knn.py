"""Evaluate an encoder on a data set: reptk knn --checkpoint runs/tcl_sup_photos/1 data.name=digits"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reptk import config
from reptk.command import Parser, guarded
from reptk.errors import EnvironmentProblem, UsageError
from reptk.registry import load_plugin

EXAMPLES = """examples:
  reptk knn --checkpoint runs/tcl_sup_photos/1
  reptk knn --checkpoint runs/tcl_sup_photos/1 data.name=folder data.root=my_photos
  reptk knn --backbone resnet50 --pretrained data.name=cifar10 size=224
  reptk knn --backbone tf_efficientnet_lite0 --weights lite0.pth data.name=photos size=96 eval.k=[1,20]
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    return guarded(lambda: _run(_parse(arguments)))


def _run(asked: argparse.Namespace) -> int:
    for plugin in asked.plugin:
        load_plugin(plugin)
    chosen = config.override({}, asked.overrides)
    strange = sorted(set(chosen) - {"data", "eval", "size"})
    if strange:
        raise UsageError(f"{', '.join(strange)}: what can be set here is data.*, eval.* and size")
    part = _data_part(asked, chosen)
    options = config.complete("eval.knn", {"name": "knn", **chosen.get("eval", {})})
    encoder = _encoder(asked, chosen.get("size"))
    return _evaluate(asked, encoder, part, options)


def _evaluate(asked: argparse.Namespace, encoder: Any, part: config.Table, options: config.Table) -> int:
    from reptk import run
    from reptk.evaluate import ViewRetrieval, engine, measure, measure_pixels
    from reptk.log import Log
    from reptk.registry import DATASETS, EVALUATORS, VIEWS

    data, log = config.build(DATASETS, part), Log()
    evaluator = config.build(EVALUATORS, options) if data.query is not None else ViewRetrieval()
    recipe = _recipe_of(asked.checkpoint)
    views = config.build(VIEWS, recipe.get("views", {"name": "simclr", "size": encoder.config["size"]}))
    name = asked.checkpoint or asked.backbone
    log.line(f"{name}  on  {part['name']}: {data.protocol}")
    rows = {
        "raw pixels": measure_pixels(data, [evaluator], views),
        "encoder": measure(encoder, data, [evaluator], views=views, device=_device(), bf16=_is_bf16(recipe)),
    }
    log.results([metric for metric in rows["encoder"] if not metric.startswith("knn_majority")], rows)
    if asked.out is not None:
        protocol = {"encoder": encoder.config, "data": part, "splits": data.protocol, "evaluator": options}
        protocol |= {"search_engine": engine(), "versions": run.versions(), "commit": run.commit()}
        text = json.dumps({"metrics": rows, "protocol": protocol}, indent=2)
        try:
            asked.out.write_text(text + "\n")
        except OSError as cause:
            raise EnvironmentProblem(f"cannot write {asked.out}: {cause}") from cause
        log.line(f"  results  {asked.out}")
    return 0


def _encoder(asked: argparse.Namespace, size: int | None) -> Any:
    from reptk.encoder import Encoder, native_size

    if asked.checkpoint is not None:
        if size is not None or asked.weights is not None or asked.pretrained:
            raise UsageError("size, --weights and --pretrained go with --backbone; a run has its own")
        return Encoder.from_run(asked.checkpoint)
    size = native_size(asked.backbone) if size is None else size
    if not isinstance(size, int) or size < 4:
        raise UsageError(f"size must be an integer of at least 4, got {size!r}")
    return Encoder(asked.backbone, size=size, pretrained=asked.pretrained, weights=asked.weights, head_layers=0).eval()


def _data_part(asked: argparse.Namespace, chosen: config.Table) -> config.Table:
    """The data set that was named, else the one the run was trained on."""
    part = dict(chosen.get("data", {}))
    if "name" not in part and asked.checkpoint is not None:
        part = {**_recipe_of(asked.checkpoint).get("data", {}), **part}
    if "name" not in part:
        raise UsageError("on which data set? e.g. data.name=photos, or data.name=folder data.root=my_photos")
    return config.complete("data", part)


def _recipe_of(checkpoint: str | None) -> config.Table:
    """The recipe of the run that a run folder or its model folder belongs to, empty if there is none."""
    homes = [] if checkpoint is None else [Path(checkpoint), Path(checkpoint).parent]
    found = [home / "recipe.toml" for home in homes if (home / "recipe.toml").is_file()]
    return config.read(found[0]) if found else {}


def _is_bf16(recipe: config.Table) -> bool:
    return recipe.get("train", {}).get("precision") == "bf16"


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="reptk knn",
        description="kNN accuracy and retrieval of an encoder on a data set, beside raw pixels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", help="a run's folder, or its model folder")
    which.add_argument("--backbone", help="any timm name")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.name=..., data.root=..., eval.k=[1,20], size=96"
    )
    parser.add_argument("--pretrained", action="store_true", help="with --backbone: timm's weights")
    parser.add_argument("--weights", help="with --backbone: a local file of weights")
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers parts; repeatable"
    )
    parser.add_argument("--out", type=Path, help="write the numbers and their protocol to this JSON file")
    return parser.parse_intermixed_args(arguments)

"""The model card of a run, made of results.json and recipe.toml: README.md with the metadata that the hub reads."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import tomli_w
from huggingface_hub import ModelCardData

import reptk
from reptk import config
from reptk.core.errors import ReptkError
from reptk.core.files import expand_home
from reptk.evaluate.results import table_columns
from reptk.export.exported_model import ExportedModel
from reptk.models.backbone import is_external
from reptk.models.timm_config import timm_problem
from reptk.models.weight_source import HUB, PACKAGE, TIMM_ORGANIZATION
from reptk.report.formatting import format_interval, format_share
from reptk.report.run_files import SavedResults, read_results

PIPELINE_TAG = "image-feature-extraction"

RECIPE_TABLES = ("name", "seed", "data", "views", "encoder", "method", "loss", "optim", "train", "eval")
"""What a card shows of the recipe. Overrides repeat it, and trackers and plugins are of the machine that trained."""

PATH = re.compile(r"""(?<![^\s('"`])(?:~[^\s/]*)?/[^\s,;:)'"`]+""")
"""An absolute path, or one below a home folder, in a sentence."""

MAX_STAGES = 8
"""Runs that start from each other."""


class StartingWeights(NamedTuple):
    """The weights that training started from.

    text: what they are, as a sentence's end.
    license: that timm records for them; None if it is not known.
    hub_id: of the repository on the hub; None if there is none.
    is_random: whether there are none.
    """

    text: str
    license: str | None = None
    hub_id: str | None = None
    is_random: bool = False


def model_card(model: ExportedModel, run: Path, repository: str, license_id: str | None = None) -> str:
    """Return the content of README.md.

    Paths of this machine are not part of it: of files and folders, only the last part of the name is.

    Args:
        model: the encoder.
        run: the run's folder, or a folder of a model alone, of whose training nothing is known.
        repository: `USER/NAME`.
        license_id: as the hub calls it; None for that of the weights that training started from, if that is known.

    Raises:
        DataError: results.json is damaged.
    """
    results = read_results(run / "results.json")
    recipe: config.Table = {}
    if (run / "recipe.toml").is_file():
        recipe = config.read(run / "recipe.toml")
    weights = starting_weights(model, recipe)
    metadata = ModelCardData(
        license=license_id or weights.license,
        base_model=weights.hub_id,
        library_name=_library(model),
        pipeline_tag=PIPELINE_TAG,
        tags=_tags(model, recipe),
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---\n",
        f"# {repository.partition('/')[2]}\n",
        _summary(model, recipe, results),
        *_usage(model, repository),
        *_results(results),
        *_training(recipe, weights),
    ]
    return "\n".join(sections)


def starting_weights(model: ExportedModel, recipe: config.Table) -> StartingWeights:
    """Return what the training of a run started from, through the stages before it."""
    encoder = recipe.get("encoder", {})
    for _ in range(MAX_STAGES):
        source = encoder.get("weights")
        earlier = _recipe_of_weights(source)
        if not earlier:
            break
        encoder = earlier.get("encoder", {})
    else:
        return StartingWeights("the weights of another run")
    backbone = str(encoder.get("backbone", model.embedder.encoder.config["backbone"]))
    if not recipe:
        return StartingWeights("weights that the model does not name", model.embedder.encoder.weights_license)
    if encoder.get("pretrained"):
        if is_external(backbone):
            return StartingWeights(f"the weights of `{shown(backbone)}`", None, _hub_name(backbone))
        cfg = timm.get_pretrained_cfg(backbone)
        name = backbone
        if cfg.tag:
            name = f"{cfg.architecture}.{cfg.tag}"
        hub_id = None
        if cfg.hf_hub_id and "/" in cfg.hf_hub_id:
            hub_id = cfg.hf_hub_id
        return StartingWeights(f"timm's weights `{name}`", cfg.license, hub_id)
    if source is None:
        return StartingWeights("random weights", is_random=True)
    if str(source).startswith(PACKAGE):
        return StartingWeights(f"the weights in the Python package `{source.removeprefix(PACKAGE)}`")
    return StartingWeights(f"the weights `{shown(str(source))}`", None, _hub_name(str(source)))


def shown(text: str) -> str:
    """Return a text of a recipe as a card shows it: the last part of a path, and no address, which may hold a password."""
    if "://" in text:
        return "(an address)"
    if text.startswith((HUB, TIMM_ORGANIZATION)):
        return text
    if "/" in text or "\\" in text:
        return text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return text


def _shorten_paths(sentence: str, paths: Iterable[str]) -> str:
    """Return a sentence with the last part of each path in place of the path.

    Args:
        sentence: the text.
        paths: as the recipe names them, which may hold spaces or be relative. Other absolute paths are recognized.
    """
    names = {}
    for path in paths:
        for written in (path, str(Path(path)), str(expand_home(path)), str(Path(path).absolute())):
            if "/" in written and shown(written):
                names[written] = shown(written)
    # The longest first, since one may begin like another.
    for written in sorted(names, key=len, reverse=True):
        sentence = sentence.replace(written, names[written])
    return PATH.sub(lambda match: shown(match[0]), sentence)


def _recipe_of_weights(source: Any) -> config.Table:
    """Return the recipe of the run whose weights a recipe names; empty if they are no run's."""
    if not isinstance(source, str):
        return {}
    for folder in (Path(source), Path(source).parent, Path(source).parent.parent):
        if (folder / "recipe.toml").is_file():
            try:
                return config.read(folder / "recipe.toml")
            except ReptkError:
                return {}
    return {}


def _hub_name(source: str) -> str | None:
    """Return the repository of a source on the hub; None if it is elsewhere."""
    if source.startswith(HUB):
        return source.removeprefix(HUB).partition("@")[0].partition(":")[0]
    if source.startswith(TIMM_ORGANIZATION):
        return source.partition(":")[0]
    return None


def _library(model: ExportedModel) -> str:
    encoder = model.embedder.encoder.config
    if timm_problem(encoder["backbone"], encoder["stem"]) is None:
        return "timm"
    return "reptk"


def _tags(model: ExportedModel, recipe: config.Table) -> list[str]:
    tags = ["reptk", PIPELINE_TAG, _library(model)]
    for table in (recipe.get("method"), recipe.get("loss")):
        if isinstance(table, dict) and "name" in table:
            tags.append(str(table["name"]))
    return list(dict.fromkeys(tags))


def _summary(model: ExportedModel, recipe: config.Table, results: SavedResults) -> str:
    encoder = model.embedder.encoder
    size = encoder.config["size"]
    text = (
        f"An image encoder: `{shown(encoder.config['backbone'])}`, images of {size} x {size} pixels, {encoder.num_features} "
        f"features, trained with reptk {reptk.__version__}"
    )
    if "name" in recipe:
        text += f" (recipe `{recipe['name']}`)"
    text += ".\n"
    if results.verdict is not None and results.verdict.sentence:
        text += f"\n{results.verdict.sentence}\n"
    return text


def _usage(model: ExportedModel, repository: str) -> list[str]:
    config_of_encoder = model.embedder.encoder.config
    preprocessing = model.embedder.preprocessing
    lines = ["## Use\n", "```python"]
    problem = timm_problem(config_of_encoder["backbone"], config_of_encoder["stem"])
    if problem is None:
        lines += [
            "import timm",
            f'model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()  # features (B, F)',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            "",
        ]
    name = repository.partition("/")[2]
    lines += [
        f"import reptk  # reptk pull {repository} --out {name}",
        f'encoder = reptk.Encoder.from_run("{name}")',
        'h = encoder.embed(["photo.jpg"])  # (1, F), unit length',
        "```\n",
    ]
    if problem is not None:
        lines.append(f"timm cannot open it: {problem}.\n")
    lines.append(
        f"Images: shorter side resized to {config_of_encoder['size'] / preprocessing.crop:.0f} pixels "
        f"({preprocessing.interpolation}, mode `{preprocessing.resize}`), center of {config_of_encoder['size']}, compared by "
        "cosine similarity.\n"
    )
    if model.classifier is not None:
        classes = ", ".join(f"`{shown(name)}`" for name in model.classifier.classes[:20])
        if len(model.classifier.classes) > 20:
            classes += ", ..."
        lines.append(
            f"`classifier.safetensors` holds a linear classifier of {len(model.classifier.classes)} classes: {classes}.\n"
        )
    return lines


def _results(results: SavedResults) -> list[str]:
    if not results.metrics:
        return ["## Results\n", "None are recorded.\n"]
    columns = table_columns(results.main_metrics)
    lines = ["## Results\n", "In percent; in brackets, 95 % confidence intervals.\n"]
    rows = list(results.metrics)
    lines.append("| metric | " + " | ".join(results.label_of(row) for row in rows) + " |")
    lines.append("|---" * (len(rows) + 1) + "|")
    for name in columns:
        cells = []
        for row in rows:
            cell = format_share(results.metrics[row].get(name))
            interval = results.intervals.get(row, {}).get(name)
            if interval is not None:
                cell += f" ({format_interval(interval)})"
            cells.append(cell)
        label = name
        if name == results.headline:
            label = f"**{name}**"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "### How they were measured\n", *_protocol(results.protocol)]
    return lines


def _protocol(protocol: dict[str, Any]) -> list[str]:
    lines = []
    data = protocol.get("data")
    paths = []
    if isinstance(data, dict):
        # Sentences name the folder, and the list of the labeled images.
        paths = [data[key] for key in ("root", "labelled") if isinstance(data.get(key), str)]
        counts = ", ".join(f"{name} {count:,}" for name, count in dict(protocol.get("images", {})).items())
        named = shown(str(data.get("root") or data.get("name")))
        lines.append(f"- data: `{named}` ({data.get('name')}); images: {counts}; classes: {protocol.get('classes')}")
    for key, label in (
        ("splits", "splits"),
        ("features", "features"),
        ("votes", "votes"),
        ("intervals", "intervals"),
        ("search_engine", "search"),
        ("commit", "commit of reptk"),
    ):
        if protocol.get(key):
            lines.append(f"- {label}: {_inline(protocol[key], paths)}")
    if protocol.get("leave_one_out"):
        lines.append("- every query is searched among all other images (leave one out)")
    if isinstance(protocol.get("versions"), dict):
        versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
        lines.append(f"- versions: {versions}")
    return [*lines, ""]


def _training(recipe: config.Table, weights: StartingWeights) -> list[str]:
    lines = ["## Training\n"]
    text = f"Training started from {weights.text}"
    if not weights.is_random:
        text += f" (license: {weights.license or 'not known; check it before you use the model'})"
    lines.append(f"{text}.\n")
    if recipe:
        tables = {key: recipe[key] for key in RECIPE_TABLES if key in recipe}
        toml = tomli_w.dumps(_without_paths(tables))
        lines += ["<details><summary>recipe</summary>\n", "```toml", toml.rstrip(), "```\n", "</details>\n"]
    return lines


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if isinstance(value, str):
        return shown(value)
    return value


def _inline(value: Any, paths: Iterable[str]) -> str:
    if isinstance(value, str):
        return _shorten_paths(value, paths)
    return f"`{json.dumps(_without_paths(value))}`"

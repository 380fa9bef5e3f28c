"""Random command lines and overrides: real names and options, nearly real ones, and values of all kinds."""

import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from embedding_inputs import draw_image, make_embeddings
from reptk import Embeddings, Encoder, index
from reptk.cli import main
from reptk.config import Recipe, signature
from reptk.config.part_tables import PARTS
from reptk.config.registry import EVALUATORS

RECIPES = ("tiny.toml", "./tiny.toml", "run", "tiny.toml", "supcon_digits", "tcl_selfsup_folder", "tcl_sup_cifar10")
FAULTY_RECIPES = ("simclr_digit", "gone.toml", "photos", "broken.toml", "a.png", "", "data.csv", "recipes")
SMALL_BACKBONES = (
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "test_resnt",
    "test_*",
    "resnet9999",
    "timm/test_resnet",
)

ENCODERS = ("run", "run/model", "test_resnet", "test_resnet", "test_vit")
FAULTY_ENCODERS = ("test_resnt", "photos", "empty", "gone/run", "a.png", "", "index", "e.safetensors", "resnet")
IMAGES = (
    "photos",
    "photos/cats",
    "data.csv",
    "a.png",
    "digit",
    "generated",
    "empty",
    "gone",
    "run",
    "broken.png",
    "notes.txt",
)
EMBEDDINGS = ("e.safetensors", "index", "other.safetensors")
FAULTY_EMBEDDINGS = (
    "gone.safetensors",
    "broken.safetensors",
    "weights.pt",
    "folder.safetensors",
    "empty",
    "a.png",
    "photos",
    "notes.txt",
)
OUTPUTS = (
    "o.safetensors",
    "o.png",
    "o.json",
    "o.csv",
    "o.html",
    "o.index",
    "o",
    "no/o.safetensors",
    "empty",
    "notes.txt",
    "photos",
)

STRANGE_VALUES = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "2",
        "3",
        "32",
        "0.5",
        "-0.5",
        "1e308",
        "-1e308",
        "1e999",
        "nan",
        "inf",
        "-inf",
        "1e-320",
    ),
    *(
        "true",
        "false",
        "null",
        "none",
        "auto",
        "[]",
        "[1]",
        "[1, 2]",
        "[-1, 0]",
        "[1, 'a']",
        "[[1, 2], [3]]",
        "[nan]",
        "[true]",
    ),
    *(
        "{}",
        "{name = 'x'}",
        "{a = {b = {c = 1}}}",
        "[{name = 'RandomGrayscale', p = 2}]",
        "[{}]",
        "'quoted'",
        '"open',
        '""',
        "'''x'''",
    ),
    *("2024", "2024-05-01", "07:32:00", "1979-05-27T07:32:00Z", "0x1F", "1_000", "²", "\uff11\uff12", "00"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" + 30 * "0", "9" * 5000),
    *(
        "ü",
        "🐈",
        "\udcff",
        "a\nb",
        "1\nother = 2",
        '"a\\u0000b"',
        '"\\u001b[31m"',
        "\t",
        "\r",
        "%s",
        "{0}",
        "[bold]",
        "[/]",
    ),
    *("=", "==", "a=b", "=a", "# comment", "1 # comment", "x" * 300, "y/" * 3000, "[" * 2000, "{a=" * 2000),
    *(
        "..",
        ".",
        "~",
        "~nobody/x",
        "-",
        "--",
        "-x",
        "\\",
        "/dev/null",
        "/proc/self/mem",
        "loop",
        "dangling",
        "folder.safetensors",
        "file:///x",
    ),
)

TINY = """
data = {name = "generated", train = 8, bank = 6, query = 4, classes = 2, size = 8}
views = {name = "none", size = 8}
encoder = {backbone = "test_resnet"}
method = {name = "contrastive"}
loss = {name = "simclr"}
optim = {lr = 0.05}
train = {epochs = 1, batch_size = 4, device = "cpu", baselines = false}
eval = {knn = {k = [1]}}
"""

SMALL_DATA = (
    ["data.name=generated", "data.size=8", "data.train=9", "data.bank=9", "data.query=4", "data.classes=3"],
    ["data.name=folder", "data.root=photos"],
)

CHANGES = (*4 * ["option"], *4 * ["overrides"], "extra", "repeat", "remove", "shuffle")
"""What is done to a command line, the usual more often."""

SUITABLE_VALUES = {
    "name": (
        "simclr",
        "tcl",
        "supcon",
        "supkon",
        "contrastive",
        "byol",
        "generated",
        "digits",
        "folder",
        "none",
        "knn",
    ),
    "backbone": SMALL_BACKBONES,
    "root": IMAGES,
    "weights": (
        "weights.pt",
        "weights.pt:model",
        "a.png",
        "gone.pt",
        "run",
        "hf-hub:x",
        "local-dir:photos",
        "~/x",
        "empty",
    ),
    "device": ("cpu", "cuda", "cuda:9", "mps", "auto", "cpu:0", "tpu"),
    "plugin": ("useless.py", "gone.py", "reptk.plugins.dcl", "os.path", "a.png", "notes.txt", "acme.gone", "."),
    "k": ("1", "[1, 2]", "[2, 1]", "[0]", "10", "4", "-5"),
    "index": ("Flat", "IVF2,Flat", "HNSW2", "auto", "e.safetensors", "IVF0,Flat", "PQ3"),
    "--kind": ("Flat", "IVF2,Flat", "HNSW2", "auto", "IVF0,Flat", "IVF9999,PQ3", "flat", "IVF,"),
    "--out": OUTPUTS,
    "--html": OUTPUTS,
    "--png": OUTPUTS,
    "--data": IMAGES,
    "--split": ("train", "bank", "query", "test"),
    "--queries": EMBEDDINGS,
    "--duplicates": EMBEDDINGS,
    "--only": ("knn", "linear", "few_shot", "linear_stage", "view_retrieval", "knn,", ",", "knn,knn", "knn,x"),
    "--limit": ("2", "3", "9", "1"),
    "--crop": ("0.5", "1", "1.1"),
    "--resize": ("pad", "squash", "crop", "stretch"),
    "--encoder": ENCODERS,
    "--workers": ("1", "2"),
    "--threshold": ("0.9", "1", "-1", "1.1"),
    "--map": ("pca", "tsne"),
    "--id": ("0", "a.png", "99"),
    "size": ("8", "16", "33"),
    "batch_size": ("2", "7", "4"),
    "epochs": ("1", "2", "0.5"),
    "lr": ("0.1", "1e-3"),
    "labels": ("none", "folders", "folder"),
    "on_error": ("stop", "skip"),
}


def write_inputs(folder: Path) -> None:
    """Write images, tables, a model, embeddings, an index, recipes, and files that are none of these."""
    for number in range(6):
        path = folder / "photos" / ("cats", "dogs")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_image(number).save(path)
    draw_image(0).save(folder / "a.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "data.csv").write_text("path,label\na.png,cat\nphotos/cats/0.png,dog\n")
    (folder / "notes.txt").write_text("nothing\n")
    (folder / "tiny.toml").write_text(TINY)
    (folder / "broken.toml").write_text(TINY.replace("]}", "]"))
    (folder / "useless.py").write_text("import reptk.losses\n")
    for name in ("empty", "folder.safetensors", "recipes"):
        (folder / name).mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    encoder = Encoder("test_resnet", size=32)
    encoder.save(folder / "run" / "model")
    (folder / "run" / "recipe.toml").write_text(TINY)
    main(["evaluate", "run", "--only", "knn", "--no-baselines", "--out", "report_run"])
    _write_verified_run(folder / "verified")
    torch.save(encoder.backbone.state_dict(), folder / "weights.pt")
    make_embeddings(["a.png", "photos/cats/0.png", "photos/dogs/1.png"]).save(folder / "e.safetensors")
    Embeddings(torch.eye(3), list("abc")).save(folder / "other.safetensors")
    index(folder / "e.safetensors", out=folder / "index")
    content = (folder / "e.safetensors").read_bytes()
    (folder / "broken.safetensors").write_bytes(content[: len(content) // 2])


def _write_verified_run(folder: Path) -> None:
    """Write a run that has the result that its recipe records."""
    folder.mkdir()
    expect = {"metric": "knn@1", "value": 0.5, "epochs": 1, "hardware": "x", "versions": "x", "commit": "x"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in expect.items()]
    (folder / "recipe.toml").write_text("\n".join([TINY, "[expect]", *lines]))
    (folder / "status.json").write_text('{"status": "finished"}')
    (folder / "results.json").write_text('{"headline": "knn@1", "metrics": {"trained": {"knn@1": 0.5}}}')


# Overrides


def recipe_keys(recipe: Recipe) -> list[str]:
    """Return the dotted keys of a recipe, and those of all parts that it could name.

    The former are repeated, so that most keys drawn from the list are the recipe's, and can be accepted.
    """
    recipe_keys = sorted(set(_dotted_keys(recipe.model_dump(), "")))
    keys = []
    for prefix, registry in {**PARTS, "eval.NAME": EVALUATORS}.items():
        for name in registry.names():
            for argument in signature.names(registry.get(name), registry.supplied):
                keys.append(f"{prefix.replace('NAME', name)}.{argument}")
    other_keys = sorted(set(keys) - set(recipe_keys))
    repetitions = math.ceil(2 * len(other_keys) / len(recipe_keys))
    return recipe_keys * repetitions + other_keys


def _dotted_keys(table: dict[str, Any], prefix: str) -> list[str]:
    keys = []
    for key, value in table.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, dict):
            keys += _dotted_keys(value, f"{prefix}{key}.")
    return keys


def draw_overrides(draw: random.Random, keys: Sequence[str]) -> list[str]:
    """Return one to three pairs, of which some are no pairs."""
    pairs = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        key = draw.choice(keys)
        pair = f"{mistyped(draw, key)}={draw_value(draw, key)}"
        if draw.random() < 0.05:
            pair = draw.choice(
                ["=", "", key, f"={key}", f"{key}==", f" {pair} ", pair.replace("=", " = ", 1), f"{key}=1={key}"]
            )
        pairs.append(pair)
        if draw.random() < 0.1:
            pairs.append(draw.choice(pairs))
    return pairs


def draw_value(draw: random.Random, key: str) -> str:
    """Return a value that suits the key, or any other."""
    suitable = [value for ending, values in SUITABLE_VALUES.items() if key.endswith(ending) for value in values]
    if suitable and draw.random() < 0.6:
        return draw.choice(suitable)
    return draw.choice(STRANGE_VALUES)


def mistyped(draw: random.Random, text: str) -> str:
    """Return a text as it is, or one time in eight with a typing error."""
    if not text or draw.random() > 1 / 8:
        return text
    position = draw.randrange(len(text))
    letter = draw.choice(". -_é\"'[]#xX9")
    return draw.choice(
        [
            text[:position] + text[position + 1 :],
            text[:position] + letter + text[position:],
            text.upper(),
            text[::-1],
            f"{text}.{text}",
            f"{text}.",
            f" {text}",
        ]
    )


# Command lines


def read_options(help_text: str) -> dict[str, bool]:
    """Return the options that a help text lists, and whether they take a value."""
    lines = re.findall(r"^  (?:-h, )?(--[a-z-]+)( ?\S*)", help_text, re.MULTILINE)
    return {option: bool(value.strip()) for option, value in lines}


def draw_command_line(draw: random.Random, options: dict[str, dict[str, bool]], keys: Sequence[str]) -> list[str]:
    """Return the arguments of `reptk`, the verb first. None of them trains.

    Args:
        draw: the random numbers.
        options: of every verb, see `read_options`.
        keys: dotted keys of recipes.
    """
    verb = draw.choice(list(options))
    arguments = _usual_arguments(draw, verb)
    for _ in range(draw.choice([0, 1, 1, 2])):
        change = draw.choice(CHANGES)
        if change == "option":
            arguments += _random_option(draw, options[verb])
        elif change == "overrides":
            arguments += draw_overrides(draw, _keys_of_verb(verb, keys))
        elif change == "extra":
            arguments.insert(draw.randrange(len(arguments) + 1), draw.choice(STRANGE_VALUES))
        elif change == "repeat" and arguments:
            arguments.append(draw.choice(arguments))
        elif change == "remove" and arguments:
            arguments.pop(draw.randrange(len(arguments)))
        else:
            draw.shuffle(arguments)
    if verb == "recipe":
        arguments.insert(
            draw.randrange(len(arguments) + 1), draw.choice(["--check", "--check", "--show", "--copy", "--list"])
        )
    if verb == "sweep":
        arguments.append("--dry-run")
    if verb == "explore":
        arguments.append("--prepare")  # without a server, which has no end
    if verb == "verify":
        arguments += ["--run", draw.choice(["verified", "verified", "run", "empty"])]
    if draw.random() < 0.02:
        verb = mistyped(draw, verb)
    return [verb, *arguments]


def _usual_arguments(draw: random.Random, verb: str) -> list[str]:
    """Return the arguments of a command that would often succeed."""

    def one_of(usual: Sequence[str], faulty: Sequence[str]) -> str:
        return draw.choice(faulty if draw.random() < 0.25 else usual)

    if verb == "recipe":
        return [one_of(RECIPES, FAULTY_RECIPES), *draw.choice([[], ["data.root=photos"], ["train.batch_size=2"]])]
    if verb == "views":
        return [one_of(RECIPES, FAULTY_RECIPES), "--images", "2", "--out", one_of(["o.png"], OUTPUTS)]
    if verb == "evaluate":
        source = one_of([*ENCODERS, *EMBEDDINGS], FAULTY_ENCODERS)
        data = draw.choice([*SMALL_DATA, ["data.name=folder", f"data.root={draw.choice(IMAGES)}"]])
        return [source, *data, "--only", draw.choice(["knn", "linear", "few_shot", "knn,view_retrieval", "kn"])]
    if verb == "embed":
        data = draw.choice([*SMALL_DATA, ["--data", draw.choice(IMAGES)]])
        return [one_of(ENCODERS, FAULTY_ENCODERS), *data, "--out", one_of(["o.safetensors"], OUTPUTS), "--force"]
    if verb == "index":
        return [one_of(EMBEDDINGS, FAULTY_EMBEDDINGS), "--out", one_of(["o.index"], OUTPUTS), "--force"]
    if verb == "search":
        index = one_of(EMBEDDINGS, FAULTY_EMBEDDINGS)
        query = draw.choice([["a.png"], ["--id", "1"], ["--id", "a.png"], ["--duplicates"], ["--duplicates", index]])
        return [index, *query, "--no-html", "--k", "2"]
    if verb == "explore":
        return [one_of(EMBEDDINGS, FAULTY_EMBEDDINGS), "--map", one_of(["pca"], ["som", ""])]
    if verb == "export":
        target = one_of(["lance:o.lance"], ["lance:", "lance:photos", "mysql://me:x@host/db", "o.lance", "onnx"])
        if draw.random() < 0.5:
            return [one_of(EMBEDDINGS, FAULTY_EMBEDDINGS), "--to", target, "--force"]
        # Tracing takes seconds, and writes nothing that the others do not.
        encoder_target = draw.choice(
            [["--to", "safetensors", "--out", "o.safetensors"], ["--to", "timm", "--out", "o.model"]]
        )
        return [
            one_of(["run", "run/model"], FAULTY_ENCODERS),
            *encoder_target,
            "--data",
            draw.choice(IMAGES),
            "--force",
        ]
    if verb == "sweep":
        pairs = draw.choice([["seed=0..2"], ["optim.lr=0.1,0.2", "seed=0,1"], ["loss.name=simclr,tcl"]])
        return [one_of(RECIPES, FAULTY_RECIPES), *pairs]
    if verb == "compare":
        return [one_of(["report_run", "verified"], FAULTY_ENCODERS)]
    if verb == "verify":
        return [one_of(["verified"], [*RECIPES, *FAULTY_RECIPES])]
    if verb == "report":
        return [one_of(["report_run"], [*RECIPES, *FAULTY_ENCODERS]), "--out", one_of(["o.html"], OUTPUTS)]
    if verb == "push":
        return [one_of(["run", "run/model"], FAULTY_ENCODERS), "me/mine", "--dry-run", f"card_{draw.randrange(1000)}"]
    if verb == "pull":
        return [one_of(["me/mine"], FAULTY_ENCODERS), "--out", "o.model"]
    if verb == "plugin":
        kind = draw.choice(["loss", "method", "dataset", "views", "evaluator"])
        new = ["new", kind, f"new_{draw.randrange(1000)}", "--out", one_of(["new_parts"], OUTPUTS)]
        # A check of another module would take seconds.
        check = ["check", one_of(["reptk.evaluate.metrics.few_shot"], FAULTY_RECIPES), "draws=1"]
        return draw.choice([new, check, ["list", "--kind", kind], ["list", draw.choice(["tcl", "sim*", "x"])]])
    return [one_of(IMAGES, FAULTY_EMBEDDINGS)]


def _keys_of_verb(verb: str, keys: Sequence[str]) -> list[str]:
    """Return the keys that a verb takes, and a few others."""
    if verb == "evaluate":
        return [key for key in keys if key.startswith(("data", "eval"))] + ["size", "train.epochs"]
    if verb in ("embed", "check-data"):
        return [key for key in keys if key.startswith("data")] + ["size", "eval.knn.k"]
    return list(keys)


def _random_option(draw: random.Random, options: dict[str, bool]) -> list[str]:
    """Return an option of a verb, with a value or without."""
    option = draw.choice([option for option in options if option != "--resume"])
    takes_value = options[option]
    if draw.random() < 0.05:
        takes_value = not takes_value
    name = mistyped(draw, option)
    if not takes_value:
        return [name]
    if draw.random() < 0.1:
        return [f"{name}={draw_value(draw, option)}"]
    return [name, draw_value(draw, option)]

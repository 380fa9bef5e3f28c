"""The command `reptk VERB ...`, or `python -m reptk VERB ...`, with a module for each verb.

`reptk recipe NAME` is `python -m reptk.recipe NAME`.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Verb(NamedTuple):
    """A verb of the command: the module whose `main` runs it, and one line of help."""

    module: str
    summary: str


VERBS = {
    "recipe": Verb("reptk.recipe", "train and evaluate a recipe"),
    "sweep": Verb("reptk.cli.sweep", "train a recipe with many values and seeds, and compare them in a table"),
    "compare": Verb("reptk.cli.compare", "a table of runs at hand: means over seeds, differences, intervals"),
    "verify": Verb("reptk.cli.verify", "run a recipe and compare the result with the one that it records"),
    "evaluate": Verb("reptk.cli.evaluate", "evaluate a run, or any timm backbone, on a data set"),
    "check-data": Verb(
        "reptk.cli.check_data", "what is read of a folder or table of images, and what is wrong with it"
    ),
    "embed": Verb("reptk.cli.embed", "write the embeddings of images to a file"),
    "index": Verb("reptk.cli.index", "build an index of embeddings to search in"),
    "search": Verb("reptk.cli.search", "find similar images, or near duplicates"),
    "explore": Verb("reptk.cli.explore", "a page in the browser: a map of images, search, near duplicates, labels"),
    "export": Verb(
        "reptk.cli.export", "write an encoder as ONNX, pt2 or for timm, or embeddings into a vector database"
    ),
    "push": Verb("reptk.cli.push", "upload a model to the Hugging Face hub, with a card made of its results"),
    "pull": Verb("reptk.cli.pull", "download a model from the Hugging Face hub"),
    "report": Verb("reptk.cli.report", "a run, or several, as one HTML page"),
    "views": Verb("reptk.cli.views", "draw the augmented views of a batch into an image file"),
    "plugin": Verb("reptk.cli.plugin", "write a part of your own (loss, method, ...), check one, or list all"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb that the first argument names. Returns the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    arguments = list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        import reptk

        print(f"reptk {reptk.__version__}")
        return 0
    if arguments[0] not in VERBS:
        from reptk.config.registry import unknown  # imported where it is needed, as the verbs are

        print(f"error: {unknown('verb', arguments[0], VERBS)}", file=sys.stderr)
        return 2
    # Only the verb's own module is imported: most of them import torch, which takes seconds.
    module = importlib.import_module(VERBS[arguments[0]].module)
    return module.main(arguments[1:])


def _help() -> str:
    lines = ["usage: reptk VERB ...", ""]
    lines += [f"  {name:<10} {verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "Help on one: reptk VERB --help"]
    return "\n".join(lines)

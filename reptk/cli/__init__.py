"""The `reptk` command: one verb, one file. `reptk recipe NAME` is `python -m reptk.recipe NAME`."""

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "recipe": ("reptk.recipe", "train and evaluate a recipe"),
    "evaluate": ("reptk.cli.evaluate", "every number of a run or any timm backbone on a data set"),
    "embed": ("reptk.cli.embed", "write the embeddings of images to a file"),
    "index": ("reptk.cli.index", "build an index of embeddings to search in"),
    "search": ("reptk.cli.search", "find similar images, or near duplicates"),
    "report": ("reptk.cli.report", "a run, or several, as one HTML page"),
    "views": ("reptk.cli.views", "draw what the network sees, as a picture"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch to the verb's own `main`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print("usage: reptk VERB ...\n")
        print("\n".join(f"  {verb:<8} {summary}" for verb, (_, summary) in VERBS.items()))
        print("\nHelp on one: reptk VERB --help")
        return 0
    if given[0] == "--version":
        import reptk

        print(f"reptk {reptk.__version__}")
        return 0
    if given[0] not in VERBS:
        from reptk.config.registry import unknown

        print(f"error: {unknown('verb', given[0], VERBS)}", file=sys.stderr)
        return 2
    return importlib.import_module(VERBS[given[0]][0]).main(given[1:])


if __name__ == "__main__":
    sys.exit(main())

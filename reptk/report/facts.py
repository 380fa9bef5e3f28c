"""What stands behind the numbers: the recipe and how it differs, the views, the protocol, the machine, how to repeat it."""

from collections.abc import Sequence
from typing import Any

from reptk import config
from reptk.core.errors import ReptkError
from reptk.data import Data
from reptk.report.gallery import Album
from reptk.report.html import Html, element, lines
from reptk.report.pictures import Source, uri_of
from reptk.report.recipes import command_of, differing, flat_of, said, source_of
from reptk.report.runs import Run
from reptk.report.seen import Seen, seen
from reptk.report.tables import table
from reptk.report.words import class_name, plural, scrolled

IMAGES = 6
PAPERS = {
    "tcl": "Animesh and Chandraker, Tuned Contrastive Learning, arXiv:2305.10675",
    "supcon": "Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362",
    "simclr": "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709",
}


def recipe_of(runs: Sequence[Run]) -> Html:
    """The recipe of the run beside its source, or of several runs beside each other, and all of it to unfold."""
    parts = [_beside_source(runs[0])] if len(runs) == 1 else [_beside_each_other(runs)]
    for run in runs:
        whole = table(["key", "value"], [(key, [said(value)], False) for key, value in flat_of(run).items()], "Recipe")
        name = "The whole recipe" if len(runs) == 1 else f"The whole recipe of {run.name}"
        parts.append(element("details", element("summary", name), scrolled(whole, label=name), class_="whole"))
    return element("div", *parts)


def _beside_source(run: Run) -> Html:
    source = source_of(run)
    if source is None:
        return element("p", "There is no shipped recipe of this name to compare it with.", class_="note")
    own = flat_of(run)
    changed = differing([source.flat, own])
    head = element("blockquote", lines(source.head)) if source.head else None
    if not changed:
        return element("div", element("p", "As shipped: ", element("b", source.name), ", nothing changed."), head)
    rows = [(key, [said(source.flat.get(key)), element("b", said(own.get(key)))], False) for key in changed]
    found = table(["key", "shipped", "this run"], rows, "How the recipe differs from the shipped one")
    said_ = element("p", element("b", source.name), f", with {plural(len(changed), 'value')} changed:")
    return element("div", said_, scrolled(found, label="How the recipe differs from the shipped one"), head)


def _beside_each_other(runs: Sequence[Run]) -> Html:
    flats = [flat_of(run) for run in runs]
    changed = differing(flats)
    if not changed:
        return element("p", "All runs have the same recipe.")
    rows = [(key, [said(flat.get(key)) for flat in flats], False) for key in changed]
    found = table(["key", *(run.name for run in runs)], rows, "How the recipes differ")
    return scrolled(found, label="How the recipes differ")


def views_of(run: Run, source: Source, album: Album, prefix: str) -> Html | None:
    """Images of the first step as training sees them; None where they cannot be drawn."""
    if source.data is None or not run.recipe:
        return None
    try:
        recipe = config.load(run.folder / "recipe.toml")
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"device": "auto"})})
        shown = seen(recipe, source.data, step=0, count=min(IMAGES, recipe.train.batch_size))
    except (ReptkError, OSError) as cause:
        return element("p", f"They cannot be drawn here: {str(cause).splitlines()[0]}", class_="note")
    return scrolled(_sheet(shown, source.data, album, prefix), label="Images and their views")


def _sheet(shown: Seen, data: Data, album: Album, prefix: str) -> Html:
    heads = ["", "image", *(f"view {at}" for at in range(1, len(shown.views) + 1))]
    body = []
    for row, (label, index) in enumerate(zip(shown.labels.tolist(), shown.index.tolist(), strict=True)):
        name = class_name(data.classes, label) if label >= 0 else ""
        columns = [shown.images, *shown.views]
        cells = [
            _picture(column[row], f"{prefix}/{row}-{at}", heads[at + 1], album) for at, column in enumerate(columns)
        ]
        body.append(([element("b", name), element("small", f"no. {index:,}")], cells, False))
    return table(heads, body, "Images and their views", class_="sheet")


def _picture(image: Any, place: str, about: str, album: Album) -> Html:
    album.uris[f"view/{place}"] = uri_of(image)
    return element("img", data_picture=f"view/{place}", alt=about, width="96", height="96")


def protocol_of(runs: Sequence[Run]) -> Html:
    """How it was measured, on what, by which versions."""
    protocols = [run.results.protocol for run in runs]
    keys = list(dict.fromkeys(key for protocol in protocols for key in protocol))
    keys.sort(key=lambda key: key in ("versions", "commit"))
    rows = [(key.replace("_", " "), [said(protocol.get(key, "")) for protocol in protocols], False) for key in keys]
    heads = ["", "value"] if len(runs) == 1 else ["", *(run.name for run in runs)]
    return scrolled(table(heads, rows, "Protocol and environment", class_="facts"), label="Protocol and environment")


def repeat_of(run: Run) -> Html:
    """What to type to have it again, and whom to cite."""
    folder = str(run.folder)
    typed = [command_of(run, source_of(run))] if run.recipe else []
    typed += [f"reptk evaluate {_quoted(folder)}", f"reptk report {_quoted(folder)}"]
    commands = element("div", element("pre", element("code", lines("\n".join(typed)))), _copy(), class_="commands")
    return element("div", commands, element("p", *_cited(run), class_="note"))


def _cited(run: Run) -> list[Any]:
    protocol = run.results.protocol
    versions = protocol.get("versions")
    version = versions.get("reptk", "") if isinstance(versions, dict) else ""
    loss = run.recipe.get("loss")
    paper = PAPERS.get(loss.get("name", "") if isinstance(loss, dict) else "")
    commit = f", commit {protocol['commit']}" if protocol.get("commit") else ""
    return [f"Measured with reptk {version}{commit}.".replace("  ", " "), f" Loss: {paper}." if paper else ""]


def _copy() -> Html:
    return element("button", "copy", type="button", class_="copy")


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)

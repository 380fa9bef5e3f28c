"""The retrieval gallery: queries with their nearest images, what is most confidently wrong first."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.metric_names import display_name
from reptk.evaluate.predictions import Predictions
from reptk.report.html import Html, element
from reptk.report.pictures import Source, fetched, uri_of
from reptk.report.runs import Run
from reptk.report.words import class_name, mark, number, percent, plural

QUERIES, NEIGHBOURS = 12, 8
ALIKE = 2
"""Of one confusion among the surest failures, so that they show more than one."""


@dataclass
class Album:
    """Pictures of the page by name, each kept once, however often it is shown.

    Args:
        most_bytes: no more pictures are taken once they are so long.
    """

    most_bytes: int = 0
    uris: dict[str, str] = field(default_factory=dict)
    full: bool = False

    def allow(self, most_bytes: int) -> None:
        """From now on, so many bytes in all."""
        self.most_bytes, self.full = most_bytes, False

    def add(self, source: Source, split: str, numbers: Tensor) -> None:
        """Fetch the images that are not here yet; unreadable ones stay away."""
        wanted = [number for number in numbers.unique().tolist() if f"{source.key}/{split}/{number}" not in self.uris]
        if not wanted or source.data is None:
            return
        images = (image for block in fetched(source.split(split), torch.tensor(wanted)) for image in block)
        length = sum(map(len, self.uris.values()))
        for wish, image in zip(wanted, images, strict=True):
            uri = "" if image is None else uri_of(image)
            length += len(uri)
            self.full |= length > self.most_bytes
            if uri and not self.full:
                self.uris[f"{source.key}/{split}/{wish}"] = uri

    def image(self, source: Source, split: str, wanted: int, about: str) -> Html:
        """An `img` that the page's script fills, or a grey place."""
        name = f"{source.key}/{split}/{wanted}"
        if name not in self.uris:
            return element("span", "no picture", class_="absent", role="img", aria_label=f"{about}: no picture")
        return element("img", data_picture=name, alt=about, width="96", height="96")


Choice = tuple[str, str, Tensor]
"""A tab: title, what it shows, rows of the evidence."""


def choices(evidence: Predictions) -> list[Choice]:
    """Tabs of the gallery: of labelled queries by how they were answered, else a random one alone."""
    known = evidence.labels >= 0
    anyhow = _drawn(torch.ones_like(known), "random")
    if not bool(known.any()) or not evidence.vote:
        return [("Random", "Queries drawn at random, with their nearest images.", anyhow)]
    wrong, right = known & (evidence.predicted != evidence.labels), known & (evidence.predicted == evidence.labels)
    counts = f"of {plural(int(known.sum()), 'query', 'queries')}"
    return [
        (
            "Surest failures",
            f"Wrong answers with the largest share of the votes, at most {ALIKE} of one confusion.",
            _surest(evidence, wrong),
        ),
        (
            "Failures",
            f"Drawn at random from the {int(wrong.sum()):,} wrong answers {counts}.",
            _drawn(wrong, "failures"),
        ),
        ("Right", f"Drawn at random from the {int(right.sum()):,} right answers {counts}.", _drawn(right, "right")),
        ("Random", f"Drawn at random from all, {counts.removeprefix('of ')}.", anyhow),
    ]


def gallery(run: Run, source: Source, album: Album, prefix: str) -> Html:
    """The tabs of one run."""
    evidence = run.evidence
    tabs = choices(evidence)
    for _, _, rows in tabs:
        album.add(source, evidence.query_split, evidence.index[rows])
    for _, _, rows in tabs:
        album.add(source, evidence.bank_split, evidence.neighbors[rows][:, :NEIGHBOURS].flatten())
    panels = [(name, element("p", about, class_="note"), _rows(run, source, album, rows)) for name, about, rows in tabs]
    return tabbed(panels, prefix, f"Queries of {run.name}")


def tabbed(panels: Sequence[tuple[Any, ...]], prefix: str, label: str) -> Html:
    """Panels of (title, *content) under a list of tabs; without script, all of them are shown."""
    if len(panels) == 1:
        return element("div", *panels[0][1:])
    tabs = [
        element(
            "button", name, type="button", role="tab", id=f"{prefix}-tab-{at}", aria_controls=f"{prefix}-panel-{at}",
            aria_selected="false" if at else "true", tabindex="-1" if at else None,
        )
        for at, (name, *_) in enumerate(panels)
    ]  # fmt: skip
    bodies = [
        element(
            "div",
            *content,
            role="tabpanel",
            id=f"{prefix}-panel-{at}",
            aria_labelledby=f"{prefix}-tab-{at}",
            tabindex="0",
        )
        for at, (_, *content) in enumerate(panels)
    ]
    return element("div", element("div", *tabs, role="tablist", aria_label=label), *bodies, class_="tabs")


def _rows(run: Run, source: Source, album: Album, rows: Tensor) -> Html:
    if not len(rows):
        return element("p", "There is none.", class_="none")
    return element("ol", [_row(run, source, album, row) for row in rows.tolist()], class_="answers")


def _row(run: Run, source: Source, album: Album, row: int) -> Html:
    evidence, wanted = run.evidence, int(run.evidence.index[row])
    name = source.name_of(evidence.query_split, wanted)
    own = int(evidence.labels[row])
    what = class_name(evidence.classes, own) if own >= 0 else ""
    picture = album.image(source, evidence.query_split, wanted, f"query {wanted:,} {what}".strip())
    said = [element("span", name or f"no. {wanted:,}", class_="which"), element("b", what or None)]
    shown = range(min(NEIGHBOURS, evidence.neighbors.shape[1]))
    return element(
        "li",
        element("figure", picture, element("figcaption", *said, _answer(evidence, row)), class_="query"),
        element("ol", [_neighbour(evidence, source, album, row, at) for at in shown], class_="neighbours"),
    )


def _answer(evidence: Predictions, row: int) -> Html | None:
    label, predicted = int(evidence.labels[row]), int(evidence.predicted[row])
    if label < 0 or predicted < 0:
        return None
    kind, share = "right" if label == predicted else "wrong", percent(float(evidence.confidence[row]), 0)
    answer = "" if kind == "right" else f"taken for {class_name(evidence.classes, predicted)}, "
    spoken = element("span", f"{kind}: ", class_="spoken")
    return element("span", mark(kind), spoken, f"{answer}{share} % of the votes", class_=f"answer {kind}")


def _neighbour(evidence: Predictions, source: Source, album: Album, row: int, at: int) -> Html:
    label, own = int(evidence.neighbor_labels[row, at]), int(evidence.labels[row])
    kind = "plain" if own < 0 or label < 0 else "right" if label == own else "wrong"
    name = class_name(evidence.classes, label) if label >= 0 else ""
    wanted, similarity = int(evidence.neighbors[row, at]), float(evidence.similarities[row, at])
    about = f"neighbour {at + 1}: {name or source.name_of(evidence.bank_split, wanted) or f'no. {wanted:,}'}"
    sign = None if kind == "plain" else mark(kind)
    picture = album.image(source, evidence.bank_split, wanted, about + ("" if kind == "plain" else f", {kind}"))
    words = [
        element("span", name, class_="name") if name else None,
        element("span", f"{similarity:.2f}", class_="near"),
    ]
    return element("li", element("span", picture, sign, class_="frame"), *words, class_=kind)


def _surest(evidence: Predictions, wrong: Tensor) -> Tensor:
    """Rows of failures by confidence, passing over further ones of a confusion that has been shown."""
    failures = wrong.nonzero().flatten()
    ordered = failures[evidence.confidence[failures].argsort(descending=True, stable=True)].tolist()
    seen: Counter[tuple[int, int]] = Counter()
    chosen = []
    for row in ordered:
        pair = int(evidence.labels[row]), int(evidence.predicted[row])
        seen[pair] += 1
        if seen[pair] <= ALIKE and len(chosen) < QUERIES:
            chosen.append(row)
    return torch.tensor(chosen, dtype=torch.long)


def _drawn(among: Tensor, what: str) -> Tensor:
    rows = among.nonzero().flatten()
    order = torch.randperm(len(rows), generator=rng.generator("report", what, len(rows)))
    return rows[order[:QUERIES]]


def selectable(runs: Sequence[Run], what: str, made: Callable[[Run, int], Html]) -> Html:
    """`made` for every run: one at a time where there are several."""
    if len(runs) == 1:
        return made(runs[0], 0)
    panels = [(run.name, made(run, at)) for at, run in enumerate(runs)]
    return element("div", tabbed(panels, what, "Runs"), class_="by-run")


def legend(evidence: Predictions) -> str:
    """One sentence on what the marks mean."""
    if not bool((evidence.labels >= 0).any()):
        return "Each query and its nearest images, with their cosine similarity."
    return (
        f"Each query and its nearest images, with their cosine similarity. A tick: of the query's class; a cross: of another. "
        f"The answer is the vote of {display_name(evidence.vote)}; {number(evidence.neighbors.shape[1])} neighbours are kept."
    )

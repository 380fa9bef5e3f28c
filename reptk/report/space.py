"""The map of the embedding: every query a point, drawn by the page's script from packed numbers."""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from reptk.evaluate.predictions import Predictions
from reptk.report.atlas import Atlas, atlas_of
from reptk.report.html import Html, element
from reptk.report.layouts import TITLES, layout, principal, quantised
from reptk.report.pictures import Source
from reptk.report.runs import Run
from reptk.report.words import class_name, percent, plural

HELP = (
    ("drag, arrow keys with Shift", "move"),
    ("click, then wheel, pinch, + and \u2212", "zoom; far enough in, points become pictures"),
    ("hover, tap, arrow keys", "look at a point"),
    ("0", "the whole map again"),
)


def space(run: Run, kinds: Sequence[str], atlas: str | None) -> dict[str, Any]:
    """What the script needs for one run; `atlas` names its thumbnails."""
    evidence = run.evidence
    layouts = {kind: _packed(quantised(layout(kind, evidence.features)), "<u2") for kind in kinds}
    labelled = bool((evidence.labels >= 0).any())
    return {
        "name": run.name,
        "count": len(evidence.index),
        "classes": [class_name(evidence.classes, label) for label in range(_classes(evidence))],
        "layouts": layouts,
        "titles": {kind: TITLES[kind] for kind in kinds},
        "about": {kind: _about(kind, evidence) for kind in kinds},
        "numbers": _packed(evidence.index, "<i4"),
        "labels": _packed(evidence.labels, "<i4") if labelled else None,
        "predicted": _packed(evidence.predicted, "<i4") if labelled and evidence.vote else None,
        "confidence": _packed((evidence.confidence.nan_to_num() * 100).round().clamp(0, 100), "<u1"),
        "atlas": atlas,
    }


def thumbnails(evidence: Predictions, source: Source, most_bytes: int) -> Atlas | None:
    """Of all the evidence's queries; None where there are no images."""
    split = source.split(evidence.query_split)
    return atlas_of(split, evidence.index, most_bytes) if split is not None and len(evidence.index) else None


def plain(atlas: Atlas) -> dict[str, Any]:
    """An atlas as JSON takes it."""
    return asdict(atlas)


def map_of(runs: Sequence[Run], spaces: Sequence[dict[str, Any]]) -> Html:
    """The map's place, its controls and its legend, which the script brings to life."""
    kinds = spaces[0]["titles"]
    colours = {"label": "class", "predicted": "prediction", "right": "right or wrong"}
    offered = [
        key for key in colours if spaces[0]["predicted" if key == "right" else key + ("s" if key == "label" else "")]
    ]
    controls = [
        _choice("Run", "map-run", {str(at): run.name for at, run in enumerate(runs)}) if len(runs) > 1 else None,
        _choice("Layout", "map-layout", kinds) if len(kinds) > 1 else None,
        _choice("Colour by", "map-colour", {key: colours[key] for key in offered}) if len(offered) > 1 else None,
    ]
    canvas = element(
        "canvas", id="map", tabindex="0", role="application", aria_roledescription="map",
        aria_label="Map of the embedding. Arrow keys go from point to point, plus and minus zoom, Shift and arrow keys "
        "move, 0 shows all.", aria_describedby="map-said",
    )  # fmt: skip
    buttons = [
        element("button", sign, type="button", id=f"map-{name}", aria_label=label, title=label)
        for name, sign, label in (("in", "+", "zoom in"), ("out", "\u2212", "zoom out"), ("all", "all", "show all"))
    ]
    stage = element("div", canvas, element("div", *buttons, class_="zoom"), _card(), class_="stage")
    help_ = element("ul", [element("li", element("kbd", keys), f" {what}") for keys, what in HELP], class_="keys")
    return element(
        "div",
        element("div", *controls, class_="controls"),
        element("div", stage, _legend(), class_="map-and-legend"),
        element("p", spaces[0]["about"]["pca"], id="map-about", class_="note"),
        element("p", "", id="map-said", class_="spoken", aria_live="polite"),
        help_,
        class_="map",
    )


def _card() -> Html:
    picture = element("canvas", width="112", height="112", aria_hidden="true")
    return element("div", picture, element("div", element("b", ""), element("span", "")), id="map-card", hidden=True)


def _legend() -> Html:
    tools = [
        element(
            "input", type="search", id="legend-find", placeholder="find a class", aria_label="find a class", hidden=True
        ),
        element("button", "all", type="button", id="legend-all"),
        element("button", "none", type="button", id="legend-none"),
    ]
    items = element("ul", id="legend-items")
    return element("div", element("div", *tools, class_="tools"), items, id="legend", role="group", aria_label="Legend")


def _choice(label: str, name: str, options: dict[str, str]) -> Html:
    made = [element("option", text, value=key) for key, text in options.items()]
    return element("label", element("span", label), element("select", *made, id=name))


def _about(kind: str, evidence: Predictions) -> str:
    count = plural(len(evidence.index), "query", "queries")
    if kind != "pca":
        return f"{TITLES[kind]} of {count}: near points are alike; distances between groups mean little."
    share = principal(evidence.features, 2)[1].sum().item()
    return f"The two directions of largest variance, which hold {percent(share, 0)} % of it; {count}."


def _classes(evidence: Predictions) -> int:
    seen = max((int(part.max()) + 1 for part in (evidence.labels, evidence.predicted) if len(part)), default=0)
    return max(len(evidence.classes), seen)


def _packed(values: Tensor, kind: str) -> str:
    """Little-endian numbers in base64."""
    return base64.b64encode(values.contiguous().numpy().astype(np.dtype(kind)).tobytes()).decode()

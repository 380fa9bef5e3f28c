"""The whole page: sections in the order in which one wants to know, style and script inside, nothing from outside."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from reptk.core.metric_names import display_name
from reptk.report import answers, curves, facts, gallery, space, tables
from reptk.report.compare import difference
from reptk.report.gallery import Album
from reptk.report.html import Html, element, join, json_script
from reptk.report.pictures import Source
from reptk.report.runs import Run
from reptk.report.words import interval, mark, percent, points, section

PICTURES_BYTES, THUMBNAILS_BYTES = 5_000_000, 7_000_000
"""Of the page's 15 MB; what is left is the text, the points of the maps and the script."""

Sections = list[Html | None]


def page(runs: Sequence[Run], sources: Sequence[Source], kinds: Sequence[str]) -> str:
    """The page of one run, or of several beside each other."""
    album, spaces, atlases = Album(), [], {}
    content: Sections = [
        _verdict(runs),
        _numbers(runs),
        _curves(runs),
        _gallery(runs, sources, album),
        _map(runs, sources, kinds, spaces, atlases),
        _classes(runs),
        _health(runs),
        section("recipe", "Recipe", facts.recipe_of(runs)) if any(run.recipe for run in runs) else None,
        _views(runs, sources, album),
        section("protocol", "Protocol and environment", facts.protocol_of(runs)) if _have_protocol(runs) else None,
        section("repeat", "Repeat and cite", [_repeated(run, len(runs) > 1) for run in runs]),
    ]
    data = {"pictures": album.uris, "maps": spaces, "atlases": atlases}
    return _document(runs, [part for part in content if part], json_script("data", data))


def _document(runs: Sequence[Run], content: Sequence[Html], data: Html) -> str:
    style, script = _own("page.css"), _own("page.js") + _own("map.js")
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = " / ".join(run.title if len(runs) == 1 else run.name for run in runs)
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{name} \u2013 reptk"),
        element("style", Html(style)),
    ]
    body = [
        element("a", "to the numbers", href="#numbers", class_="skip"),
        _bar(name, content),
        element("main", *content, id="top"),
        element("noscript", element("p", "Pictures and the map need JavaScript.", class_="note")),
        data,
        element("script", Html(script)),
    ]
    return f"<!DOCTYPE html>\n{element('html', element('head', *head), element('body', *body), lang='en')}\n"


def _bar(name: str, content: Sequence[Html]) -> Html:
    links = [
        element("a", text, href=f"#{key}") for key, text in ANCHORS.items() if any(f' id="{key}"' in c for c in content)
    ]
    theme = element("button", "theme", type="button", id="theme", aria_label="theme: as the system has it")
    return element("header", element("a", name, href="#top", class_="home"), element("nav", *links), theme)


ANCHORS = {
    "numbers": "numbers",
    "curves": "curves",
    "gallery": "neighbours",
    "space": "map",
    "classes": "classes",
    "health": "health",
    "recipe": "recipe",
    "views": "views",
    "protocol": "protocol",
    "repeat": "repeat",
}


def _own(name: str) -> str:
    return (files("reptk.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# Sections


def _verdict(runs: Sequence[Run]) -> Html:
    run = runs[0]
    facts_ = element("p", _about(runs), class_="kicker")
    verdict = run.results.verdict if len(runs) == 1 else None
    sentence = (verdict.sentence if verdict else "") or (_said(run) if len(runs) == 1 else _compared(runs))
    advice = element("ul", [element("li", line) for line in verdict.advice], class_="advice") if verdict else None
    level = verdict.level if verdict and verdict.level in ("good", "fair", "poor") else None
    return element(
        "section", facts_, element("h1", sentence), advice, _headline(runs), id="verdict", data_level=level,
        aria_label="Verdict",
    )  # fmt: skip


def _about(runs: Sequence[Run]) -> list[Any]:
    run = runs[0]
    state = run.status if run.status and run.status != "finished" else ""
    named = [run.title] if len(runs) == 1 else [f"{len(runs)} runs compared"]
    encoder = run.recipe.get("encoder") if len(runs) == 1 else None
    parts = [
        *named,
        str(run.data_part.get("name", "")),
        encoder.get("backbone", "") if isinstance(encoder, dict) else "",
    ]
    words = "  \u00b7  ".join(str(part) for part in parts if part)
    return [words, element("span", state, class_="state") if state else None]


def _headline(runs: Sequence[Run]) -> Html | None:
    results = runs[0].results
    drawn = tables.ruler(runs)
    if drawn is None:
        return None
    best = max(runs, key=lambda run: run.results.numbers.get(run.results.headline, -1))
    value, bounds = best.results.numbers.get(results.headline), _bounds(best)
    big = element("p", element("b", percent(value)), element("span", "%"), class_="big")
    under = [element("span", display_name(results.headline), class_="metric")]
    under.append(element("span", f"95 %: {interval(bounds)}") if bounds else None)
    under.append(element("span", best.name) if len(runs) > 1 else None)
    return element("div", element("div", big, element("p", *under, class_="under")), drawn, class_="headline")


def _bounds(run: Run) -> tuple[float, float] | None:
    return run.results.intervals.get(run.results.main, {}).get(run.results.headline)


def _said(run: Run) -> str:
    """The verdict from the numbers alone, for runs that have none written down."""
    results, metric = run.results, run.results.headline
    value = results.numbers.get(metric)
    if value is None:
        return f"{run.title} is {run.status or 'not finished'}: there are curves, and no numbers yet."
    others = [
        (row, value - values[metric])
        for row, values in results.metrics.items()
        if row != results.main and metric in values
    ]
    gaps = [f"{points(gap).lstrip('+')} points {'above' if gap >= 0 else 'from'} {_row(row)}" for row, gap in others]
    return f"{display_name(metric)} is {percent(value)} %" + (f", {' and '.join(reversed(gaps))}." if gaps else ".")


def _row(name: str) -> str:
    return "the untrained encoder" if name == "untrained" else name


def _compared(runs: Sequence[Run]) -> str:
    metric = runs[0].results.headline
    scored = [run for run in runs if metric and metric in run.results.numbers]
    if len(scored) < 2:
        return f"{len(runs)} runs beside each other."
    best, second = sorted(scored, key=lambda run: -run.results.numbers[metric])[:2]
    gap = difference(best, second, metric)
    if gap.how and not gap.exceeds:
        return f"{best.name} and {second.name} do not differ in {display_name(metric)} beyond chance."
    beyond = ", more than chance explains" if gap.how else ""
    return f"{best.name} leads in {display_name(metric)}, {points(gap.value).lstrip('+')} points above {second.name}{beyond}."


def _numbers(runs: Sequence[Run]) -> Html | None:
    if not any(run.results.metrics for run in runs):
        return None
    note = _what_marks_mean(runs) if len(runs) > 1 else _what_gains_mean(runs[0])
    return section("numbers", "Numbers", tables.metrics_table(runs), note=note)


def _what_marks_mean(runs: Sequence[Run]) -> list[Any]:
    first = runs[0]
    gaps = [difference(run, first, metric) for run in runs[1:] for metric in run.results.numbers]
    ways = {gap.how for gap in gaps if gap is not None and gap.how}
    to = f"In percent. Differences are to {first.name}, in points. "
    if not ways:
        return [to, "Without intervals none of them is judged."]
    how = {"paired": "the same queries, drawn again in pairs", "intervals": "the 95 % intervals of the two"}
    judged = ", or by ".join(words for way, words in how.items() if way in ways)
    return [to, mark("more"), " or ", mark("less"), f": beyond chance, judged by {judged}. ", mark("same"), ": not."]


def _what_gains_mean(run: Run) -> list[Any]:
    if not run.results.gains:
        return ["In percent; gains in points."]
    words = "In percent. Gains in points, judged by the same queries drawn again in pairs: "
    return [words, mark("more"), " or ", mark("less"), " beyond chance, ", mark("same"), " not."]


def _curves(runs: Sequence[Run]) -> Html | None:
    made = [curves.drawn(panel) for panel in curves.panels(runs)]
    if not made:
        return None
    return section("curves", "Curves", curves.key_of(runs), element("div", *made, class_="curves"), note="By epoch.")


def _gallery(runs: Sequence[Run], sources: Sequence[Source], album: Album) -> Html | None:
    with_evidence = [(run, source) for run, source in zip(runs, sources, strict=True) if run.evidence is not None]
    if not with_evidence:
        return None
    own = {run.name: source for run, source in with_evidence}

    def drawn(run: Run, at: int) -> Html:
        album.allow(PICTURES_BYTES * (at + 1) // len(with_evidence))  # no run takes another's room
        return gallery.gallery(run, own[run.name], album, f"g{at}")

    made = gallery.selectable([run for run, _ in with_evidence], "gallery", drawn)
    reasons = [element("p", f"No pictures. {reason}", class_="note") for reason in _reasons(with_evidence)]
    return section("gallery", "Neighbours", reasons, made, note=gallery.legend(with_evidence[0][0].evidence))


def _reasons(pairs: Sequence[tuple[Run, Source]]) -> list[str]:
    return list(dict.fromkeys(source.why_not for _, source in pairs if source.why_not))


def _map(
    runs: Sequence[Run], sources: Sequence[Source], kinds: Sequence[str], spaces: list[Any], atlases: dict[str, Any]
) -> Html | None:
    shown = [
        (run, source) for run, source in zip(runs, sources, strict=True) if run.evidence and len(run.evidence.index)
    ]
    if not shown:
        return None
    names = [_atlas_name(run, source, shown) for run, source in shown]
    for (run, source), name in zip(shown, names, strict=True):
        if name not in atlases:
            made = space.thumbnails(run.evidence, source, THUMBNAILS_BYTES // len(set(names)))
            atlases[name] = space.plain(made) if made else None
        spaces.append(space.space(run, kinds, name))
    return section("space", "Map of the embedding", space.map_of([run for run, _ in shown], spaces))


def _atlas_name(run: Run, source: Source, shown: Sequence[tuple[Run, Source]]) -> str:
    """The same for runs whose queries are the same images."""
    for at, (other, theirs) in enumerate(shown):
        same = theirs.key == source.key and other.evidence.query_split == run.evidence.query_split
        if same and other.evidence.index.equal(run.evidence.index):
            return f"a{at}"
    raise AssertionError


def _classes(runs: Sequence[Run]) -> Html | None:
    counted = [(run, *answers.by_class(run)) for run in runs]
    shown = [run for run, _, rows in counted if rows]
    if not shown:
        return None
    by_name = {run.name: (metrics, rows) for run, metrics, rows in counted}

    def made(run: Run, at: int) -> Html:
        metrics, rows = by_name[run.name]
        worst = answers.confusions(run)
        beside = [element("h3", "Worst confusions"), tables.confusions_list(worst)] if worst else []
        return element(
            "div", tables.classes_table(run, metrics, rows), element("div", *beside), class_="classes-and-worst"
        )

    return section("classes", "Classes", gallery.selectable(shown, "classes-of", made), note="A heading sorts.")


def _health(runs: Sequence[Run]) -> Html | None:
    made = tables.health_table(runs)
    return section("health", "Health of the embeddings", made) if made else None


def _views(runs: Sequence[Run], sources: Sequence[Source], album: Album) -> Html | None:
    drawn = [
        (run, facts.views_of(run, source, album, f"v{at}"))
        for at, (run, source) in enumerate(zip(runs, sources, strict=True))
    ]
    made = {run.name: sheet for run, sheet in drawn if sheet is not None}
    if not made:
        return None
    shown = [run for run in runs if run.name in made]
    note = "The first images of training, and what the encoder is given of them."
    return section("views", "Views", gallery.selectable(shown, "views-of", lambda run, at: made[run.name]), note=note)


def _have_protocol(runs: Sequence[Run]) -> bool:
    return any(run.results.protocol for run in runs)


def _repeated(run: Run, named: bool) -> Html:
    return join(element("h3", run.name) if named else None, facts.repeat_of(run))

"""Queries and what was found for them as one HTML page: no network, no script, light and dark, any width."""

from html import escape
from pathlib import Path

from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.core.files import write_text
from reptk.embeddings.duplicates import Duplicate, Duplicates
from reptk.embeddings.pictures import Pictures
from reptk.embeddings.search_images import Neighbor, SearchResult
from reptk.embeddings.store import Embeddings

GENERATOR = '<meta name="generator" content="reptk search">'
MOST_GROUPS, MOST_MEMBERS = 100, 24
"""What a page of duplicates shows; the table that --out writes has them all."""

STYLE = """
:root { color-scheme: light dark; --ground: #f7f7f5; --card: #fff; --ink: #1f1f1d; --quiet: #63635f; --line: #d9d9d6;
  --mark: #1f6f54; }
@media (prefers-color-scheme: dark) { :root { --ground: #191918; --card: #232322; --ink: #ececea; --quiet: #a3a39e;
  --line: #3a3a38; --mark: #7ccfae; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 0.9375rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0; } h2 { font-size: 1rem; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
p { margin: 0.25rem 0 0; color: var(--quiet); }
section { margin-top: 2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
ol, ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 0.75rem; margin: 0.75rem 0 0;
  padding: 0; list-style: none; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; overflow: hidden; }
li.query { border: 2px solid var(--mark); }
img, .gone { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; background: var(--line); }
.gone { display: grid; place-items: center; color: var(--quiet); }
div.said { padding: 0.4rem 0.5rem 0.5rem; overflow-wrap: anywhere; }
.said b { font-weight: 600; font-variant-numeric: tabular-nums; } .said span { color: var(--quiet); display: block; }
.said .note { color: var(--mark); }
"""


def page(answers: list[SearchResult], embeddings: Embeddings, about: str) -> str:
    """The page of a search; `about` says what was searched."""
    pictures = Pictures(embeddings)
    sections = "".join(_answer(answer, embeddings, pictures) for answer in answers)
    heading = f"{len(answers)} quer{'y' if len(answers) == 1 else 'ies'}"
    return _document(heading, about, sections)


def duplicates_page(found: Duplicates, about: str) -> str:
    """The page of near duplicates: the largest groups, or the most similar leaks."""
    first = Pictures(found.first)
    sections = []
    for number, group in enumerate(found.groups[:MOST_GROUPS], 1):
        cards = "".join(_member(member, first.of(member.row)) for member in group[:MOST_MEMBERS])
        more = f"<p>and {len(group) - MOST_MEMBERS:,} more</p>" if len(group) > MOST_MEMBERS else ""
        sections.append(f"<section><h2>Group {number}: {len(group):,} images</h2><ul>{cards}</ul>{more}</section>")
    second = Pictures(found.second) if found.second is not None else first
    for leak in found.leaks[:MOST_GROUPS]:
        there = found.first
        other = _card(
            first.of(leak.nearest), f"in the index: {there.ids[leak.nearest]}", there.class_of(leak.nearest), "", ""
        )
        sections.append(f"<section><ul>{_member(leak, second.of(leak.row))}{other}</ul></section>")
    shown = len(sections)
    total = len(found.groups) + len(found.leaks)
    cut = f" The first {shown} are shown." if shown < total else ""
    return _document(f"{found.count:,} near duplicates", about + cut, "".join(sections))


def check(path: Path) -> None:
    """Raise unless the page may be written there: it is free, or holds an earlier page.

    Raises:
        UsageError: something else is there.
    """
    if path.is_dir():
        raise UsageError(f"--html {path} is a folder; name a file")
    if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise UsageError(f"--html {path} exists and was not written by reptk search; choose another name")


def write(path: Path, text: str) -> None:
    """Put the page there, in the place of an earlier one.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    try:
        write_text(path, text)
    except OSError as cause:
        raise EnvironmentProblem(f"cannot write {path}: {cause.strerror or cause}. Choose another --html") from cause


def _answer(answer: SearchResult, embeddings: Embeddings, pictures: Pictures) -> str:
    own = pictures.file(answer.path) if answer.path is not None else ""
    label = ""
    if answer.row is not None:
        own, label = pictures.of(answer.row), embeddings.class_of(answer.row)
    cards = [_card(own, "query", label, "", "query")]
    cards += [_neighbour(one, pictures.of(one.row)) for one in answer.neighbors]
    return f"<section><h2>{_text(answer.query)}</h2><ol>{''.join(cards)}</ol></section>"


def _neighbour(one: Neighbor, picture: str) -> str:
    return _card(picture, f"{one.rank}.  {one.similarity:.3f}", one.label, one.id, "", one.note)


def _member(one: Duplicate, picture: str) -> str:
    return _card(picture, f"{one.similarity:.3f}", one.label, one.id, "", "the same bytes" if one.is_identical else "")


def _card(picture: str, first: str, label: str, name: str, kind: str, note: str = "") -> str:
    image = f'<img src="{picture}" alt="{_text(name or first)}">' if picture else '<div class="gone">no image</div>'
    lines = f"<b>{_text(first)}</b>"
    lines += "".join(f"<span>{_text(line)}</span>" for line in (label, name) if line)
    lines += f'<span class="note">{_text(note)}</span>' if note else ""
    return f'<li class="{kind or "found"}">{image}<div class="said">{lines}</div></li>'


def _document(heading: str, about: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(heading)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{_text(heading)}</h1><p>{_text(about)}</p>{body}</body></html>\n"
    )


def _text(text: str) -> str:
    """Escaped; bytes of a file name that are no UTF-8 as question marks."""
    return escape(text.encode("utf-8", "replace").decode(), quote=True)

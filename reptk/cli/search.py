"""Find similar images, or near duplicates: reptk search photos.index query.jpg"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reptk.core.command_line import ArgumentParser, run_command
from reptk.core.errors import UsageError

if TYPE_CHECKING:
    from reptk.embeddings import Answer, Duplicates, Embeddings, Index, Neighbour
    from reptk.embeddings.duplicates import Member

EXAMPLES = """examples:
  reptk search photos.index query.jpg
  reptk search photos.safetensors a.jpg b.jpg --k 20 --html similar.html
  reptk search photos.index --id cats/0001.jpg
  reptk search photos.index --duplicates --threshold 0.97 --out duplicates.csv
  reptk search train.index --duplicates test.safetensors
  reptk search runs/tcl_selfsup_photos/1 query.jpg      (embeds what the run was trained on, first)
"""
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
K = 10
GROUPS, MEMBERS = 10, 6
"""How many groups of duplicates are printed, and how many images of each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(asked: argparse.Namespace) -> int:
    place, queries = _places(asked)
    if not asked.no_html:
        from reptk.embeddings import gallery

        asked.html = asked.html or Path("duplicates.html" if asked.duplicates else "found.html")
        gallery.check(asked.html)
    if asked.duplicates is not None:
        return _duplicates(asked, place, queries)
    if asked.out is not None or asked.threshold is not None:
        raise UsageError("--out and --threshold go with --duplicates")
    if not queries and not asked.id:
        raise UsageError(f"search {place} for what? An image, --id ID of one in it, or --duplicates")
    return _search(asked, place, queries)


def _places(asked: argparse.Namespace) -> tuple[str, list[str]]:
    """The index, and the queries: with --index all that is named are queries, else the index comes first."""
    named = list(asked.named)
    if asked.index is not None:
        return asked.index, named
    if not named and isinstance(asked.duplicates, str):
        named, asked.duplicates = [asked.duplicates], True
    if not named:
        raise UsageError("which index? reptk search photos.index query.jpg")
    if Path(named[0]).suffix.lower() in IMAGES:
        raise UsageError(f"the index comes first, before {named[0]}; or name it by --index")
    return named[0], named[1:]


def _search(asked: argparse.Namespace, place: str, queries: list[str]) -> int:
    from reptk.embeddings import search

    index = _open(place)
    answers = search(index, queries, ids=asked.id, k=asked.k, encoder=asked.encoder)
    print(_about(index, place))
    for answer in answers:
        print(f"\n{_shown(answer.query)}")
        print("\n".join(_lines(answer)))
    if not asked.no_html:
        from reptk.embeddings import gallery

        gallery.write(asked.html, gallery.page(answers, index.embeddings, _about(index, place)))
        print(f"\nlook at them: {asked.html}")
    return 0


def _lines(answer: "Answer") -> list[str]:
    width = max((len(one.label) for one in answer.neighbours), default=0)
    return [
        f"  {one.rank:>3}  {one.similarity:.3f}  {_shown(one.label):<{width}}  {_where(one)}"
        + (f"  ({one.note})" if one.note else "")
        for one in answer.neighbours
    ]


def _duplicates(asked: argparse.Namespace, place: str, queries: list[str]) -> int:
    from reptk.embeddings import near_duplicates

    if queries or asked.id:
        raise UsageError(
            "--duplicates compares whole sets and takes no queries: reptk search photos.index --duplicates"
        )
    if asked.out is not None:
        _check_table(asked)
    index = _open(place)
    other = _open(asked.duplicates).embeddings if isinstance(asked.duplicates, str) else None
    found = near_duplicates(index.embeddings, other, threshold=0.95 if asked.threshold is None else asked.threshold)
    print(_about(index, place))
    print("\n".join(_leaks(found, place, asked.duplicates) if other is not None else _groups(found)))
    if asked.out is not None:
        found.save(asked.out)
        print(f"all of them: {asked.out}")
    if not asked.no_html and found.count:
        from reptk.embeddings import gallery

        gallery.write(asked.html, gallery.duplicates_page(found, f"{place}, similarity {found.threshold:g} and above"))
        print(f"look at them: {asked.html}")
    return 0


def _groups(found: "Duplicates") -> list[str]:
    from reptk.embeddings.duplicates import sizes

    if not found.groups:
        return [f"no two images have a similarity of {found.threshold:g} or more"]
    extra, count = found.count - len(found.groups), len(found.groups)
    lines = [
        f"{count:,} group{'s' * (count > 1)} of near duplicates (similarity {found.threshold:g} and above): {sizes(found)}",
        f"{extra:,} of {len(found.first):,} images could go; {found.identical():,} hold the same bytes as another"
        + _contradicted(found, "in whose images the labels differ"),
    ]
    for number, group in enumerate(found.groups[:GROUPS], 1):
        lines.append(f"group {number}: {len(group):,} images")
        for one in group[:MEMBERS]:
            note = "  (the same bytes)" if one.is_identical else ""
            lines.append(f"  {one.similarity:.3f}  {_shown(one.label)}  {_where(one)}{note}")
        lines += [f"  and {len(group) - MEMBERS:,} more"] if len(group) > MEMBERS else []
    rest = len(found.groups) - GROUPS
    return lines + ([f"and {rest:,} more groups"] if rest > 0 else [])


def _leaks(found: "Duplicates", place: str, other: str) -> list[str]:
    total = len(found.second or ())
    if not found.leaks:
        return [f"none of {total:,} images of {other} has a near duplicate in {place} ({found.threshold:g} and above)"]
    lines = [
        f"{len(found.leaks):,} of {total:,} images of {other} have a near duplicate in {place} (similarity "
        f"{found.threshold:g} and above); {found.identical():,} hold the same bytes"
        + _contradicted(found, "whose label is another there")
    ]
    for one in found.leaks[: GROUPS * 2]:
        there = _near(found.first.file(one.nearest)) or found.first.ids[one.nearest]
        note = "  (the same bytes)" if one.is_identical else ""
        lines.append(f"  {one.similarity:.3f}  {_where(one)}  ~  {_shown(there)}{note}")
    rest = len(found.leaks) - GROUPS * 2
    return lines + ([f"and {rest:,} more"] if rest > 0 else [])


def _contradicted(found: "Duplicates", what: str) -> str:
    count = found.contradictions()
    return f"; {count:,} {what}" if count else ""


def _open(place: str) -> "Index":
    """An index, a file of embeddings, or a run, whose own images are embedded for it."""
    from reptk.embeddings import Index, embed

    folder = Path(place)
    if not (folder / "model" / "encoder.safetensors").is_file() or (folder / "manifest.json").is_file():
        return Index.open(place)
    return Index(_embedded(embed, folder), path=folder)


def _embedded(embed: object, run: Path) -> "Embeddings":
    from reptk.embeddings.embedder import recipe_of

    part = recipe_of(run).get("data")
    if not part:
        raise UsageError(
            f"{run} does not say what it was trained on. Embed a folder with it first: reptk embed {run} ..."
        )
    print(
        f"embedding what {run} was trained on ({part['name']}); to keep that: reptk embed {run} --out FILE", flush=True
    )
    return embed(part, encoder=run)


def _about(index: "Index", place: str) -> str:
    said = "exact" if index.approximate is None else f"recall@10 {100 * index.recall:.1f} %"
    encoder = index.embeddings.about.get("encoder", {})
    by = f", by {encoder['backbone']}" if "backbone" in encoder else ""
    return f"{place}: {len(index):,} images{by}, {index.kind} ({said})"


def _check_table(asked: argparse.Namespace) -> None:
    from reptk.embeddings.place import check_free

    check_free(asked.out, force=asked.force)


def _where(one: "Neighbour | Member") -> str:
    return _shown(_near(one.path) or one.id)


def _near(path: Path | None) -> str:
    """From this folder on, if it is below."""
    here = Path.cwd()
    return "" if path is None else str(path.relative_to(here) if path.is_relative_to(here) else path)


def _shown(text: str) -> str:
    """As one line that any terminal can print."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in plain)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk search",
        description="Find the images that are most like a query, or near duplicates within or between sets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "named", nargs="*", metavar="INDEX QUERY", help="an index, a file of embeddings or a run; then image files"
    )
    parser.add_argument("--index", help="the index, where all that is named are queries")
    parser.add_argument("--id", action="append", default=[], help="an image of the index, by id or number; repeatable")
    parser.add_argument("--k", type=int, default=K, help=f"how many neighbours; default: {K}")
    parser.add_argument(
        "--html", type=Path, help="the page to draw what was found on; default: found.html, or duplicates.html"
    )
    parser.add_argument("--no-html", action="store_true", help="draw no page")
    parser.add_argument(
        "--duplicates",
        nargs="?",
        const=True,
        metavar="OTHER",
        help="near duplicates in it, or between it and another set",
    )
    parser.add_argument(
        "--threshold", type=float, help="the similarity from which on images are duplicates; default: 0.95"
    )
    parser.add_argument("--out", type=Path, help="with --duplicates: write all of them to this CSV file")
    parser.add_argument("--force", action="store_true", help="write over --out")
    parser.add_argument("--encoder", help="where the encoder lies now: a run, or a file of weights")
    return parser.parse_intermixed_args(arguments)

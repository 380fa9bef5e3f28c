"""Find similar images, or near duplicates: reptk search photos.index query.jpg"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reptk.config.plugins import load_plugin
from reptk.core.command_line import ArgumentParser, add_device_option, require_single_process, run_command
from reptk.core.counts import format_count, verb_form
from reptk.core.errors import UsageError
from reptk.core.name_lists import first_names
from reptk.core.passwords import redacted
from reptk.core.printable_names import in_one_line

if TYPE_CHECKING:
    from reptk.embeddings import Duplicate, Duplicates, Embeddings, Neighbor, SearchResult
    from reptk.embeddings.retrieval.search_index import SearchIndex

EXAMPLES = """examples:
  reptk search photos.index query.jpg
  reptk search photos.safetensors a.jpg b.jpg --k 20 --html similar.html
  reptk search photos.index --id cats/0001.jpg
  reptk search 'postgresql://me@localhost/images?table=photos' query.jpg
  reptk search photos.index --duplicates --threshold 0.97 --out duplicates.csv
  reptk search train.index --duplicates test.safetensors
  torchrun --nproc-per-node 4 -m reptk search photos.index query.jpg      (each process searches its share)
  reptk search runs/tcl_selfsup_photos/1 query.jpg      (embeds what the run was trained on, first)
  reptk search my_photos query.jpg                      (embeds the folder first; the next time, what is new)
"""
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DEFAULT_K = 10
# How many near duplicates are printed. The table that --out writes has all of them.
MAX_GROUPS = 10
MAX_IMAGES_PER_GROUP = 6
MAX_LEAKS = 20
MAX_BLANK = 5


class Positionals(NamedTuple):
    """The positional arguments.

    index: the index, file of embeddings, run or folder of images to search in.
    queries: image files.
    find_duplicates: whether to find near duplicates instead.
    other: the second set to find them in, if there is one.
    """

    index: str
    queries: list[str]
    find_duplicates: bool
    other: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    for plugin in args.plugin:
        load_plugin(plugin)
    named = _positionals(args)
    html = None
    if not args.no_html:
        html = _html_path(args.html, named.find_duplicates)
    if named.find_duplicates:
        require_single_process("near duplicates are found by one: reptk search INDEX --duplicates")
        return _find_duplicates(args, named, html)
    if args.out is not None or args.threshold is not None or args.no_images:
        raise UsageError("--out, --threshold and --no-images go with --duplicates")
    if not named.queries and not args.id:
        raise UsageError(f"search {redacted(named.index)} for what? An image, --id ID of one in it, or --duplicates")
    return _search(args, named, html)


def _positionals(args: argparse.Namespace) -> Positionals:
    """Tell the index from the queries: with --index all names are queries, otherwise the first is the index."""
    names = list(args.named)
    find_duplicates = args.duplicates is not None
    other = None
    if isinstance(args.duplicates, str):  # True if the option has no value
        other = args.duplicates
    if args.index is not None:
        return Positionals(args.index, names, find_duplicates, other)
    if not names and other is not None:
        # `--duplicates photos.index`: the option has consumed the index.
        names, other = [other], None
    if not names:
        raise UsageError("which index? reptk search photos.index query.jpg")
    if Path(names[0]).suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"the index comes first, before {names[0]}; or name it by --index")
    return Positionals(names[0], names[1:], find_duplicates, other)


def _html_path(html: Path | None, find_duplicates: bool) -> Path:
    from reptk.embeddings.viewing import gallery

    if html is None:
        name = "found.html"
        if find_duplicates:
            name = "duplicates.html"
        html = Path(name)
    gallery.check(html)  # before the search, which may take long
    return html


def _search(args: argparse.Namespace, named: Positionals, html: Path | None) -> int:
    from reptk.core import distributed
    from reptk.embeddings import search

    # What ranks exchange is on the CPU, and they may share a GPU, which encodes the queries.
    device = str(distributed.setup(args.device, backend="gloo", may_share_gpu=True))
    encoder = args.encoder
    if _is_image_folder(named.index):
        encoder = None  # the embeddings name it, wherever it comes from
    with closing(_open(named.index, args)) as index:
        results = search(index, named.queries, ids=args.id, k=args.k, encoder=encoder, device=device)
        summary = _summary(index, redacted(named.index))
    is_main = distributed.is_main()
    distributed.cleanup()
    if not is_main:  # all ranks have the same results
        return 0
    print(summary)
    for result in results:
        print(f"\n{in_one_line(result.query)}")
        for line in _result_lines(result):
            print(line)
    if html is not None:
        from reptk.embeddings.viewing import gallery

        gallery.write(html, gallery.results_page(results, index.embeddings, summary, html.parent))
        print(f"\nlook at them: {html}")
    return 0


def _result_lines(result: "SearchResult") -> list[str]:
    labels = [in_one_line(neighbor.label) for neighbor in result.neighbors]
    label_width = max(map(len, labels), default=0)
    lines = []
    for neighbor, label in zip(result.neighbors, labels, strict=True):
        line = f"  {neighbor.rank:>3}  {neighbor.similarity:.3f}  {label:<{label_width}}  {_location(neighbor)}"
        if neighbor.note:
            line += f"  ({neighbor.note})"
        lines.append(line)
    return lines


def _find_duplicates(args: argparse.Namespace, named: Positionals, html: Path | None) -> int:
    from reptk.embeddings import near_duplicates
    from reptk.embeddings.files.output_path import check_output_file
    from reptk.stores import is_address

    if named.queries or args.id:
        raise UsageError(
            "--duplicates compares whole sets and takes no queries: reptk search photos.index --duplicates"
        )
    if args.out is not None:
        if args.out.suffix.lower() in (".html", ".htm"):
            raise UsageError(f"--out writes a CSV file; for the page: --html {args.out}")
        check_output_file(args.out, force=args.force)
    for path in (named.index, named.other):
        if path is not None and is_address(path):
            raise UsageError(f"--duplicates compares files and folders, not stores: {redacted(path)}")
    index = _open(named.index, args)
    other = None
    if named.other is not None:
        other = _open(named.other, args).embeddings
    encoder = args.encoder
    if _is_image_folder(named.index):
        encoder = None  # the embeddings name it, wherever it comes from
    duplicates = near_duplicates(
        index.embeddings,
        other,
        threshold=args.threshold,
        encoder=encoder,
        device=args.device,
        read_images=not args.no_images,
    )
    if named.other is None:
        lines = _group_lines(duplicates)
    else:
        lines = _leak_lines(duplicates, named.index, named.other)
    print(_summary(index, named.index))
    print(f"threshold {duplicates.threshold:g}: {duplicates.measured.reason}")
    for line in lines + _blank_lines(duplicates):
        print(line)
    if args.out is not None:
        duplicates.save(args.out)
        print(f"all of them: {args.out}")
    if html is not None and duplicates.count:
        from reptk.embeddings.viewing import gallery

        subtitle = f"{named.index}, similarity {duplicates.threshold:g} and above: {duplicates.measured.reason}."
        gallery.write(html, gallery.duplicates_page(duplicates, subtitle, html.parent))
        print(f"look at them: {html}")
    return 0


def _group_lines(duplicates: "Duplicates") -> list[str]:
    """Return the lines that describe near duplicates within a set."""
    groups, threshold = duplicates.groups, duplicates.threshold
    if not groups:
        return [f"no two images have a similarity of {threshold:g} or more"]
    sizes = ", ".join(f"{count:,} of {size:,} images" for size, count in duplicates.count_by_size().items())
    num_removable = duplicates.count - len(groups)  # all but one of each group
    candidates = format_count(num_removable, "candidate")
    searched = format_count(len(duplicates.first), "image")
    lines = [
        f"{format_count(len(groups), 'group')} of near duplicates (similarity {threshold:g} and above): {sizes}",
        f"{candidates} for removal among {searched}: check before deleting",
        _exact_copies(duplicates) + _conflicts(duplicates, "groups with images of different labels"),
    ]
    for number, group in enumerate(groups[:MAX_GROUPS], 1):
        lines.append(f"group {number}: {len(group):,} images")
        for duplicate in group[:MAX_IMAGES_PER_GROUP]:
            label = in_one_line(duplicate.label)
            similarity = duplicates.format_similarity(duplicate.similarity)
            lines.append(f"  {similarity}  {label}  {_location(duplicate)}{_copy_note(duplicate, duplicates.first)}")
        if len(group) > MAX_IMAGES_PER_GROUP:
            lines.append(f"  and {len(group) - MAX_IMAGES_PER_GROUP:,} more")
    if len(groups) > MAX_GROUPS:
        lines.append(f"and {format_count(len(groups) - MAX_GROUPS, 'more group')}")
    return lines


def _leak_lines(duplicates: "Duplicates", index: str, other: str) -> list[str]:
    """Return the lines that describe the images of the other set that are in the index, too."""
    first, leaks, threshold = duplicates.first, duplicates.leaks, duplicates.threshold
    total = len(duplicates.second or ())
    if not leaks:
        return [
            f"none of {format_count(total, 'image')} of {other} has a near duplicate in {index} ({threshold:g} and above)"
        ]
    verb = verb_form(len(leaks), "has", "have")
    searched = format_count(total, "image")
    lines = [
        f"{len(leaks):,} of {searched} of {other} {verb} a near duplicate in {index} (similarity {threshold:g} and above)",
        _exact_copies(duplicates) + _conflicts(duplicates, f"images whose label in {index} is another"),
    ]
    for leak in leaks[:MAX_LEAKS]:
        nearest = _short_path(first.file(leak.nearest)) or first.ids[leak.nearest]
        similarity = duplicates.format_similarity(leak.similarity)
        lines.append(f"  {similarity}  {_location(leak)}  ~  {in_one_line(nearest)}{_copy_note(leak, first)}")
    if len(leaks) > MAX_LEAKS:
        lines.append(f"and {len(leaks) - MAX_LEAKS:,} more")
    return lines


def _conflicts(duplicates: "Duplicates", description: str) -> str:
    count = duplicates.count_label_conflicts()
    if not count:
        return ""
    return f"; {description}: {count:,}"


def _exact_copies(duplicates: "Duplicates") -> str:
    """Tell exact copies from images that are only similar."""
    same_bytes = duplicates.count_copies("bytes")
    same_pixels = duplicates.count_copies("pixels")
    turned = duplicates.count_turned()
    similar = duplicates.count - same_bytes - same_pixels - turned
    return (
        f"{same_bytes:,} hold the same bytes as another, {same_pixels:,} the same pixels, {turned:,} are turned or mirrored, "
        f"{similar:,} are only similar"
    )


def _copy_note(duplicate: "Duplicate", originals: "Embeddings") -> str:
    text = duplicate.describe_copy(originals)
    if not text:
        return ""
    return f"  ({in_one_line(text)})"


def _blank_lines(duplicates: "Duplicates") -> list[str]:
    """Return a line on blank images, which are no duplicates of each other; none if there are no such images."""
    if not duplicates.blank:
        return []
    images = duplicates.searched
    names = [in_one_line(_short_path(images.file(row)) or images.ids[row]) for row in duplicates.blank]
    listed = first_names(names, MAX_BLANK)
    return [f"{format_count(len(duplicates.blank), 'blank image')}, compared with no other: {listed}"]


def _open(path: str, args: argparse.Namespace) -> "SearchIndex":
    """Open an index, a file of embeddings or a store; or embed a folder of images, or the data set of a run, and open that."""
    from reptk.embeddings import Index, StoreIndex, embed_folder
    from reptk.stores import is_address

    if is_address(path):
        require_single_process("a store divides the work itself: reptk search ADDRESS")
        return StoreIndex.open(path)
    if _is_run(path):
        return _embed_run(Path(path))
    if _is_image_folder(path):
        require_single_process(f"embed the images first: reptk embed ENCODER --data {path} --out FILE")
        return Index(embed_folder(path, args.encoder, device=args.device, report=_print))
    return Index.open(path, trust=args.trust)


def _is_run(path: str) -> bool:
    """Return whether a path is the folder of a run. That of an index is told from it by its files."""
    from reptk.config.run_paths import has_model_weights

    folder = Path(path)
    return has_model_weights(folder / "model") and not (folder / "manifest.json").is_file()


def _is_image_folder(path: str) -> bool:
    """Return whether a path is a folder of images, and neither an index, embeddings in parts, a run nor a store."""
    from reptk.embeddings.encoding.folder_cache import holds_images
    from reptk.embeddings.files.parts_manifest import is_parts_folder

    folder = Path(path)
    if not folder.is_dir() or (folder / "manifest.json").is_file() or is_parts_folder(folder):
        return False
    return not _is_run(path) and holds_images(folder)


def _embed_run(folder: Path) -> "SearchIndex":
    """Embed what a run was trained on."""
    from reptk.embeddings import Index, embed
    from reptk.embeddings.encoding.embedder import recipe_of

    require_single_process(f"embed what the run was trained on first: reptk embed {folder} --out FILE")
    table = recipe_of(folder).get("data")
    if not table:
        raise UsageError(
            f"{folder} does not say what it was trained on. Embed a folder with it first: reptk embed {folder} ..."
        )
    _print(
        f"embedding what {folder} was trained on ({table.get('name')}); to keep that: reptk embed {folder} --out FILE"
    )
    return Index(embed(folder, table), path=folder)


def _print(line: str) -> None:
    print(line, flush=True)


def _summary(index: "SearchIndex", path: str) -> str:
    """Return one line about an index: its size, its encoder, its kind."""
    line = f"{path}: {format_count(len(index), 'image')}"
    encoder = index.embeddings.metadata.get("encoder", {})
    if "backbone" in encoder:  # embeddings of other programs do not name theirs
        line += f", by {encoder['backbone']}"
    return f"{line}, {index.describe_kind()}"


def _location(image: "Neighbor | Duplicate") -> str:
    """Return the path of an image, its id if it is not a file."""
    return in_one_line(_short_path(image.path) or image.id)


def _short_path(path: Path | None) -> str:
    """Return a path relative to the working directory if it is below it; empty for None."""
    if path is None:
        return ""
    working_directory = Path.cwd()
    if path.is_relative_to(working_directory):
        path = path.relative_to(working_directory)
    return str(path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk search",
        description="Find the images that are most like a query, or near duplicates within or between sets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "named",
        nargs="*",
        metavar="INDEX QUERY",
        help="an index, a file of embeddings, a folder of images, a run or a store; then image files",
    )
    parser.add_argument("--index", help="the index, if all that is named are queries")
    parser.add_argument("--id", action="append", default=[], help="an image of the index, by id or number; repeatable")
    parser.add_argument("--k", type=int, default=DEFAULT_K, help=f"how many neighbors; default: {DEFAULT_K}")
    parser.add_argument(
        "--html", type=Path, help="the page that shows the images; default: found.html, or duplicates.html"
    )
    parser.add_argument("--no-html", action="store_true", help="write no page")
    parser.add_argument(
        "--duplicates",
        nargs="?",
        const=True,
        metavar="OTHER",
        help="near duplicates in it, or between it and another set",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="the similarity from which images are duplicates; default: measured for the encoder and the images",
    )
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="with --duplicates: do not read all images, which finds blank, turned and mirrored ones",
    )
    parser.add_argument("--out", type=Path, help="with --duplicates: write all of them to this CSV file")
    parser.add_argument("--force", action="store_true", help="replace --out if it exists")
    parser.add_argument(
        "--encoder",
        help="the encoder, if it has moved: a run, or a file of weights; of a folder of images: the run, or the timm name, by "
        "which it is embedded",
    )
    parser.add_argument(
        "--trust", action="store_true", help="read an approximate index that was not built by you on this machine"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], help="a .py file or module that registers a store; repeatable"
    )
    add_device_option(parser)
    return parser.parse_intermixed_args(arguments)

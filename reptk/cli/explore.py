"""Look at embeddings in a browser: reptk explore my_photos"""

import argparse
import threading
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reptk.core.command_line import ArgumentParser, add_device_option, require_single_process, run_command
from reptk.core.counts import format_count

if TYPE_CHECKING:
    from reptk.explore.api import Api

EXAMPLES = """examples:
  reptk explore my_photos                                  (embeds them first; the next time, what is new)
  reptk explore my_photos --encoder runs/tcl_selfsup_photos/1
  reptk explore photos.safetensors
  reptk explore photos.index --port 8080 --no-browser
  reptk explore my_photos --map umap --prepare             (what takes long, over night)
  reptk explore runs/tcl_sup_photos/1                      (the queries of its evaluation, with its predictions)

The page is for this machine alone: other machines cannot reach it, and it needs the token in the printed address. It ends with
Ctrl-C. If reptk runs on another machine: ssh -L 8080:127.0.0.1:8080 MACHINE, and there --port 8080 --no-browser.
Embeddings of folders and positions on maps are stored in $XDG_CACHE_HOME/reptk, by default ~/.cache/reptk; nothing else is
written.
"""
MAX_PORT = 65535


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    from reptk.explore.assets import check_plotly

    require_single_process("one shows the page: reptk explore NAME")
    check_plotly()
    # They import torch: only once the arguments are known to be right.
    from reptk.explore.api import Api, Request
    from reptk.explore.map_layouts import default_layout
    from reptk.explore.sources import Options, open_collection
    from reptk.report.layouts import TITLES, check_layouts

    if args.map is not None:
        check_layouts((args.map,))
    options = Options(args.encoder, args.weights, args.device, args.force, args.trust, _print)
    collection = open_collection(args.named, options)
    has_stored = collection.stored_positions is not None
    layout = args.map or default_layout(len(collection), has_stored=has_stored)
    _print(f"{args.named}: {format_count(len(collection), 'image')}; map: {TITLES.get(layout, 'stored positions')}")
    api = Api(collection, layout)
    api.respond(Request("GET", f"/api/positions/{layout}", {}))  # before somebody waits for it
    if not args.prepare:
        _serve(api, args)
    return 0


def _serve(api: "Api", args: argparse.Namespace) -> None:
    """Serve the page until a signal ends it."""
    from reptk.explore.server import ExploreServer

    with ExploreServer(api, args.port) as server:
        _print(f"look at it: {server.access.url}")
        _print("to end: Ctrl-C")
        if not args.no_browser:
            # Some browsers return only when their window is closed.
            threading.Thread(target=webbrowser.open, args=(server.access.url,), daemon=True).start()
        server.serve_forever()


def _print(line: str) -> None:
    print(line, flush=True)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:6]) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {MAX_PORT}, got {text}")
    return int(text)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk explore",
        description="Show a map, a gallery, search and near duplicates of images as a page in the browser.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "named", metavar="NAME", help="a folder or table of images, a file of embeddings, an index, or a run"
    )
    parser.add_argument(
        "--encoder",
        help="of a folder of images: a run, or a timm name; default: a small one with ImageNet weights. Of embeddings: the "
        "present place of their encoder, if it has moved",
    )
    parser.add_argument("--weights", help="with a timm name as --encoder: a checkpoint; default: timm's weights")
    parser.add_argument(
        "--map",
        metavar="LAYOUT",
        help="pca, tsne or umap; default: UMAP if it is installed (reptk[viz]), t-SNE of a few thousand images, else PCA",
    )
    parser.add_argument("--port", type=_port, default=0, help="default: one that is free")
    parser.add_argument("--no-browser", action="store_true", help="print the address alone")
    parser.add_argument("--prepare", action="store_true", help="embed, compute the map, and end without a page")
    parser.add_argument("--force", action="store_true", help="embed all images of a folder again")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="execute the plugins in a run's folder, and read an approximate index that was not built by you on this machine",
    )
    add_device_option(parser)
    return parser.parse_args(arguments)

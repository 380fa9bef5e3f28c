"""One page to look at and to send: reptk report runs/tcl_selfsup_photos/1"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reptk.config.plugins import load_plugin
from reptk.core.command_line import ArgumentParser, add_plugin_options, run_command

EXAMPLES = """examples:
  reptk report runs/tcl_selfsup_photos/1
  reptk report runs/tcl_selfsup_photos/1 runs/simclr_photos/1 --out comparison.html
  reptk report runs/tcl_selfsup_photos/1 --map tsne --map umap --png figures
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(lambda: _run(_parse(arguments)))


def _run(args: argparse.Namespace) -> int:
    # Imported late, so that --help does not wait for torch.
    from reptk.core.console import Logger
    from reptk.report import write
    from reptk.sweep.comparison_page import settings_over_seeds

    for plugin in args.plugin:
        load_plugin(plugin)
    png_folder = args.png
    is_in_run_folder = len(args.run) == 1 and args.out is None
    if is_in_run_folder and png_folder is None:
        png_folder = args.run[0]
    logger = Logger()
    settings = None
    with logger.status("reading images, drawing the page"):
        if len(args.run) > 1:
            settings = settings_over_seeds(args.run)
        path = write(
            args.run,
            args.out,
            map=args.map or "pca",
            png=png_folder,
            force=args.force,
            trust=args.trust,
            settings=settings,
        )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser, needs no network")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="reptk report",
        description=(
            "A run, or several next to each other, as one HTML page that needs nothing else. "
            "Runs that differ by their seed alone are grouped, with mean and interval."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="+", type=Path, help="a run's folder, or one written by reptk evaluate --out")
    parser.add_argument(
        "--out", type=Path, help="the page; default: report.html in the run's folder, of several runs in this folder"
    )
    parser.add_argument("--force", action="store_true", help="write over a page that is not the run's own")
    parser.add_argument(
        "--map", action="append", choices=("pca", "tsne", "umap"), help="a further layout of the map; repeatable"
    )
    parser.add_argument(
        "--png",
        type=Path,
        help="a folder for the plots as PNG; default: next to the page, if that is in the run's folder",
    )
    add_plugin_options(parser)
    return parser.parse_args(arguments)

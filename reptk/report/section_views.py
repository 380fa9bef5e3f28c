"""The first images of training and the views of them, as the encoder gets them."""

from collections.abc import Sequence
from dataclasses import dataclass

from reptk import config
from reptk.core.errors import ReptkError, first_line
from reptk.data import Data
from reptk.report.displayed_views import DisplayedViews, displayed_views
from reptk.report.embedded_images import EmbeddedImages, PlacedImage
from reptk.report.formatting import class_name
from reptk.report.run_files import Run
from reptk.report.run_images import RunImages

MAX_IMAGES = 6


@dataclass(frozen=True)
class ViewsRow:
    """An image and its views."""

    name: str
    number: str
    placed_images: list[PlacedImage]


@dataclass(frozen=True)
class RunViews:
    """The views of one run.

    Args:
        title: the run's name.
        problem: why the views cannot be drawn; empty if they can.
        heads: of the columns with images.
    """

    title: str
    problem: str
    heads: list[str]
    rows: list[ViewsRow]


@dataclass(frozen=True)
class ViewsSection:
    """What templates/views.html.j2 shows."""

    runs: list[RunViews]


def views_section(runs: Sequence[Run], images: Sequence[RunImages], embedded: EmbeddedImages) -> ViewsSection | None:
    """Return views of the runs that have a recipe and a data set, and embed them; None if there is no such run."""
    shown = []
    for number, (run, run_images) in enumerate(zip(runs, images, strict=True)):
        if run_images.data is not None and run.recipe:
            shown.append(_run_views(run, run_images.data, embedded, f"view/v{number}"))
    if not shown:
        return None
    return ViewsSection(shown)


def _run_views(run: Run, data: Data, embedded: EmbeddedImages, prefix: str) -> RunViews:
    try:
        recipe = config.load(run.folder / "recipe.toml")
        # The run may have been trained on a device that this machine does not have.
        train = recipe.train.model_copy(update={"device": "auto"})
        recipe = recipe.model_copy(update={"train": train})
        count = min(MAX_IMAGES, recipe.train.batch_size)
        shown = displayed_views(recipe, data, step=0, count=count)
    except (ReptkError, OSError) as cause:
        problem = f"They cannot be drawn here: {first_line(cause)}"
        return RunViews(run.name, problem, [], [])
    heads = ["image"]
    heads += [f"view {number}" for number in range(1, len(shown.views) + 1)]
    rows = []
    for position in range(len(shown.images)):
        rows.append(_views_row(shown, position, heads, data, embedded, prefix))
    return RunViews(run.name, "", heads, rows)


def _views_row(
    shown: DisplayedViews,
    position: int,
    heads: Sequence[str],
    data: Data,
    embedded: EmbeddedImages,
    prefix: str,
) -> ViewsRow:
    label = int(shown.labels[position])
    number = int(shown.index[position])
    placed_images = []
    for column, (head, images) in enumerate(zip(heads, [shown.images, *shown.views], strict=True)):
        # Views are of one run only, so their names contain the run.
        name = f"{prefix}/{position}-{column}"
        embedded.add_view(name, images[position])
        placed_images.append(PlacedImage(head, name))
    return ViewsRow(
        name=class_name(data.classes, label) if label >= 0 else "",
        number=f"no. {number:,}",
        placed_images=placed_images,
    )

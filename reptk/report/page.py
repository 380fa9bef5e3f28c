"""The page: all sections, with style, script and images inside and nothing from outside."""

from collections.abc import Sequence
from pathlib import Path

from reptk.report.content_security import content_security_policy
from reptk.report.embedded_images import EmbeddedImages
from reptk.report.run_files import Run
from reptk.report.run_images import RunImages
from reptk.report.section_classes import classes_section
from reptk.report.section_curves import curves_section
from reptk.report.section_gallery import gallery_section
from reptk.report.section_health import health_section
from reptk.report.section_map import map_data, map_section
from reptk.report.section_numbers import numbers_section
from reptk.report.section_protocol import protocol_section
from reptk.report.section_recipe import recipe_section
from reptk.report.section_repeat import repeat_section
from reptk.report.section_settings import ComparedSettings, settings_section
from reptk.report.section_verdict import verdict_section
from reptk.report.section_views import views_section
from reptk.report.templating import for_json, read_asset, render


def render_page(
    runs: Sequence[Run],
    images: Sequence[RunImages],
    layouts: Sequence[str],
    settings: ComparedSettings | None = None,
    folder: Path | None = None,
) -> str:
    """Return the page of one run, or of several next to each other; of a comparison of settings, with that on top.

    Links to the files of images begin from `folder`, in which the page will be; without it there are none.

    A section is None if the runs have nothing to show in it. `templates/page.html.j2` decides on the order.
    """
    embedded = EmbeddedImages(folder=folder)
    # The gallery first: views are few, and are embedded whatever the gallery has used.
    gallery = gallery_section(runs, images, embedded)
    views = views_section(runs, images, embedded)
    # Computed once for the script's data and for the controls above the map.
    points = map_data(runs, images, layouts)
    style = read_asset("page.css") + read_asset("enlarge.css")
    script = read_asset("page.js") + read_asset("enlarge.js") + read_asset("map.js")
    return render(
        "page.html.j2",
        name=_page_name(runs, settings),
        content_security_policy=content_security_policy(style, script),
        style=style,
        script=script,
        data=for_json({"images": embedded.uris, "maps": points.maps, "atlases": points.atlases}),
        verdict=verdict_section(runs, settings),
        settings=settings_section(settings),
        numbers=numbers_section(runs),
        curves=curves_section(runs),
        gallery=gallery,
        map=map_section(points),
        classes=classes_section(runs),
        health=health_section(runs),
        recipe=recipe_section(runs),
        views=views,
        protocol=protocol_section(runs),
        repeat=repeat_section(runs),
    )


def _page_name(runs: Sequence[Run], settings: ComparedSettings | None) -> str:
    if settings is not None:
        return settings.title
    if len(runs) == 1:
        return runs[0].title
    return " / ".join(run.name for run in runs)

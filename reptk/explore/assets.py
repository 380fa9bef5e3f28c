"""The files of the page: its own, the style of reports, and the script of Plotly, which the package `plotly` brings."""

from importlib.resources import files
from importlib.util import find_spec

from reptk.core.errors import EnvironmentProblem

OWN = "reptk.explore"
REPORT = "reptk.report"
PLOTLY = "plotly.min.js"

MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}

SCRIPTS = ("main.js", "map.js", "gallery.js", "server.js", "colors.js", "labels.js", "theme.js")

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        # Plotly compiles the functions that draw by WebGL; nothing of the user's data gets into them.
        "script-src 'self' 'unsafe-eval'",
        # Plotly adds a style sheet for its own elements.
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""The page loads nothing from elsewhere, sends nothing anywhere, and runs no script but those of this server."""


def check_plotly() -> None:
    """Raise EnvironmentProblem unless Plotly is installed."""
    if find_spec("plotly") is None:
        raise EnvironmentProblem(
            "reptk explore draws with plotly, which is not installed: pip install 'reptk[explore]'"
        )


def read_assets() -> dict[str, bytes]:
    """Return the content of all files of the page, by the name under which it is served."""
    own = files(OWN) / "page"
    assets = {name: (own / name).read_bytes() for name in ("explore.html", "explore.css", *SCRIPTS)}
    assets["report.css"] = (files(REPORT) / "page.css").read_bytes()
    assets[PLOTLY] = _plotly_script()
    return assets


def media_type(name: str) -> str:
    """Return the media type of a file of the page."""
    return MEDIA_TYPES[name[name.rindex(".") :]]


def _plotly_script() -> bytes:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().encode()

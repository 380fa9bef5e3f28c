"""Photographs of phones (HEIC), which Pillow reads once pillow-heif is installed and registered."""

from importlib.util import find_spec

HEIF_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
HEIF_FORMAT = "HEIF"


def register_heif() -> bool:
    """Let Pillow open HEIF files; return whether pillow-heif is installed."""
    if find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True

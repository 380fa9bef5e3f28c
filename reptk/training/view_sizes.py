"""Sizes and number of the views of an image."""

from reptk.config import Recipe
from reptk.views import Views

DEFAULT_SIZE_PX = 224
DEFAULT_VIEW_COUNT = 2


def view_sizes_px(views: Views, recipe: Recipe) -> tuple[int, ...]:
    """Return the side in pixels of each view of an image."""
    # Views of a plugin may state neither their sizes nor their count; then the recipe's arguments are taken as such.
    return views.sizes or (recipe.views.get("size", DEFAULT_SIZE_PX),)


def view_count(views: Views, recipe: Recipe) -> int:
    """Return the number of views of an image."""
    return views.count or recipe.views.get("count", DEFAULT_VIEW_COUNT)

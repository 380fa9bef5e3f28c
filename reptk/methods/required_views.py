"""Checks of how many views of an image a method gets."""

from reptk.views import Views


def require_two_views(views: Views) -> None:
    """Check that views are two of one size, for methods that compare them in pairs.

    Raises:
        ValueError: they are not, with what to set.
    """
    if views.count not in (None, 2):
        raise ValueError(f"it compares two views of each image, not {views.count}: set views.count=2")
    if len(set(views.sizes)) > 1:
        sizes = " and ".join(str(size) for size in views.sizes)
        raise ValueError(
            f"it compares two views of one size, not of {sizes} px: use other views, e.g. views.name=simclr"
        )


def require_several_views(views: Views) -> None:
    """Check that every view of an image has another one to be compared with.

    Raises:
        ValueError: there is one view of each image.
    """
    if views.count is not None and views.count < 2:
        raise ValueError("it compares views of one image, and there is one view of each: set views.count=2 or more")

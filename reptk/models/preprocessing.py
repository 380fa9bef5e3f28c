"""How images are resized and cropped before a backbone sees them, as timm records it with the backbone's weights."""

from collections.abc import Mapping
from typing import Any, get_args

from reptk.data.decoding.resize import DEFAULT_PREPROCESSING, Interpolation, Preprocessing
from reptk.models.backbone import full_name, pretrained_cfg

CROP_MODE_OF_RESIZE = {"crop": "center", "pad": "border", "squash": "squash"}
"""What timm calls the ways in which a picture becomes a square."""

_RESIZE_OF_CROP_MODE = {mode: resize for resize, mode in CROP_MODE_OF_RESIZE.items()}


def preprocessing_of(backbone: str) -> Preprocessing:
    """Return the preprocessing that timm records with the weights of a backbone (`timm.data.resolve_data_config`).

    Raises:
        UsageError, DataError, EnvironmentProblem: there is no such backbone, or it cannot be described.
    """
    cfg = pretrained_cfg(full_name(backbone))
    interpolation = cfg.interpolation
    # A few models were trained with "random" or "nearest".
    if interpolation not in get_args(Interpolation):
        interpolation = "bicubic"
    return Preprocessing(
        crop=cfg.crop_pct,
        resize=_RESIZE_OF_CROP_MODE.get(cfg.crop_mode, "crop"),
        interpolation=interpolation,
        reduce_jpeg=False,
    )


def recorded_preprocessing(record: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that a file records by the names of its fields; what is missing has its usual value.

    Raises:
        ValueError: a value is none of those that are possible.
    """
    preprocessing = DEFAULT_PREPROCESSING.updated(record)
    if preprocessing.resize not in CROP_MODE_OF_RESIZE or preprocessing.interpolation not in get_args(Interpolation):
        raise ValueError(f"unknown preprocessing {preprocessing}")
    if not isinstance(preprocessing.crop, int | float) or not 0 < preprocessing.crop <= 1:
        raise ValueError(f"crop must be above 0 and at most 1, got {preprocessing.crop!r}")
    return preprocessing


def with_preprocessing(
    table: dict[str, Any], backbone: str, *, has_weights: bool, is_trained: bool = False
) -> dict[str, Any]:
    """Return the complete table of a data set with the fields of `Preprocessing`, if it has these arguments.

    Args:
        table: of a data set; what is set in it remains.
        backbone: its preprocessing is used where the table sets nothing.
        has_weights: whether the backbone starts from trained weights; otherwise the defaults are used.
        is_trained: whether reptk trains it, or trained it. Large JPEG files are then reduced when they are decoded, since
            decoding would otherwise take longer than training.
    """
    if "interpolation" not in table:
        return table
    preprocessing = DEFAULT_PREPROCESSING
    if has_weights:
        preprocessing = preprocessing_of(backbone)._replace(reduce_jpeg=is_trained)
    return {**table, **preprocessing.updated(table)._asdict()}

"""How images are resized and cropped before a backbone sees them, as timm records it with the backbone's weights."""

from typing import Any, get_args

from reptk.data.resize import DEFAULT_PREPROCESSING, Interpolation, Preprocessing
from reptk.models.backbone import full_name, pretrained_cfg

_RESIZE_OF_CROP_MODE = {"center": "crop", "border": "pad", "squash": "squash"}


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

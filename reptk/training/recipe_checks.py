"""Checks of a recipe's values against the parts that are built from it, with messages that say what to change."""

import warnings

import torch
from torch import nn

from reptk.config import EncoderSection, Recipe, Table
from reptk.config.part_tables import freezes_encoder
from reptk.config.registry import DATASETS
from reptk.core import distributed
from reptk.core.counts import format_count
from reptk.core.errors import DataError, UsageError
from reptk.data import Data
from reptk.methods import Classify, Method, mixing
from reptk.models.backbone import takes_no_other_size
from reptk.models.encoder import Encoder, eval_mode, unfrozen_batch_norms
from reptk.training.view_sizes import DEFAULT_VIEW_COUNT
from reptk.views import ViewPipeline, Views

ADD_LABELS = "Add them (class folders, or a column `label` in a table)"
"""What to do if data needs labels and has none."""


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Refuse a batch that the ranks cannot share."""
    if batch_size % world_size:
        # Rounded down to a multiple, or up if that would be 0.
        nearest = batch_size // world_size * world_size or world_size
        raise UsageError(f"train.batch_size is {batch_size}, which {world_size} ranks cannot share; use {nearest}")


def check_micro_batch_size(micro_batch_size: int | None, norm: str, world_size: int) -> None:
    """Refuse micro-batches of fewer images than ranks, and `train.micro_batch_norm` without micro-batches."""
    if micro_batch_size is None:
        if norm != "refuse":
            raise UsageError(
                f"train.micro_batch_norm is {norm!r}, but there are no micro-batches: set train.micro_batch_size"
            )
    elif micro_batch_size < world_size:
        raise UsageError(
            f"train.micro_batch_size is {micro_batch_size}, fewer images than the {world_size} ranks that share them"
        )


def check_lora(section: EncoderSection) -> None:
    """Refuse settings of LoRA without its rank, which would have no effect."""
    if section.lora_rank:
        return
    for key in ("lora_alpha", "lora_dropout", "lora_layers"):
        value = section.model_dump()[key]
        if value != EncoderSection.model_fields[key].default:
            raise UsageError(f"encoder.{key} is {value!r}, but there is no LoRA: set encoder.lora_rank, e.g. to 8")


def check_evaluated_weights(evaluated_weights: str, ema_decay: float) -> None:
    """Refuse to evaluate a moving average that is not computed."""
    if evaluated_weights == "ema" and not ema_decay:
        raise UsageError(
            "train.evaluated_weights is 'ema', but there is no moving average: set train.ema_decay, e.g. to 0.999"
        )


def check_frozen_encoder(method: Table, section: EncoderSection, layer_decay: float) -> None:
    """Refuse settings of how the encoder is trained with a method that freezes it, where they would have no effect."""
    if not freezes_encoder(method):
        return
    settings = []
    if section.lora_rank:
        settings.append(f"encoder.lora_rank={section.lora_rank}")
    if layer_decay < 1:
        settings.append(f"optim.layer_decay={layer_decay:g}")
    lr_scale = method.get("encoder_lr_scale", 1.0)
    if lr_scale != 1.0:
        settings.append(f"method.encoder_lr_scale={lr_scale}")
    if settings:
        raise UsageError(
            f"method.freeze_encoder=true trains the classifier alone, and {' and '.join(settings)} would have no effect: leave "
            "that out, or set method.freeze_encoder=false"
        )


def check_mixing(method: Method, batch_size: int) -> None:
    """Refuse a batch whose images on one rank cannot be paired by mixup or cutmix."""
    if isinstance(method, Classify) and method.mixing is not None:
        mixing.check_pairs(batch_size // distributed.world_size())


def check_is_trained(method: Method, loss: object, section: EncoderSection) -> None:
    """Refuse an encoder of which nothing is trained, unless the method has layers of its own.

    Args:
        method: of the run.
        loss: of the method; None if it takes none.
        section: the recipe's `[encoder]`.
    """
    of_loss: set[int] = set()
    if isinstance(loss, nn.Module):
        of_loss = set(map(id, loss.parameters()))
    for parameter in method.parameters():
        # Proxies of a loss make no encoder, nor does a scalar, as a learned temperature.
        if parameter.requires_grad and parameter.ndim > 0 and id(parameter) not in of_loss:
            return
    raise UsageError(
        f"nothing would be trained: encoder.freeze is {section.freeze!r}, and with encoder.head_layers={section.head_layers} "
        "there is no head to train on top of the backbone. Freeze fewer layers, or set encoder.head_layers=2"
    )


def check_views(views: Views, recipe: Recipe) -> None:
    """Draw views of an image of the data set's size, so that operations which refuse it do so before training.

    Raises:
        UsageError: they do.
    """
    size_px = recipe.data.get("size") or DATASETS.hint(recipe.data["name"], "size_px")
    if size_px is None or not isinstance(views, ViewPipeline):
        return
    try:
        views(torch.zeros(2, 3, size_px, size_px, dtype=torch.uint8), 0)
    except ValueError as cause:
        raise UsageError(
            f"views: {cause} (the images of {recipe.data['name']} have {size_px} x {size_px} px)"
        ) from cause


@torch.no_grad()
def check_other_sizes(encoder: Encoder, sizes_px: tuple[int, ...]) -> None:
    """Check that views of every size pass through the encoder, which is built for the first size."""
    with eval_mode(encoder):
        for size in sorted(set(sizes_px) - {encoder.config["size"]}):
            try:
                encoder(torch.zeros(1, 3, size, size))
            except Exception as cause:  # timm's models raise various types for sizes that they do not support
                message = takes_no_other_size(encoder.config["backbone"], encoder.config["size"], [size])
                raise UsageError(message) from cause


def check_method(method: object, name: str) -> None:
    """Refuse what a factory returned unless it is a `Method` that defines `forward`."""
    if not isinstance(method, Method):
        raise UsageError(f"method {name!r} is a {type(method).__qualname__}, which must subclass reptk.Method")
    # nn.Module is not an abstract base class, so a missing forward is not noticed before the first step.
    if type(method).forward is Method.forward:
        raise UsageError(f"method {name!r}: {type(method).__qualname__} must define forward(batch, step)")
    if method.classifier is not None and not isinstance(method.classifier, nn.Linear):
        raise UsageError(
            f"method {name!r}: its classifier is a {type(method.classifier).__qualname__}, which must be a torch.nn.Linear"
        )


def check_batch_norm(method: Method, batch_size: int) -> None:
    """Refuse a batch of one image for each rank, from which BatchNorm, e.g. of a predictor, cannot compute a variance."""
    ranks = distributed.world_size()
    if unfrozen_batch_norms(method) and batch_size == ranks:
        raise UsageError(
            f"train.batch_size is {batch_size}, one image for each of {format_count(ranks, 'rank')}, and BatchNorm needs "
            f"several to compute its statistics; use at least {2 * ranks}"
        )


def check_classes(kind: str, part: Table, recipe: Recipe, data: Data) -> None:
    """Refuse data without labels, or of a single class, for a method or a loss that takes the number of classes.

    Args:
        kind: "method" or "loss".
        part: its table in the recipe.
        recipe: of the run.
        data: its data set.
    """
    name, dataset = part["name"], recipe.data["name"]
    if not (data.train.labels >= 0).any():
        does = "classifies images"
        if kind == "loss":
            does = "learns vectors of each class"
        raise DataError(
            f"{kind} {name!r} {does}, but {dataset} has no labels. {ADD_LABELS}, or train without labels, e.g. by the "
            "recipes simclr_folder and tcl_selfsup_folder"
        )
    if len(data.classes) < 2:
        raise DataError(
            f"{kind} {name!r} needs at least 2 classes to tell apart, and {dataset} has {len(data.classes)}"
        )


def check_labels(recipe: Recipe, data: Data) -> None:
    """Refuse data without labels, and warn of classes that give the loss nothing to compare."""
    labels = data.train.labels
    known = labels[labels >= 0]
    if not len(known):
        raise DataError(
            f"method.positives is 'class', but {recipe.data['name']} has no labels. {ADD_LABELS}, or train without "
            "labels: method.positives=instance"
        )
    counts = torch.bincount(known)
    if int((counts > 0).sum()) == 1:
        warnings.warn("there is a single class: with every pair a positive, nothing is pushed apart", stacklevel=2)
    single = int((counts == 1).sum())
    if recipe.views.get("count", DEFAULT_VIEW_COUNT) == 1 and single:
        warnings.warn(
            f"{format_count(single, 'class', 'classes')} of a single image, which never meets a positive", stacklevel=2
        )

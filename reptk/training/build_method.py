"""The method of a recipe, with its encoder, views and loss, on its device."""

from math import ceil
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm

from reptk.config import EncoderSection, Recipe
from reptk.config import build as build_part
from reptk.config.registry import LOSSES, METHODS, VIEWS
from reptk.config.value_schedule import at_start
from reptk.core import distributed
from reptk.core.errors import UsageError
from reptk.methods import Method
from reptk.models.backbone import is_external
from reptk.models.encoder import Encoder
from reptk.training.load_data import in_turns_if
from reptk.training.recipe_checks import (
    check_batch_norm,
    check_is_trained,
    check_method,
    check_mixing,
    check_other_sizes,
)
from reptk.training.view_sizes import view_sizes_px
from reptk.views import ViewPipeline


def build_method(recipe: Recipe, device: torch.device, *, num_classes: int) -> tuple[Method, Any]:
    """Build the recipe's method with its encoder, its views and, if it takes one, its loss; return it and the loss.

    What has a schedule is built with the value of its first step.

    Raises:
        UsageError: a part cannot be built, or cannot run on several ranks.
    """
    train = recipe.train
    views = build_part(VIEWS, recipe.views)
    # A rank must draw what a single process would draw for its images, so views must know which part of the batch they get.
    if views.shard is not None:
        views.shard(distributed.rank(), distributed.world_size())
    elif distributed.world_size() > 1:
        raise UsageError(f"views {recipe.views['name']!r} cannot run on several ranks: they have no shard(rank, world)")
    sizes_px = view_sizes_px(views, recipe)
    # Vision transformers are built for the first size, which is the largest of the shipped views, and used for evaluation.
    encoder = in_turns_if(
        recipe.encoder.pretrained or recipe.encoder.weights or is_external(recipe.encoder.backbone),
        lambda: Encoder(**recipe.encoder.architecture, size=sizes_px[0], other_sizes=sizes_px[1:]),
    )
    _adapt(encoder, recipe.encoder)
    chunks = 1
    if train.micro_batch_size:
        chunks = ceil(train.batch_size / train.micro_batch_size)
        # The method sees that there are chunks. Its BatchNorm layers are checked below, once it has frozen or removed some.
        encoder.encode_in_chunks(chunks, "approximate")
    check_other_sizes(encoder, sizes_px)
    # `build_part` leaves out what the method's factory has no parameter for.
    supplied = {"encoder": encoder, "views": views, "num_classes": num_classes}
    if recipe.loss is not None:
        loss_table = at_start(LOSSES.get(recipe.loss["name"]), recipe.loss)
        # For losses with learned vectors of each class.
        supplied["loss"] = build_part(LOSSES, loss_table, num_classes=num_classes, embedding_dim=encoder.embedding_dim)
    method = build_part(METHODS, at_start(METHODS.get(recipe.method["name"]), recipe.method), **supplied)
    check_method(method, recipe.method["name"])
    encoder.encode_in_chunks(chunks, train.micro_batch_norm)
    check_mixing(method, train.batch_size)
    check_is_trained(method, supplied.get("loss"), recipe.encoder)
    if not train.sync_batchnorm:
        check_batch_norm(method, train.batch_size)
    if train.sync_batchnorm:
        if device.type != "cuda":
            raise UsageError(
                f"train.sync_batchnorm needs CUDA devices, and this run is on {device.type}, where torch cannot compute the "
                "statistics of all ranks; leave it out, or set train.device=cuda"
            )
        method = convert_sync_batchnorm(method)
    method = method.to(device)
    if train.grad_checkpointing:
        encoder.checkpoint_activations()
    if train.compile:
        # In place: torch.compile(module) would return a wrapper, whose state dict has other names.
        encoder.backbone.compile()
        if device.type == "cuda" and isinstance(views, ViewPipeline):
            views.compile()
    if train.channels_last:
        method = method.to(memory_format=torch.channels_last)
    return method, supplied.get("loss")


def _adapt(encoder: Encoder, section: EncoderSection) -> None:
    """Freeze parts of an encoder, or give it LoRA layers, as a recipe says."""
    if section.freeze != "none" or section.freeze_batchnorm:
        encoder.freeze(section.freeze, batch_norm=section.freeze_batchnorm)
    if section.lora_rank:
        encoder.add_lora(
            section.lora_layers, rank=section.lora_rank, alpha=section.lora_alpha, dropout=section.lora_dropout
        )

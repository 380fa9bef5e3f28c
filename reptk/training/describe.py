"""What a run says about its parts before it trains: rows for `Logger.facts`, and notes."""

from typing import Any

from torch import nn

from reptk.config import EncoderSection, Recipe
from reptk.config.part_tables import freezes_encoder
from reptk.config.schema import TrainSection
from reptk.config.value_schedule import ValueSchedule, describe_value
from reptk.core import distributed
from reptk.core.counts import format_count
from reptk.core.metric_names import display_name
from reptk.data import Data
from reptk.data.batches.samplers import ClassSampler
from reptk.methods import Method
from reptk.training.encoder_parameters import trained_encoder
from reptk.training.parts import Parts
from reptk.training.view_sizes import view_count, view_sizes_px

MANY_DROPPED = 0.1
"""Share of the training images which an epoch may leave out without a hint at another batch size."""


def describe(recipe: Recipe, parts: Parts, *, has_data: bool = True) -> list[tuple[str, str, str]]:
    """Describe the parts of a run to its user, as rows (what, name, details) for `Logger.facts`.

    Args:
        recipe: whose numbers are stated.
        parts: what was built from it.
        has_data: False if the parts were built with other images, since those of the recipe are missing.
    """
    data = "cannot be used"
    if has_data:
        data = _describe_data(parts.data)
    train, optim = recipe.train, recipe.optim
    num_views = view_count(parts.evaluation_views, recipe)
    ranks = distributed.world_size()
    batch = f"batch {train.batch_size} (1 rank)"
    if ranks > 1:
        batch = f"batch {train.batch_size} ({format_count(ranks, 'rank')})"
    if parts.loader.sampler.description:
        batch += f", {parts.loader.sampler.description}"
    schedule = f"{optim.name} lr {optim.lr:g}, {optim.schedule}"
    if optim.layer_decay < 1:
        schedule += f", layer decay {optim.layer_decay:g}"
    if isinstance(optim.weight_decay, ValueSchedule):
        schedule += f", weight decay {optim.weight_decay.describe()}"
    precision = parts.settings.precision
    if train.precision == "auto":
        precision = f"{precision} (auto)"
    if parts.settings.evaluates_ema:
        precision += f", moving average {train.ema_decay:g} evaluated"
    rows = [
        ("data", recipe.data["name"], data),
        ("views", f"{recipe.views['name']} x{num_views}", _describe_views(parts, recipe)),
        (
            "encoder",
            recipe.encoder.backbone,
            _describe_encoder(parts.method, is_partly_trained=_is_partly_trained(recipe)) + _adaptation(recipe.encoder),
        ),
        *parts.method.describe(len(parts.data.train)),
        _describe_loss(recipe),
        ("train", format_count(train.epochs, "epoch"), f"{batch}, {schedule}, {precision}, seed {recipe.seed}"),
    ]
    return [*rows, *_final_weights(recipe, parts)]


def random_weights_note(recipe: Recipe) -> list[str]:
    """Say that weights are not trained and random, as a list of at most one line."""
    encoder = recipe.encoder
    has_weights = encoder.pretrained or encoder.weights is not None or recipe.start is not None
    is_method_freezing = freezes_encoder(recipe.method)
    if has_weights or not (encoder.freeze != "none" or encoder.lora_rank or is_method_freezing):
        return []
    key = "encoder.freeze"
    if is_method_freezing:
        key = "method.freeze_encoder"
    elif encoder.lora_rank:
        key = "encoder.lora_rank"
    return [
        f"{key} leaves weights of the backbone untrained, and they are random: to start from pretrained ones, set "
        "encoder.pretrained=true or encoder.weights=FILE"
    ]


def unused_share_note(recipe: Recipe, parts: Parts) -> list[str]:
    """Say that a number of labeled images for each batch has no effect, as a list of at most one line."""
    labeled_per_batch = recipe.train.sampler.labeled_per_batch
    if labeled_per_batch is None or bool((parts.data.train.labels < 0).any()):
        return []
    return [
        f"train.sampler.labeled_per_batch={labeled_per_batch} has no effect, since every training image has a label, and so "
        "has every image of a batch"
    ]


def dropped_images_note(parts: Parts) -> list[str]:
    """Say how many images an epoch leaves out or repeats, as a list of at most one line."""
    dropped, num_images = parts.loader.dropped_per_epoch, len(parts.data.train)
    if isinstance(parts.loader.sampler, ClassSampler):
        return [_composed_epoch_note(parts)]
    if not dropped:
        return []
    note = (
        f"{dropped:,} of {num_images:,} training images are left out of each epoch, others every time: the last batch would be "
        "incomplete"
    )
    if dropped < MANY_DROPPED * num_images:
        return [note]
    better = _batch_size_that_drops_least(num_images, parts.loader.batch_size)
    if num_images % better < dropped:
        note += f". train.batch_size={better} would leave out {num_images % better:,}"
    return [note]


def _composed_epoch_note(parts: Parts) -> str:
    """Say what the first epoch of a sampler that composes batches draws."""
    sampler = parts.loader.sampler
    drawn, counts = sampler.epoch(0).unique(return_counts=True)
    num_repeated = int((counts > 1).sum())
    return (
        f"train.sampler {sampler.description}: an epoch has {sampler.steps_per_epoch:,} steps, as with random batches; the "
        f"first one draws {len(drawn):,} of {len(parts.data.train):,} training images, {num_repeated:,} of them more than once"
    )


def _batch_size_that_drops_least(num_images: int, batch_size: int) -> int:
    """Return the best batch size that the ranks can share between half of this one and this one, the largest of equals."""
    world_size = distributed.world_size()
    candidates = range(batch_size, max(2, batch_size // 2) - 1, -world_size)
    return min(candidates, key=lambda candidate: num_images % candidate)


def _describe_data(data: Data) -> str:
    images = format_count(len(data.train), "training image")
    if data.query:
        images = f"{len(data.train):,} training, {format_count(len(data.query), 'query image')}"
    if not data.classes:
        return f"{images}, no labels"
    num_labeled = int((data.train.labels >= 0).sum())
    if num_labeled < len(data.train):
        images = f"{images}, {num_labeled:,} labeled for training"
    return f"{images}, {format_count(len(data.classes), 'class', 'classes')}"


def _describe_views(parts: Parts, recipe: Recipe) -> str:
    views = parts.evaluation_views
    distinct_sizes = dict.fromkeys(view_sizes_px(views, recipe))
    sizes = " and ".join(map(str, distinct_sizes))
    return f"{sizes} px, {views.description or 'plugin'}, {parts.device}"


def _is_partly_trained(recipe: Recipe) -> bool:
    return recipe.encoder.is_partly_trained or freezes_encoder(recipe.method)


def _describe_encoder(method: Method, *, is_partly_trained: bool) -> str:
    encoder = trained_encoder(method)
    weights = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    head_widths = [str(layer.out_features) for layer in encoder.head if isinstance(layer, nn.Linear)]
    head = "-".join(head_widths) or "none"
    trained = ""
    num_trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    if is_partly_trained and not num_trained:
        trained = " (none trained)"
        if method.classifier is not None:
            num_classifier = sum(parameter.numel() for parameter in method.classifier.parameters())
            trained = f" (none trained; those of the classifier are: {num_classifier:,})"
    elif is_partly_trained:
        trained = f" ({num_trained / 1e6:.3g} M trained)"
    return f"{weights:.1f} M weights{trained}, {encoder.num_features} features, head {head}"


def _adaptation(encoder: EncoderSection) -> str:
    """Return what the recipe says about which weights of the backbone are trained, if that is not all of them."""
    details = ""
    if encoder.freeze != "none":
        details += f", freeze {encoder.freeze}"
    if encoder.freeze_batchnorm:
        details += ", BatchNorm frozen"
    if encoder.lora_rank:
        details += f", LoRA rank {encoder.lora_rank}"
    return details


def _final_weights(recipe: Recipe, parts: Parts) -> list[tuple[str, str, str]]:
    """Return the row about which weights the run ends in, and by which metric they are chosen, if that is not the default."""
    settings = parts.settings
    patience_epochs = settings.early_stopping_epochs
    default = TrainSection.model_fields["final_weights"].default
    if settings.final_weights == default and not patience_epochs:
        return []
    name = settings.final_weights
    if settings.ends_in_best:
        name = "best"
    key = parts.headline_evaluator
    # A classifier and data without labels have evaluators that the recipe does not name.
    evaluator = recipe.eval.get(key, {"name": key})["name"]
    details = []
    if settings.ends_in_best:
        details.append(f"by {display_name(evaluator)} (eval.{key})")
    if patience_epochs:
        details.append(
            f"early stopping after {format_count(patience_epochs, 'epoch')} without a higher {display_name(evaluator)}"
        )
    return [("weights", name, ", ".join(details))]


def _describe_loss(recipe: Recipe) -> tuple[str, str, str]:
    if recipe.loss is None:
        return "method", recipe.method["name"], _arguments(recipe.method)
    details = _arguments(recipe.loss)
    if "positives" in recipe.method:
        positives = f"positives by {recipe.method['positives']}"
        details = f"{details}; {positives}" if details else positives
    if recipe.method["name"] != "contrastive":
        arguments = _arguments({key: value for key, value in recipe.method.items() if key != "positives"})
        details = f"{details}; method {recipe.method['name']}"
        if arguments:
            details = f"{details} ({arguments})"
    return "loss", recipe.loss["name"], details


def _arguments(part: dict[str, Any]) -> str:
    """Return the arguments of a part as one line; flags that are off are left out."""
    return ", ".join(
        f"{key} {describe_value(value)}" for key, value in part.items() if key != "name" and value is not False
    )

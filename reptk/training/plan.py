"""What `--check` says about the batches of a run: positives, samplers and memory."""

from reptk.config import Recipe
from reptk.core import distributed
from reptk.data.batches.batch_plan import plan_batches
from reptk.data.batches.samplers import ClassSampler
from reptk.training.encoder_parameters import trained_encoder
from reptk.training.memory_plan import activation_bytes, free_bytes, memory_line
from reptk.training.parts import Parts
from reptk.training.view_sizes import view_count, view_sizes_px


def plan(recipe: Recipe, parts: Parts) -> list[str]:
    """Return lines about the batches that the recipe trains with, and what to choose instead.

    Args:
        recipe: of the run.
        parts: built from it.
    """
    lines = []
    sampler = parts.loader.sampler
    shape = None
    if isinstance(sampler, ClassSampler):
        shape = sampler.shape
    if shape is not None or recipe.method.get("positives") == "class":
        lines += plan_batches(parts.data.train.labels, batch_size=recipe.train.batch_size, shape=shape)
    lines.append(_memory_line(recipe, parts))
    return lines


def _memory_line(recipe: Recipe, parts: Parts) -> str:
    num_views = view_count(parts.evaluation_views, recipe)
    sizes_px = view_sizes_px(parts.evaluation_views, recipe)
    if len(sizes_px) != num_views:
        sizes_px = sizes_px[:1] * num_views
    measured = {}
    encoder = trained_encoder(parts.method)
    for size_px in set(sizes_px):
        measured[size_px] = activation_bytes(encoder, size_px, parts.settings.precision)
    return memory_line(
        sum(measured[size_px] for size_px in sizes_px),
        free_bytes(parts.device),
        num_views=num_views,
        images_at_once=recipe.train.micro_batch_size or recipe.train.batch_size,
        ranks=distributed.world_size(),
    )

"""What to change if a training step does not fit into memory, without changing what the loss compares."""

from collections.abc import Iterator
from contextlib import contextmanager

from reptk.config import Recipe
from reptk.core.counts import format_count
from reptk.core.memory_errors import is_out_of_memory, memory_problem


@contextmanager
def explain_out_of_memory(recipe: Recipe, *, num_views: int, num_ranks: int) -> Iterator[None]:
    """Turn an error of the block that says that memory is used up into an `EnvironmentProblem`.

    Nothing is made smaller by itself: a contrastive loss compares all images of a batch, so another batch is another loss.

    Args:
        recipe: of the run.
        num_views: views of each image.
        num_ranks: processes that share a batch.
    """
    try:
        yield
    except Exception as cause:
        if is_out_of_memory(cause):
            raise memory_problem(cause, _advice(recipe, num_views, num_ranks)) from cause
        raise


def _advice(recipe: Recipe, num_views: int, num_ranks: int) -> str:
    train = recipe.train
    encoded_at_once = train.micro_batch_size or train.batch_size
    images = format_count(encoded_at_once // num_ranks, "image")
    views = format_count(num_views, "view")
    text = f"{recipe.encoder.backbone} encodes {images} in {views} at once on each rank"
    smaller = encoded_at_once // 2
    if smaller >= num_ranks:
        text += f"; train.micro_batch_size={smaller} encodes half as many, and the gradient is that of the whole batch"
    return (
        f"{text}. Less memory is needed with train.precision=bf16, too, and with smaller views or another backbone. A smaller "
        "train.batch_size changes a contrastive loss, which compares all images of a batch"
    )

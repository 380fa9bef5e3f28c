"""What the parts promise, as checks: for plugin authors, and for reptk's own parts.

    from reptk.testing import check_loss
    check_loss(MyLoss)

A check tries every promise of its kind (`LOSS_PROMISES`, `VIEWS_PROMISES`, `EVALUATOR_PROMISES`) and raises a single
AssertionError with one sentence per broken one. It needs no test runner and leaves torch's random state as it was.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from reptk.core import rng
from reptk.data import Data, Split, generated
from reptk.evaluate import EvalResult, FeatureStore, ImageFeatures
from reptk.views.sets import crop_flip

__all__ = ["check_evaluator", "check_loss", "check_views"]

Loss = Callable[[Tensor, Tensor], Tensor]
Views = Callable[[Tensor, int], Tensor]
Evaluator = Callable[[FeatureStore, Data], EvalResult]


class Promise(NamedTuple):
    """What a part promises, and a function that says what was seen instead, or None."""

    says: str
    breach: Callable[..., str | None]


def check_loss(factory_or_module: Any, *, rows: int = 24, dimension: int = 16) -> None:
    """Hold a loss against `LOSS_PROMISES`.

    Args:
        factory_or_module: a class or function that gives the loss when called without arguments, or the loss itself:
            an `nn.Module`, or any callable of (z (N, D), ids (N,)).
        rows: N of the batches it is tried on, at least 4.
        dimension: D, at least 2.

    Raises:
        AssertionError: one sentence for each broken promise.
        ValueError: too few rows or dimensions.

    Example:
        >>> from reptk.losses import SupCon
        >>> check_loss(SupCon)
    """
    if rows < 4 or dimension < 2:
        raise ValueError(f"rows must be at least 4 and dimension at least 2, got {rows} and {dimension}")
    with rng.seeded("check_loss"):
        _hold(factory_or_module, "a loss", LOSS_PROMISES, _made(factory_or_module), *_batch(rows, dimension))


def check_views(views: Views, *, size: int, random: bool = True) -> None:
    """Hold views against `VIEWS_PROMISES` and those that come with `random`.

    Views without a method `shard(rank, world)` can only run on one process; those with one are left at `shard(0, 1)`.

    Args:
        views: (images (B, 3, H, W) uint8, key) -> (V, B, 3, size, size), or a list of such tensors, the largest first.
        size: side of the views in pixels.
        random: False for views that do not depend on the key.

    Raises:
        AssertionError: one sentence for each broken promise.

    Example:
        >>> from reptk.views.sets import crop_flip
        >>> check_views(crop_flip(size=16), size=16)
    """
    promises = VIEWS_PROMISES + (RANDOM_VIEWS_PROMISES if random else FIXED_VIEWS_PROMISES)
    # Neither square nor of the size asked for, as images are.
    images = torch.randint(256, (6, 3, size + size // 4 + 1, size + 2), generator=rng.generator("check_views"))
    with rng.seeded("check_views"):
        _hold(views, "views", promises, _Together(views), images.to(torch.uint8), size)


def check_evaluator(evaluator: Evaluator) -> None:
    """Hold an evaluator against `EVALUATOR_PROMISES`, on generated images encoded by their pixels.

    What it offers beside `__call__` counts as well: `during_training`, and `needs_labels = False`.

    Raises:
        AssertionError: one sentence for each broken promise.

    Example:
        >>> from reptk.evaluate import Knn
        >>> check_evaluator(Knn())
    """
    data = generated(classes=10, size=8, train=250, bank=250, query=50)
    with rng.seeded("check_evaluator"):
        _hold(evaluator, "an evaluator", EVALUATOR_PROMISES, evaluator, data)


def _hold(part: Any, kind: str, promises: Sequence[Promise], *tried: Any) -> None:
    broken = [f"{says}, but {seen}" for says, breach in promises if (seen := _seen(breach, tried))]
    if broken:
        name = getattr(part, "__qualname__", type(part).__qualname__)
        raise AssertionError(
            f"{name} breaks {len(broken)} of {len(promises)} promises of {kind}:\n" + "\n".join(broken)
        )


def _seen(breach: Callable[..., str | None], tried: Sequence[Any]) -> str | None:
    # Copies, so that a part that writes to its input spoils no other promise.
    copies = [value.clone() if isinstance(value, Tensor) else value for value in tried]
    try:
        return breach(*copies)
    except Exception as error:
        return " ".join(f"it raised {type(error).__name__}: {error}".split())


def _moved(call: Callable[[], Any]) -> str | None:
    with rng.seeded("a state of its own"):
        before = torch.get_rng_state()
        call()
        return None if torch.equal(torch.get_rng_state(), before) else "it has moved"


# Losses


def _made(factory_or_module: Any) -> Loss:
    if isinstance(factory_or_module, type):
        return factory_or_module()
    if isinstance(factory_or_module, nn.Module):
        return factory_or_module
    required = [
        parameter
        for parameter in inspect.signature(factory_or_module).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return factory_or_module if required else factory_or_module()


def _batch(rows: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Rows of uneven lengths in float64; groups of 1, 3, 5, 7, ... rows and a last one of 1, in no order."""
    stream = rng.generator("check_loss", rows, dimension)
    lengths = 0.5 + torch.rand(rows, 1, generator=stream, dtype=torch.float64)
    z = lengths * torch.randn(rows, dimension, generator=stream, dtype=torch.float64)
    ids = torch.arange(rows).double().sqrt().long()
    ids[-1] = rows
    return z, 5 + ids[torch.randperm(rows, generator=stream)]


def _differentiate(loss: Loss, z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    value = loss(z, ids)
    return value.detach(), torch.autograd.grad(value, z)[0]


def _unlike(value: Tensor, expected: Tensor, tolerance: float = 1e-7) -> str | None:
    if torch.allclose(value.double(), expected.double(), rtol=tolerance, atol=tolerance):
        return None
    return f"it gave {value.item():.9g} instead of {expected.item():.9g}"


def _not_a_scalar(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    value = loss(z.float().requires_grad_(), ids)
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        return f"it gave {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
    if not value.isfinite():
        return f"it gave {value.item()}"
    return None if value.requires_grad else "it is detached"


def _wrong_gradient(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    if (dtype := loss(z, ids).dtype) != z.dtype:
        return f"{z.dtype} rows gave {dtype}"
    z, ids = z[:12, :6], ids[:12]
    one_hot = torch.eye(z.shape[1], dtype=z.dtype)[torch.arange(len(z)) % z.shape[1]]
    for name, batch in (("random", z), ("one-hot", one_hot)):
        if not gradcheck(lambda z: loss(z, ids), batch.requires_grad_(), fast_mode=True, raise_exception=False):
            return f"torch.autograd.gradcheck does not agree for {name} rows"
    return None


def _not_finite_on(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., str | None]:
    def breach(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
        value, gradient = _differentiate(loss, *change(z.float(), ids))
        if not value.isfinite():
            return f"the value is {value.item()}"
        broken = int((~gradient.isfinite().all(1)).sum())
        return f"the gradient of {broken} of {len(z)} rows is not finite" if broken else None

    return breach


def _with_zero_row(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    of_the_largest_group = (ids == ids.mode().values).nonzero()[0]
    return z.index_fill(0, of_the_largest_group, 0.0), ids


def _half_precision(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    for dtype in (torch.bfloat16, torch.float16):
        value, gradient = _differentiate(loss, z.to(dtype), ids)
        if torch.promote_types(value.dtype, torch.float32) != value.dtype:
            return f"{dtype} gave {value.dtype}"
        if not gradient.isfinite().all():
            return f"{dtype} gave a gradient that is not finite"
        if seen := _unlike(value, loss(z.to(dtype).float(), ids), 1e-4):
            return f"for {dtype} {seen}"
    return None


def _autocast(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    def under_autocast(z: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(z, ids)

    value, gradient = _differentiate(under_autocast, z.float(), ids)
    expected, expected_gradient = _differentiate(loss, z.float(), ids)
    if torch.promote_types(value.dtype, torch.float32) != value.dtype:
        return f"it gave {value.dtype}"
    if seen := _unlike(value, expected, 1e-4):
        return seen
    agrees = torch.allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-3 * expected_gradient.abs().max().item())
    return None if agrees else "the gradient is another"


def _row_order(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    order = torch.randperm(len(z), generator=rng.generator("order"))
    return _unlike(loss(z[order], ids[order]), loss(z, ids))


def _values_of_ids(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    expected = loss(z, ids)
    # -1 - ids is what unlabelled images get; near 2^62 neighbours are one number to a float.
    for other in (-1 - ids, 2**62 - ids, ids.int()):
        if seen := _unlike(loss(z, other), expected):
            return f"for ids {other.min().item()} to {other.max().item()} {seen}"
    return None


def _scale(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    factors = 10 ** torch.linspace(-3, 3, len(z), dtype=z.dtype)[:, None]
    return _unlike(loss(z * factors, ids), loss(z, ids))


def _no_positive(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    value, gradient = _differentiate(loss, z.float(), torch.arange(len(z)))
    if value != 0:
        return f"it gave {value.item():.6g}"
    return "the gradient is not zero" if gradient.any() else None


def _changed_input(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    given_z, given_ids = z.clone(), ids.clone()
    loss(given_z, given_ids)
    if not torch.equal(given_ids, ids):
        return "ids were written to"
    return None if torch.equal(given_z, z) else "z was written to"


def _not_repeatable(loss: Loss, z: Tensor, ids: Tensor) -> str | None:
    first, again = _differentiate(loss, z, ids), _differentiate(loss, z, ids)
    if not torch.equal(first[0], again[0]):
        return f"it gave {first[0].item():.9g}, then {again[0].item():.9g}"
    return None if torch.equal(first[1], again[1]) else "the gradients differ"


LOSS_PROMISES = (
    Promise("the value is a finite scalar, attached to the graph", _not_a_scalar),
    Promise("the gradient is that of finite differences in float64", _wrong_gradient),
    Promise("groups of uneven size give a finite value and gradient", _not_finite_on(lambda z, ids: (z, ids))),
    Promise(
        "pairs give a finite value and gradient",
        _not_finite_on(lambda z, ids: (z, torch.arange(len(z)) % (len(z) // 2))),
    ),
    Promise(
        "a single group gives a finite value and gradient", _not_finite_on(lambda z, ids: (z, torch.zeros_like(ids)))
    ),
    Promise(
        "identical rows give a finite value and gradient", _not_finite_on(lambda z, ids: (z[:1].expand_as(z), ids))
    ),
    Promise("a row of zeros gives a finite value and gradient", _not_finite_on(_with_zero_row)),
    Promise("a batch without any positive gives 0, attached to the graph, with gradient 0", _no_positive),
    Promise("half precision gives the value of the same rows in float32, in float32 or wider", _half_precision),
    Promise("autocast changes neither value nor gradient, and the value is float32 or wider", _autocast),
    Promise("the order of the rows does not matter", _row_order),
    Promise("only which ids are equal matters", _values_of_ids),
    Promise("the length of a row does not matter", _scale),
    Promise("the input is left as it was", _changed_input),
    Promise("the same input gives the same value and gradient", _not_repeatable),
)
"""What a loss promises, for batches of rows z (N, D) of any length and ids (N,)."""


# Views


class _Together:
    """Views of several sizes as one tensor: smaller ones are set in black."""

    def __init__(self, views: Views) -> None:
        self.views = views
        if hasattr(views, "shard"):
            self.shard = views.shard

    def __call__(self, images: Tensor, key: int) -> Tensor:
        made = self.views(images, key)
        if not isinstance(made, list | tuple):
            return made
        width = made[0].shape[-1]
        return torch.cat([functional.pad(part, [0, width - part.shape[-1]] * 2) for part in made])


def _not_images(views: Views, images: Tensor, size: int) -> str | None:
    made = views(images, 1)
    if not isinstance(made, Tensor) or made.ndim != 5 or made.shape[1:] != (len(images), 3, size, size):
        return f"it gave {tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__}"
    if not made.is_floating_point():
        return f"it gave {made.dtype}"
    # Written this way round, NaN is outside as well.
    return None if ((made >= 0) & (made <= 1)).all() else f"values reach from {made.amin():.4g} to {made.amax():.4g}"


def _not_a_function(views: Views, images: Tensor, size: int) -> str | None:
    with rng.seeded("one state"):
        first = views(images, 1)
    with rng.seeded("another state"):
        again = views(images, 1)
    return None if torch.equal(first, again) else "the second call gave others"


def _not_autocast(views: Views, images: Tensor, size: int) -> str | None:
    with torch.autocast("cpu", torch.bfloat16):
        made = views(images, 1)
    return _unlike_images(made, views(images, 1))


def _key_ignored(views: Views, images: Tensor, size: int) -> str | None:
    first = views(images, 1)
    same = [key for key in (0, 2**62) if torch.equal(views(images, key), first)]
    return f"keys 1 and {same[0]} gave the same" if same else None


def _key_used(views: Views, images: Tensor, size: int) -> str | None:
    first = views(images, 1)
    other = [key for key in (0, 2**62) if not torch.equal(views(images, key), first)]
    return f"keys 1 and {other[0]} gave different ones" if other else None


def _all_alike(views: Views, images: Tensor, size: int) -> str | None:
    made = views(images, 1)
    return "they are" if len(made) > 1 and (made == made[:1]).all() else None


def _changed_images(views: Views, images: Tensor, size: int) -> str | None:
    given = images.clone()
    views(given, 1)
    return None if torch.equal(given, images) else "they were written to"


def _shards(views: Any, images: Tensor, size: int) -> str | None:
    if not hasattr(views, "shard"):
        return None
    whole = views(images, 1)
    try:
        parts = []
        for rank, part in enumerate(images.chunk(2)):
            views.shard(rank, 2)
            parts.append(views(part, 1))
    finally:
        views.shard(0, 1)
    return _unlike_images(torch.cat(parts, 1), whole)


def _unlike_images(made: Tensor, expected: Tensor) -> str | None:
    """Half a grey level apart is the same image: kernels may round differently for another batch size."""
    apart = (made.float() - expected.float()).abs().amax().item()
    return None if apart < 0.5 / 255 else f"pixels differ by up to {apart:.3g}"


VIEWS_PROMISES = (
    Promise("(B, 3, H, W) uint8 gives (V, B, 3, size, size) floats in 0..1", _not_images),
    Promise("the same images and key give the same views, whatever the random state", _not_a_function),
    Promise("autocast does not change them", _not_autocast),
    Promise("torch's random state is left as it was", lambda views, images, size: _moved(lambda: views(images, 1))),
    Promise("the images are left as they were", _changed_images),
    Promise("two ranks with shard(rank, 2) make what one makes of the whole batch", _shards),
)
"""What views promise. Keys are any integers of 63 bits."""

RANDOM_VIEWS_PROMISES = (
    Promise("another key gives other views", _key_ignored),
    Promise("the views of an image are not all alike", _all_alike),
)
"""What views promise besides, if they are random."""

FIXED_VIEWS_PROMISES = (Promise("the key does not matter", _key_used),)
"""What views promise besides, if they are not."""


# Evaluators


def _pixel_features() -> FeatureStore:
    return ImageFeatures(lambda images: images.flatten(1), size_px=8, views=crop_flip(count=1, size=8))


def _not_numbers(evaluator: Evaluator, data: Data) -> str | None:
    result = evaluator(_pixel_features(), data)
    if not isinstance(result, EvalResult):
        return f"it returned {result!r}"
    if not result.metrics:
        return "it returned no metrics"
    for name, value in result.metrics.items():
        if not isinstance(name, str) or not isinstance(value, float) or not math.isfinite(value):
            return f"it returned {name!r}: {value!r}"
    return None


def _unsteady(evaluator: Evaluator, data: Data) -> str | None:
    with rng.seeded("one state"):
        first = dict(evaluator(_pixel_features(), data).metrics)
    with rng.seeded("another state"):
        again = dict(evaluator(_pixel_features(), data).metrics)
    return None if first == again else f"it returned {first}, then {again}"


def _not_leave_one_out(evaluator: Evaluator, data: Data) -> str | None:
    return _not_numbers(evaluator, Data(data.train, data.bank, data.bank, data.classes, data.protocol))


def _needs_labels(evaluator: Evaluator, data: Data) -> str | None:
    if getattr(evaluator, "needs_labels", True):
        return None
    unlabelled = Split(data.train.images, torch.full_like(data.train.labels, -1))
    return _not_numbers(evaluator, Data(unlabelled, None, None, (), data.protocol))


EVALUATOR_PROMISES = (
    Promise("evaluator(features, data) returns an EvalResult, metrics are finite floats", _not_numbers),
    Promise("the same features and data give the same metrics, whatever the random state", _unsteady),
    Promise(
        "torch's random state is left as it was",
        lambda evaluator, data: _moved(lambda: evaluator(_pixel_features(), data)),
    ),
    Promise("the same split as bank and query (leave one out) returns such a result", _not_leave_one_out),
    Promise("with needs_labels = False, data without labels, bank and query give such a result", _needs_labels),
    Promise(
        "during_training, where there is one, returns such a result",
        lambda evaluator, data: _not_numbers(getattr(evaluator, "during_training", evaluator), data),
    ),
)
"""What an evaluator promises."""

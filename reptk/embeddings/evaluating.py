"""Evaluators of recipes on embeddings from files, without an encoder or an image."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from reptk.core.counts import format_count, verb_form
from reptk.core.errors import DataError, NumericalError
from reptk.data import Data, Split
from reptk.embeddings.embeddings import Embeddings
from reptk.evaluate import Evaluation, Evaluator, FeatureStore, run_evaluators
from reptk.evaluate.features import NormalizedFeatures, Progress

CHUNK = 1 << 16
"""Rows whose norm is computed at a time: vectors may be a memory-mapped file."""


class EmbeddingFeatures(FeatureStore):
    """Features that are computed already: a split's images are its vectors (n, F).

    Vectors of unit length are used unchanged, also from a memory-mapped file, in the precision that they have.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self._cache: list[tuple[Split, NormalizedFeatures]] = []

    def features(self, split: Split) -> Tensor:
        for cached_split, rows in self._cache:
            if cached_split is split:
                return rows.unit
        rows = _normalized(split.images)
        self._cache.append((split, rows))
        return rows.unit

    def raw(self, split: Split) -> Tensor:
        return split.images[:].float()  # vectors of several parts become one tensor in memory


def evaluate_embeddings(
    bank: Embeddings,
    queries: Embeddings | None,
    evaluators: Iterable[Evaluator],
    *,
    progress: Progress | None = None,
) -> tuple[Evaluation, Data]:
    """Evaluate embeddings: `queries` in `bank`, or the bank's own rows, each left out of the bank when it is the query.

    Args:
        bank: rows that are searched.
        queries: rows that are searched for; None for those of the bank.
        evaluators: called one after the other.
        progress: called with the stage ("searching"), how many queries are done, and of how many.

    Returns:
        The evaluation, and the data set whose splits its indices refer to.

    Raises:
        DataError: no labels, vectors that are all zeros, or files that do not fit together.
        NumericalError: vectors that are not finite.
        UsageError: an evaluator needs images.
    """
    data = as_data(bank, queries)
    return run_evaluators(EmbeddingFeatures(progress), data, evaluators), data


def as_data(bank: Embeddings, queries: Embeddings | None) -> Data:
    """Return two files, or one, as bank and queries of a data set; labels of the queries count in the bank's classes.

    Raises:
        DataError: no labels, another width or another encoder, or a class that the bank does not have.
    """
    _check_labels("the bank has", bank)
    numbers = _sparse_numbers(bank)
    classes = _class_names(bank, numbers)
    bank_split = Split(bank.vectors, _as_positions(bank.labels, numbers, len(classes)))
    if queries is None:
        protocol = f"{format_count(len(bank), 'embedding')}, each a query in turn and left out of the bank"
        return Data(bank_split, bank_split, bank_split, classes, protocol)
    _check_labels("the queries have", queries)
    bank.check_comparable(queries)
    _warn_of_shared_ids(bank, queries)
    query_split = Split(queries.vectors, _as_positions(_bank_labels(bank, queries), numbers, len(classes)))
    protocol = f"bank {format_count(len(bank), 'embedding')}, queries {format_count(len(queries), 'other')}"
    return Data(bank_split, bank_split, query_split, classes, protocol)


def _normalized(vectors: Tensor) -> NormalizedFeatures:
    norms = []
    for start in range(0, len(vectors), CHUNK):
        norms.append(vectors[start : start + CHUNK].float().norm(dim=1, keepdim=True))
    norm = torch.cat(norms)
    not_finite = (~norm[:, 0].isfinite()).nonzero()[:, 0]
    if len(not_finite):
        raise NumericalError(
            f"{len(not_finite):,} of {format_count(len(vectors), 'embedding')} hold NaN or infinity, or are too long; first "
            f"numbers: {not_finite[:5].tolist()}. Leave them out, or embed those images again"
        )
    zeros = (norm[:, 0] == 0).nonzero()[:, 0]
    if len(zeros):
        raise DataError(
            f"{format_count(len(zeros), 'embedding')} of zeros alone, without a direction; first numbers: "
            f"{zeros[:5].tolist()}"
        )
    # The norm of a stored unit vector is off by the rounding of its type.
    is_unit = (norm - 1).abs().max() < 4 * torch.finfo(vectors.dtype).eps
    if is_unit:
        return NormalizedFeatures(vectors, norm)
    return NormalizedFeatures(vectors.float() / norm, norm)


def _check_labels(subject: str, embeddings: Embeddings) -> None:
    if not (embeddings.labels >= 0).any():
        raise DataError(
            f"{subject} no labels, so there is nothing to evaluate by. Embed class folders, or a CSV with a label column"
        )


def _warn_of_shared_ids(bank: Embeddings, queries: Embeddings) -> None:
    query_ids = set(queries.ids)
    # A warning only: equal ids need not be the same images.
    shared = sum(name in query_ids for name in bank.ids)
    if shared:
        share = verb_form(shared, "shares", "share")
        warnings.warn(
            f"{shared:,} of {format_count(len(queries), 'query', 'queries')} {share} an id with an image in the bank; if they "
            "are the same images, each finds itself. Evaluate one file alone to leave each out in turn",
            stacklevel=4,
        )


def _sparse_numbers(bank: Embeddings) -> Tensor | None:
    """Return the numbers of the classes, sorted, if they are not simply counted from 0.

    Labels are positions in tables with a row for each class. Other programs may have numbered the classes by anything,
    e.g. the numbers of products.
    """
    if bank.classes or int(bank.labels.max()) < len(bank):
        return None
    return torch.unique(bank.labels[bank.labels >= 0])


def _class_names(bank: Embeddings, numbers: Tensor | None) -> tuple[str, ...]:
    if bank.classes:
        return tuple(bank.classes)
    if numbers is None:
        numbers = torch.arange(int(bank.labels.max()) + 1)
    return tuple(f"class {number}" for number in numbers.tolist())


def _as_positions(labels: Tensor, numbers: Tensor | None, num_classes: int) -> Tensor:
    """Return labels as positions among the classes of the bank, -1 for none.

    Raises:
        DataError: a label is of no class of the bank.
    """
    labels = labels.clamp(min=-1)
    positions = labels
    is_unknown = labels >= num_classes
    if numbers is not None:
        positions = torch.searchsorted(numbers, labels).clamp(max=num_classes - 1)
        is_unknown = (numbers[positions] != labels) & (labels >= 0)
        positions = positions.where(labels >= 0, -1)
    if is_unknown.any():
        raise DataError(
            f"there is a label {int(labels[is_unknown][0])}, which is none of {format_count(num_classes, 'class', 'classes')} "
            "of the bank; embed the images again"
        )
    return positions


def _bank_labels(bank: Embeddings, queries: Embeddings) -> Tensor:
    """The queries' labels, numbered as the bank numbers the classes of the same names."""
    if not bank.classes or not queries.classes or bank.classes == queries.classes:
        return queries.labels
    bank_label_of = {name: label for label, name in enumerate(bank.classes)}
    missing = [name for name in queries.classes if name not in bank_label_of]
    if missing:
        raise DataError(f"the queries have classes that the bank lacks: {', '.join(missing[:5])}")
    new_labels = [bank_label_of[name] for name in queries.classes]
    # Label -1, which is no label, picks the last entry and stays -1.
    return torch.tensor([*new_labels, -1])[_as_positions(queries.labels, None, len(queries.classes))]

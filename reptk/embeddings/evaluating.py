"""Embeddings evaluated as they lie in files: the evaluators of recipes, without an encoder or an image."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from reptk.core.errors import DataError
from reptk.data import Data, Split
from reptk.embeddings.store import Embeddings
from reptk.evaluate import Measured, evaluated
from reptk.evaluate.features import Rows


class Given:
    """What evaluators encode with where the features are given: `encode(split)` -> (n, F) rows of unit length.

    Vectors that are of unit length already are used where they lie, in a mapped file or not, and in the precision they have.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.answers = None
        self._kept: list[tuple[Split, Rows]] = []

    def __call__(self, split: Split) -> Tensor:
        """Features of the split."""
        return self._rows(split).unit

    def raw(self, split: Split) -> Tensor:
        """The same as they were given."""
        return split.images.float()

    def _rows(self, split: Split) -> Rows:
        for known, rows in self._kept:
            if known is split:
                return rows
        self._kept.append((split, _unit(split.images)))
        return self._kept[-1][1]


def _unit(vectors: Tensor) -> Rows:
    length = torch.cat([part.float().norm(dim=1, keepdim=True) for part in vectors.split(1 << 16)])
    zero = (length[:, 0] == 0).nonzero()[:, 0]
    if len(zero):
        raise DataError(
            f"{len(zero)} embeddings are all zeros, which have no direction; first numbers: {zero[:5].tolist()}"
        )
    is_unit = (length - 1).abs().max() < 4 * torch.finfo(vectors.dtype).eps
    return Rows(vectors if is_unit else vectors.float() / length, length)


def evaluate_embeddings(
    bank: Embeddings, queries: Embeddings | None, evaluators: Iterable[Any]
) -> tuple[Measured, Data]:
    """Numbers of embeddings: of `queries` in `bank`, or of the bank's own, each left out of the bank in turn.

    Returns:
        What was measured, and the data set in whose splits its rows count.

    Raises:
        DataError: no labels, vectors that are not finite or all zeros, or sets that do not fit together.
        UsageError: an evaluator needs images.
    """
    data = data_of(bank, queries)
    try:
        return evaluated(Given(), data, evaluators), data
    except ValueError as cause:
        raise DataError(f"the embeddings cannot be evaluated: {cause}") from cause


def data_of(bank: Embeddings, queries: Embeddings | None) -> Data:
    """Two files, or one, as bank and queries of a data set; the queries' classes are numbered as the bank's.

    Raises:
        DataError: no labels, another width or another encoder, or a class that the bank does not have.
    """
    _check_labels("the bank has", bank)
    searched = Split(bank.vectors, bank.labels)
    if queries is None:
        said = f"{len(bank):,} embeddings, each a query in turn and left out of the bank"
        return Data(searched, searched, searched, _names(bank), said)
    _check_labels("the queries have", queries)
    bank.check_comparable(queries)
    wanted = set(queries.ids)
    overlap = sum(name in wanted for name in bank.ids)
    if overlap:
        warnings.warn(
            f"{overlap:,} of {len(queries):,} queries have the id of an image in the bank; if they are the same images, each "
            "finds itself. Evaluate one file alone to leave each out in turn",
            stacklevel=3,
        )
    asked = Split(queries.vectors, _renumbered(bank, queries))
    return Data(
        searched, searched, asked, _names(bank), f"bank {len(bank):,} embeddings, queries {len(queries):,} others"
    )


def _check_labels(which: str, given: Embeddings) -> None:
    if not (given.labels >= 0).any():
        raise DataError(
            f"{which} no labels, so there is nothing to evaluate by. Embed class folders, or a CSV with a label column"
        )


def _names(given: Embeddings) -> tuple[str, ...]:
    return tuple(given.classes) or tuple(f"class {label}" for label in range(int(given.labels.max()) + 1))


def _renumbered(bank: Embeddings, queries: Embeddings) -> Tensor:
    """The queries' labels as the bank's numbers of the classes of these names."""
    if not bank.classes or not queries.classes or bank.classes == queries.classes:
        return queries.labels
    numbers = {name: number for number, name in enumerate(bank.classes)}
    strange = [name for name in queries.classes if name not in numbers]
    if strange:
        raise DataError(f"the queries have classes that the bank lacks: {', '.join(strange[:5])}")
    table = torch.tensor([*(numbers[name] for name in queries.classes), -1])
    return table[queries.labels]

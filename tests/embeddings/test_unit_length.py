"""Vectors are normalized where they are not, and refused where they cannot be."""

import pytest
import torch

from embedding_inputs import NAMES, unit_vectors
from reptk.core.errors import DataError
from reptk.embeddings import Embeddings
from reptk.embeddings.unit_length import UnitLengthNormalizer, with_unit_length


def test_vectors_are_brought_to_unit_length() -> None:
    lengths = torch.tensor([[1.0], [2.0], [0.1], [1.0]])
    normalized = with_unit_length(Embeddings(unit_vectors(4) * lengths, ["a", "b", "c", "d"]), "these")
    assert torch.allclose(normalized.vectors, unit_vectors(4), atol=1e-6)
    assert with_unit_length(normalized, "these") is normalized, "vectors of unit length stay as they are"


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "NaN or infinity"), (float("inf"), "NaN"), (0.0, "zero")]
)
def test_vectors_without_a_direction_are_counted_and_named(value: float, message: str) -> None:
    vectors = unit_vectors(7).clone()
    vectors[[1, 2, 4, 6]] = value
    with pytest.raises(DataError, match=f"4 of 7 embeddings of these .*{message}") as error:
        with_unit_length(Embeddings(vectors, NAMES), "these")
    assert f"{NAMES[1]!r}, {NAMES[2]!r}, {NAMES[4]!r}, ..." in str(error.value)


def test_no_vectors_are_no_mistake() -> None:
    UnitLengthNormalizer().check("nothing")

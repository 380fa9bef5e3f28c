"""Arrays where tensors are expected."""

import numpy as np
import pytest
import torch

from reptk.core.arrays import as_tensor


def test_tensors_are_returned_and_arrays_share_their_memory() -> None:
    tensor, array = torch.ones(2), np.ones(2)
    assert as_tensor("x", tensor) is tensor
    as_tensor("x", array)[0] = 5
    assert array[0] == 5
    assert as_tensor("x", [1, 2]).tolist() == [1, 2]


@pytest.mark.parametrize("values", ["text", None, 3, np.array(["a"]), ["a"], [[1], [1, 2]]])
def test_other_things_are_refused_by_name(values: object) -> None:
    with pytest.raises(TypeError, match=r"^labels (must be a tensor|cannot be converted)"):
        as_tensor("labels", values)

"""TCL: what its weights k1 and k2 do."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from loss_batches import LAYOUTS, every_layout, rows
from loss_formulas import assert_same_loss
from reptk.losses import supcon, tcl

pytestmark = pytest.mark.usefixtures("small_tiles")


@every_layout
def test_tcl_without_k1_is_supcon(ids):
    z = rows(len(ids))
    assert_same_loss(partial(tcl, temperature=0.1, k1=0.0, k2=1.0), partial(supcon, temperature=0.1), z, ids)


@pytest.mark.parametrize("k1", [0.0, 1.0, 5000.0])
def test_tcl_without_k2_does_not_compare_classes(k1):
    ids = torch.tensor(LAYOUTS["unsorted"])
    z = rows(len(ids))
    rotation = torch.linalg.qr(rows(z.shape[1], z.shape[1], key=("rotation", 0)))[0]
    one_class_rotated = torch.where((ids == 5)[:, None], z @ rotation, z)
    within_classes = partial(tcl, temperature=0.1, k1=k1, k2=0.0)
    across_classes = partial(tcl, temperature=0.1, k1=k1, k2=1.0)
    assert_close(within_classes(one_class_rotated, ids), within_classes(z, ids), rtol=1e-10, atol=1e-12)
    assert not torch.isclose(across_classes(one_class_rotated, ids), across_classes(z, ids))


@every_layout
@pytest.mark.parametrize("dropped", ["k1", "k2"])
def test_tcl_with_k_0_is_the_limit_of_small_k(ids, dropped):
    z = rows(len(ids))
    weights = {"k1": 2.0, "k2": 2.0}
    small = partial(tcl, temperature=0.2, **weights | {dropped: 1e-14})
    zero = partial(tcl, temperature=0.2, **weights | {dropped: 0})
    assert_same_loss(small, zero, z, ids)

"""VICReg, Barlow Twins and LeJEPA: values and gradients of published code, several ranks, half precision, and the contract."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_embeddings import STEP, build, loss_and_gradient, numbered_batch, on_ranks, random_views
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from reptk.methods import BarlowTwins, LeJEPA, VICReg, lejepa
from reptk.testing import check_method

METHODS = {"vicreg": VICReg, "barlow_twins": BarlowTwins, "lejepa": LeJEPA}
ARGUMENTS = {"vicreg": {}, "barlow_twins": {}, "lejepa": {"num_slices": 16}}
GOLDEN = json.loads(Path(__file__).with_name("golden_methods.json").read_text(encoding="utf-8"))["cases"]

every_method = pytest.mark.parametrize("name", METHODS)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["id"] for case in GOLDEN])
def test_loss_and_gradient_are_the_published_ones(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.tensor(case["z"], dtype=torch.float64)
    counts = None
    if case["method"] == "lejepa":
        directions = torch.tensor(case["directions"], dtype=torch.float64)
        monkeypatch.setattr(lejepa, "random_directions", lambda *arguments, **options: directions)
        if case["large_views"] < len(z):
            counts = (case["large_views"], len(z) - case["large_views"])
    loss, gradient = loss_and_gradient(METHODS[case["method"]], z, counts=counts, **case["args"])
    assert loss.item() == pytest.approx(case["value"], rel=1e-10)
    expected = torch.tensor(case["gradient"], dtype=torch.float64)
    assert_close(gradient, expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item())


SHAPES = {
    "more rows than dimensions": (2, 12, 5),
    "fewer rows than dimensions": (2, 12, 20),
    "three views": (3, 8, 9),
    "one image on each rank": (2, 4, 6),
}


@every_method
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ranks_have_the_loss_and_gradient_of_one_process(
    name: str, shape: tuple[int, int, int], world_size: int
) -> None:
    z = random_views(*shape)
    expected_loss, expected_gradient = loss_and_gradient(METHODS[name], z, **ARGUMENTS[name])
    losses, gradient = on_ranks(METHODS[name], z, world_size, **ARGUMENTS[name])
    for loss in losses:
        assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    assert expected_gradient.abs().max() > 0
    assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10 * expected_gradient.abs().max().item())


@every_method
@pytest.mark.parametrize("dimensions", [48, 80])
def test_float32_is_close_to_float64(name: str, dimensions: int) -> None:
    z = random_views(2, 64, dimensions)
    expected, expected_gradient = loss_and_gradient(METHODS[name], z, **ARGUMENTS[name])
    loss, gradient = loss_and_gradient(METHODS[name], z.float(), **ARGUMENTS[name])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradient.double(), expected_gradient, rtol=0, atol=1e-4 * expected_gradient.abs().max().item())


@every_method
def test_half_precision_of_the_encoder_does_not_round_the_loss(name: str) -> None:
    z = random_views(2, 8, 12).bfloat16()
    expected, _ = loss_and_gradient(METHODS[name], z.float(), **ARGUMENTS[name])
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = loss_and_gradient(METHODS[name], z, **ARGUMENTS[name])
    assert loss.dtype == torch.float32
    assert loss == expected


CONSTANT = {
    "one dimension": torch.where(torch.arange(6) == 2, 0.7, random_views(2, 8, 6)),
    "all embeddings": torch.full((2, 8, 6), 0.7),
    "zeros": torch.zeros(2, 8, 6),
}


@every_method
@pytest.mark.parametrize("z", CONSTANT.values(), ids=CONSTANT)
def test_constant_dimensions_have_a_finite_loss_and_gradient(name: str, z: Tensor) -> None:
    loss, gradient = loss_and_gradient(METHODS[name], z.float(), **ARGUMENTS[name])
    assert loss.isfinite()
    assert gradient.isfinite().all()


@every_method
def test_collapsed_embeddings_have_a_larger_loss(name: str) -> None:
    z = random_views(2, 32, 6)
    spread, _ = loss_and_gradient(METHODS[name], z / z.std(), **ARGUMENTS[name])
    collapsed, _ = loss_and_gradient(METHODS[name], 1e-3 * z, **ARGUMENTS[name])
    if name == "barlow_twins":
        # It sees no scale, but all dimensions the same.
        collapsed, _ = loss_and_gradient(BarlowTwins, z[..., :1].expand_as(z))
    assert collapsed > spread


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@every_method
def test_no_tensor_has_the_size_of_all_pairs_of_dimensions(name: str) -> None:
    """At D = 8192 that would be 268 MB. LeJEPA stores the angles of one t at a time, and two uniform numbers a direction."""
    z = random_views(2, 16, 256).float().repeat(1, 1, 32)
    allowed = z.numel()
    arguments = {}
    if name == "lejepa":
        arguments = {"num_slices": 64}
        allowed = 2 * 64 * z.shape[2]
    with LargestTensor() as largest:
        loss, gradient = loss_and_gradient(METHODS[name], z, **arguments)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert largest.elements <= allowed


def test_angles_of_lejepa_are_stored_for_one_t_at_a_time() -> None:
    z = random_views(2, 64, 8)
    with LargestTensor() as largest:
        loss_and_gradient(LeJEPA, z, num_slices=32, knots=200)
    # The angles, and their means for all t.
    assert largest.elements <= max(2 * 64 * 32, 2 * 2 * 32 * 200)


@every_method
def test_outputs_are_the_terms_and_centered_or_plain_embeddings(name: str) -> None:
    method = build(METHODS[name], random_views(3, 8, 6), None, ARGUMENTS[name])
    outputs = method(numbered_batch(0, 8), STEP)
    assert outputs["z"].shape == (24, 6)
    assert outputs["ids"].tolist() == 3 * list(range(8))
    assert not any(value.requires_grad for key, value in outputs.items() if key != "loss")
    if name == "lejepa":
        assert_close(outputs["z"], method.encoder.z.detach().flatten(0, 1))
    else:
        assert outputs["z"].unflatten(0, (3, 8)).mean(1).abs().max() < 1e-12


@every_method
@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_methods_hold_the_contract(name: str, backbone: str) -> None:
    check_method(METHODS[name], backbone=backbone, **ARGUMENTS[name])


@every_method
def test_one_view_of_each_image_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"there is one view of each: set views\.count=2 or more"):
        build(METHODS[name], random_views(1, 8, 6), None, {})

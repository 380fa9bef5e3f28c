"""DINO: its contract, formula, published values, teacher, center, frozen prototypes, and two ranks."""

import math

import pytest
import torch
from timm.layers import DropPath
from torch.nn import functional

from multi_crop_methods import NUM_LARGE, NUM_SMALL, FixedScores, batch, build, sines, step, train, train_on_ranks
from reptk.methods import DINO, sinkhorn
from reptk.testing import check_method
from reptk.views.sets import crop_flip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_it_keeps_the_contract_of_methods(backbone: str, centering: str) -> None:
    check_method(DINO, backbone=backbone, num_prototypes=12, centering=centering, frozen_epochs=2.0)


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_it_is_its_formula(centering: str) -> None:
    """In float64, pair by pair: a large view of the teacher, another view of the student."""
    method = build(DINO, num_prototypes=6, centering=centering, frozen_epochs=0.0).double()
    train(method, range(2))  # so that teacher, student and center differ
    images = batch(2)
    large, small = method.views(images.images, step(2).key)
    student_weight = functional.normalize(method.prototypes.weight, dim=1)
    teacher_weight = functional.normalize(method.teacher_prototypes.weight, dim=1)

    student = []
    for view in [*large, *small]:
        z = functional.normalize(method.student(view.double()), dim=1)
        student.append((z @ student_weight.T / 0.1).softmax(1))
    scores = []
    for view in large:
        scores.append(functional.normalize(method.encoder(view.double()), dim=1) @ teacher_weight.T)
    if centering == "sinkhorn":
        teacher = sinkhorn(torch.cat(scores), temperature=0.04).chunk(NUM_LARGE)
    else:
        assert method.center.abs().min() > 0
        teacher = [((score - method.center) / 0.04).softmax(1) for score in scores]

    expected, num_terms = 0.0, 0
    for i in range(NUM_LARGE):
        for j in range(NUM_LARGE + NUM_SMALL):
            if i != j:
                expected -= (teacher[i] * student[j].log()).sum(1).mean()
                num_terms += 1
    outputs = method(images, step(2))
    # Views are drawn in float32.
    assert outputs["loss"].item() == pytest.approx(expected.item() / num_terms, rel=1e-5)
    assert outputs["z"].shape == (4 * 4, 8)
    assert "temperature" not in outputs  # there is none that a message could advise to lower
    assert "ids" not in outputs


def test_it_gives_the_values_of_the_published_code() -> None:
    """Of `DINOLoss` in main_dino.py of facebookresearch/dino, in float64 on one process: the loss, and the next center."""
    method = build(DINO, num_prototypes=3).double()
    method.prototypes = FixedScores(sines(8, 3, 0.3))
    method.teacher_prototypes = FixedScores(sines(4, 3, 1.1)).requires_grad_(False)
    method.center.copy_(torch.tensor([0.1, -0.2, 0.05]))
    loss = method(batch(count=2), step())["loss"]
    assert loss.item() == pytest.approx(4.793707597292104, rel=1e-7)
    method.after_step(step())
    expected = torch.tensor([0.11248184675553953, -0.15558610539149048, 0.05986370634947133], dtype=torch.float64)
    torch.testing.assert_close(method.center, expected, atol=1e-7, rtol=0)


def test_the_teacher_sees_the_large_views_alone_and_is_the_exported_one() -> None:
    method = build(DINO, num_prototypes=6)
    sizes = {"student": [], "teacher": []}
    method.student.register_forward_pre_hook(lambda _, images: sizes["student"].append(images[0].shape[-1]))
    method.encoder.register_forward_pre_hook(lambda _, images: sizes["teacher"].append(images[0].shape[-1]))
    method(batch(), step())["loss"].backward()
    assert sizes == {"student": [32, 16], "teacher": [32]}
    trained = {id(parameter) for group in method.parameter_groups() for parameter in group["params"]}
    assert trained == {id(p) for p in [*method.student.parameters(), *method.prototypes.parameters()]}
    assert all(parameter.grad is None for parameter in method.encoder.parameters())


def test_the_teacher_is_the_moving_average() -> None:
    method = build(DINO, num_prototypes=6, momentum=0.9, frozen_epochs=0.0)
    teachers = {"encoder": method.encoder, "teacher_prototypes": method.teacher_prototypes}
    students = {"encoder": method.student, "teacher_prototypes": method.prototypes}
    for name, teacher in teachers.items():
        for parameter in students[name].parameters():
            parameter.data.add_(1.0)
        before = [parameter.clone() for parameter in teacher.parameters()]
        method(batch(), step())
        with torch.no_grad():
            method.after_step(step(5, total=11))
        momentum = 1 - (1 - 0.9) * (math.cos(math.pi / 2) + 1) / 2
        for old, source, new in zip(before, students[name].parameters(), teacher.parameters(), strict=True):
            torch.testing.assert_close(new, momentum * old + (1 - momentum) * source)


def test_prototypes_are_frozen_for_their_epochs_in_spite_of_weight_decay() -> None:
    method = build(DINO, num_prototypes=6, frozen_epochs=1.0)
    before, encoder = method.prototypes.weight.clone(), method.student.backbone.cls_token.clone()
    train(method, range(5))
    assert torch.equal(method.prototypes.weight, before)
    assert not torch.equal(method.student.backbone.cls_token, encoder)
    train(method, range(5, 6))
    assert not torch.allclose(method.prototypes.weight, before)


def test_the_teacher_has_no_stochastic_depth() -> None:
    method = build(DINO, num_prototypes=6, drop_path=0.2)
    rates = {}
    for name in ("student", "encoder"):
        rates[name] = [m.drop_prob for m in method.get_submodule(name).modules() if isinstance(m, DropPath)]
    assert max(rates["student"]) == pytest.approx(0.2)
    assert set(rates["encoder"]) == {0.0}


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_two_ranks_train_what_one_does(centering: str) -> None:
    """Weights, teacher and center, with the global batch divided between the ranks."""
    states = []
    for world_size in (1, 2):
        method = build(DINO, num_prototypes=6, centering=centering, momentum=0.8, frozen_epochs=0.4)
        states.append(train_on_ranks(method, 4, world_size))
    one, two = states
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)


def test_it_needs_several_views() -> None:
    with pytest.raises(ValueError, match=r"there is one view of each: set views\.count=2 or more"):
        DINO(build(DINO, num_prototypes=6).student, crop_flip(count=1, size=16))

"""Feature distillation: its losses, what the teacher sees and how often, ranks, and what a checkpoint holds."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from reptk import Encoder
from reptk.core import rng
from reptk.core.errors import DataError
from reptk.methods import Batch, Distill, Step
from reptk.methods.feature_cache import FeatureCache
from reptk.methods.similarity_loss import similarity_loss
from reptk.testing import check_method
from reptk.testing.simulated_ranks import run_on_ranks
from reptk.views.sets import crop_flip, multi_crop

SIZE_PX = 16
OBJECTIVES = ("similarities", "cosine", "smooth_l1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a trained model."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    with rng.seeded("teacher of the tests"):
        encoder = Encoder("test_resnet", size=16)
        with torch.no_grad():
            # Running statistics and norms other than the initial ones, so that features differ from image to image.
            encoder.train()(torch.rand(8, 3, 16, 16))
    encoder.save(folder)
    return str(folder)


def distill(teacher: str, seed: int = 0, count: int = 2, **arguments: object) -> Distill:
    with rng.seeded("student", seed):
        encoder = Encoder("test_vit", size=SIZE_PX, head_width=32, head_out=8)
        arguments = {"queue_size": 10, "temperature": 0.2, "teacher_temperature": 0.01, **arguments}
        return Distill(encoder, crop_flip(count=count, size=SIZE_PX), teacher, **arguments).train()


def batch(first: int = 0, count: int = 4) -> Batch:
    images = []
    for number in range(first, first + count):
        generator = rng.generator("image", number)
        images.append(torch.randint(256, (3, SIZE_PX, SIZE_PX), generator=generator).to(torch.uint8))
    index = torch.arange(first, first + count)
    return Batch(torch.stack(images), index % 2, index)


def step(number: int = 0, total: int = 10) -> Step:
    return Step(number, total, rng.key("step", number))


def unit(rows: torch.Tensor) -> torch.Tensor:
    return functional.normalize(rows.double(), dim=1)


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Rows as they are stored."""
    return rows.half().double()


# The contract


@pytest.mark.parametrize(
    ("objective", "sees"),
    [("similarities", "image"), ("similarities", "view"), ("cosine", "image"), ("smooth_l1", "view")],
)
def test_distillation_keeps_the_contract_of_methods(objective: str, sees: str, teacher: str) -> None:
    check_method(Distill, teacher=teacher, objective=objective, teacher_sees=sees, queue_size=20)


# The losses


def test_similarity_loss_is_its_formula() -> None:
    """Equation by equation, in float64, for each embedding and each row that it is compared with."""
    generator = rng.generator("rows")
    z, targets, others = (unit(torch.randn(count, 5, generator=generator)) for count in (6, 3, 4))
    expected = 0.0
    for row in range(6):
        student, target = z[row], targets[row % 3]
        student_exps = [torch.exp(student @ other / 0.2) for other in others]
        teacher_exps = [torch.exp(target @ other / 0.05) for other in others]
        for position in range(4):
            p_teacher = teacher_exps[position] / sum(teacher_exps)
            p_student = student_exps[position] / sum(student_exps)
            expected -= (p_teacher * p_student.log()).item() / 6
    loss = similarity_loss(z, targets, others, temperature=0.2, teacher_temperature=0.05)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_an_image_and_a_full_queue_is_that_of_published_code() -> None:
    """jacobswan1/SEED: the feature of the image in front of the queue, and a softmax of the teacher as soft labels."""
    rows = torch.sin(1.7 * torch.arange(6 * 8, dtype=torch.float64)).reshape(6, 8)
    z, target, queue = unit(rows[:1]), unit(rows[1:2]), unit(rows[2:])
    student_logits = torch.cat([(z * target).sum(1, keepdim=True), z @ queue.T], dim=1) / 0.2
    soft_labels = torch.cat([(target * target).sum(1, keepdim=True), target @ queue.T], dim=1).div(0.01).softmax(1)
    expected = -(soft_labels * student_logits.log_softmax(1)).sum(1).mean()
    loss = similarity_loss(z, target, torch.cat([target, queue]), temperature=0.2, teacher_temperature=0.01)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sees", ["image", "view"])
def test_the_loss_is_that_of_projected_features_and_the_teachers(objective: str, sees: str, teacher: str) -> None:
    method = distill(teacher, objective=objective, teacher_sees=sees)
    method(batch(10), step(0))
    method.after_step(step(0))
    drawn = torch.cat(list(method.views(batch().images, step(1).key)))
    projector = method.projector
    z = (method.encoder.features(drawn) @ projector.weight.T + projector.bias).double()
    seen = drawn
    if sees == "image":
        seen = batch().images
    features = method.teacher.features(seen).double()
    if objective == "smooth_l1":
        targets = (features - features.mean(1, keepdim=True)) / features.std(1, keepdim=True, correction=0)
    else:
        targets = unit(features)
    if sees == "image":
        targets = rounded(targets)
    targets_of_views = targets.repeat(len(z) // len(targets), 1)
    if objective == "cosine":
        expected = (1 - (unit(z) * unit(targets_of_views)).sum(1)).mean()
    elif objective == "smooth_l1":
        difference = (z - targets_of_views).abs()
        expected = torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean()
    else:
        # The batch, and what the first step has pushed: initial rows of the queue are not compared with.
        pushed = len(targets)
        others = torch.cat([targets, method.queue.rows[:10].double()[: min(pushed, 10)]])
        teacher_shares = (targets_of_views @ others.T / 0.01).softmax(1)
        expected = -(teacher_shares * (unit(z) @ others.T / 0.2).log_softmax(1)).sum(1).mean()
    outputs = method(batch(), step(1))
    assert outputs["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    cosine = (unit(z) * unit(targets_of_views)).sum(1).mean()
    assert outputs["teacher_cosine"].item() == pytest.approx(cosine.item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_double_student_is_compared_in_float64(objective: str, teacher: str) -> None:
    method = distill(teacher, objective=objective)
    expected = method(batch(), step())["loss"]
    method.encoder.double()
    method.projector.double()
    images = batch()._replace(images=batch().images.double() / 255)
    outputs = method(images, step())
    assert outputs["loss"].dtype == torch.float64
    assert outputs["loss"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_views_of_several_sizes_are_distilled(teacher: str) -> None:
    with rng.seeded("student"):
        encoder = Encoder("test_resnet", size=32)
    views = multi_crop(size=32, small_size=16, count=2, small_count=3)
    for sees in ("image", "view"):
        method = Distill(encoder, views, teacher, teacher_sees=sees, queue_size=10)
        outputs = method(batch(), step())
        assert outputs["loss"].isfinite()
        assert len(outputs["z"]) == 4 * 5


def test_micro_batches_have_the_gradient_of_the_batch(teacher: str) -> None:
    gradients = []
    for chunks in (1, 2):
        method = distill(teacher)
        method.encoder.encode_in_chunks(chunks)
        method(batch(), step())["loss"].backward()
        gradients.append({name: parameter.grad for name, parameter in method.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


# The teacher


def count_seen(method: Distill, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of images in each call of the teacher."""
    counts: list[int] = []
    features = method.teacher.features

    def counted(images: torch.Tensor) -> torch.Tensor:
        counts.append(len(images))
        return features(images)

    monkeypatch.setattr(method.teacher, "features", counted)
    return counts


def test_the_teacher_sees_an_image_once(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = distill(teacher)
    counts = count_seen(method, monkeypatch)
    for number, first in enumerate([0, 2, 0, 4, 1]):
        method(batch(first), step(number))
    assert counts == [4, 2, 2]


def test_the_teacher_sees_every_view(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = distill(teacher, teacher_sees="view", count=3)
    counts = count_seen(method, monkeypatch)
    for number in range(2):
        method(batch(), step(number))
    assert counts == [12, 12]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_stored_features_give_the_losses_of_computed_ones(objective: str, teacher: str) -> None:
    """Whatever was seen before, and next to which images."""
    used, fresh = distill(teacher, objective=objective), distill(teacher, objective=objective)
    for first in (3, 1, 6):
        used(batch(first), step())
    assert torch.equal(used(batch(2), step())["loss"], fresh(batch(2), step())["loss"])


def test_images_that_are_not_square_are_seen_as_their_center_squares(teacher: str) -> None:
    """An image twice as wide as high was squashed: its center square is the middle half, at twice the width."""
    images = batch().images.clone()
    ratios = torch.full((4,), 2.0)
    method = distill(teacher)
    seen = []
    method.teacher.features = lambda images: seen.append(images) or torch.ones(len(images), method.teacher.num_features)
    method(batch()._replace(images=images, aspect_ratios=ratios), step())
    middle = images[..., SIZE_PX // 4 : -SIZE_PX // 4] / 255
    expected = functional.interpolate(middle, (SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[0], expected, atol=0.02, rtol=0)


def test_the_teacher_is_neither_trained_nor_saved(teacher: str) -> None:
    method = distill(teacher)
    features = method.teacher.features(batch().images)
    optimizer = torch.optim.SGD(method.parameter_groups(), lr=0.1)
    for number in range(3):
        method.train()(batch(), step(number))["loss"].backward()
        optimizer.step()
        method.after_step(step(number))
    assert torch.equal(method.teacher.features(batch().images), features)
    assert {name.split(".")[0] for name in method.state_dict()} == {"encoder", "projector", "queue", "teacher_sha256"}
    assert all(name.split(".")[0] in ("encoder", "projector") for name, _ in method.named_parameters())


def test_the_state_of_a_method_with_another_teacher_is_refused(teacher: str, tmp_path: Path) -> None:
    state = distill(teacher).state_dict()
    distill(teacher, seed=1).load_state_dict(state)
    with rng.seeded("another teacher"):
        Encoder("test_resnet", size=32).save(tmp_path / "model")
    other = distill(str(tmp_path / "model"), seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(DataError, match=r"has other weights than when the run was started \(SHA-256 .* train again"):
        other.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_the_description_names_the_teacher_and_what_it_takes(teacher: str) -> None:
    [(what, name, details)] = distill(teacher).describe(1000)
    assert (what, name) == ("teacher", teacher)
    assert "16 px, frozen; sees 1,000 images once, whose features take" in details
    assert "sees every view" in distill(teacher, teacher_sees="view").describe(1000)[0][2]


def test_features_are_stored_by_the_number_of_the_image() -> None:
    cache = FeatureCache(2)
    computed = []

    def compute(positions: torch.Tensor) -> torch.Tensor:
        computed.append(positions.tolist())
        return torch.stack([positions + 0.1, positions - 0.1], dim=1)

    first = cache.get(torch.tensor([7, 2]), compute)
    assert torch.equal(first, torch.tensor([[0.1, -0.1], [1.1, 0.9]]).half().float())
    again = cache.get(torch.tensor([2, 30, 7]), compute)
    assert torch.equal(again[[2, 0]], first)
    assert computed == [[0, 1], [1]]
    assert len(cache) == 3


# Ranks


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sees", ["image", "view"])
def test_two_ranks_have_the_gradient_of_one(objective: str, sees: str, teacher: str) -> None:
    """With a queue that is partly used, and the same rows in it afterwards, in the order of the ranks."""

    def two_steps(method: Distill, images_of: object) -> tuple[dict, torch.Tensor]:
        for number in range(2):
            method.zero_grad()
            method(images_of(number), step(number))["loss"].backward()
            method.after_step(step(number))
        gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
        ids = torch.empty(0)
        if method.queue is not None:
            ids = method.queue.ids
        return gradients, ids

    def on_rank(method: Distill, rank: int) -> tuple[dict, torch.Tensor]:
        method.views.shard(rank, 2)
        return two_steps(method, lambda number: batch(8 * number + 4 * rank, 4))

    method = distill(teacher, objective=objective, teacher_sees=sees, count=1)
    ranks = run_on_ranks(method, on_rank)
    expected, expected_ids = two_steps(method, lambda number: batch(8 * number, 8))
    for name, gradient in expected.items():
        mean = (ranks[0][0][name] + ranks[1][0][name]) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(ids, expected_ids) for _, ids in ranks)

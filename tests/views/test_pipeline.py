"""Views: a pure function of (images, key), the same for any number of ranks, and for each image what kornia does."""

import random
from collections.abc import Callable

import kornia.augmentation as ka
import numpy as np
import pytest
import torch
from kornia.augmentation.auto import AutoAugment
from torch import Tensor

from reptk.config.registry import VIEWS
from reptk.core import rng
from reptk.views import SETS, Operation, ViewPipeline, resize_center_crop, to_float
from reptk.views.operations import luma
from reptk.views.tables import native_operation
from view_references import NEAR, SIZE, custom, patches, photo

JITTER = {"name": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.5}
FLIP = {"name": "RandomHorizontalFlip", "p": 0.5}
CROP = {"name": "RandomResizedCrop", "size": [SIZE, SIZE], "scale": [0.2, 1.0]}
OPERATIONS: dict[str, Operation] = {
    "jitter": JITTER,
    "blur": {"name": "RandomGaussianBlur", "kernel_size": [3, 3], "sigma": [0.1, 2.0], "p": 0.5},
    "affine": {
        "name": "RandomAffine",
        "degrees": 15.0,
        "translate": [0.1, 0.1],
        "scale": [0.8, 1.2],
        "shear": 9.0,
        "p": 0.5,
    },
    "erasing": {"name": "RandomErasing", "p": 0.5},
    "solarize": {"name": "RandomSolarize", "p": 0.5},
    "posterize": {"name": "RandomPosterize", "p": 0.5},
    "perspective": {"name": "RandomPerspective", "p": 0.5},
    "noise": {"name": "RandomGaussianNoise", "p": 0.5},
    "channels": {"name": "RandomChannelShuffle", "p": 0.5},
    "equalize": {"name": "RandomEqualize", "p": 0.5},
    "grayscale": {"name": "RandomGrayscale", "p": 0.5},
    "flip": FLIP,
    "crop": {"name": "RandomCrop", "size": [SIZE, SIZE], "padding": 4},
    "resized crop": CROP,
    "warped crop": {**CROP, "cropping_mode": "resample"},
}
POLICIES = ("cifar10", "svhn", "imagenet")
EVERY = {
    **{name: (name, {"size": SIZE}) for name in SETS},
    "kornia": ("kornia", {"size": SIZE, "operations": [CROP, JITTER, FLIP]}),
}
SHARDED = {
    **EVERY,
    "simclr at 72 px": ("simclr", {"size": 72}),
    **{name: ("kornia", {"size": SIZE, "operations": [operation]}) for name, operation in OPERATIONS.items()},
    **{f"AutoAugment {policy}": ("autoaugment", {"size": SIZE, "policy": policy}) for policy in POLICIES},
}

every = pytest.mark.parametrize("label", EVERY)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """All images are tiny."""


def build(label: str, **overrides: object) -> ViewPipeline:
    name, arguments = SHARDED[label]
    return VIEWS.get(name)(**arguments, **overrides)


def by_ranks(views: ViewPipeline, images: Tensor, key: int, world_size: int) -> Tensor:
    """The views of all ranks, as one batch."""
    parts = [views.shard(rank, world_size)(part, key) for rank, part in enumerate(images.chunk(world_size))]
    views.shard(0, 1)
    return torch.cat(parts, dim=1)


# The key determines the views


def test_every_set_is_registered():
    assert {*SETS, "kornia"} <= set(VIEWS.names())


@every
def test_same_images_and_key_give_the_same_views(label):
    images = patches(8)
    views, before = build(label), images.clone()
    first = views(images, 5)
    assert torch.equal(first, views(images, 5))
    assert torch.equal(first, build(label)(images, 5))
    assert torch.equal(images, before)


@every
def test_another_key_gives_other_views(label):
    views = build(label)
    one, other = views(patches(8), 5), views(patches(8), 6)
    assert torch.equal(one, other) == (label == "none")


@pytest.mark.parametrize("label", [label for label in EVERY if label != "none"])
def test_the_views_of_an_image_differ(label):
    first, second = build(label)(patches(8), 5)
    assert (first != second).flatten(1).any(1).float().mean() > 0.5


@every
def test_the_views_do_not_depend_on_their_count(label):
    five_views = build(label, count=5)(patches(4), 5)
    for count in (1, 2, 3, 5):
        views = build(label, count=count)(patches(4), 5)
        assert views.shape == (count, 4, 3, SIZE, SIZE)
        assert torch.equal(views, five_views[:count])


@every
def test_global_generators_are_unchanged_and_do_not_matter(label):
    views, images = build(label), patches(8)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        results.append(views(images, 5))
        build(label)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(*results)


def test_what_one_operation_draws_does_not_shift_the_next():
    never, always = ({"name": "RandomGrayscale", "p": p} for p in (0.0, 1.0))
    gray_then_flip = custom(always, FLIP)(patches(16), 3)
    flip_then_gray = custom(always)(custom(never, FLIP, count=1)(patches(16), 3)[0], 3)
    assert torch.equal(gray_then_flip[0], flip_then_gray[0])


# One global batch, for any number of ranks


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("label", SHARDED)
def test_ranks_get_slices_of_the_views_of_one_process(label, batch):
    views, images = build(label), patches(batch)
    whole = views(images, 7)
    for world_size in (1, 2, 4):
        assert torch.equal(by_ranks(views, images, 7, world_size), whole), world_size


def test_ranks_that_are_all_rank_0_get_other_views():
    views, images = build("kornia"), patches(8)
    wrong = torch.cat([views.shard(0, 2)(part, 7) for part in images.chunk(2)], dim=1)
    assert not torch.equal(wrong, views.shard(0, 1)(images, 7))


# The third view


def test_third_by_name_and_by_list_change_the_third_view_only():
    images = patches(4)
    usual, by_name, by_list = (
        VIEWS.get("simclr_small")(count=4, size=SIZE, third=third)(images, 5)
        for third in (None, "autoaugment", SETS["autoaugment"](SIZE))
    )
    assert torch.equal(by_name, by_list)
    same = [torch.equal(a, b) for a, b in zip(usual, by_name, strict=True)]
    assert same == [True, True, False, True]
    assert torch.equal(by_name[2], VIEWS.get("autoaugment")(count=3, size=SIZE)(images, 5)[2])


# Each image is changed as by kornia


@pytest.mark.parametrize("batch", [4, 9])
@pytest.mark.parametrize("label", [label for label, table in OPERATIONS.items() if native_operation(table) is None])
def test_an_operation_is_kornias_on_the_whole_batch(label, batch):
    images, key = patches(batch), 11
    table = {name: tuple(value) if isinstance(value, list) else value for name, value in OPERATIONS[label].items()}
    operation = getattr(ka, table.pop("name"))(**table)
    with rng.seeded(rng.key(key, 0, 0), "draw"):
        params = operation.forward_parameters(images.shape)
    is_applied = params["batch_prob"] > 0.5
    with rng.seeded(rng.key(key, 0, 0), "apply"):
        expected = operation(to_float(images), params=params).clamp(0, 1)
    got = custom(OPERATIONS[label], count=1)(images, key)[0]
    assert torch.equal(got, expected)
    assert torch.equal(got[~is_applied], to_float(images)[~is_applied])
    assert not torch.equal(got, custom(OPERATIONS[label], count=1)(images, key + 1)[0])


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_an_operation_is_applied_to_its_share_of_the_images(p):
    images = torch.rand(2000, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    got = custom({"name": "RandomGrayscale", "p": p}, size=8, count=1)(images, 2)[0]
    assert (got != images).flatten(1).any(1).float().mean() == pytest.approx(p, abs=0.04)


def test_operations_that_are_never_drawn_leave_the_image_unchanged():
    never = [{**operation, "p": 0.0} for operation in (JITTER, FLIP, OPERATIONS["blur"])]
    [view] = custom(*never, count=1)(patches(5), 1)
    assert torch.equal(view, resize_center_crop(patches(5), SIZE))
    assert torch.equal(VIEWS.get("none")(count=1, size=SIZE)(patches(5), 1)[0], resize_center_crop(patches(5), SIZE))


@torch.no_grad()
def candidates(policy: str, images: Tensor, key: int) -> Tensor:
    """Every image after every sub-policy, (sub-policies, B, 3, H, W): kornia on the whole batch."""
    results = []
    for number, sub_policy in enumerate(AutoAugment(policy).children()):
        result = to_float(images)
        for position, operation in enumerate(sub_policy):
            with rng.seeded(rng.key(key, number, position), "draw"):
                params = operation.forward_parameters(result.shape)
            result = operation(result, params=params)
        results.append(result.clamp(0, 1))
    return torch.stack(results)


@pytest.mark.parametrize("policy", POLICIES)
def test_autoaugment_applies_one_of_kornias_sub_policies_to_every_image(policy):
    images, key = patches(12), 4
    [got] = custom({"name": "AutoAugment", "policy": policy}, count=1)(images, key)
    matches = (candidates(policy, images, rng.key(key, 0, 0)) == got).flatten(2).all(2)
    assert matches.any(0).all()
    only_one = matches[:, matches.sum(0) == 1]
    assert len(set(only_one.int().argmax(0).tolist())) >= 3
    wrong = (candidates(policy, images, rng.key(key + 1, 0, 0)) == got).flatten(2).all(2)
    assert not wrong.any(0).all()


def test_autoaugment_differs_between_equal_images():
    images = patches(1).expand(64, -1, -1, -1)
    [view] = custom({"name": "AutoAugment", "policy": "imagenet"}, count=1)(images, 4)
    assert len(view.flatten(1).unique(dim=0)) >= 20


def paint(value: float) -> Callable[..., Tensor]:
    """An operation that sets all pixels to one value."""
    return lambda images, *_: torch.full_like(images, value)


def test_autoaugment_chooses_its_sub_policies_equally_often():
    views = custom({"name": "AutoAugment"}, size=8, count=2)
    for [step] in views.steps:
        count = len(step.operation.sequences)
        step.operation.sequences = [[paint(number / 100)] for number in range(count)]
    first, second = (views(torch.zeros(5000, 3, 8, 8), 9)[:, :, 0, 0, 0] * 100).round().int()
    expected = 5000 / count
    for chosen in (first, second):
        assert (chosen.bincount(minlength=count) - expected).abs().max() < 4 * expected**0.5
    assert (first == second).float().mean() < 3 / count


# Any image is accepted, and floats in 0..1 are returned


@every
def test_views_are_float32_in_0_to_1(label):
    views = build(label)(torch.cat([patches(6), torch.zeros_like(patches(1)), torch.full_like(patches(1), 255)]), 5)
    assert views.dtype == torch.float32
    assert views.isfinite().all()
    assert 0 <= views.amin() < views.amax() <= 1


@pytest.mark.parametrize("shape", [(4, 1, 40, 40), (3, 40, 40), (4, 4, 40, 40)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"views are made of images \(B, 3, H, W\), got \("):
        build("simclr")(torch.zeros(shape, dtype=torch.uint8), 0)


@every
def test_bytes_and_floats_give_the_same_views(label):
    of_bytes, of_floats = build(label)(patches(4), 5), build(label)(patches(4).float() / 255, 5)
    torch.testing.assert_close(of_bytes, of_floats, atol=1e-6, rtol=0)


IMAGES: dict[str, Callable[[], Tensor]] = {
    "one image": lambda: patches(1),
    "black": lambda: torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8),
    "gray, expanded": lambda: patches(3)[:, :1].expand(-1, 3, -1, -1),
    "oblong": lambda: photo()[..., :40, :56],
    "larger": lambda: patches(2, 48),
    "smaller": lambda: patches(2, 24),
}


@every
@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_any_kind_are_accepted(label, kind):
    images = IMAGES[kind]()
    views = build(label)(images, 5)
    assert views.shape == (2, len(images), 3, SIZE, SIZE)
    assert views.isfinite().all()


@pytest.mark.parametrize("label", ["simclr", "simclr_small", "digits", "crop_flip"])
def test_gray_stays_gray(label):
    red, green, blue = build(label)(patches(6)[:, :1].expand(-1, 3, -1, -1), 5).unbind(2)
    torch.testing.assert_close(red, green, atol=1e-3, rtol=0)
    torch.testing.assert_close(red, blue, atol=1e-3, rtol=0)


# Mistakes are refused before training


BAD = [
    (
        "unknown name",
        [{"name": "RandomGreyscale"}],
        r"no kornia operation 'RandomGreyscale'\. Nearest: RandomGrayscale",
    ),
    ("lower case", [{"name": "colorjitter"}], "Nearest: ColorJitter"),
    ("no name", [{"p": 0.5}], "no kornia operation"),
    ("not an operation", [{"name": "AugmentationSequential"}], "no kornia operation"),
    ("unknown argument", [{"name": "RandomGrayscale", "q": 0.2}], r"kornia's RandomGrayscale refuses \{'q': 0.2\}"),
    ("missing argument", [{"name": "RandomResizedCrop"}], "kornia's RandomResizedCrop refuses"),
    ("wrong type", [{"name": "ColorJitter", "brightness": "bright"}], "kornia's ColorJitter refuses"),
    ("unknown policy", [{"name": "AutoAugment", "policy": "svnh"}], "'cifar10', 'svhn' or 'imagenet', got 'svnh'"),
    ("another size", [{"name": "CenterCrop", "size": [16, 16]}], "16 x 16 px, but size is 32"),
    ("oblong", [{"name": "Resize", "size": [32, 48]}], "48 x 32 px, but size is 32"),
    ("kernel too large", [{**OPERATIONS["blur"], "kernel_size": [65, 65], "p": 1.0}], "RandomGaussianBlur"),
    (
        "unknown argument of AutoAugment",
        [{"name": "AutoAugment", "polcy": "svhn"}],
        "AutoAugment refuses",
    ),
    (
        "kernel too large, seldom drawn",
        [{**OPERATIONS["blur"], "kernel_size": [65, 65], "p": 0.05}],
        "RandomGaussianBlur",
    ),
    (
        "size changed at times",
        [{"name": "RandomCrop", "size": [16, 16], "p": 0.5}, {"name": "Resize", "size": [32, 32]}],
        "p = 1",
    ),
]


@pytest.mark.parametrize(("case", "operations", "message"), BAD)
def test_bad_operations_are_refused(case, operations, message):
    with pytest.raises(ValueError, match=message):
        custom(*operations)


def test_a_size_changed_at_times_never_reaches_the_encoder():
    def all_keys() -> None:
        views = custom({"name": "RandomCrop", "size": [16, 16], "p": 0.5}, size=16)
        for key in range(8):
            assert views(patches(4), key).shape[-2:] == (16, 16)

    with pytest.raises(ValueError, match="p = 1"):
        all_keys()


def test_images_of_another_size_without_a_resize_are_refused():
    with pytest.raises(ValueError, match="size is 16"):
        custom(FLIP, size=16)(patches(2), 0)


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param({"name": "RandomChannelDropout", "p": 0.5}, id="RandomChannelDropout"),
        pytest.param(
            {"name": "RandomMotionBlur", "kernel_size": 3, "angle": 30.0, "direction": 0.5, "p": 0.5},
            id="RandomMotionBlur",
        ),
    ],
)
def test_operations_with_row_numbers_among_their_parameters(operation):
    views, images = custom(operation), patches(8)
    assert torch.equal(by_ranks(views, images, 7, 2), views(images, 7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 2, "third": "none"}, "third is for the third view, but count is 2"),
        ({"count": 1, "third": [FLIP]}, "count is 1"),
        ({"count": 3, "third": "simlcr"}, "names out of simclr, .*got 'simlcr'"),
        ({"count": 3, "third": [{"name": "CenterCrop", "size": [16, 16]}]}, "16(, | x )16"),
        ({"count": 3, "third": [{"name": "RandomFlip"}]}, "no kornia operation 'RandomFlip'"),
    ],
)
def test_bad_third_views_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VIEWS.get("crop_flip")(size=SIZE, **arguments)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "floats in 0..255": (lambda images: images.float(), r"must lie in 0\.\.1, got \d"),
    "centered floats": (lambda images: images / 255 - 0.5, r"must lie in 0\.\.1, got -0\.5"),
    "int64": (lambda images: images.long(), "got torch.int64"),
    "bool": (lambda images: images > 128, "got torch.bool"),
    "int8": (lambda images: images.to(torch.int8), "got torch.int8"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_images_of_another_range_or_type_are_refused(kind):
    change, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        build("none")(change(patches(2)), 0)


# Who executes the operations


def test_the_simclr_sets_are_fused_whole():
    for name in ("simclr", "simclr_small", "crop_flip", "none"):
        assert VIEWS.get(name)(backend="fused").description == "fused"
    assert VIEWS.get("digits")().description == "fused and kornia"
    assert VIEWS.get("simclr")(backend="kornia").description == "kornia"


@pytest.mark.parametrize(
    "table",
    [
        {"name": "RandomAffine", "degrees": 10.0},
        {"name": "ColorJitter", "brightness": 0.4, "same_on_batch": True},
        {"name": "ColorJitter", "brightness": 0.4, "order": [0, 1, 2, 3]},
        {"name": "RandomResizedCrop", "size": [32, 32], "resample": "nearest"},
        {"name": "RandomResizedCrop", "size": [32, 32], "align_corners": True},
        {"name": "RandomGaussianBlur", "kernel_size": [3, 3], "sigma": [0.1, 2.0], "border_type": "constant"},
        {"name": "RandomCrop", "size": [32, 32], "padding": [1, 2]},
        {"name": "Resize", "size": [32, 32]},
        {"name": "RandomGrayscale", "rgb_weights": [1, 0, 0]},
    ],
)
def test_operations_that_only_kornia_has_are_kornias(table):
    assert native_operation(table) is None
    if table["name"] != "RandomGrayscale":
        assert custom(table).description == "kornia"
        with pytest.raises(ValueError, match=f"{table['name']} with these arguments is kornia's to run"):
            custom(table, backend="fused")


def test_operations_on_both_sides_of_one_of_kornias_run_in_order():
    flip, solarize = {"name": "RandomHorizontalFlip", "p": 1.0}, {"name": "RandomSolarize", "p": 1.0}
    views = custom(flip, solarize, {"name": "RandomGrayscale", "p": 1.0}, count=1)
    assert views.description == "fused and kornia"
    assert [step.description for step in views.steps[0]] == ["fused", "kornia", "fused"]
    assert views.steps[0][1].position == 1
    view, colored = views(patches(4), 3)[0], custom(flip, solarize, count=1)(patches(4), 3)[0]
    torch.testing.assert_close(view, luma(colored).expand_as(view), **NEAR)


# Views of several sizes, and a list for each


def test_multi_crop_gives_large_and_small_views():
    views = VIEWS.get("multi_crop")(count=2, size=48, small_count=3, small_size=24)
    large, small = views(patches(4, 64), 3)
    assert large.shape == (2, 4, 3, 48, 48)
    assert small.shape == (3, 4, 3, 24, 24)
    assert views.size == 48
    assert views.sizes == (48, 48, 24, 24, 24)
    assert views.count == 5


def test_multi_crop_shows_less_in_the_small_ones():
    views = VIEWS.get("multi_crop")(size=48, small_size=24, scale=0.3, small_scale=0.1)
    boxes = [steps[0].sample(3, torch.arange(300), (64, 64))[0] for steps in views.steps]
    areas = [box[:, 2:].prod(1) / 64**2 for box in boxes]
    assert all(area.min() > 0.27 for area in areas[:2])
    assert all(0.08 < area.min() < area.max() < 0.33 for area in areas[2:])
    with pytest.raises(ValueError, match=r"small_scale is 0\.5, more than scale"):
        VIEWS.get("multi_crop")(small_scale=0.5)


def test_a_list_for_each_view():
    flip = [{"name": "RandomHorizontalFlip", "p": 1.0}]
    never = [{"name": "RandomHorizontalFlip", "p": 0.0}]
    first, second, third = VIEWS.get("per_view")(lists=[flip, never, "none"], size=32)(patches(4), 3)
    assert torch.equal(first, second.flip(3))
    assert torch.equal(second, third)
    with pytest.raises(ValueError, match=r"lists takes lists of operations or names out of simclr, .* got 'simlcr'"):
        VIEWS.get("per_view")(lists=["simlcr"])
    with pytest.raises(ValueError, match="for each view"):
        VIEWS.get("per_view")(lists=[])


def test_views_of_several_sizes_need_a_size_each():
    assert isinstance(ViewPipeline([SETS["none"](16), SETS["none"](24)], [16, 24])(patches(2), 0), list)
    with pytest.raises(ValueError, match="24 x 24 px, but size is 16"):
        ViewPipeline([SETS["none"](16), SETS["none"](24)], 16)


def test_lists_and_sizes_have_to_match():
    with pytest.raises(ValueError, match="a size for each, got 0 and 0"):
        ViewPipeline([], size=16)
    with pytest.raises(ValueError, match="a size for each, got 1 and 2"):
        ViewPipeline([[]], size=[16, 16])

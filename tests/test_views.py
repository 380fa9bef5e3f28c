"""Views: a pure function of (images, key), the same for any number of ranks, and to each image what kornia does."""

import functools
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path

import kornia.augmentation as ka
import numpy as np
import pytest
import torch
from kornia.augmentation.auto import AutoAugment
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from reptk.config.registry import VIEWS
from reptk.core import rng
from reptk.views import SETS, Operation, ViewPipeline, resize_center_crop, to_float
from reptk.views.recognised import recognise

SIZE = 32
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
def _quick(one_thread):
    """Tiny work throughout."""


def build(label: str, **more: object) -> ViewPipeline:
    name, arguments = SHARDED[label]
    return VIEWS.get(name)(**arguments, **more)


def custom(*operations: Operation, size: int = SIZE, **more: object) -> ViewPipeline:
    return VIEWS.get("kornia")(operations=list(operations), size=size, **more)


@functools.cache
def photo(file: str = "china.jpg") -> Tensor:
    """A photograph of scikit-learn's, (1, 3, 427, 640) uint8; found without importing scikit-learn."""
    [home] = importlib.util.find_spec("sklearn").submodule_search_locations
    return reference.pil_to_tensor(Image.open(Path(home) / "datasets" / "images" / file))[None]


@functools.cache
def patches(count: int, size: int = SIZE) -> Tensor:
    """Patches from both photographs, (count, 3, size, size) uint8."""
    both = torch.cat([photo("china.jpg"), photo("flower.jpg")])
    places = torch.randint(0, 427 - size, (count, 2), generator=torch.Generator().manual_seed(0)).tolist()
    cut = [both[number % 2, :, top : top + size, left : left + size] for number, (top, left) in enumerate(places)]
    return torch.stack(cut)


def in_parts(views: ViewPipeline, images: Tensor, key: int, world: int) -> Tensor:
    parts = [views.shard(rank, world)(part, key) for rank, part in enumerate(images.chunk(world))]
    views.shard(0, 1)
    return torch.cat(parts, dim=1)


# The key decides


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
    made = {count: build(label, count=count)(patches(4), 5) for count in (1, 2, 3, 5)}
    for count, views in made.items():
        assert views.shape == (count, 4, 3, SIZE, SIZE)
        assert torch.equal(views, made[5][:count])


@every
def test_global_generators_are_left_alone_and_do_not_matter(label):
    views, images = build(label), patches(8)
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        made.append(views(images, 5))
        build(label)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(*made)


def test_what_one_operation_draws_does_not_shift_the_next():
    never, always = ({"name": "RandomGrayscale", "p": p} for p in (0.0, 1.0))
    grey_then_flip = custom(always, FLIP)(patches(16), 3)
    flip_then_grey = custom(always)(custom(never, FLIP, count=1)(patches(16), 3)[0], 3)
    assert torch.equal(grey_then_flip[0], flip_then_grey[0])


# One global batch, whatever the number of ranks


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("label", SHARDED)
def test_ranks_see_slices_of_the_whole(label, batch):
    views, images = build(label), patches(batch)
    whole = views(images, 7)
    for world in (1, 2, 4):
        assert torch.equal(in_parts(views, images, 7, world), whole), world


def test_ranks_that_take_themselves_for_rank_0_see_something_else():
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


# What is done to an image is what kornia does


@pytest.mark.parametrize("batch", [4, 9])
@pytest.mark.parametrize("label", [label for label, table in OPERATIONS.items() if recognise(table) is None])
def test_an_operation_is_kornias_on_the_whole_batch(label, batch):
    images, key = patches(batch), 11
    table = {name: tuple(value) if isinstance(value, list) else value for name, value in OPERATIONS[label].items()}
    operation = getattr(ka, table.pop("name"))(**table)
    with rng.seeded(rng.key(key, 0, 0), "draw"):
        params = operation.forward_parameters(images.shape)
    drew = params["batch_prob"] > 0.5
    with rng.seeded(rng.key(key, 0, 0), "apply"):
        expected = operation(to_float(images), params=params).clamp(0, 1)
    got = custom(OPERATIONS[label], count=1)(images, key)[0]
    assert torch.equal(got, expected)
    assert torch.equal(got[~drew], to_float(images)[~drew])
    assert not torch.equal(got, custom(OPERATIONS[label], count=1)(images, key + 1)[0])


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_an_operation_meets_its_share_of_the_images(p):
    images = torch.rand(2000, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    got = custom({"name": "RandomGrayscale", "p": p}, size=8, count=1)(images, 2)[0]
    assert (got != images).flatten(1).any(1).float().mean() == pytest.approx(p, abs=0.04)


def test_nothing_drawn_is_the_plain_image():
    never = [{**operation, "p": 0.0} for operation in (JITTER, FLIP, OPERATIONS["blur"])]
    [view] = custom(*never, count=1)(patches(5), 1)
    assert torch.equal(view, resize_center_crop(patches(5), SIZE))
    assert torch.equal(VIEWS.get("none")(count=1, size=SIZE)(patches(5), 1)[0], resize_center_crop(patches(5), SIZE))


@torch.no_grad()
def candidates(policy: str, images: Tensor, key: int) -> Tensor:
    """What every sub-policy makes of every image, (sub-policies, B, 3, H, W): kornia on the whole batch."""
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
def test_autoaugment_puts_every_image_through_one_sub_policy_of_kornias(policy):
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


def test_autoaugment_chooses_its_sub_policies_equally_often():
    views = custom({"name": "AutoAugment"}, size=8, count=2)
    for [(_, one_of)] in views.lists:
        count = len(one_of.sequences)
        one_of.sequences = [[lambda part, *_, n=number: torch.full_like(part, n / 100)] for number in range(count)]
    first, second = (views(torch.zeros(5000, 3, 8, 8), 9)[:, :, 0, 0, 0] * 100).round().int()
    expected = 5000 / count
    for chosen in (first, second):
        assert (chosen.bincount(minlength=count) - expected).abs().max() < 4 * expected**0.5
    assert (first == second).float().mean() < 3 / count


# Any image goes in, floats in 0..1 come out


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
    "grey, expanded": lambda: patches(3)[:, :1].expand(-1, 3, -1, -1),
    "oblong": lambda: photo()[..., :40, :56],
    "larger": lambda: patches(2, 48),
    "smaller": lambda: patches(2, 24),
}


@every
@pytest.mark.parametrize("kind", IMAGES)
def test_any_image_goes_in(label, kind):
    images = IMAGES[kind]()
    views = build(label)(images, 5)
    assert views.shape == (2, len(images), 3, SIZE, SIZE)
    assert views.isfinite().all()


@pytest.mark.parametrize("label", ["simclr", "simclr_small", "digits", "crop_flip"])
def test_grey_stays_grey(label):
    red, green, blue = build(label)(patches(6)[:, :1].expand(-1, 3, -1, -1), 5).unbind(2)
    torch.testing.assert_close(red, green, atol=1e-3, rtol=0)
    torch.testing.assert_close(red, blue, atol=1e-3, rtol=0)


# What cannot work is refused before training


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
    assert torch.equal(in_parts(views, images, 7, 2), views(images, 7))


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


# The image as it is


@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("size", [56, 112, 224, 448])
@pytest.mark.parametrize(("height", "width"), [(420, 630), (400, 400), (420, 280)])
def test_plain_is_torchvisions_resize_and_center_crop(height, width, size, crop):
    images = torch.cat([photo("china.jpg"), photo("flower.jpg")])[..., :height, :width]
    short = round(size / crop)
    for upright in (images, images.transpose(2, 3)):
        resized = reference.resize(upright.float() / 255, [short], antialias=True)
        got = resize_center_crop(upright, size, crop)
        torch.testing.assert_close(got, reference.center_crop(resized, [size, size]), atol=1e-5, rtol=0)
        assert torch.equal(got, resize_center_crop(upright.float() / 255, size, crop))


def test_plain_rounds_an_uneven_photo_to_the_nearest_pixel():
    resized = reference.resize(photo().float() / 255, [224, round(224 * 640 / 427)], antialias=True)
    left = (resized.shape[-1] - 224) // 2
    torch.testing.assert_close(resize_center_crop(photo(), 224), resized[..., left : left + 224], atol=1e-5, rtol=0)


def test_plain_leaves_an_image_of_the_size_as_it_is():
    assert torch.equal(resize_center_crop(patches(3), SIZE), patches(3).float() / 255)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "floats in 0..255": (lambda images: images.float(), r"must lie in 0\.\.1, got \d"),
    "centred floats": (lambda images: images / 255 - 0.5, r"must lie in 0\.\.1, got -0\.5"),
    "int64": (lambda images: images.long(), "got torch.int64"),
    "bool": (lambda images: images > 128, "got torch.bool"),
    "int8": (lambda images: images.to(torch.int8), "got torch.int8"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("take", ["to_float", "plain", "views"])
def test_images_of_another_range_or_type_are_refused(take, kind):
    change, message = REFUSED[kind]
    images = change(patches(2))
    with pytest.raises(ValueError, match=message):
        {"to_float": to_float, "plain": lambda x: resize_center_crop(x, SIZE), "views": lambda x: build("none")(x, 0)}[
            take
        ](images)


def test_to_float_takes_bytes_and_unit_floats():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(to_float(images), torch.tensor([0.0, 0.2, 1.0]), atol=0, rtol=0)
    unit = torch.tensor([0.0, 0.2, 1.0])
    assert to_float(unit) is unit
    assert to_float(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)


# Memory that is lent again


def test_memory_is_lent_again_once_nobody_holds_it_and_not_before():
    views, images = build("simclr"), patches(4)
    first = views(images, 1)
    kept, place = first.clone(), first.data_ptr()
    part = first[1, 2:, :, 3:5]  # a view of a view keeps the whole
    expected = part.clone()
    del first
    for key in (2, 3, 4):
        assert views(images, key).data_ptr() != place
    assert torch.equal(part, expected)
    del part
    places = {views(images, key).data_ptr() for key in range(5, 9)}
    assert len(places) == 1
    assert torch.equal(views(images, 1), kept)


def test_memory_that_autograd_holds_is_not_lent():
    views, images = build("simclr_small"), patches(4)
    weight = torch.ones(1, requires_grad=True)
    made = views(images, 1)
    total, expected = (made * weight).sum(), made.sum()
    del made
    views(images, 2)
    total.backward()
    assert weight.grad.item() == pytest.approx(expected.item(), rel=1e-5)

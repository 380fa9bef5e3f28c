"""Views of images that were squashed into squares: their crops are drawn on the full images and have their proportions."""

import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop as Reference
from torchvision.transforms.v2 import functional as reference

from reptk.config.registry import VIEWS
from reptk.views import ViewPipeline, crops_full_images
from reptk.views.crops import CenterSquare, RandomResizedCrop
from view_references import patches, photo

SIZE = 64
WIDE = torch.tensor([1.5])


def squash(picture: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    return reference.resize(picture, [size, size], antialias=True)


def crop(scale: tuple[float, float], size: int = 32) -> dict:
    return {"name": "RandomResizedCrop", "size": [size, size], "scale": list(scale)}


@pytest.mark.parametrize("name", ["simclr", "simclr_small", "multi_crop", "crop_flip", "digits", "none", "autoaugment"])
def test_aspect_ratios_of_one_change_nothing(name):
    views = VIEWS.get(name)(size=32)
    assert crops_full_images(views)
    images = patches(6)
    expected, drawn = views(images, 5), views(images, 5, torch.ones(6))
    if not isinstance(expected, list):
        expected, drawn = [expected], [drawn]
    for one, other in zip(expected, drawn, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [(256, 384), (512, 256), (256, 256)])
def test_boxes_are_distributed_as_torchvisions(size):
    height, width = size
    count = 4000
    u = torch.rand(count, RandomResizedCrop.num_uniforms, generator=torch.Generator().manual_seed(1))
    boxes = RandomResizedCrop((224, 224)).sample(u, (256, 256), torch.full((count,), width / height))
    # From the pixels of the squashed images to those of the pictures.
    boxes = boxes * torch.tensor([height, width, height, width]) / 256
    torch.manual_seed(2)
    picture = torch.zeros(1, height, width)
    drawn = [Reference.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    expected = torch.tensor(drawn, dtype=torch.float32)
    for measure in (box_area, box_ratio, box_middle_row, box_middle_column):
        assert ks_2samp(measure(boxes), measure(expected)).pvalue > 1e-3, measure.__name__


def box_area(boxes):
    return (boxes[:, 2] * boxes[:, 3]).numpy()


def box_ratio(boxes):
    # In steps, since sides are whole pixels.
    return ((boxes[:, 3] / boxes[:, 2]).log() * 20).round().numpy()


def box_middle_row(boxes):
    return (boxes[:, 0] + boxes[:, 2] / 2).numpy()


def box_middle_column(boxes):
    return (boxes[:, 1] + boxes[:, 3] / 2).numpy()


def test_crops_have_the_proportions_of_the_picture():
    """Compared with torchvision's crops of the picture itself, at the boxes that were drawn."""
    picture = photo()[..., :384, :576]
    views = ViewPipeline([[crop((0.2, 0.8))]], 32)
    squashed = squash(picture, 384)
    for key in range(8):
        [[view]] = views(squashed, key, WIDE)
        [step] = views.steps[0]
        [box] = step.sample(key, torch.arange(1), (384, 384), WIDE)[0]
        top, left, height, width = box.tolist()
        expected = reference.resized_crop(
            picture, round(top), round(1.5 * left), round(height), round(1.5 * width), [32, 32], antialias=True
        )
        assert (view - expected / 255).abs().mean() < 0.02


def test_both_ends_of_a_picture_are_seen():
    picture = torch.zeros(1, 3, 60, 120, dtype=torch.uint8)
    picture[..., :20] = 255
    picture[..., -20:] = 255
    views = ViewPipeline([[crop((0.2, 0.4))]], 32)
    brightest = [views(squash(picture), key, torch.tensor([2.0])).amax(0).mean().item() for key in range(20)]
    assert max(brightest) > 0.4
    center = picture[..., 30:90]
    assert max(views(squash(center), key).max().item() for key in range(20)) == 0


def test_a_resize_shows_the_full_image():
    """As torchvision's Resize with two sides, which does not keep proportions."""
    picture = photo()[..., :400, :600]
    expected = reference.resize(picture, [32, 32], antialias=True)
    [[view]] = VIEWS.get("none")(count=1, size=32)(squash(picture, 400), 0, WIDE)
    assert (view - expected / 255).abs().mean() < 0.01


def test_a_crop_behind_a_resize_is_drawn_on_the_picture():
    resize = {"name": "Resize", "size": [96, 96], "antialias": True}
    squashed = squash(photo()[..., :400, :600], 96)
    [[behind]] = ViewPipeline([[resize, crop((0.2, 0.5))]], 32)(squashed, 4, WIDE)
    [step] = ViewPipeline([[resize, crop((0.2, 0.5))]], 32).steps[0]
    count = 500
    boxes = step.sample(4, torch.arange(count), (96, 96), WIDE.repeat(count))[1]
    # Of the pictures, width / height lies in 3/4..4/3.
    ratios = 1.5 * boxes[:, 3] / boxes[:, 2]
    assert 0.7 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.45
    assert not torch.equal(behind, ViewPipeline([[resize, crop((0.2, 0.5))]], 32)(squashed, 4)[0, 0])


def test_views_with_and_without_crops_of_their_own():
    """The center square is for those that cannot be drawn on the picture."""
    blur = {"name": "RandomGaussianBlur", "kernel_size": [3, 3], "sigma": [0.1, 0.1], "p": 1.0}
    resize = {"name": "Resize", "size": [32, 32], "antialias": True}
    squashed = squash(photo()[..., :400, :600], 400)
    whole, center, again = ViewPipeline([[resize], [blur, resize], [resize]], 32)(squashed, 0, WIDE)
    assert torch.equal(whole, again)
    torch.testing.assert_close(whole, ViewPipeline([[resize]], 32)(squashed, 0, WIDE)[0])
    [alone] = ViewPipeline([[blur, resize]], 32)(squashed, 0, WIDE)
    torch.testing.assert_close(center, alone)
    assert (center - whole).abs().mean() > 0.01


def test_center_squares():
    boxes = CenterSquare((60, 60)).sample(torch.empty(3, 0), (60, 60), torch.tensor([0.5, 1.0, 2.0]))
    assert boxes.tolist() == [[15, 0, 30, 60], [0, 0, 60, 60], [0, 15, 60, 30]]


@pytest.mark.parametrize(
    "first",
    [
        {"name": "RandomRotation", "degrees": [0.0, 0.0], "p": 1.0},
        {"name": "RandomGaussianBlur", "kernel_size": [3, 3], "sigma": [0.1, 0.1], "p": 1.0},
    ],
)
def test_an_operation_that_depends_on_proportions_gets_the_center_square(first):
    operations = [first, {"name": "Resize", "size": [32, 32], "antialias": True}]
    picture = photo()[..., :400, :600]
    [[view]] = ViewPipeline([operations], 32)(squash(picture, 400), 0, WIDE)
    [[expected]] = ViewPipeline([operations], 32)(picture[..., 100:500], 0)
    assert (view - expected).abs().mean() < 0.01


def test_flips_and_colors_before_a_crop_leave_it_to_the_picture():
    operations = [{"name": "RandomHorizontalFlip", "p": 1.0}, crop((0.3, 0.5))]
    pipeline = ViewPipeline([operations], 32)
    assert pipeline.steps[0][0].crops_full_images
    squashed = squash(photo()[..., :400, :600], 400)
    with_ratio, without = pipeline(squashed, 3, WIDE), pipeline(squashed, 3)
    assert not torch.equal(with_ratio, without)


@pytest.mark.parametrize("backend", ["kornia", "torch"])
def test_all_backends_agree(backend, monkeypatch):
    images = torch.cat([squash(photo()[..., :400, :600], 96), squash(photo("flower.jpg")[..., :420, :210], 96)])
    aspect_ratios = torch.tensor([1.5, 0.5])
    expected = ViewPipeline([[crop((0.2, 1.0))]] * 2, 32)(images, 7, aspect_ratios)
    if backend == "kornia":
        views = ViewPipeline([[crop((0.2, 1.0))]] * 2, 32, backend="kornia")(images, 7, aspect_ratios)
        # kornia resizes without antialiasing.
        assert (views - expected).abs().mean() < 0.06
    else:
        monkeypatch.setattr("reptk.views.pipeline.load_kernels", lambda module: None)
        views = ViewPipeline([[crop((0.2, 1.0))]] * 2, 32)(images, 7, aspect_ratios)
        torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)


def test_ranks_draw_what_one_process_draws():
    images = torch.cat([squash(photo()[..., :400, :600], 96)] * 4)
    aspect_ratios = torch.tensor([1.5, 1.0, 0.6, 2.0])
    whole = VIEWS.get("simclr")(size=32)(images, 3, aspect_ratios)
    parts = []
    for rank in (0, 1):
        rows = slice(2 * rank, 2 * rank + 2)
        parts.append(VIEWS.get("simclr")(size=32).shard(rank, 2)(images[rows], 3, aspect_ratios[rows]))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=0)


def test_compiled_views_take_them(monkeypatch):
    images = torch.cat([squash(photo()[..., :400, :600], 96)] * 2)
    aspect_ratios = torch.tensor([1.5, 0.7])
    eager, compiled = VIEWS.get("simclr_small")(size=32), VIEWS.get("simclr_small")(size=32)
    monkeypatch.setattr(compiled, "_compute", torch.compile(ViewPipeline._compute_views, backend="eager"))
    torch.testing.assert_close(compiled(images, 3, aspect_ratios), eager(images, 3, aspect_ratios), atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_draws_the_same_views_of_full_images(compiled):
    images = torch.cat([squash(photo()[..., :400, :600], 96)] * 6)
    aspect_ratios = torch.tensor([1.5, 0.7, 2.0, 0.5, 1.0, 1.2])
    expected = VIEWS.get("simclr")(size=64)(images, 3, aspect_ratios)
    views = VIEWS.get("simclr")(size=64)
    if compiled:
        views.compile()
    drawn = views(images.cuda(), 3, aspect_ratios.cuda()).cpu()
    # Resampling is in float16 on a GPU.
    assert (drawn - expected).abs().mean() < 1 / 255

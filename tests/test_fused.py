"""Fused views: the pixels that torchvision makes of a draw, in several forms that agree."""

import math

import pytest
import torch
from test_views import custom, patches, photo
from torch._dynamo.testing import CompileCounter

from fused_runs import CHAIN, JITTER, NEAR, by_torchvision, cut, drawn, rows, run_of
from reptk.config.registry import VIEWS
from reptk.views import SETS, ViewPipeline, colour, fused, room, spatial
from reptk.views.recognised import NEUTRAL, Blur, Crop, Flip, Gray, Jitter, Resize, ResizedCrop, recognise


@pytest.fixture
def torchvisions_luma(monkeypatch):
    """torchvision's first weight of luma is 0.2989, kornia's and ours 0.299."""
    monkeypatch.setattr(colour, "LUMA", (0.2989, 0.587, 0.114))


# Pixels: torchvision's, on the same draw, in float64


@pytest.fixture(params=["kernels", "chunks"])
def form(request, monkeypatch):
    """Both ways in which a CPU makes views: with numba and without."""
    if request.param == "chunks":
        monkeypatch.setattr(fused, "machine_code", lambda: None)
    else:
        assert fused.machine_code() is not None
    return request.param


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([ResizedCrop((40, 40))], id="resized crop"),
        pytest.param([ResizedCrop((12, 12), (0.5, 1.0))], id="resized crop, smaller"),
        pytest.param([ResizedCrop((90, 70), (0.01, 0.1), (0.1, 10.0))], id="resized crop, larger, extreme aspect"),
        pytest.param([Crop((50, 44), 6)], id="padded crop"),
        pytest.param([Resize((33, 71))], id="resize"),
        pytest.param([Resize((56, 48))], id="resize to the same"),
        pytest.param([Flip()], id="flip"),
        pytest.param([Flip(), Flip(upright=True), Flip()], id="flips"),
        pytest.param([ResizedCrop((30, 30)), Flip(), Flip(upright=True)], id="crop and flips"),
        pytest.param([Blur((9, 9), (0.1, 2.0))], id="blur"),
        pytest.param([Blur((3, 95), (0.1, 30.0), 1.0)], id="blur, kernel near the size"),
    ],
)
@pytest.mark.usefixtures("form")
def test_spatial_operations_are_torchvisions(operations):
    images, run = cut(8), run_of(operations)
    draws = run.draw(11, rows(8), (56, 48))
    torch.testing.assert_close(run.apply(images, draws), by_torchvision(images, operations, draws), **NEAR)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("operations", [(JITTER,), (Gray(0.5),), (JITTER, Gray(0.3), JITTER), CHAIN])
def test_exact_colour_is_torchvisions(operations, torchvisions_luma):
    images, run = cut(24), run_of(operations, exact_hue=True)
    draws = run.draw(11, rows(24), (56, 48))
    # torchvision's adjust_hue computes in float32, and what follows it multiplies that rounding.
    torch.testing.assert_close(run.apply(images, draws), by_torchvision(images, operations, draws), atol=5e-6, rtol=0)


@pytest.mark.usefixtures("form")
def test_each_colour_operation_is_torchvisions(torchvisions_luma):
    for kind in range(4):
        ends = [(0.1, 1.9) if kind == other else (1.0, 1.0) for other in range(3)]
        operation = Jitter(*ends, (-0.5, 0.5) if kind == 3 else (0.0, 0.0))
        images, run = cut(12), run_of([operation], exact_hue=True)
        draws = run.draw(kind, rows(12), (56, 48))
        torch.testing.assert_close(run.apply(images, draws), by_torchvision(images, [operation], draws), **NEAR)


def test_our_luma_and_torchvisions_differ_by_a_twentieth_of_a_grey_level():
    images, run = cut(24), run_of(CHAIN, exact_hue=True)
    draws = run.draw(11, rows(24), (56, 48))
    apart = (run.apply(images, draws) - by_torchvision(images, CHAIN, draws)).abs().max()
    assert 0 < apart < 0.15 / 255


@pytest.mark.usefixtures("form")
def test_linear_colour_is_torchvisions_where_nothing_is_cut_and_no_hue_is_shifted(torchvisions_luma):
    mild = Jitter((0.8, 1.1), (0.7, 1.1), (0.5, 1.1), (0.0, 0.0))
    operations = [mild, Gray(0.2), mild]
    images, run = cut(24) * 0.5 + 0.2, run_of(operations)
    draws = run.draw(11, rows(24), (56, 48))
    torch.testing.assert_close(run.apply(images, draws), by_torchvision(images, operations, draws), **NEAR)


def test_linear_hue_keeps_luma_and_greys_and_turns_around():
    images = cut(6) * 0.2 + 0.4
    turns = torch.linspace(-0.4, 0.5, 6, dtype=torch.float64)
    turned = (colour.turned(turns) @ images.flatten(2)).view_as(images)
    torch.testing.assert_close(colour.luma(turned), colour.luma(images), **NEAR)
    greys = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close((colour.turned(turns) @ greys.flatten(2)).view_as(greys), greys, **NEAR)
    torch.testing.assert_close(
        colour.turned(turns) @ colour.turned(-turns), torch.eye(3).double().expand(6, 3, 3), **NEAR
    )
    torch.testing.assert_close(colour.turned(turns[:1] * 0 + 1)[0], torch.eye(3).double(), **NEAR)


def test_how_far_linear_colour_is_from_exact_on_photographs():
    """In grey levels of 255, on colourful parts: SimCLR's jitter at full and at half strength."""
    images = torch.cat([patches(120, 64).double(), cut(40, 64, 64) * 255]) / 255
    seen = {}
    for strength, jitter in ((1.0, JITTER), (0.5, Jitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), 0.8))):
        draws = run_of([jitter]).draw(2, rows(len(images)), (64, 64))
        linear, exact = (run_of([jitter], exact).apply(images, draws) for exact in (False, True))
        apart = 255 * (linear - exact).abs()
        seen[strength] = apart.mean().item(), apart.flatten().quantile(0.95).item()
    assert seen[1.0][0] < 12
    assert seen[0.5][0] < 8
    assert seen[0.5][0] < seen[1.0][0]


# Several forms, one result


@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize(
    "operations",
    [
        pytest.param(CHAIN, id="simclr"),
        pytest.param((JITTER, Gray(0.3), ResizedCrop((70, 30)), JITTER), id="colour before and after"),
        pytest.param((Resize((20, 24)), Crop((20, 24), 3), Flip(), Flip(upright=True)), id="resize, then padded crop"),
        pytest.param((Flip(), Blur((5, 3), (0.1, 2.0)), Resize((90, 100)), Resize((56, 48))), id="back to the same"),
        pytest.param((Gray(0.5),), id="colour alone"),
    ],
)
def test_batches_chunks_and_kernels_agree(operations, exact_hue):
    images, run = cut(16), run_of(operations, exact_hue)
    draws = run.draw(3, rows(16), (56, 48))
    whole = run.on_batch(images, draws).clamp(0, 1)
    for form in (run.by_kernels, run.in_chunks):
        made = torch.empty_like(whole)
        form(images, draws, made)
        torch.testing.assert_close(made, whole, atol=1e-12, rtol=0)


def test_kernels_know_what_changes_nothing():
    assert tuple(fused.machine_code().NEUTRAL) == NEUTRAL


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("exact_hue", [False, True])
def test_kernels_in_single_precision_are_within_a_thousandth_of_a_grey_level(kind, layout, exact_hue):
    images = (255 * cut(16)).round()
    images = images.to(kind) if kind == torch.uint8 else (images / 255).to(kind)
    run = run_of(CHAIN, exact_hue)
    draws = run.draw(3, rows(16), (56, 48))
    expected = run.on_batch(images.double() / (255 if kind == torch.uint8 else 1), draws).clamp(0, 1)
    made = run.apply(images.contiguous(memory_format=layout), draws)
    assert made.dtype == torch.float32
    assert (made - expected).abs().max() < 4e-6


@pytest.mark.usefixtures("form")
def test_what_is_not_a_number_stays_to_be_seen():
    images, run = cut(2), run_of([JITTER, Resize((30, 30)), Blur((3, 3), (1.0, 2.0), 1.0)])
    images[0, :, 3, 5] = math.nan
    made = run(images, rows(2), 3)
    assert made[0].isnan().any()
    assert made[1].isfinite().all()


def test_chunks_of_any_length_agree(monkeypatch):
    images, run = cut(7), run_of(CHAIN)
    draws, whole = run.draw(3, rows(7), (56, 48)), None
    for values in (1, 3 * 56 * 48 * 3, 1 << 30):
        monkeypatch.setattr(fused, "CHUNK_VALUES", values)
        run.in_chunks(images, draws, made := torch.empty(7, 3, 40, 40, dtype=torch.float64))
        whole = made if whole is None else whole
        torch.testing.assert_close(made, whole, atol=1e-12, rtol=0)


def test_branchless_blur_and_hue_are_those_of_the_chosen_images():
    """What a GPU does: all images, whether they drew it or not."""
    images = cut(12)
    blur = Blur((9, 9), (0.1, 2.0))
    sigma = drawn(blur, 3, 12, (56, 48))
    torch.testing.assert_close(
        spatial.blur(images, sigma[:, 0], (9, 9), room.new),
        run_of([blur]).on_batch(images, [sigma]),
        atol=1e-12,
        rtol=0,
    )
    with_none = colour.shift_hue(images, torch.zeros(12, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(with_none, images, atol=1e-12, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_images_does_not_matter(memory_format):
    images = torch.cat([photo(), photo("flower.jpg")])[..., 100:300, 100:320].contiguous()
    views = VIEWS.get("simclr")(size=96)
    made = views(images.contiguous(memory_format=memory_format), 3)
    assert torch.equal(made, views(images, 3))
    assert made.is_contiguous()


@pytest.mark.parametrize("size", [32, 96])
def test_the_number_of_threads_does_not_matter(size):
    views, images = VIEWS.get("simclr")(size=size), patches(9, size + 8)
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            made.append(views(images, 3))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_an_error_in_a_thread_is_raised_here(monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory left")

    views = VIEWS.get("simclr")(size=96)
    monkeypatch.setattr(fused.machine_code(), "resample", fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        views(patches(4, 96), 0)


# Edges


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("name", ["simclr", "simclr_small"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (8, 400)])
def test_images_of_any_shape(shape, name, exact_hue):
    images = torch.randint(256, (5, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for size in (8, 96):
        made = VIEWS.get(name)(size=size, exact_hue=exact_hue)(images, 3)
        assert made.shape == (2, 5, 3, size, size)
        assert ((made >= 0) & (made <= 1)).all()


def test_a_grey_image_stays_grey_and_black_stays_black():
    grey = patches(16, 96)[:, :1].expand(-1, 3, -1, -1)
    for exact in (False, True):
        made = VIEWS.get("simclr")(size=96, exact_hue=exact)(grey, 3)
        assert (made.amax(2) - made.amin(2)).max() < 1e-6
        assert VIEWS.get("simclr")(size=96, exact_hue=exact)(torch.zeros_like(grey), 3).max() == 0


def test_no_images_give_no_views():
    for size in (16, 96):
        assert VIEWS.get("simclr")(size=size)(torch.zeros(0, 3, 40, 40, dtype=torch.uint8), 3).shape == (
            2,
            0,
            3,
            size,
            size,
        )


def test_a_blur_wider_than_the_image_and_a_crop_larger_than_it_say_so():
    with pytest.raises(ValueError, match=r"kernel_size \[65, 65\] needs larger images than 32 x 32"):
        custom({"name": "RandomGaussianBlur", "kernel_size": 65, "sigma": [0.1, 2.0], "p": 0.1})
    views = custom({"name": "RandomCrop", "size": [32, 32], "padding": 2})
    with pytest.raises(ValueError, match=r"24 x 24 px, padded by 2, are smaller than the crop of 32 x 32"):
        views(patches(2, 24), 0)


# What is fused and what is not


def test_the_simclr_sets_are_fused_whole():
    for name in ("simclr", "simclr_small", "crop_flip", "none"):
        assert VIEWS.get(name)(backend="fused").how == "fused"
    assert VIEWS.get("digits")().how == "fused and kornia"
    assert VIEWS.get("simclr")(backend="kornia").how == "kornia"


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
def test_what_is_not_recognised_stays_kornias(table):
    assert recognise(table) is None
    if table["name"] != "RandomGrayscale":
        assert custom(table).how == "kornia"
        with pytest.raises(ValueError, match=f"{table['name']} with these arguments is kornia's to run"):
            custom(table, backend="fused")


def test_operations_on_both_sides_of_one_of_kornias_are_run_in_order():
    flip, solarize = {"name": "RandomHorizontalFlip", "p": 1.0}, {"name": "RandomSolarize", "p": 1.0}
    mixed = custom(flip, solarize, {"name": "RandomGrayscale", "p": 1.0}, count=1)
    assert mixed.how == "fused and kornia"
    assert [position for position, _ in mixed.lists[0]] == [0, 1, 2]
    made, alone = mixed(patches(4), 3)[0], custom(flip, solarize, count=1)(patches(4), 3)[0]
    torch.testing.assert_close(made, colour.luma(alone).expand_as(made), **NEAR)


# The two ways to run, from one draw


@pytest.mark.parametrize(
    "operation",
    [
        {"name": "RandomHorizontalFlip"},
        {"name": "RandomVerticalFlip", "p": 0.3},
        {"name": "ColorJitter", "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8},
        {"name": "RandomGrayscale", "p": 0.4},
        {"name": "RandomGaussianBlur", "kernel_size": [7, 5], "sigma": [0.1, 2.0]},
        {"name": "RandomCrop", "size": [32, 32], "padding": 4},
    ],
    ids=lambda operation: operation["name"],
)
def test_kornia_makes_the_same_of_the_same_draw(operation):
    images = patches(32)
    ours, kornias = (custom(operation, backend=backend, exact_hue=True)(images, 5) for backend in ("fused", "kornia"))
    torch.testing.assert_close(ours, kornias, atol=2e-6, rtol=0)
    assert not torch.equal(ours[0], images / 255)


def test_kornia_crops_where_we_crop():
    """Its resize is another: corners aligned, without antialiasing; what is enlarged looks alike."""
    crop = {"name": "RandomResizedCrop", "size": [32, 32], "scale": [0.2, 0.6]}
    images = patches(16)
    ours, kornias = (custom(crop, backend=backend)(images, 5) for backend in ("fused", "kornia"))
    other_key = custom(crop)(images, 6)
    near, far = ((ours - other).abs().mean() for other in (kornias, other_key))
    assert near < 0.02 < 0.05 < far


# Compiled


@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("name", ["simclr", "simclr_small", "crop_flip"])
def test_compiled_whole_and_once(name, exact_hue):
    """One graph, and after the key has become a variable (the second call) no further compilation."""
    arguments = {"exact_hue": exact_hue} if name != "crop_flip" else {}
    run = VIEWS.get(name)(size=24, count=1, **arguments).lists[0][0][1]
    counter = CompileCounter()
    compiled = torch.compile(lambda images, key: run(images, rows(6), key), backend=counter, fullgraph=True)
    images, counts = patches(6), []
    with torch.no_grad():
        for key in (5, *range(10**12, 10**12 + 20)):
            torch.testing.assert_close(compiled(images, key), run(images, rows(6), key), atol=1e-5, rtol=0)
            counts.append(counter.frame_count)
    assert counts[1] <= 2
    assert counts[-1] == counts[1]


def test_views_are_compiled_as_one_graph():
    views, counter, images = VIEWS.get("simclr")(size=24), CompileCounter(), patches(6)
    compiled = torch.compile(views.__call__, backend=counter, fullgraph=True)
    for key in (5, 10**15, 2**63 - 1, 3):
        torch.testing.assert_close(compiled(images, key), views(images, key), atol=1e-5, rtol=0)
    assert counter.frame_count <= 2


def test_only_what_is_fused_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda make: lambda *given: "compiled")
    fused_views, kornias = (VIEWS.get("simclr")(size=24, backend=backend) for backend in ("fused", "kornia"))
    before = kornias(patches(4), 3)
    for views in (fused_views, kornias):
        views.compile()
    assert fused_views(patches(4), 3) == "compiled"
    assert torch.equal(kornias(patches(4), 3), before)


@pytest.mark.gpu
@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("size", [32, 224])
def test_nothing_waits_for_the_gpu_and_the_views_are_those_of_the_cpu(nothing_waits, size, exact_hue):
    views, images = VIEWS.get("simclr")(size=size, exact_hue=exact_hue), patches(8, 256)
    there = images.cuda()
    views(there, 1)
    with nothing_waits():
        made = views(there, 2)
    apart = (made.cpu() - views(images.float() / 255, 2)).abs()
    assert apart.max() < 8e-3  # products in float16, whose rounding the jitter can multiply
    assert apart.mean() < 2e-4


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
def test_views_compile_for_the_gpu():
    views, images = VIEWS.get("simclr")(size=32), patches(8, 64).cuda()
    compiled = torch.compile(views.__call__, fullgraph=True)
    for key in (5, 10**15, 2**63 - 1):
        torch.testing.assert_close(compiled(images, key), views(images, key), atol=8e-3, rtol=0)


# ViewPipeline of several sizes, and a list for each


def test_multi_crop_gives_large_and_small_views():
    views = VIEWS.get("multi_crop")(count=2, size=48, small_count=3, small_size=24)
    large, small = views(patches(4, 64), 3)
    assert large.shape == (2, 4, 3, 48, 48)
    assert small.shape == (3, 4, 3, 24, 24)
    assert views.size == 48
    assert views.count == 5


def test_multi_crop_shows_less_in_the_small_ones():
    views = VIEWS.get("multi_crop")(size=48, small_size=24, scale=0.3, small_scale=0.1)
    boxes = [steps[0][1].draw(3, rows(300), (64, 64))[0] for steps in views.lists]
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

"""The backends: what torchvision computes with the same parameters, in several forms that agree."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from reptk.config.registry import VIEWS
from reptk.core.numba_jit import load_kernels
from reptk.views import operations, pipeline
from reptk.views.backends import torch_backend
from reptk.views.crops import RandomCrop, RandomResizedCrop, Resize
from reptk.views.operations import ColorJitter, RandomFlip, RandomGaussianBlur, RandomGrayscale
from reptk.views.pipeline import BatchRows
from view_references import (
    CHAIN,
    JITTER,
    NEAR,
    by_torchvision,
    custom,
    float64_patches,
    patches,
    photo,
    sample,
    step_of,
)

SHAPE = (56, 48)


@pytest.fixture
def torchvision_luma(monkeypatch):
    """torchvision's first weight of luma is 0.2989, kornia's and reptk's 0.299."""
    monkeypatch.setattr(operations, "LUMA", (0.2989, 0.587, 0.114))


@pytest.fixture(params=["numba", "torch"])
def cpu_backend(request, monkeypatch):
    """Both backends that run on a CPU."""
    if request.param == "torch":
        monkeypatch.setattr(pipeline, "load_kernels", lambda module: None)
    else:
        assert load_kernels("reptk.views.backends.numba_backend") is not None
    return request.param


def numba_backend():
    return load_kernels("reptk.views.backends.numba_backend")


def run(step, images, params):
    return step.choose_backend(images).run(images, params)


# torchvision's pixels, with the same parameters, in float64


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([RandomResizedCrop((40, 40))], id="resized crop"),
        pytest.param([RandomResizedCrop((12, 12), (0.5, 1.0))], id="resized crop, smaller"),
        pytest.param(
            [RandomResizedCrop((90, 70), (0.01, 0.1), (0.1, 10.0))], id="resized crop, larger, extreme aspect"
        ),
        pytest.param([RandomCrop((50, 44), 6)], id="padded crop"),
        pytest.param([Resize((33, 71))], id="resize"),
        pytest.param([Resize((56, 48))], id="resize to the same"),
        pytest.param([RandomFlip()], id="flip"),
        pytest.param([RandomFlip(), RandomFlip(is_vertical=True), RandomFlip()], id="flips"),
        pytest.param([RandomResizedCrop((30, 30)), RandomFlip(), RandomFlip(is_vertical=True)], id="crop and flips"),
        pytest.param([RandomGaussianBlur((9, 9), (0.1, 2.0))], id="blur"),
        pytest.param([RandomGaussianBlur((3, 95), (0.1, 30.0), 1.0)], id="blur, kernel near the size"),
    ],
)
@pytest.mark.usefixtures("cpu_backend")
def test_spatial_operations_are_torchvisions(operations):
    images, step = float64_patches(8), step_of(operations)
    params = step.sample(11, torch.arange(8), SHAPE)
    torch.testing.assert_close(run(step, images, params), by_torchvision(images, operations, params), **NEAR)


@pytest.mark.usefixtures("cpu_backend", "torchvision_luma")
@pytest.mark.parametrize(
    "operations", [(JITTER,), (RandomGrayscale(0.5),), (JITTER, RandomGrayscale(0.3), JITTER), CHAIN]
)
def test_exact_color_is_torchvisions(operations):
    images, step = float64_patches(24), step_of(operations, exact_hue=True)
    params = step.sample(11, torch.arange(24), SHAPE)
    # torchvision's adjust_hue computes in float32, and what follows it multiplies that rounding.
    torch.testing.assert_close(run(step, images, params), by_torchvision(images, operations, params), atol=5e-6, rtol=0)


@pytest.mark.usefixtures("cpu_backend", "torchvision_luma")
def test_each_color_operation_is_torchvisions():
    for kind in range(4):
        factor_ranges = [(0.1, 1.9) if kind == other else (1.0, 1.0) for other in range(3)]
        operation = ColorJitter(*factor_ranges, (-0.5, 0.5) if kind == 3 else (0.0, 0.0))
        images, step = float64_patches(12), step_of([operation], exact_hue=True)
        params = step.sample(kind, torch.arange(12), SHAPE)
        torch.testing.assert_close(run(step, images, params), by_torchvision(images, [operation], params), **NEAR)


def test_the_luma_of_reptk_and_of_torchvision_differ_by_a_twentieth_of_a_gray_level():
    images, step = float64_patches(24), step_of(CHAIN, exact_hue=True)
    params = step.sample(11, torch.arange(24), SHAPE)
    distance = (run(step, images, params) - by_torchvision(images, CHAIN, params)).abs().max()
    assert 0 < distance < 0.15 / 255


@pytest.mark.usefixtures("cpu_backend")
def test_linear_color_is_exact_color_where_nothing_is_cut_and_no_hue_is_shifted():
    mild = ColorJitter((0.8, 1.1), (0.7, 1.1), (0.5, 1.1), (0.0, 0.0))
    operations = [mild, RandomGrayscale(0.2), mild]
    images, step = float64_patches(24) * 0.5 + 0.2, step_of(operations)
    params = step.sample(11, torch.arange(24), SHAPE)
    linear = run(step, images, params)
    torch.testing.assert_close(linear, run(step_of(operations, exact_hue=True), images, params), atol=1e-12, rtol=0)
    # But for the weights of the luma.
    torch.testing.assert_close(linear, by_torchvision(images, operations, params), atol=0.15 / 255, rtol=0)


# Several forms, one result


@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize(
    "operations",
    [
        pytest.param(CHAIN, id="simclr"),
        pytest.param((JITTER, RandomGrayscale(0.3), RandomResizedCrop((70, 30)), JITTER), id="color before and after"),
        pytest.param(
            (Resize((20, 24)), RandomCrop((20, 24), 3), RandomFlip(), RandomFlip(is_vertical=True)),
            id="resize, then padded crop",
        ),
        pytest.param(
            (RandomFlip(), RandomGaussianBlur((5, 3), (0.1, 2.0)), Resize((90, 100)), Resize((56, 48))),
            id="back to the same",
        ),
        pytest.param((RandomGrayscale(0.5),), id="color alone"),
    ],
)
def test_batches_chunks_and_numba_agree(operations, exact_hue):
    images, step = float64_patches(16), step_of(operations, exact_hue)
    params = step.sample(3, torch.arange(16), SHAPE)
    batch = step.torch.run_batch(images, params)
    for backend in (step.torch, numba_backend().NumbaBackend(step.passes)):
        for out in (None, torch.empty_like(batch)):
            result = backend.run(images, params, out)
            assert out is None or result is out
            torch.testing.assert_close(result, batch, atol=1e-12, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("exact_hue", [False, True])
def test_numba_in_single_precision_is_within_a_thousandth_of_a_gray_level(dtype, layout, exact_hue):
    images = (255 * float64_patches(16)).round()
    images = images.to(dtype) if dtype == torch.uint8 else (images / 255).to(dtype)
    step = step_of(CHAIN, exact_hue)
    params = step.sample(3, torch.arange(16), SHAPE)
    expected = step.torch.run_batch(images.double() / (255 if dtype == torch.uint8 else 1), params)
    result = numba_backend().NumbaBackend(step.passes).run(images.contiguous(memory_format=layout), params)
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() < 4e-6


def test_the_backend_is_the_fastest_that_can_process_the_images(monkeypatch):
    step, images = step_of(CHAIN), float64_patches(2)
    out = torch.empty(2, 3, 40, 40).transpose(2, 3)
    for dtype in (torch.float64, torch.float32):
        assert isinstance(step.choose_backend(images.to(dtype)), numba_backend().NumbaBackend)
    assert isinstance(step.choose_backend((255 * images).byte()), numba_backend().NumbaBackend)
    assert step.choose_backend(images.bfloat16()) is step.torch
    assert step.choose_backend(images.float(), out) is step.torch
    monkeypatch.setattr(pipeline, "load_kernels", lambda module: None)
    assert step.choose_backend(images) is step.torch


@pytest.mark.usefixtures("cpu_backend")
def test_nan_stays_nan():
    images, step = float64_patches(2), step_of([JITTER, Resize((30, 30)), RandomGaussianBlur((3, 3), (1.0, 2.0), 1.0)])
    images[0, :, 3, 5] = math.nan
    result = step.run(images, BatchRows(0, 2, 2), 3)
    assert result[0].isnan().any()
    assert result[1].isfinite().all()


def test_chunks_of_any_length_agree(monkeypatch):
    images, step = float64_patches(7), step_of(CHAIN)
    params = step.sample(3, torch.arange(7), SHAPE)
    results = []
    for values in (1, 3 * 56 * 48 * 3, 1 << 30):
        monkeypatch.setattr(torch_backend, "CHUNK_VALUES", values)
        results.append(step.torch.run(images, params))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-12, rtol=0)


def test_branchless_blur_and_hue_are_those_of_the_images_that_drew_them():
    """What runs on a GPU: all images are blurred and shifted, whether they drew it or not."""
    images = float64_patches(12)
    operation = RandomGaussianBlur((9, 9), (0.1, 2.0))
    params = sample(operation, 3, 12, SHAPE)
    torch.testing.assert_close(
        torch_backend.blur(images, params[:, 0], (9, 9)),
        step_of([operation]).torch.run_batch(images, [params]),
        atol=1e-12,
        rtol=0,
    )
    unshifted = torch_backend.shift_hue(images, torch.zeros(12, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(unshifted, images, atol=1e-12, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_images_does_not_matter(memory_format):
    images = torch.cat([photo(), photo("flower.jpg")])[..., 100:300, 100:320].contiguous()
    views = VIEWS.get("simclr")(size=96)
    result = views(images.contiguous(memory_format=memory_format), 3)
    assert torch.equal(result, views(images, 3))
    assert result.is_contiguous()


@pytest.mark.parametrize("size", [32, 96])
def test_the_number_of_threads_does_not_matter(size):
    views, images = VIEWS.get("simclr")(size=size), patches(9, size + 8)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(views(images, 3))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_an_error_in_a_thread_is_raised_by_the_call(monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory left")

    views = VIEWS.get("simclr")(size=96)
    monkeypatch.setattr(numba_backend(), "resample", fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        views(patches(4, 96), 0)


# Edges


@pytest.mark.usefixtures("cpu_backend")
@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("name", ["simclr", "simclr_small"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (8, 400)])
def test_images_of_any_shape(shape, name, exact_hue):
    images = torch.randint(256, (5, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for size in (8, 96):
        views = VIEWS.get(name)(size=size, exact_hue=exact_hue)(images, 3)
        assert views.shape == (2, 5, 3, size, size)
        assert ((views >= 0) & (views <= 1)).all()


def test_a_gray_image_stays_gray_and_black_stays_black():
    gray = patches(16, 96)[:, :1].expand(-1, 3, -1, -1)
    for exact in (False, True):
        views = VIEWS.get("simclr")(size=96, exact_hue=exact)(gray, 3)
        assert (views.amax(2) - views.amin(2)).max() < 1e-6
        assert VIEWS.get("simclr")(size=96, exact_hue=exact)(torch.zeros_like(gray), 3).max() == 0


def test_no_images_give_no_views():
    for size in (16, 96):
        views = VIEWS.get("simclr")(size=size)(torch.zeros(0, 3, 40, 40, dtype=torch.uint8), 3)
        assert views.shape == (2, 0, 3, size, size)


def test_a_blur_wider_than_the_image_and_a_crop_larger_than_it_are_refused():
    with pytest.raises(ValueError, match=r"kernel_size \[65, 65\] needs larger images than 32 x 32"):
        custom({"name": "RandomGaussianBlur", "kernel_size": 65, "sigma": [0.1, 2.0], "p": 0.1})
    views = custom({"name": "RandomCrop", "size": [32, 32], "padding": 2})
    with pytest.raises(ValueError, match=r"24 x 24 px, padded by 2, are smaller than the crop of 32 x 32"):
        views(patches(2, 24), 0)


# kornia and reptk, with the same parameters


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
def test_kornia_computes_the_same_from_the_same_parameters(operation):
    images = patches(32)
    fused, kornia = (custom(operation, backend=backend, exact_hue=True)(images, 5) for backend in ("fused", "kornia"))
    torch.testing.assert_close(fused, kornia, atol=2e-6, rtol=0)
    assert not torch.equal(fused[0], images / 255)


def test_kornia_crops_the_same_part():
    """Its resize is another: corners aligned, without antialiasing; enlarged images look alike."""
    crop = {"name": "RandomResizedCrop", "size": [32, 32], "scale": [0.2, 0.6]}
    images = patches(16)
    fused, kornia = (custom(crop, backend=backend)(images, 5) for backend in ("fused", "kornia"))
    other_key = custom(crop)(images, 6)
    near, far = ((fused - other).abs().mean() for other in (kornia, other_key))
    assert near < 0.02 < 0.05 < far


# Compiled


@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("name", ["simclr", "simclr_small", "crop_flip"])
def test_compiled_whole_and_once(name, exact_hue):
    """One graph, and after the key has become a variable (the second call) no further compilation."""
    arguments = {"exact_hue": exact_hue} if name != "crop_flip" else {}
    [[step]] = VIEWS.get(name)(size=24, count=1, **arguments).steps
    counter = CompileCounter()
    rows = BatchRows(0, 6, 6)
    compiled = torch.compile(lambda images, key: step.run(images, rows, key), backend=counter, fullgraph=True)
    images, counts = patches(6), []
    with torch.no_grad():
        for key in (5, *range(10**12, 10**12 + 20)):
            torch.testing.assert_close(compiled(images, key), step.run(images, rows, key), atol=1e-5, rtol=0)
            counts.append(counter.frame_count)
    assert counts[1] <= 2
    assert counts[-1] == counts[1]


def test_views_are_compiled_as_one_graph():
    views, counter, images = VIEWS.get("simclr")(size=24), CompileCounter(), patches(6)
    compiled = torch.compile(views.__call__, backend=counter, fullgraph=True)
    for key in (5, 10**15, 2**63 - 1, 3):
        torch.testing.assert_close(compiled(images, key), views(images, key), atol=1e-5, rtol=0)
    assert counter.frame_count <= 2


def test_only_fused_views_are_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda *_: "compiled")
    fused, kornia = (VIEWS.get("simclr")(size=24, backend=backend) for backend in ("fused", "kornia"))
    before = kornia(patches(4), 3)
    for views in (fused, kornia):
        views.compile()
    assert fused(patches(4), 3) == "compiled"
    assert torch.equal(kornia(patches(4), 3), before)


@pytest.mark.gpu
@pytest.mark.parametrize("exact_hue", [False, True])
@pytest.mark.parametrize("size", [32, 224])
def test_nothing_waits_for_the_gpu_and_the_views_are_those_of_the_cpu(nothing_waits, size, exact_hue):
    views, images = VIEWS.get("simclr")(size=size, exact_hue=exact_hue), patches(8, 256)
    device_images = images.cuda()
    views(device_images, 1)
    with nothing_waits():
        result = views(device_images, 2)
    distance = (result.cpu() - views(images.float() / 255, 2)).abs()
    assert distance.max() < 8e-3  # products in float16, whose rounding the jitter can multiply
    assert distance.mean() < 2e-4


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
def test_views_compile_for_the_gpu():
    views, images = VIEWS.get("simclr")(size=32), patches(8, 64).cuda()
    compiled = torch.compile(views.__call__, fullgraph=True)
    for key in (5, 10**15, 2**63 - 1):
        torch.testing.assert_close(compiled(images, key), views(images, key), atol=8e-3, rtol=0)

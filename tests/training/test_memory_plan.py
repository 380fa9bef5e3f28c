"""The memory of a step as `--check` says it: what autograd stores, and what to change if it does not fit."""

import pytest
import torch
from torch import Tensor

from reptk.models.encoder import Encoder
from reptk.training.memory_plan import activation_bytes, free_bytes, memory_line


def stored_bytes(encoder: Encoder, num_images: int) -> int:
    """All that autograd stores for a batch, but weights and buffers: by storages that are alive at the end."""
    kept: dict[int, Tensor] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in [*encoder.parameters(), *encoder.buffers()]}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder.train()(torch.rand(num_images, 3, 32, 32))
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_activations_are_in_proportion_to_the_images(backbone: str) -> None:
    encoder = Encoder(backbone, size=32)
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    one = activation_bytes(encoder, 32, "fp32")
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items()), "a copy was measured"
    # Statistics of a batch, of BatchNorm, do not grow with it.
    assert stored_bytes(encoder, 16) == pytest.approx(16 * one, rel=0.02)


def test_micro_batches_are_measured_at_once() -> None:
    encoder = Encoder("test_vit", size=32)
    expected = activation_bytes(encoder, 32, "fp32")
    encoder.encode_in_chunks(2)
    assert activation_bytes(encoder, 32, "fp32") == expected
    assert encoder.num_chunks == 2


def test_what_does_not_fit_is_told_with_a_size_that_does() -> None:
    line = memory_line(10**6, 10**8, num_views=2, images_at_once=256, ranks=1)
    assert line.startswith("memory: 256 images in 2 views store 256.0 MB")
    assert line.endswith("100.0 MB are free. train.micro_batch_size=32 would store 32.0 MB")
    assert "micro" not in memory_line(10**6, 10**9, num_views=2, images_at_once=256, ranks=1)
    assert "128 images" in memory_line(10**6, None, num_views=2, images_at_once=256, ranks=2)


def test_the_free_memory_of_a_cpu_is_plausible() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or 10**6 < free < 10**14

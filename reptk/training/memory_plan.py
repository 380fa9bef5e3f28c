"""How much memory the activations of a training step need, measured on two images, and whether they fit."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from reptk.core import rng
from reptk.core.counts import format_bytes, format_count, verb_form
from reptk.core.device import Precision, autocast
from reptk.models.encoder import Encoder

NUM_MEASURED = 2


def activation_bytes(encoder: Encoder, size_px: int, precision: Precision) -> int:
    """Return the bytes that one view of an image stores from the forward to the backward pass of an encoder.

    They are in proportion to the number of views. Weights and their gradients are not counted.

    Args:
        encoder: of a run; a copy of it encodes random images, on its device.
        size_px: of the views.
        precision: of the run.
    """
    encoder = copy.deepcopy(encoder).train()
    encoder.encode_in_chunks(1)
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*encoder.parameters(), *encoder.buffers()]}
    stored: dict[int, int] = {}
    # Held until the end, so that no address is used twice.
    tensors = []

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = storage.nbytes()
            tensors.append(tensor)
        return tensor

    device = encoder.mean.device
    images = torch.rand(NUM_MEASURED, 3, size_px, size_px, generator=rng.generator("memory"))
    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with rng.seeded("memory"), autocast(device, precision), hooks:
        output = encoder(images.to(device))
    del output
    return sum(stored.values()) // NUM_MEASURED


def memory_line(activations: int, free: int | None, *, num_views: int, images_at_once: int, ranks: int) -> str:
    """Return a line that says whether a step fits into memory, and what to change if not.

    Args:
        activations: bytes of all views of one image, see `activation_bytes`.
        free: bytes that are free on the device; None if unknown.
        num_views: of each image.
        images_at_once: images of all ranks that are encoded at once.
        ranks: how many share them.
    """
    needed = activations * images_at_once / ranks
    images_per_rank = images_at_once // ranks
    images = f"{format_count(images_per_rank, 'image')} in {format_count(num_views, 'view')}"
    text = (
        f"memory: {images} {verb_form(images_per_rank, 'stores', 'store')} {format_bytes(needed)} for the backward pass, "
        "besides weights, their gradients and the state of the optimizer"
    )
    if free is None:
        return text
    text += f"; {format_bytes(free)} are free"
    if needed <= free:
        return text
    fitting = images_at_once
    while fitting > ranks and activations * fitting / ranks > free / 2:
        fitting //= 2
    return f"{text}. train.micro_batch_size={fitting} would store {format_bytes(activations * fitting / ranks)}"


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory of a device is free; None if it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        text = Path("/proc/meminfo").read_text()  # Linux
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None

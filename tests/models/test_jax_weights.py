"""Vision transformers in .npz files, with the names and layouts of JAX."""

from pathlib import Path

import numpy as np
import pytest
import torch

from encoders import random_images
from reptk.core import rng
from reptk.core.errors import DataError
from reptk.models.encoder import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")

BACKBONE = "vit_tiny_patch16_224"


def encoder(size: int = 64, **options: object) -> Encoder:
    with rng.seeded(3, "initial weights"):
        return Encoder(BACKBONE, size=size, head_layers=0, **options).eval()


def jax_arrays(source: Encoder) -> dict[str, np.ndarray]:
    """Return the weights of a vision transformer as Google's releases have them."""
    state = {name: value.numpy() for name, value in source.backbone.state_dict().items()}
    heads = source.backbone.blocks[0].attn.num_heads
    width = state["cls_token"].shape[-1]
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": np.zeros((width, 5), np.float32),
        "head/bias": np.zeros(5, np.float32),
    }
    for number in range(len(source.backbone.blocks)):
        block, jax = f"blocks.{number}", f"Transformer/encoderblock_{number}"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{jax}/{theirs}/scale"] = state[f"{block}.{ours}.weight"]
            arrays[f"{jax}/{theirs}/bias"] = state[f"{block}.{ours}.bias"]
        attention = f"{jax}/MultiHeadDotProductAttention_1"
        parts = zip(
            ("query", "key", "value"),
            np.split(state[f"{block}.attn.qkv.weight"], 3),
            np.split(state[f"{block}.attn.qkv.bias"], 3),
            strict=True,
        )
        for name, weight, bias in parts:
            arrays[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{block}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{block}.attn.proj.bias"]
        for layer in (0, 1):
            arrays[f"{jax}/MlpBlock_3/Dense_{layer}/kernel"] = state[f"{block}.mlp.fc{layer + 1}.weight"].T
            arrays[f"{jax}/MlpBlock_3/Dense_{layer}/bias"] = state[f"{block}.mlp.fc{layer + 1}.bias"]
    return arrays


@torch.no_grad()
def test_a_vision_transformer_of_jax(tmp_path: Path) -> None:
    source = encoder()
    np.savez(tmp_path / "vit.npz", **jax_arrays(source))
    with rng.seeded(4, "other weights"):
        loaded = Encoder(BACKBONE, size=64, head_layers=0, weights=str(tmp_path / "vit.npz")).eval()
    images = random_images(size=64)
    torch.testing.assert_close(loaded.features(images), source.features(images), atol=1e-5, rtol=1e-5)
    # At another size, position embeddings are resampled.
    assert Encoder(BACKBONE, size=96, head_layers=0, weights=str(tmp_path / "vit.npz")).num_features == 192


def test_arrays_of_another_model_are_refused(tmp_path: Path) -> None:
    arrays = jax_arrays(encoder())
    del arrays["Transformer/encoderblock_3/LayerNorm_0/scale"]
    np.savez(tmp_path / "vit.npz", **arrays)
    with pytest.raises(DataError, match="do not fit this backbone"):
        encoder(weights=str(tmp_path / "vit.npz"))
    with pytest.raises(DataError, match=r"vit\.npz"):
        Encoder("test_resnet", size=32, head_layers=0, weights=str(tmp_path / "vit.npz"))

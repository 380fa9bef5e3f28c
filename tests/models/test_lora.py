"""LoRA: low-rank updates are trained, the weights below are not, and what is saved is a plain backbone."""

from pathlib import Path

import pytest
import torch
from saved_models import model_state
from torch import nn

from encoders import build_encoder, random_images
from reptk.core import rng
from reptk.core.errors import DataError, UsageError
from reptk.models.encoder import Encoder
from reptk.models.lora import LoRALinear, layers_not_called, merged_state_dict

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = random_images(4)
ALL_LAYERS = ("qkv", "proj", "fc1", "fc2")


def lora_encoder(layers: tuple[str, ...] = ALL_LAYERS, **options: float) -> Encoder:
    """A ViT with updates that are not zero, as after training."""
    encoder = build_encoder("test_vit")
    with rng.seeded("updates"):
        encoder.add_lora(layers, **{"rank": 4, "alpha": 8.0, **options})
        for module in encoder.modules():
            if isinstance(module, LoRALinear):
                nn.init.normal_(module.lora_b, std=0.05)
    return encoder


def test_a_layer_is_its_formula() -> None:
    linear = nn.Linear(5, 3).double()
    layer = LoRALinear(linear, rank=2, alpha=6.0, dropout=0.0).double()
    nn.init.normal_(layer.lora_b)
    x = torch.randn(7, 5, dtype=torch.float64)
    expected = x @ linear.weight.T + linear.bias + 3 * (x @ layer.lora_a.T) @ layer.lora_b.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(nn.functional.linear(x, layer.merged_weight(), linear.bias), expected)


def test_training_begins_with_the_features_of_the_backbone() -> None:
    encoder = build_encoder("test_vit")
    expected = encoder.features(IMAGES)
    encoder.add_lora(ALL_LAYERS, rank=4, alpha=8.0)
    assert torch.equal(encoder.features(IMAGES), expected)


@pytest.mark.parametrize("layers", [("qkv",), ("qkv", "proj"), ("fc1",)])
def test_updates_and_head_alone_are_trained(layers: tuple[str, ...]) -> None:
    encoder = build_encoder("test_vit")
    encoder.add_lora(layers, rank=4, alpha=8.0)
    encoder.train()(IMAGES).sin().sum().backward()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    expected = {f"head.{name}" for name, _ in encoder.head.named_parameters()}
    for path, module in encoder.named_modules():
        if path.rpartition(".")[2] in layers and isinstance(module, nn.Linear):
            expected |= {f"{path}.lora_a", f"{path}.lora_b"}
    assert trained == expected
    assert len(expected) == 4 + 12 * len(layers)


def test_frozen_blocks_get_no_update() -> None:
    encoder = build_encoder("test_vit")
    encoder.freeze(4)
    encoder.add_lora(("qkv",), rank=4, alpha=8.0)
    updated = [isinstance(block.attn.qkv, LoRALinear) for block in encoder.backbone.blocks]
    assert updated == [False] * 4 + [True] * 2


def test_dropout_of_the_updates_is_for_training_alone() -> None:
    encoder = lora_encoder(dropout=0.5)
    without_dropout = lora_encoder()
    assert torch.equal(encoder.eval().features(IMAGES), without_dropout.eval().features(IMAGES))
    assert not torch.equal(encoder.train().features(IMAGES), without_dropout.train().features(IMAGES))


def test_the_saved_model_is_a_plain_backbone_with_the_same_embeddings(tmp_path: Path) -> None:
    encoder = lora_encoder()
    encoder.save(tmp_path / "model")
    loaded = Encoder.from_run(tmp_path)
    plain = build_encoder("test_vit")
    assert model_state(tmp_path / "model").keys() == plain.state_dict().keys()
    assert loaded.config == plain.config
    assert not any(isinstance(module, LoRALinear) for module in loaded.modules())
    torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(loaded(IMAGES), plain(IMAGES), rtol=1e-2, atol=1e-2)
    # The encoder goes on with its updates.
    assert any(name.endswith("lora_a") for name in encoder.state_dict())


def test_a_module_without_lora_is_merged_into_itself() -> None:
    state = build_encoder("test_vit").state_dict()
    merged = merged_state_dict(build_encoder("test_vit"))
    assert all(torch.equal(merged[name], value) for name, value in state.items())


# Mistakes


@pytest.mark.parametrize(
    ("backbone", "layers", "message"),
    [
        (
            "test_resnet",
            ("qkv", "proj"),
            r"test_resnet has no linear layer called qkv or proj \(its linear layers: none\)",
        ),
        ("test_vit", ("qkv", "query"), r"test_vit has no linear layer called query \(.* qkv, proj, fc1, fc2\)"),
        ("test_vit", (), r"no layers are named"),
    ],
)
def test_layers_that_are_not_there_are_named(backbone: str, layers: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=f"encoder.lora_layers: {message}"):
        build_encoder(backbone).add_lora(layers, rank=4, alpha=8.0)


def test_lora_in_a_frozen_backbone_is_refused() -> None:
    encoder = build_encoder("test_vit")
    encoder.freeze("all")
    with pytest.raises(UsageError, match=r"encoder.freeze leaves no layer called qkv to train"):
        encoder.add_lora(("qkv",), rank=4, alpha=8.0)


def test_layers_whose_weights_alone_are_used_are_found() -> None:
    class LikeBEiT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(3, 3)
            self.proj = nn.Linear(3, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.proj(nn.functional.linear(images.mean((2, 3)), self.qkv.weight))

    assert layers_not_called(LikeBEiT(), torch.zeros(1, 3, 4, 4), ["qkv", "proj"]) == ["qkv"]


def test_updates_that_are_not_merged_are_no_weights(tmp_path: Path) -> None:
    torch.save(lora_encoder().state_dict(), tmp_path / "state.pt")
    with pytest.raises(DataError, match="LoRA layers that are not merged"):
        build_encoder("test_vit", weights=str(tmp_path / "state.pt"))

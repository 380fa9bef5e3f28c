"""Checkpoints as the official repositories write and release them: their key layouts, with weights of tiny models."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders import build_encoder, random_images, trained_encoder
from reptk.core.errors import DataError
from reptk.models.encoder import Encoder
from reptk.models.weights import load_weights

StateDict = dict[str, Tensor]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.* holds 2 encoders"),
]

ARGS = argparse.Namespace(arch="tiny", output_dir=Path("out"), lr=0.03)


def under(prefix: str, state: StateDict) -> StateDict:
    return {prefix + name: value for name, value in state.items()}


def randomized(state: StateDict) -> StateDict:
    """Another encoder of the same shapes, which must not be used."""
    return {name: torch.rand(value.shape) if value.is_floating_point() else value for name, value in state.items()}


def linear(name: str, inputs: int = 8, outputs: int = 4) -> StateDict:
    return {f"{name}.weight": torch.ones(outputs, inputs), f"{name}.bias": torch.ones(outputs)}


def optimizer() -> dict[str, Any]:
    return {
        "state": {0: {"momentum_buffer": torch.ones(3), "step": 7}},
        "param_groups": [{"lr": 0.1, "params": [0, 1]}],
    }


def moco_v2(state: StateDict) -> Any:
    """facebookresearch/moco, main_moco.py and moco/builder.py; the released files hold encoder_q, k and the queue."""
    model = {"module.queue": torch.ones(4, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    for name, weights in (("encoder_q", state), ("encoder_k", randomized(state))):
        model |= under(f"module.{name}.", {**weights, **linear("fc.0"), **linear("fc.2")})
    return {"epoch": 200, "arch": "resnet50", "state_dict": model, "optimizer": optimizer()}


def moco_v3(state: StateDict) -> Any:
    """facebookresearch/moco-v3, main_moco.py and moco/builder.py; heads replace `fc` of ResNets and `head` of ViTs."""
    model = {}
    for name, weights in (("base_encoder", state), ("momentum_encoder", randomized(state))):
        model |= under(
            f"module.{name}.", {**weights, "fc.0.weight": torch.ones(4, 8), "head.0.weight": torch.ones(4, 8)}
        )
    model["module.predictor.0.weight"] = torch.ones(4, 8)
    return {
        "epoch": 300,
        "arch": "vit_base",
        "state_dict": model,
        "optimizer": optimizer(),
        "scaler": {"scale": 65536.0},
    }


def dino(state: StateDict) -> Any:
    """facebookresearch/dino, main_dino.py: DDP and a MultiCropWrapper around the student, only the latter on the teacher."""
    return {
        "student": under("module.backbone.", randomized(state)) | linear("module.head.mlp.0"),
        "teacher": under("backbone.", state) | linear("head.mlp.0"),
        "optimizer": optimizer(),
        "epoch": 100,
        "args": ARGS,
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def dino_released(state: StateDict) -> Any:
    """dino_..._pretrain.pth: the backbone alone."""
    return state


def dinov2_training(state: StateDict) -> Any:
    """facebookresearch/dinov2, train.py: teacher_checkpoint.pth; block_chunks > 0 nests the blocks (vision_transformer.py)."""
    chunked = {}
    for name, value in state.items():
        chunked[re.sub(r"^blocks\.(\d+)\.", lambda match: f"blocks.{int(match[1]) // 3}.{match[1]}.", name)] = value
    chunked["mask_token"] = torch.zeros(1, 64)
    return {"teacher": under("backbone.", chunked) | linear("dino_head.mlp.0") | linear("ibot_head.mlp.0")}


def dinov2_released(state: StateDict) -> Any:
    """dinov2_..._pretrain.pth: the backbone alone, with the token of masked patches."""
    return {**state, "mask_token": torch.zeros(1, 64)}


def mae_training(state: StateDict) -> Any:
    """facebookresearch/mae, main_pretrain.py and models_mae.py: encoder and decoder side by side."""
    decoder = (
        linear("decoder_embed") | linear("decoder_blocks.0.attn.qkv") | linear("decoder_norm") | linear("decoder_pred")
    )
    model = {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 101, 8), **decoder}
    return {"model": model, "optimizer": optimizer(), "epoch": 799, "scaler": {}, "args": ARGS}


def mae_released(state: StateDict) -> Any:
    """mae_pretrain_vit_....pth: the encoder alone."""
    return {"model": state}


def supcontrast(state: StateDict) -> Any:
    """HobbitLong/SupContrast, util.py (save_model) and networks/resnet_big.py; DataParallel around the encoder."""
    renamed = {name.replace(".downsample.", ".shortcut."): value for name, value in state.items()}
    model = under("encoder.module.", renamed) | linear("head.0") | linear("head.2")
    return {"opt": ARGS, "model": model, "optimizer": optimizer(), "epoch": 1000}


def supcontrast_one_gpu(state: StateDict) -> Any:
    content = supcontrast(state)
    content["model"] = {name.replace("encoder.module.", "encoder."): value for name, value in content["model"].items()}
    return content


def lightly(state: StateDict) -> Any:
    """lightly-ai/lightly, examples: nn.Sequential(*list(resnet.children())[:-1]), and a momentum copy (MoCo, BYOL)."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    numbered = {}
    for name, value in state.items():
        first, dot, rest = name.partition(".")
        numbered[numbers[first] + dot + rest] = value
    model = under("backbone.", numbered) | under("backbone_momentum.", randomized(numbered))
    return {
        "state_dict": model | linear("projection_head.layers.0"),
        "pytorch-lightning_version": "2.0",
        "callbacks": {},
    }


def lightly_dino(state: StateDict) -> Any:
    """lightly-ai/lightly, examples/pytorch/dino.py."""
    return under("student_backbone.", randomized(state)) | under("teacher_backbone.", state) | linear("student_head.0")


def lightly_mae(state: StateDict) -> Any:
    """lightly-ai/lightly, MaskedVisionTransformerTIMM: timm's model is its attribute `vit`."""
    return under("backbone.vit.", state) | {"backbone.mask_token": torch.ones(1, 1, 64)} | linear("decoder.0")


def solo_learn(state: StateDict) -> Any:
    """vturrisi/solo-learn, solo/methods/base.py: BaseMomentumMethod, a Lightning checkpoint."""
    model = under("backbone.", state) | under("momentum_backbone.", randomized(state))
    model |= linear("classifier") | linear("projector.0") | linear("momentum_projector.0") | linear("predictor.0")
    return {"epoch": 399, "state_dict": model, "hyper_parameters": {"cfg": ARGS}, "optimizer_states": [optimizer()]}


def solo_learn_before_1_0_5(state: StateDict) -> Any:
    content = solo_learn(state)
    content["state_dict"] = {name.replace("backbone.", "encoder."): v for name, v in content["state_dict"].items()}
    return content


def vissl(state: StateDict) -> Any:
    """facebookresearch/vissl: the trunk inside of ClassyVision's tables."""
    trunk = under("_feature_blocks.", state)
    return {
        "classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": linear("0.clf.0")}}},
        "config": ARGS,
    }


def timm_training(state: StateDict) -> Any:
    """huggingface/pytorch-image-models, train.py: timm evaluates the moving average, and so does its load_checkpoint."""
    return {
        "epoch": 3,
        "arch": "tiny",
        "state_dict": randomized(state),
        "state_dict_ema": state,
        "args": ARGS,
        "metric": 0.5,
    }


def reptk_moco(state: StateDict) -> Any:
    """The checkpoint of a run with reptk's own MoCo, or BYOL with `target` for the copy."""
    model = under("encoder.backbone.", state) | linear("encoder.head.0")
    model |= {"queue.rows": torch.ones(4, 8), "queue.ids": torch.arange(4)}
    return {
        "method": model | under("momentum_encoder.backbone.", randomized(state)),
        "optimizer": optimizer(),
        "step": 3,
    }


def reptk_byol(state: StateDict) -> Any:
    model = under("encoder.backbone.", state) | under("target.backbone.", randomized(state))
    return {"method": model | linear("predictor.0"), "optimizer": optimizer(), "step": 3}


def reptk_dino(state: StateDict) -> Any:
    """The encoder is the teacher, which DINO evaluates."""
    model = under("student.backbone.", randomized(state)) | under("encoder.backbone.", state)
    return {"method": model | linear("prototypes.weights"), "optimizer": optimizer(), "step": 3}


def compiled_and_parallel(state: StateDict) -> Any:
    """torch.compile around DistributedDataParallel."""
    return {"module": under("_orig_mod.module.", state), "step": 3}


ANY = (
    moco_v2,
    moco_v3,
    dino,
    dino_released,
    lightly_dino,
    solo_learn,
    solo_learn_before_1_0_5,
    vissl,
    timm_training,
    reptk_moco,
    reptk_byol,
    reptk_dino,
    compiled_and_parallel,
)
CASES = [("test_resnet", layout) for layout in (*ANY, supcontrast, supcontrast_one_gpu, lightly)]
CASES += [
    ("test_vit", layout) for layout in (*ANY, dinov2_training, dinov2_released, mae_training, mae_released, lightly_mae)
]


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(("backbone", "layout"), CASES, ids=[f"{name}-{layout.__name__}" for name, layout in CASES])
@torch.no_grad()
def test_features_are_those_of_the_released_encoder(
    backbone: str, layout: Callable[[StateDict], Any], is_zip: bool, tmp_path: Path
) -> None:
    source = trained_encoder(backbone, seed=1)
    torch.save(
        layout(source.backbone.state_dict()), tmp_path / "weights.pth.tar", _use_new_zipfile_serialization=is_zip
    )
    encoder = build_encoder(backbone, weights=str(tmp_path / "weights.pth.tar"))
    assert torch.equal(encoder.features(random_images()), source.features(random_images()))


@pytest.mark.parametrize("layout", [moco_v2, dino_released, supcontrast, lightly, solo_learn])
@torch.no_grad()
def test_the_same_layouts_are_read_as_safetensors(layout: Callable[[StateDict], Any], tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    content = layout(source.backbone.state_dict())
    tensors = content.get("state_dict", content.get("model", content))
    # safetensors stores no tensor twice.
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "weights.safetensors")
    encoder = build_encoder(weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(encoder.features(random_images()), source.features(random_images()))


@torch.no_grad()
def test_dinov2_with_registers_is_converted(tmp_path: Path) -> None:
    options = {"num_classes": 0, "img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2}
    source = timm.create_model("vit_small_patch14_reg4_dinov2", **options).eval()
    torch.nn.init.normal_(source.reg_token)
    torch.nn.init.normal_(source.cls_token)
    state = source.state_dict()
    # DINOv2 adds an embedding of its position to the class token; timm has the sum.
    position = torch.rand(1, 1, 32)
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 32)
    torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    backbone = timm.create_model("vit_small_patch14_reg4_dinov2", **options).eval()
    load_weights(backbone, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    images = torch.rand(2, 3, 28, 28)
    assert torch.allclose(backbone(images), source(images), atol=1e-5)


@torch.no_grad()
def test_official_convnext_names_are_converted(tmp_path: Path) -> None:
    """facebookresearch/ConvNeXt, models/convnext.py."""
    source = timm.create_model(
        "convnext_atto", num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), conv_mlp=False
    ).eval()
    official = {}
    for name, value in source.state_dict().items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.(\d)\.", r"stages.\1.\2.", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.norm.", "norm.")
        official[name] = value
    torch.save({"model": official}, tmp_path / "convnext.pth")
    backbone = timm.create_model(
        "convnext_atto", num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), conv_mlp=False
    ).eval()
    load_weights(backbone, tmp_path / "convnext.pth")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(backbone(images), source(images))


@torch.no_grad()
def test_supcontrast_on_cifar_needs_the_small_stem(tmp_path: Path) -> None:
    source = Encoder("resnet18", size=32, stem="small").eval()
    torch.save(supcontrast(source.backbone.state_dict()), tmp_path / "supcon.pth")
    encoder = Encoder("resnet18", size=32, stem="small", weights=str(tmp_path / "supcon.pth")).eval()
    assert torch.equal(encoder.features(random_images()), source.features(random_images()))
    with pytest.raises(DataError, match=r"conv1.weight has shape \(64, 3, 3, 3\).*use encoder.stem=small"):
        Encoder("resnet18", size=32, weights=str(tmp_path / "supcon.pth"))

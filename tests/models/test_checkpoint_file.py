"""Reading checkpoints: objects of all classes next to the tensors, no code executed, and no traceback for damaged files."""

import argparse
import collections
import datetime
import enum
import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file

from encoders import build_encoder, random_images, trained_encoder
from reptk.core.errors import DataError, ReptkError
from reptk.models.checkpoint_file import read_tensors
from reptk.models.encoder import Encoder
from reptk.models.weights import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")


class Config:
    """Like OmegaConf's: values in attributes, and a parent that refers back to it."""

    def __init__(self) -> None:
        self._content = {"lr": 0.1}
        self._parent: Config | None = None

    class Node:
        def __init__(self) -> None:
            self.value = 3


class AttributeDict(dict):
    """Like EasyDict, mmcv's ConfigDict and addict: a dict with attributes."""


class History(list):
    pass


class Slots:
    __slots__ = ("value",)


class Stage(enum.Enum):
    PRETRAIN = 1


def config_with_cycle() -> Config:
    config = Config()
    config._parent = Config()
    config._parent._parent = config
    return config


def attribute_dict() -> AttributeDict:
    table = AttributeDict(lr=0.1, steps=History([1, 2]))
    table.frozen = True
    return table


def slots() -> Slots:
    instance = Slots()
    instance.value = 3
    return instance


FOREIGN: dict[str, Callable[[], Any]] = {
    "argparse": lambda: argparse.Namespace(lr=0.1, out=Path("runs"), seed=np.int64(3)),
    "OmegaConf": config_with_cycle,
    "a nested class": Config.Node,
    "a subclass of dict": attribute_dict,
    "a subclass of list": lambda: History([1, 2.0, None]),
    "slots": slots,
    "an enumeration": lambda: {Stage.PRETRAIN: Stage.PRETRAIN, "all": {Stage.PRETRAIN}},
    "numpy scalars": lambda: [np.float32(0.5), np.float64(0.5), np.bool_(True)],
    "numpy arrays": lambda: np.random.default_rng(0).normal(size=(3, 2)),
    "states of generators": lambda: (torch.get_rng_state(), np.random.default_rng(0), random.getstate()),
    "paths": lambda: {Path("a/b"): Path("c")},
    "dates": lambda: [datetime.datetime(2024, 2, 29, 12), datetime.date(2024, 2, 29), datetime.timedelta(1)],
    "collections": lambda: [collections.defaultdict(list, a=[1]), collections.Counter("ab"), frozenset([1]), range(3)],
    "functions and classes": lambda: [print, os.path.join, Config, Path, len],
    "an optimizer": lambda: torch.optim.AdamW([torch.ones(2, requires_grad=True)]),
    "bytes and complex numbers": lambda: [b"\x00\xff", 1j, bytearray(b"x")],
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kind", FOREIGN)
@torch.no_grad()
def test_objects_next_to_the_tensors_are_skipped(kind: str, is_zip: bool, tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    content = {"first": FOREIGN[kind](), "state_dict": source.backbone.state_dict(), "last": FOREIGN[kind]()}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=is_zip)
    encoder = build_encoder(weights=str(tmp_path / "weights.pth"))
    assert torch.equal(encoder.features(random_images()), source.features(random_images()))


def test_a_pickled_module_gives_its_state_dict(tmp_path: Path) -> None:
    backbone = trained_encoder(seed=1).backbone
    torch.save(backbone, tmp_path / "model.pth")
    tensors = read_tensors(tmp_path / "model.pth")
    state = backbone.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], value) for name, value in state.items())


def test_names_join_the_keys_by_dots(tmp_path: Path) -> None:
    content = {"model": {"a.weight": torch.ones(1), 3: [torch.ones(2), {"b": torch.ones(3)}]}, "epoch": 3}
    torch.save(content, tmp_path / "weights.pt")
    assert list(read_tensors(tmp_path / "weights.pt")) == ["model.a.weight", "model.3.0", "model.3.1.b"]


def test_the_ending_says_nothing_about_the_format(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.pth")
    torch.save({"b": torch.ones(3)}, tmp_path / "weights.safetensors")
    assert list(read_tensors(tmp_path / "weights.pth")) == ["a"]
    assert list(read_tensors(tmp_path / "weights.safetensors")) == ["b"]


# Several files, and arrays of NumPy


def write_shards(state: dict[str, torch.Tensor], folder: Path, ending: str = "safetensors", count: int = 3) -> Path:
    """Write tensors into several files and an index, as the hub has large models; return the index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if ending == "safetensors" else "pytorch_model"
    names = list(state)
    file_of = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.{ending}"
        part = {name: state[name].contiguous().clone() for name in names[number::count]}
        if ending == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        file_of |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": file_of}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("names", ["the index", "the folder"])
@torch.no_grad()
def test_a_model_in_several_files(ending: str, names: str, tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    state = {f"model.{name}": value for name, value in source.backbone.state_dict().items()}
    index = write_shards(state, tmp_path / "large", ending)
    assert read_tensors(index).keys() == state.keys()
    encoder = build_encoder(weights=str(index if names == "the index" else index.parent))
    assert torch.equal(encoder.features(random_images()), source.features(random_images()))


def test_files_that_an_index_lists_must_be_there(tmp_path: Path) -> None:
    index = write_shards({str(number): torch.ones(1) for number in range(6)}, tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    message = "lists 3 files, of which 1 are missing: model-00002-of-00003.safetensors. Copy them next to it"
    with pytest.raises(DataError, match=message):
        read_tensors(index)
    save_file({"1": torch.ones(1)}, tmp_path / "model-00002-of-00003.safetensors")
    with pytest.raises(DataError, match=r"model-00002-of-00003\.safetensors lacks the tensor 4"):
        read_tensors(index)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
        '{"weight_map": {"a": "/etc/x.safetensors"}}',
        '{"weight_map": {"a": "model.safetensors.index.json"}}',
    ],
)
def test_what_is_no_index_of_files_is_refused(text: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(DataError, match=r"is no index of a model's files"):
        read_tensors(index)


@torch.no_grad()
def test_arrays_of_numpy(tmp_path: Path) -> None:
    source = trained_encoder(seed=1)
    arrays = {f"encoder.{name}": value.numpy() for name, value in source.backbone.state_dict().items()}
    np.savez_compressed(tmp_path / "weights.npz", **arrays)
    encoder = build_encoder(weights=str(tmp_path / "weights.npz"))
    assert torch.equal(encoder.features(random_images()), source.features(random_images()))


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    call = Reduced(exec, f"open({str(marker)!r}, 'w').close()")
    np.savez(tmp_path / "weights.npz", a=np.ones(1), b=np.array([call], dtype=object))
    with pytest.raises(DataError, match="holds arrays that are no plain numbers"):
        read_tensors(tmp_path / "weights.npz")
    assert not marker.exists()
    with np.load(tmp_path / "weights.npz", allow_pickle=True) as arrays:
        arrays["b"]
    assert marker.exists()  # without the protection


def test_a_tar_archive_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt")
    with tarfile.open(tmp_path / "weights.tar", "w") as archive:
        archive.add(tmp_path / "weights.pt", "storages")
    with pytest.raises(DataError, match=r"is a tar archive. Unpack it; .*save it again where you trust it"):
        read_tensors(tmp_path / "weights.tar")


# Code


class Reduced:
    """Unpickled by a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("inside", ["beside", "as a value of the state dict", "as a key"])
@pytest.mark.parametrize("function", ["os.system", "builtins.exec", "Path.touch", "subclass of dict"])
def test_code_is_not_executed(function: str, inside: str, is_zip: bool, tmp_path: Path) -> None:
    marker, file = tmp_path / "executed", tmp_path / "weights.pt"
    calls = {
        "os.system": Reduced(os.system, f"touch {marker}"),
        "builtins.exec": Reduced(exec, f"open({str(marker)!r}, 'w').close()"),
        "Path.touch": Reduced(Path.touch, marker),
        "subclass of dict": AttributeDict(a=Reduced(exec, f"open({str(marker)!r}, 'w').close()")),
    }
    state: dict[Any, Any] = build_encoder().backbone.state_dict()
    if inside == "beside":
        content: Any = {"extra": calls[function], "state_dict": state}
    elif inside == "as a key" and function != "subclass of dict":
        content = {calls[function]: 3, **state}
    else:
        content = {**state, "extra": calls[function]}
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    if function == "os.system":
        with pytest.raises(DataError, match=r"is refused: it names posix\.system"):
            read_tensors(file)
    else:
        assert len(read_tensors(file)) == len(state)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # without the protection


def test_reading_leaves_no_class_permitted(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"a": torch.ones(1), "config": Config()}, tmp_path / "weights.pt")
    read_tensors(tmp_path / "weights.pt")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model.pt is a TorchScript archive.*torch.jit.load\(FILE\).state_dict"):
        read_tensors(tmp_path / "model.pt")


def test_a_whole_module_of_before_torch_1_6_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"model.pt holds no plain weights.*save model.state_dict\(\)"):
        read_tensors(tmp_path / "model.pt")


# Damaged and strange files


def saved(content: Any, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def nested(depth: int) -> list[Any]:
    content: list[Any] = [torch.ones(1)]
    for _ in range(depth):
        content = [content]
    return content


def contains_itself() -> dict[str, Any]:
    content: dict[str, Any] = {"a": torch.ones(1)}
    content["self"] = content
    return content


def with_dtype(dtype: torch.dtype) -> dict[str, Any]:
    return {name: value.to(dtype) for name, value in build_encoder().backbone.state_dict().items()}


STRANGE: dict[str, Callable[[], Any]] = {
    "a list": lambda: [1, 2],
    "a string": lambda: "weights",
    "a number": lambda: 3,
    "nothing": lambda: None,
    "an empty dict": dict,
    "an empty state dict": lambda: {"state_dict": {}},
    "a tensor": lambda: torch.ones(3),
    "a list of tensors": lambda: [torch.ones(3), torch.ones(2)],
    "numbers as keys": lambda: dict(enumerate(build_encoder().backbone.state_dict().values())),
    "tuples as keys": lambda: {(1, 2): torch.ones(1)},
    "mixed keys": lambda: {1: torch.ones(1), "a": torch.ones(1), None: torch.ones(1), b"b": torch.ones(1)},
    "empty names": lambda: {"": torch.ones(1), ".": torch.ones(1), "..": {"": torch.ones(1)}},
    "lists in lists": lambda: nested(100),
    "a dict that contains itself": contains_itself,
    "an object": lambda: Config(),
    "a class": lambda: Config,
    "integers": lambda: with_dtype(torch.int64),
    "booleans": lambda: with_dtype(torch.bool),
    "complex numbers": lambda: with_dtype(torch.complex64),
    "bytes": lambda: with_dtype(torch.uint8),
    "sparse tensors": lambda: {name: torch.ones(2, 2).to_sparse() for name in build_encoder().backbone.state_dict()},
    "quantized": lambda: {"conv1.0.weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
    "scalars": lambda: {name: torch.tensor(1.0) for name in build_encoder().backbone.state_dict()},
    "empty tensors": lambda: {name: torch.ones(0) for name in build_encoder().backbone.state_dict()},
    "not finite": lambda: {name: value * float("nan") for name, value in build_encoder().backbone.state_dict().items()},
    "tensors on the meta device": lambda: {"conv1.0.weight": torch.ones(2, device="meta")},
    "numpy arrays": lambda: {"conv1.0.weight": np.ones(3)},
}


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_contents_are_refused_in_a_sentence(kind: str, backbone: str, tmp_path: Path) -> None:
    torch.save(STRANGE[kind](), tmp_path / "weights.pth")
    with pytest.raises(DataError, match=r"weights\.pth") as error:
        build_encoder(backbone, weights=str(tmp_path / "weights.pth"))
    assert len(str(error.value)) < 1000


def test_half_precision_and_wider_are_converted(tmp_path: Path) -> None:
    source = build_encoder(seed=1).backbone.state_dict()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({name: value.to(dtype) for name, value in source.items()}, tmp_path / "weights.pth")
        loaded = build_encoder(weights=str(tmp_path / "weights.pth")).backbone.state_dict()
        assert all(value.dtype == source[name].dtype for name, value in loaded.items())
        assert all(torch.allclose(value, source[name], atol=1e-2) for name, value in loaded.items())


NUM_CHANGED_FILES = 125
"""Of each of three formats and of pickles in an archive: 500 in all, besides the truncated files."""

FORMATS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "zip": lambda state: saved({"model": state, "args": argparse.Namespace(lr=0.1)}),
    "legacy": lambda state: saved({"model": state, "args": argparse.Namespace(lr=0.1)}, is_zip=False),
    "safetensors": safetensors_bytes,
}


def loads_or_explains(encoder: Encoder, file: Path) -> bool:
    """Return whether a file loads; any error but a typed one fails the test."""
    message = ""
    try:
        load_weights(encoder.backbone, file)
    except ReptkError as error:
        message = str(error)
    assert message == "" or file.name in message
    return message == ""


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    encoder = build_encoder("test_vit")
    data = FORMATS[kind](encoder.backbone.state_dict())
    file = tmp_path / "weights.bin"
    for share in (0.0, 0.00001, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999):
        file.write_bytes(data[: int(share * len(data))])
        assert not loads_or_explains(encoder, file)


@pytest.mark.filterwarnings("ignore:.* was trained with other patches")
@pytest.mark.parametrize("kind", FORMATS)
def test_files_with_changed_bytes_load_or_are_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    encoder = build_encoder("test_vit")
    data = FORMATS[kind](encoder.backbone.state_dict())
    file = tmp_path / "weights.bin"
    generator = random.Random(0)
    outcomes = set()
    for number in range(NUM_CHANGED_FILES):
        changed = bytearray(data)
        # In most files, the bytes at the beginning, where the structure is described.
        end = len(changed) if number % 3 == 0 else 2000
        for _ in range(1 + number % 4):
            changed[generator.randrange(end)] = generator.randrange(256)
        file.write_bytes(changed)
        outcomes.add(loads_or_explains(encoder, file))
    assert False in outcomes


def test_changed_bytes_in_the_pickle_of_an_archive_are_refused(tmp_path: Path) -> None:
    encoder = build_encoder("test_vit")
    data = FORMATS["zip"](encoder.backbone.state_dict())
    archive = zipfile.ZipFile(io.BytesIO(data))
    file = tmp_path / "weights.bin"
    generator = random.Random(1)
    outcomes = []
    for number in range(NUM_CHANGED_FILES):
        with zipfile.ZipFile(file, "w") as out:
            for name in archive.namelist():
                content = bytearray(archive.read(name))
                if name.endswith("data.pkl"):
                    for _ in range(number // 3):
                        content[generator.randrange(len(content))] = generator.randrange(256)
                out.writestr(name, bytes(content))
        outcomes.append(loads_or_explains(encoder, file))
    assert outcomes[0]
    assert not all(outcomes)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}.", b"{", b"\x01" + bytes(7) + b"{}"]
)
def test_files_of_other_kinds_are_refused(content: bytes, tmp_path: Path) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} holds no plain weights"):
            read_tensors(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file of weights .*gone\.pt"):
        read_tensors(tmp_path / "gone.pt")

"""Checkpoint files of any project: all tensors by their paths in the file, without executing code that the file names."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from reptk.core.errors import DataError

StateDict = dict[str, Tensor]

LEGACY_PICKLES = 5
"""Before torch 1.6, a file was a sequence of pickles, with the content in the fourth, followed by the numbers."""

REFUSED_MODULES = ("os", "posix", "nt", "sys")
"""torch refuses files that name anything of these modules, and so does reptk, with a clearer message."""

MODULE_TABLES = ("_parameters", "_buffers", "_modules")
"""Where a pickled `nn.Module` stores its tensors and submodules; its state dict leaves these words out of the names."""

MAX_OBJECTS = 1_000_000
MAX_DEPTH = 64


def read_tensors(path: Path) -> StateDict:
    """Read all tensors of a file: safetensors, or whatever `torch.save` wrote, recognized by content and not by ending.

    Objects of other classes (`argparse.Namespace`, OmegaConf, numpy scalars, paths, dates, classes of the project) are
    replaced by inert ones, so their code need not be installed and does not run. Tensors inside them are read as well, so
    a whole pickled `nn.Module` gives its state dict.

    Returns:
        Tensors on the CPU, in the order of the file. A name joins the keys that lead to a tensor by dots:
        `{"state_dict": {"module.conv1.weight": ...}}` gives `state_dict.module.conv1.weight`. Sparse and quantized
        tensors are left out.

    Raises:
        DataError: the file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise DataError(f"there is no file of weights {path}")
    try:
        with warnings.catch_warnings():
            # torch's remarks on pickle protocols and TorchScript; what cannot be read is refused below.
            warnings.simplefilter("ignore")
            content = _read(path)
        return _collect(content, path)
    except DataError:
        raise
    except Exception as cause:
        # torch's message advises to permit the execution of code, which a file from elsewhere must never get.
        raise _unreadable(path, f"it is damaged or of another kind, {type(cause).__name__}") from cause


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} holds no plain weights ({reason}). What can be read is safetensors, and checkpoints of torch.save with its "
        "default protocol: copy the file again, or save model.state_dict() where it was trained"
    )


def _read(path: Path) -> Any:
    if _is_safetensors(path):
        return load_file(path)
    if _is_torchscript(path):
        raise DataError(
            f"{path} is a TorchScript archive, which holds code. Extract its weights where you trust it: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
        )
    foreign = _foreign_globals(path)
    for name in foreign:
        if name.partition(".")[0] in REFUSED_MODULES:
            raise DataError(f"{path} is refused: it names {name}, which has no place in a file of weights")
    inert = [(InertObject, name) for name in foreign]
    # An open file, because for a path torch goes by the ending.
    with path.open("rb") as file, torch.serialization.safe_globals(inert):
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON header and the header itself."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        return file.read(1) == b"{" and header_size < path.stat().st_size


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _foreign_globals(path: Path) -> list[str]:
    """Return the full names of classes and functions in a checkpoint that torch does not permit by itself."""
    if zipfile.is_zipfile(path):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    # Private, since the public function reads zip files only. Imported here, so that only old files depend on it.
    from torch._weights_only_unpickler import get_globals_in_pkl

    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            # Reads the names without looking any of them up. Names that torch permits keep torch's meaning.
            names |= get_globals_in_pkl(file)
    return sorted(names)


class _InertClass(type):
    """Equals what torch compares a class with before it uses it."""

    def __eq__(cls, other: object) -> bool:
        # torch adds items only to objects whose class equals dict, as a subclass of dict in a file needs. It calls only
        # what equals a permitted global; a nested class is the result of a call, here an inert object.
        return other is cls or other is dict or isinstance(other, InertObject)

    __hash__ = type.__hash__


class InertObject(list, metaclass=_InertClass):
    """Replaces an object of a foreign class, and the class: stores what the file puts into it, and does nothing.

    It is a list because torch appends to nothing else.
    """

    content: dict[Any, Any]

    def __new__(cls, *args: Any) -> "InertObject":
        instance = list.__new__(InertObject)
        instance.content = {}
        return instance

    def __init__(self, *args: Any) -> None:
        """Ignore the arguments, which are those of the foreign class."""

    def __call__(self, *args: Any) -> "InertObject":
        """Return an instance, if this object replaces a nested class."""
        return InertObject()

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __setitem__(self, key: Any, value: Any) -> None:
        self.content[key] = value

    def __setstate__(self, state: Any) -> None:
        # Either the attributes, or a pair of them and those in slots.
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.content.update(part)


def _collect(content: Any, path: Path) -> StateDict:
    """Return the tensors in nested dicts, lists and inert objects."""
    tensors: StateDict = {}
    # Each with the keys that lead to it, and the containers around it: a file may nest a container in itself.
    pending: list[tuple[tuple[str, ...], Any, tuple[int, ...]]] = [((), content, ())]
    for _ in range(MAX_OBJECTS):
        if not pending:
            return tensors
        keys, value, containers = pending.pop()
        if isinstance(value, Tensor):
            if value.layout is torch.strided and not value.is_quantized and not value.is_meta:
                tensors[".".join(keys)] = value.detach()
            continue
        if id(value) in containers or len(containers) == MAX_DEPTH:
            continue
        children = []
        for key, child in _children(value):
            is_table = isinstance(value, InertObject) and key in MODULE_TABLES
            child_keys = keys if is_table else (*keys, key)
            children.append((child_keys, child, (*containers, id(value))))
        pending.extend(reversed(children))
    raise _unreadable(path, f"more than {MAX_OBJECTS:,} objects")


def _children(value: Any) -> list[tuple[str, Any]]:
    children = []
    if isinstance(value, InertObject):
        children.extend(value.content.items())
    if isinstance(value, dict):
        children.extend(value.items())
    elif isinstance(value, list | tuple):
        children.extend(enumerate(value))
    return [(str(key), child) for key, child in children if isinstance(key, str | int)]

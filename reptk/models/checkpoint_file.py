"""Checkpoint files of any project: all tensors by their paths in the file, without executing code that the file names."""

import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from reptk.core.errors import DataError
from reptk.core.foreign_files import read_json
from reptk.core.name_lists import first_names

StateDict = dict[str, Tensor]

LEGACY_PICKLES = 5
"""Before torch 1.6, a file was a sequence of pickles, with the content in the fourth, followed by the numbers."""

REFUSED_MODULES = ("os", "posix", "nt", "sys")
"""torch refuses files that name anything of these modules, and so does reptk, with a clearer message."""

MODULE_TABLES = ("_parameters", "_buffers", "_modules")
"""Where a pickled `nn.Module` stores its tensors and submodules; its state dict leaves these words out of the names."""

INDEX_ENDING = ".index.json"
"""How the files end that say in which file each tensor of a large model is, as the hub stores it."""

MAX_LISTED_FILES = 3
MAX_OBJECTS = 1_000_000
MAX_DEPTH = 64


def read_tensors(path: Path) -> StateDict:
    """Read all tensors of a file, recognized by its content and not by its ending.

    It may be safetensors, whatever `torch.save` wrote, NumPy's `.npz`, or the index of a model in several files
    (`model.safetensors.index.json`), which lie next to it.

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
            if is_index(path):
                return _read_all_files(path)
            content = _read(path)
        return _collect(content, path)
    except DataError:
        raise
    except Exception as cause:
        # torch's message advises to permit the execution of code, which a file from elsewhere must never get.
        raise _unreadable(path, f"it is damaged or of another kind, {type(cause).__name__}") from cause


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} holds no plain weights ({reason}). What can be read is safetensors, .npz, and checkpoints of torch.save with "
        "its default protocol: copy the file again, or save model.state_dict() where it was trained"
    )


def is_index(path: Path) -> bool:
    """Return whether a file is, by its name, the index of a model in several files."""
    return path.name.endswith(INDEX_ENDING)


def files_of_index(path: Path) -> list[str]:
    """Return the names of the files that the index of a model lists, which are in its folder.

    Raises:
        DataError: it is no such index.
    """
    return sorted(set(_weight_map(path).values()))


def _weight_map(path: Path) -> dict[str, str]:
    """Return the file of each tensor."""
    try:
        file_of = read_json(path)["weight_map"]
        # Names of files alone, so that an index cannot name files elsewhere.
        if file_of and all(file and Path(file).name == file and not is_index(Path(file)) for file in file_of.values()):
            return file_of
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DataError(f"{path} is no index of a model's files, which has a table weight_map; copy it again")


def _read_all_files(path: Path) -> StateDict:
    """Return the tensors of all files that an index lists."""
    file_of = _weight_map(path)
    names = files_of_index(path)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        listed = first_names(missing, MAX_LISTED_FILES)
        raise DataError(
            f"{path} lists {len(names)} files, of which {len(missing)} are missing: {listed}. Copy them next to it"
        )
    tensors: StateDict = {}
    for name in names:
        tensors |= read_tensors(path.parent / name)
    lost = [name for name in file_of if name not in tensors]
    if lost:
        raise DataError(
            f"{path.parent / file_of[lost[0]]} lacks the tensor {lost[0]}, which {path.name} says it has; copy it again"
        )
    return tensors


def _read(path: Path) -> Any:
    if _is_safetensors(path):
        return load_file(path)
    if tarfile.is_tarfile(path):
        raise DataError(
            f"{path} is a tar archive. Unpack it; if it is itself a checkpoint of PyTorch before 0.2, save it again where you "
            "trust it: torch.save(torch.load(FILE, weights_only=False), 'weights.pt')"
        )
    if is_npz(path):
        return _read_npz(path)
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


def is_npz(path: Path) -> bool:
    """Return whether a file holds NumPy arrays by name."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(path: Path) -> StateDict:
    tensors = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                tensors[name] = torch.from_numpy(arrays[name])
    except (ValueError, TypeError, OSError, zipfile.BadZipFile) as cause:
        raise DataError(
            f"{path} holds arrays that are no plain numbers, or is damaged ({cause}). Save float32 arrays, each under its name"
        ) from cause
    return tensors


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

"""Parts of a checkpoint: the prefixes under which an encoder may be."""

from collections import Counter

from torch import nn

from reptk.models.checkpoint_file import StateDict
from reptk.models.weight_fitting import COUNTER, required_tensors


def tensors_under(tensors: StateDict, prefix: str) -> StateDict:
    """Return the tensors whose names begin with a prefix, without it."""
    if not prefix:
        return dict(tensors)
    start = prefix + "."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _sizes(tensors: StateDict) -> Counter[str]:
    """Return all prefixes of names in a file with their numbers of tensors, without counters; "" is the whole file."""
    sizes: Counter[str] = Counter()
    for name in tensors:
        if name.endswith(COUNTER):
            continue
        words = name.split(".")
        for length in range(len(words)):
            sizes[".".join(words[:length])] += 1
    return sizes


def candidate_prefixes(tensors: StateDict, backbone: nn.Module, part: str | None) -> list[str]:
    """Return the prefixes under which the backbone may be, the shortest first; all inside the part if one is named."""
    sizes = _sizes(tensors)
    prefixes = sorted(sizes, key=lambda prefix: prefix.count(".") + bool(prefix))
    enough = len(required_tensors(backbone)) / 2
    large = [prefix for prefix in prefixes if sizes[prefix] >= enough]
    if part is None:
        return large or [""]
    part = part.strip(".")
    if part == "":
        return [""]
    if part in large:
        # The full path of a part, and what is only in it: `teacher` holds `teacher.backbone`.
        return [prefix for prefix in large if f"{prefix}.".startswith(f"{part}.")]
    inside = [prefix for prefix in prefixes if f".{part}." in f".{prefix}."]
    return [prefix for prefix in inside if prefix in large] or inside[:1]


def large_parts(tensors: StateDict) -> list[str]:
    """Return the parts of a file that hold a good share of its tensors, the outermost first, for messages."""
    parts = []
    for prefix, size in _sizes(tensors).items():
        if prefix and size >= len(tensors) / 8:
            parts.append(prefix)
    return sorted(parts, key=lambda prefix: prefix.count("."))

"""Matches the tensors of a file with those of a timm backbone by their order, where names do not agree."""

import re
from itertools import combinations

import torch
from torch import nn

from reptk.models.checkpoint_file import StateDict
from reptk.models.weight_fitting import COUNTER, Candidate, compare, required_tensors
from reptk.models.weight_parts import tensors_under

Layer = tuple[str, tuple[tuple[str, torch.Size], ...]]
"""The path of a module, and its tensors: what each is in the layer (`weight`, `running_mean`, ...), and its shape."""


def match_by_order(tensors: StateDict, prefixes: list[str], backbone: nn.Module) -> Candidate | None:
    """Return the tensors in the backbone's order if that is the only way to assign them; otherwise None."""
    required = required_tensors(backbone)
    expected_layers = _layers(required)
    # The longest prefix first, under which the names differ from the first word on.
    for prefix in reversed(prefixes):
        state = tensors_under(tensors, prefix)
        # A classifier may follow the tensors of the backbone.
        names = [name for name in state if not name.endswith(COUNTER)][: len(required)]
        layers = _layers({name: state[name] for name in names})
        if not _same_order(layers, expected_layers):
            continue
        renamed = {name: state[other] for name, other in zip(required, names, strict=True)}
        for (module, _), (expected_module, _) in zip(layers, expected_layers, strict=True):
            if f"{module}.{COUNTER}" in state:
                renamed[f"{expected_module}.{COUNTER}"] = state[f"{module}.{COUNTER}"]
        candidate = compare(prefix, renamed, backbone.state_dict())
        if not candidate.num_problems:
            return candidate
    return None


def _layers(state: StateDict) -> list[Layer]:
    layers: list[Layer] = []
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if not layers or layers[-1][0] != module:
            layers.append((module, ()))
        layers[-1] = (module, (*layers[-1][1], (kind, value.shape)))
    return layers


def _same_order(layers: list[Layer], expected: list[Layer]) -> bool:
    """Whether layers agree in kinds and shapes, and the names confirm the order of those that could be exchanged."""
    if [tensors for _, tensors in layers] != [tensors for _, tensors in expected]:
        return False
    positions: dict[tuple[tuple[str, torch.Size], ...], list[int]] = {}
    for position, (_, tensors) in enumerate(layers):
        positions.setdefault(tensors, []).append(position)
    for exchangeable in positions.values():
        for first, second in combinations(exchangeable, 2):
            order = _order(layers[first][0], layers[second][0])
            if order is None or order != _order(expected[first][0], expected[second][0]):
                return False
    return True


def _order(first: str, second: str) -> str | None:
    """Return how names tell that a layer comes before another one of the same kind and shape; None if they do not.

    `blocks.2.bn1` comes before `blocks.3.bn1`, and `bn1` before `bn2` next to it, by their numbers. `stem.bn` and
    `blocks.0.bn` differ at the top level, where modules are in the order of the computation. `norm_mlp` and `norm_attn` in
    one block say nothing, unless the backbone has the same words.
    """
    words = zip(first.split("."), second.split("."), strict=False)
    for depth, (word, other) in enumerate(words):
        if word == other:
            continue
        if re.sub(r"\d+", "#", word) == re.sub(r"\d+", "#", other):
            numbers = [int(digits) for digits in re.findall(r"\d+", word)]
            is_before = numbers < [int(digits) for digits in re.findall(r"\d+", other)]
            return "by number" if is_before else None
        return "at the top level" if depth == 0 else f"{word} before {other}"
    return None

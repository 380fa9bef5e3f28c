"""Warnings of a run name the keys of its method, and know how many rows its loss compares each embedding with."""

import json
from pathlib import Path
from typing import Any

import pytest

from method_runs import run, small
from reptk.methods import DINO, SwAV
from reptk.methods.prototypes import AssignmentEntropies
from reptk.training import epoch

NARROW = ["encoder.backbone=test_resnet", "encoder.head_width=16", "encoder.head_out=16"]


def warned(name: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """`training` of results.json, after a run of one epoch."""
    run(small(name, *NARROW, "train.epochs=1", *overrides), folder)
    return json.loads((folder / "results.json").read_text())["training"]


def test_a_temperature_is_named_where_the_recipe_has_it(tmp_path: Path) -> None:
    training = warned("moco_v3_photos", tmp_path / "run", "method.temperature=50")
    assert training["warnings"] == {"temperature": [1]}
    assert training["advice"] == {"temperature": "Lower method.temperature (0.05 to 0.5 is usual)"}
    training = warned("moco_photos", tmp_path / "loss", "loss.temperature=50", "method.queue_size=20")
    assert training["advice"]["temperature"].startswith("Lower loss.temperature")


@pytest.mark.parametrize(("name", "other"), [("dino", SwAV), ("swav", DINO)])
def test_prototypes_are_advised_about_by_arguments_of_the_method(
    name: str, other: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collapsed(entropies: AssignmentEntropies) -> dict[str, Any]:
        return {"assignment_entropy": entropies.of_views, "mean_assignment_entropy": entropies.of_views}

    monkeypatch.setattr(AssignmentEntropies, "as_outputs", collapsed)
    monkeypatch.setattr("reptk.evaluate.diagnostics.is_collapsed", lambda *_: False)
    recipe = small(f"{name}_photos", *NARROW, "method.num_prototypes=8")
    training = warned(f"{name}_photos", tmp_path / "run", "method.num_prototypes=8")
    advice = training["advice"]["prototypes"]
    named = {word.rstrip(",.").partition("=")[0] for word in advice.split() if word.startswith("method.")}
    assert named
    assert all(key.removeprefix("method.") in recipe.method for key in named)
    assert other.prototypes_advice not in advice


def test_a_low_loss_is_compared_with_that_of_random_embeddings_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = []
    monkeypatch.setattr(epoch, "shortcut_message", lambda loss, num_candidates, **_: candidates.append(num_candidates))
    options = ["train.baselines=true", "eval.knn.every_epochs=1", "train.epochs=2"]
    warned("moco_photos", tmp_path / "moco", *options, "method.queue_size=20")
    # 16 queries, as many keys, and the queue.
    assert candidates == [15 + 16 + 20]
    warned("xbm_photos", tmp_path / "xbm", *options, "method.memory_size=40", "method.start=0")
    # 32 embeddings, and in the third step of an epoch the last 40 of the memory.
    assert candidates[1:] == [31 + 40]
    warned("simclr_photos", tmp_path / "simclr", *options)
    assert candidates[2:] == [31]
    rows = [json.loads(line) for line in (tmp_path / "moco" / "metrics.jsonl").read_text().splitlines()]
    assert not any("num_candidates" in row for row in rows)

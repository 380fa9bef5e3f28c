"""Advice about waiting for images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from reptk.data import InMemory
from reptk.training.input_wait import input_bound_advice, input_bound_message
from tiny_runs import TINY, tiny


def message(*overrides: str, images: object = None, device: str = "cuda", data: dict[str, Any] | None = None) -> str:
    """The line about a run of the tiny recipe on other data, of which 43.4 % was spent waiting."""
    recipe = tiny(*overrides, data=data or TINY["data"])
    advice = input_bound_advice(images, recipe.data, recipe.train.workers, torch.device(device))
    return input_bound_message(0.434, advice)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A `[data]` table of photos, on a machine of 16 cores without simplejpeg."""
    monkeypatch.setattr("reptk.training.input_wait.num_cpus", lambda: 16)
    monkeypatch.setattr("reptk.training.input_wait.find_spec", lambda name: None)
    return {"name": "folder", "root": str(tmp_path)}


WAITED = "input-bound: 43 % of the time went into waiting for images"
WORKERS = "raise train.workers (now 2 of 16 cores)"
CACHE = "set data.cache=true"
JPEG = 'pip install "reptk[jpeg]" if they are JPEG'


def test_advice_about_waiting_is_what_applies(photos: dict[str, str]) -> None:
    assert message("train.workers=2", data=photos) == f"{WAITED}; {WORKERS}, {CACHE} or {JPEG}"
    assert message("train.workers=16", data=photos) == f"{WAITED}; {CACHE} or {JPEG}"
    assert message("train.workers=2", data={**photos, "jpeg": "pillow"}) == f"{WAITED}; {WORKERS} or {CACHE}"
    assert message("train.workers=2", data={**photos, "cache": True}) == f"{WAITED}; {WORKERS}"


def test_images_in_memory_need_no_advice(photos: dict[str, str]) -> None:
    in_memory = InMemory(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert message("train.workers=2", images=in_memory) == WAITED


def test_training_on_the_cpu_shares_its_cores_with_decoding(photos: dict[str, str]) -> None:
    line = message("train.workers=16", device="cpu", data=photos)
    assert line == f"{WAITED}, which are decoded on the cores that train; {CACHE} or {JPEG}"


def test_cores_are_divided_among_the_ranks_of_a_machine(
    photos: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    line = message("train.workers=1", data={**photos, "cache": True})
    assert line == f"{WAITED}; raise train.workers (now 1 of 2 cores)"
    assert message("train.workers=2", data={**photos, "jpeg": "pillow"}) == f"{WAITED}; {CACHE}"


def test_simplejpeg_is_not_advised_where_it_is_installed(
    photos: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reptk.training.input_wait.find_spec", lambda name: "installed")
    assert message("train.workers=16", data=photos) == f"{WAITED}; {CACHE}"

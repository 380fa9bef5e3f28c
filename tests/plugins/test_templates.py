"""The templates of `reptk plugin new`: their tests pass, and they say what a part may have."""

import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path

import pytest

import reptk
from reptk.config.part_catalog import KINDS

TEMPLATES = Path(__file__).parents[2] / "plugins" / "templates"

DOCUMENTED = {
    "loss": ("reptk.losses.Loss", "computes_local_rows temperature"),
    "method": ("reptk.methods.Method", "encoder crops_full_images forward after_step parameter_groups"),
    "dataset": ("reptk.data.Images", "is_gray path fetch"),
    "views": ("reptk.views.Views", "sizes count shard aspect_ratios"),
    "evaluator": ("reptk.evaluate.Evaluator", "needs_labels during_training"),
    "store": ("reptk.stores.Store", "index_kind close"),
}
"""The class that describes each kind, and its members that the template names."""


@pytest.mark.usefixtures("one_thread", "restored_registries")
@pytest.mark.parametrize("kind", KINDS)
def test_the_test_of_a_template_passes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(TEMPLATES, tmp_path / "parts")
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module(f"test_my_{kind}")
    functions = [function for name, function in vars(module).items() if name.startswith("test_")]
    assert len(functions) >= 2
    for function in functions:
        function()
    assert f"my_{kind}" in KINDS[kind].names()
    assert f"my_{kind}" in sys.modules


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_names_the_members_of_its_contract(kind: str) -> None:
    text = (TEMPLATES / f"my_{kind}.py").read_text()
    protocol, members = DOCUMENTED[kind]
    module, _, name = protocol.rpartition(".")
    described = vars(importlib.import_module(module))[name]
    for member in members.split():
        assert member in inspect.getsource(described), "the contract has such a member"
        assert re.search(rf"\b{member}\b", text), member


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.py")), ids=lambda path: path.stem)
def test_templates_use_public_names_alone(path: Path) -> None:
    public = re.findall(r"^from (reptk[\w.]*) import (.+)$", path.read_text(), re.MULTILINE)
    for module, names in public:
        exported = importlib.import_module(module).__all__
        assert set(names.split(", ")) <= set(exported), module
    assert reptk.__version__

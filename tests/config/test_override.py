"""key=value pairs: dotted keys, values read as TOML, and what a part's new name does to its arguments."""

import datetime
import os
from pathlib import Path

import pytest

from recipe_files import TINY, write
from reptk.config import load, override
from reptk.core.errors import UsageError
from reptk.core.files import write_text

TCL = {"name": "tcl", "temperature": 0.2, "k1": 100.0}


@pytest.mark.parametrize(
    ("table", "pairs", "expected"),
    [
        ({"train": {"epochs": 1}}, ["train.epochs=5"], {"train": {"epochs": 5}}),
        ({"train": {"epochs": 1, "workers": 2}}, ["train.epochs=5"], {"train": {"epochs": 5, "workers": 2}}),
        ({}, ["seed=1", "seed=2"], {"seed": 2}),
        ({}, ["eval.knn.k=[1, 5]"], {"eval": {"knn": {"k": [1, 5]}}}),
        ({"eval": {"knn": {"k": [1]}}}, ["eval.knn.every_epochs=2"], {"eval": {"knn": {"k": [1], "every_epochs": 2}}}),
        ({"expect": {"value": 1}}, ["name=mine"], {"expect": {"value": 1}, "name": "mine"}),
    ],
)
def test_dotted_keys_set_values_of_tables(table, pairs, expected):
    assert override(table, pairs) == expected


@pytest.mark.parametrize(
    ("encoder", "pairs", "expected"),
    [
        ({"weights": "a.pt"}, ["encoder.pretrained=true"], {"pretrained": True}),
        ({"pretrained": True}, ["encoder.weights=a.pt"], {"weights": "a.pt"}),
        ({"weights": "a.pt"}, ["encoder.pretrained=false"], {"weights": "a.pt", "pretrained": False}),
        ({}, ["encoder.weights=a.pt", "encoder.pretrained=true"], {"weights": "a.pt", "pretrained": True}),
    ],
)
def test_weights_of_timm_and_of_a_file_replace_each_other(encoder, pairs, expected):
    """Both at once are an error of the encoder, which says that one of them has to go."""
    assert override({"encoder": encoder}, pairs) == {"encoder": expected}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-3", 0.001),
        ("1_000", 1000),
        ("true", True),
        ('"two words"', "two words"),
        ("[1, 2]", [1, 2]),
        ('[{name = "Resize"}]', [{"name": "Resize"}]),
        ("resnet50", "resnet50"),
        ("vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("/my photos/2 = #3", "/my photos/2 = #3"),
        ("True", "True"),
        (".5", ".5"),
        ("", ""),
    ],
)
def test_value_is_toml_or_else_text(text, value):
    parsed = override({}, [f"a.b={text}"])["a"]["b"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["2024", "2024-05-01", "1e3", "true", "inf", "[1, 2]", "12:30:00", "0x1F"])
@pytest.mark.parametrize("data", [{}, {"name": "folder"}, {"name": "imagenet100"}, {"name": "of a plugin"}], ids=str)
def test_a_folder_may_be_called_like_a_number(data, text):
    assert override({"data": data}, [f"data.root={text}"])["data"]["root"] == text


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("encoder.weights=2024", "2024"),
        ("encoder.backbone=1e3", "1e3"),
        ("name=2024", "2024"),
        ("loss.name=2024", "2024"),
        ("data.root='2024'", "2024"),
        ("data.size=64", 64),
        ("data.cache=true", True),
        ("data.cache=2024", "2024"),
        ("train.epochs=5", 5),
        ("train.epochs=2024-05-01", datetime.date(2024, 5, 1)),
        ("encoder.pretrained=true", True),
        ("unknown.key=5", 5),
    ],
)
def test_what_was_typed_counts_where_a_key_takes_text(pair, value):
    table = override({"data": {"name": "folder"}}, [pair])
    for key in pair.partition("=")[0].split("."):
        table = table[key]
    assert table == value
    assert type(table) is type(value)


def test_a_recipe_with_a_folder_that_is_no_utf8_is_read_again():
    root = os.fsdecode(b"caf\xe9")
    recipe = load(write("tiny.toml"), ["data.name=folder", f"data.root={root}"])
    write_text(Path("again.toml"), recipe.dump())
    assert load("again.toml").data == recipe.data
    assert recipe.data["root"] == root


@pytest.mark.parametrize(
    ("pairs", "loss"),
    [
        (["loss.name=supcon"], {"name": "supcon"}),
        (["loss.name=supcon", "loss.temperature=0.3"], {"name": "supcon", "temperature": 0.3}),
        (["loss.temperature=0.3", "loss.name=supcon"], {"name": "supcon", "temperature": 0.3}),
        (["loss.name=tcl"], TCL),
        (["loss.k1=5", "loss.name=tcl"], TCL | {"k1": 5}),
    ],
)
def test_new_name_drops_old_arguments_in_any_order_of_pairs(pairs, loss):
    assert override({"loss": dict(TCL)}, pairs) == {"loss": loss}


@pytest.mark.parametrize("key", ["data", "views", "method", "loss"])
def test_new_name_drops_old_arguments_of_every_part(key):
    assert override({key: {"name": "old", "x": 1}}, [f"{key}.name=new"]) == {key: {"name": "new"}}


def test_sections_that_name_no_part_keep_their_keys():
    table = {"optim": {"name": "sgd", "lr": 1.0}, "encoder": {"backbone": "resnet18", "head_out": 64}}
    changed = override(table, ["optim.name=adamw", "encoder.backbone=resnet50"])
    assert changed == {"optim": {"name": "adamw", "lr": 1.0}, "encoder": {"backbone": "resnet50", "head_out": 64}}


def test_evaluator_may_have_a_key_other_than_its_name():
    table = {"eval": {"near": {"name": "knn", "k": [1]}}}
    assert override(table, ["eval.near.name=view_retrieval"]) == {"eval": {"near": {"name": "view_retrieval"}}}
    assert load(write("tiny.toml"), ["eval.near.name=knn", "eval.near.k=[2]"]).eval["near"]["k"] == [2]


def test_naming_an_evaluator_as_its_key_changes_nothing():
    assert load(write("tiny.toml"), ["eval.knn.name=knn"]).eval == load("tiny.toml").eval


def test_override_returns_a_copy():
    table = {"loss": dict(TCL), "eval": {"knn": {"k": [1]}}}
    override(table, ["loss.name=supcon", "eval.knn.k=[5]", "eval.near.name=knn"])
    assert table == {"loss": TCL, "eval": {"knn": {"k": [1]}}}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("train.epochs", "'train.epochs' is not key=value (e.g. train.epochs=5, loss.name=supcon)"),
        ("=5", "'=5' is not key=value (e.g. train.epochs=5, loss.name=supcon)"),
        ("train..epochs=5", "'train..epochs=5' is not key=value (e.g. train.epochs=5, loss.name=supcon)"),
        (".epochs=5", "'.epochs=5' is not key=value (e.g. train.epochs=5, loss.name=supcon)"),
        ("seed.x=5", "seed.x: seed is a value, not a table"),
        ("loss.name.x=5", "loss.name.x: name is a value, not a table"),
    ],
)
def test_malformed_pair_is_explained(pair, message):
    with pytest.raises(UsageError) as error:
        override({"seed": 0, "loss": dict(TCL)}, [pair])
    assert str(error.value) == message


def test_values_are_converted_to_the_types_of_their_keys():
    recipe = load(write("tiny.toml"), ["loss.temperature=.5", "loss.k1=7", "train.epochs=5", "eval.knn.k=[1, 5]"])
    assert recipe.loss == {"name": "tcl", "temperature": 0.5, "k1": 7.0, "k2": 1.0, "learn_temperature": False}
    assert isinstance(recipe.loss["k1"], float)
    assert recipe.train.epochs == 5
    assert recipe.eval["knn"]["k"] == [1, 5]


def test_override_drops_the_expected_result():
    expect = """
[expect]
metric = "knn@20"
value = 0.75
epochs = 1
train_seconds = 1.0
hardware = "2 cores"
versions = "torch 2.10"
commit = "abc"
"""
    path = write("tiny.toml", TINY + expect)
    assert load(path).expect.value == 0.75
    # The result was measured with another recipe.
    assert load(path, ["loss.k1=5"]).expect is None

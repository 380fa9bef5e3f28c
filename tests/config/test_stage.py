"""Stages: mistakes about the run that they start from, one message each."""

import json
import shutil
from pathlib import Path

import pytest

from recipe_files import TINY, load_error, write
from reptk.config import available, load
from reptk.core.errors import DataError, ReptkError, UsageError
from reptk.recipe import main

STAGES = ("linear", "linear_tcl", "finetune")
MODEL = {"backbone": "test_vit", "stem": "timm", "size": 16}


@pytest.fixture
def run() -> str:
    """What of a run's folder is read before anything is built."""
    folder = Path(write("runs/tiny/1/recipe.toml", TINY)).parent
    write("runs/tiny/1/model/config.json", json.dumps(MODEL))
    write("runs/tiny/1/model/model.safetensors", "weights")
    return str(folder)


def refused(*overrides: str, name: str = "linear") -> ReptkError:
    with pytest.raises(ReptkError) as error:
        load(name, overrides)
    return error.value


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_needs_a_run(name: str) -> None:
    error = refused(name=name)
    assert isinstance(error, UsageError)
    assert str(error) == (
        f"{name} starts from a finished run, which is not named: start.run=RUN, e.g. start.run=runs/supcon_digits/1"
    )


@pytest.mark.parametrize("name", STAGES)
def test_command_without_from_has_one_message(name: str, capsys: pytest.CaptureFixture) -> None:
    for option in ([], ["--check"], ["--smoke"], ["--show"]):
        assert main([name, *option]) == 2
        assert capsys.readouterr().err.startswith(
            f"error: {name} starts from a finished run, which is not named: --from RUN"
        )


def test_the_folder_has_to_be_that_of_a_finished_run(run: str) -> None:
    assert str(refused("start.run=gone")) == "start.run=gone: there is no folder gone"
    Path("empty").mkdir()
    assert str(refused("start.run=empty")) == (
        "start.run=empty: this is not the folder of a run, which has a recipe.toml"
    )
    assert str(refused(f"start.run={run}/model")) == (
        f"start.run={run}/model: this is the model folder of a run, and not its folder. Name the run: start.run={run}"
    )
    shutil.rmtree(Path(run, "model"))
    error = refused(f"start.run={run}")
    assert isinstance(error, DataError)
    assert str(error) == (
        f"start.run={run}: this run has no model yet, which a finished run has. Finish it: python -m reptk.recipe {run} "
        "--resume"
    )


def test_the_command_names_its_option(run: str, capsys: pytest.CaptureFixture) -> None:
    """`--from` if the user writes that, and `start.run=` if that is what the command line says."""
    assert main(["linear", "--from", "gone", "--show"]) == 2
    assert capsys.readouterr().err == "error: --from gone: there is no folder gone\n"
    assert main(["linear", "--from", f"{run}/model", "--show"]) == 2
    assert capsys.readouterr().err.endswith(f"Name the run: --from {run}\n")
    assert main(["linear", "start.run=gone", "--show"]) == 2
    assert capsys.readouterr().err == "error: start.run=gone: there is no folder gone\n"


def test_a_folder_may_be_in_quotes(run: str) -> None:
    """As the folders of a sweep's runs must be among the values of another sweep: commas are part of their names."""
    folder = "loss.k1=1,seed=0"
    shutil.copytree(run, folder)
    assert load("linear", [f'start.run="{folder}"']).start == load("linear", [f"start.run={folder}"]).start
    assert str(refused('start.run="gone"')) == "start.run=gone: there is no folder gone"


def test_weights_alone_are_no_run(run: str) -> None:
    shutil.copytree(Path(run, "model"), "exported")
    for weights in ("exported", "exported/model.safetensors"):
        message = str(refused(f"start.run={weights}"))
        assert message.endswith(f"To train another recipe from these weights: encoder.weights={weights}")


@pytest.mark.parametrize("text", ["{", "[]", '{"backbone": "test_vit"}'])
def test_a_damaged_model_is_named(run: str, text: str) -> None:
    Path(run, "model", "config.json").write_text(text)
    error = refused(f"start.run={run}")
    assert isinstance(error, DataError)
    assert str(error).startswith(f"start.run={run}: its model is damaged: config.json cannot be read")


@pytest.mark.parametrize(
    "pair", ["encoder.backbone=resnet18", "encoder.stem=small", "encoder.weights=w.pth", "encoder.pretrained=true"]
)
def test_another_encoder_is_refused(run: str, pair: str) -> None:
    message = str(refused(f"start.run={run}", pair))
    assert message.startswith(f"{pair}: the stage starts from the encoder of ")
    assert "(encoder.backbone=test_vit, encoder.stem=timm); leave it out" in message


def test_the_same_encoder_is_not_another_one(run: str) -> None:
    assert load("linear", [f"start.run={run}", "encoder.backbone=test_vit"]).encoder.backbone == "test_vit"


def test_other_recipes_start_from_no_run(run: str) -> None:
    message = str(refused(f"start.run={run}", name="supcon_digits"))
    assert message.startswith(
        f"start.run={run}: supcon_digits is not a stage that starts from a run, as linear, linear_tcl and finetune are."
    )
    assert f"encoder.weights={run}" in message


def test_a_run_of_a_stage_starts_from_no_other_run(run: str) -> None:
    recipe = load("linear", [f"start.run={run}"])
    folder = Path(write("stage/recipe.toml", recipe.dump())).parent
    assert load(folder) == recipe
    assert load(folder, [f"start.run={run}"]).start == recipe.start
    Path("other").mkdir()
    message = str(refused("start.run=other", name=str(folder)))
    assert message.endswith("to start from other, name the stage: linear start.run=other")


def test_pretrained_is_that_of_the_first_run(run: str) -> None:
    assert load("linear", [f"start.run={run}"]).start.pretrained is False
    write("runs/tiny/1/recipe.toml", TINY.replace("[encoder]", "[encoder]\npretrained = true"))
    recipe = load("linear", [f"start.run={run}"])
    assert recipe.start.pretrained is True
    # And that of a stage which starts from a stage.
    folder = Path(write("stage/recipe.toml", recipe.dump())).parent
    shutil.copytree(Path(run, "model"), folder / "model")
    assert load("finetune", [f"start.run={folder}"]).start.pretrained is True


def test_classifier_is_one_of_two() -> None:
    message = load_error("start.classifier=old", text=f'{TINY}\n[start]\nrun = "x"\n')
    assert "start.classifier  must be 'new' or 'run', got 'old'" in message


@pytest.mark.parametrize("name", ["resnet10t", "resnet10t.c3_in1k"])
def test_the_backbone_of_the_run_may_be_named_without_its_tag(run: str, name: str) -> None:
    Path(run, "model", "config.json").write_text(json.dumps({**MODEL, "backbone": "resnet10t.c3_in1k"}))
    assert load("linear", [f"start.run={run}", f"encoder.backbone={name}"]).encoder.backbone == "resnet10t.c3_in1k"
    assert "resnet10t.a1_in1k: the stage starts" in str(
        refused(f"start.run={run}", "encoder.backbone=resnet10t.a1_in1k")
    )


def stage_file(text: str) -> str:
    """A copy of finetune.toml with other lines before its tables or at its end."""
    return str(write("adapted.toml", text))


FINETUNE = available()["finetune"].read_text()


def test_a_stage_may_adapt_the_encoder(run: str) -> None:
    name = stage_file(f"{FINETUNE}\n[encoder]\nlora_rank = 8\n")
    recipe = load(name, [f"start.run={run}"])
    assert recipe.encoder.lora_rank == 8
    assert recipe.encoder.weights == f"{Path(run).resolve()}/model"
    folder = Path(write("stage/recipe.toml", recipe.dump())).parent
    assert load(folder) == recipe
    other = stage_file(f"{FINETUNE}\n[encoder]\nstem = 'small'\n")
    assert str(refused(f"start.run={run}", name=other)).startswith(
        "encoder.stem=small: the stage starts from the encoder"
    )


@pytest.mark.parametrize("key", ["views", "encoder", "train", "eval"])
def test_what_is_no_table_in_a_stage_is_named(run: str, key: str) -> None:
    tables = [part for part in FINETUNE.split("\n\n") if not part.startswith((f"[{key}]", f"[{key}."))]
    name = stage_file(f"{key} = 3\n" + "\n\n".join(tables))
    error = refused(f"start.run={run}", name=name)
    assert isinstance(error, UsageError)
    assert str(error) == f"adapted: {key} must be a table, got 3"


@pytest.mark.parametrize(
    ("key", "line"), [("eval.knn", "eval = {knn = 3}"), ("start", "start = 3"), ("train", "train = 3")]
)
def test_what_is_no_table_in_the_run_is_named(run: str, key: str, line: str) -> None:
    write("runs/tiny/1/recipe.toml", line)
    error = refused(f"start.run={run}")
    assert isinstance(error, DataError)
    assert str(error).endswith(f"recipe.toml: {key} must be a table, got 3")


def test_the_share_of_labels_is_that_of_the_first_run(run: str) -> None:
    assert load("linear", [f"start.run={run}"]).start.label_seed is None
    write("runs/tiny/1/recipe.toml", TINY.replace("[data]", "[data]\nlabelled = 0.1"))
    recipe = load("linear", [f"start.run={run}", "seed=5"])
    assert (recipe.seed, recipe.start.label_seed) == (5, 3)
    folder = Path(write("stage/recipe.toml", recipe.dump())).parent
    shutil.copytree(Path(run, "model"), folder / "model")
    assert load("finetune", [f"start.run={folder}", "seed=7"]).start.label_seed == 3

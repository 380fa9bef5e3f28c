"""Mistakes that show while a run trains: one message, and the run's folder says what happened."""

import json
import re
from pathlib import Path

import pytest

from faulty_inputs import FOLDER, TINY, error_message
from reptk.cli.evaluate import main as evaluate
from reptk.recipe import main

pytestmark = pytest.mark.usefixtures("one_thread", "faulty_folder")


def read_status(folder: str = "runs/tiny/1") -> dict[str, str]:
    return json.loads(Path(folder, "status.json").read_text())


def has_failed(reason: str) -> bool:
    status = read_status()
    return status["status"] == "failed" and status["reason"] == reason


def test_corrupt_image_is_named(capsys):
    assert main(["tiny.toml", *FOLDER, "data.root=corrupt", "data.on_error=stop"]) == 3
    message = error_message(capsys.readouterr().err)
    assert message.startswith("cannot read corrupt/07.png as an image: ")
    assert message.endswith("Repair it, or take it out of the folder")
    assert has_failed(f"DataError: {message}")


def test_loss_that_is_not_a_number_is_named_with_its_step(capsys):
    assert main(["tiny.toml", "--plugin", "nan_loss.py", "loss.name=nan_loss"]) == 5
    message = error_message(capsys.readouterr().err)
    assert message.startswith(
        "the loss is nan at step 1 (epoch 1, optim.lr 0.05); the embeddings are finite, so it arose in the loss 'nan_loss'"
    )
    assert has_failed(f"NonFiniteStep: {message}")
    assert not Path("runs/tiny/1/results.json").exists()
    # Of the baselines, before the first step.
    assert [path.name for path in Path("runs/tiny/1/checkpoints").iterdir()] == ["step_00000000"]


def test_images_of_a_step_that_is_not_finite_are_named_by_their_files(capsys):
    photos = [*FOLDER, "data.root=photos", "train.batch_size=2"]
    assert main(["tiny.toml", *photos, "--plugin", "nan_loss.py", "loss.name=nan_loss"]) == 5
    message = error_message(capsys.readouterr().err)
    assert re.search(r"\. The images of the batch: photos/\d\d\.png, photos/\d\d\.png\. The last ", message)


def test_weights_that_diverge_are_distinguished_from_a_faulty_loss(capsys):
    assert main(["tiny.toml", "optim.lr=1e30"]) == 5
    message = error_message(capsys.readouterr().err)
    assert message.startswith(
        "the loss is nan at step 2 (epoch 1, optim.lr 1e+30); 32 of 32 embeddings hold NaN or infinity: the weights have "
        "diverged"
    )
    assert "optim.lr" in message
    assert "optim.warmup_epochs" in message


@pytest.mark.parametrize("evaluator", ["knn", "linear", "few_shot", "view_retrieval", "linear_stage"])
def test_weights_that_diverge_in_the_last_step_are_noticed_by_the_evaluation(evaluator, capsys):
    """They are finite, and the features that they give are not."""
    one_step = ["train.epochs=1", "train.batch_size=32", "train.baselines=false", f"eval.knn.name={evaluator}"]
    if evaluator == "linear_stage":
        one_step += ["eval.knn.epochs=1"]
    assert main(["tiny.toml", "optim.lr=1e30", *one_step]) == 5
    message = error_message(capsys.readouterr().err)
    assert re.match(r"the features of \d+ of \d+ images hold NaN or infinity \(image/0, ", message)
    assert has_failed(f"NumericalError: {message}")
    assert not Path("runs/tiny/1/results.json").exists()
    assert evaluate(["runs/tiny/1", "data.name=generated", "data.size=32", "--only", "linear", "--no-baselines"]) == 5
    assert "the encoder's weights have diverged" in error_message(capsys.readouterr().err)


def test_weights_that_give_no_features_are_noticed_before_training(capsys):
    assert main(["tiny.toml", "optim.lr=1e30", "train.epochs=1", "train.batch_size=32", "train.baselines=false"]) == 5
    capsys.readouterr()
    assert main(["tiny.toml", "encoder.weights=runs/tiny/1"]) == 5
    assert "at step 1 (epoch 1, optim.lr 0.05); 32 of 32 embeddings hold NaN" in capsys.readouterr().err
    assert main(["tiny.toml", "encoder.weights=runs/tiny/1", "train.baselines=true"]) == 5
    assert error_message(capsys.readouterr().err).startswith("the features of 20 of 20 images hold NaN or infinity")
    assert not Path("runs/tiny/3/checkpoints").exists()


def test_interruption_prints_how_to_resume(capsys):
    assert main(["tiny.toml", "--plugin", "interrupted_loss.py", "loss.name=interrupted_loss"]) == 130
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.endswith(
        "interrupted; step 0 is saved. To resume: python -m reptk.recipe runs/tiny/1 --resume --trust\n"
    )
    assert read_status()["status"] == "interrupted"


def test_error_of_the_code_has_a_traceback_and_is_recorded():
    with pytest.raises(RuntimeError, match="out of luck"):
        main(["tiny.toml", "--plugin", "failing_loss.py", "loss.name=failing_loss"])
    assert has_failed("RuntimeError: out of luck")
    assert "failing_loss.py:" in read_status()["place"]


@pytest.mark.filterwarnings("always")
def test_k_larger_than_the_bank_is_lowered_with_a_warning(capsys):
    assert main(["tiny.toml", "eval.knn.k=[1, 200]"]) == 0
    output = capsys.readouterr()
    assert output.err == "warning: k = 200 is more than the bank offers; 20 is used instead\n"
    metrics = json.loads(Path("runs/tiny/1/results.json").read_text())["metrics"]["trained"]
    assert {"knn@1", "knn@20"} <= set(metrics)
    assert "knn@200" not in metrics


@pytest.mark.filterwarnings("ignore:k = 200 is more")
def test_recipe_without_evaluators_runs(faulty_folder, capsys):
    (faulty_folder / "tiny.toml").write_text(TINY.partition("[eval.knn]")[0])
    assert main(["tiny.toml"]) == 0

"""Runs of `classify` and `joint`: what a plain loop trains, what `contrastive` trains, the same after an interruption."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reptk import config
from reptk.cli.evaluate import main as evaluate
from reptk.config.registry import VIEWS
from reptk.core import rng
from reptk.core.console import Logger
from reptk.core.errors import DataError, UsageError
from reptk.data import Loader
from reptk.methods import Batch, Step
from reptk.models.classifier import read_classifier
from reptk.models.encoder import Encoder
from reptk.training import loop
from reptk.training.build import build
from reptk.training.describe import describe, random_weights_note
from reptk.training.load_data import load_data
from reptk.training.loop import train
from reptk.training.parts import Parts
from reptk.training.run_status import read_status
from reptk.training.same_run import check_same_ranks
from tiny_runs import are_equal, exported_weights, metric_rows, result_metrics, run_silently, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFY = {"method": {"name": "classify"}, "loss": None}
JOINT = {"method": {"name": "joint"}, "loss": {"name": "supcon"}}
FAST = ["train.baselines=false", "train.report=false", "eval.knn.every_epochs=0"]


def classifier_weights(folder: Path) -> dict[str, Tensor]:
    return read_classifier(folder).module.state_dict()


# A plain loop


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("view_count", [1, 2])
def test_classify_trains_what_a_plain_loop_trains(backbone: str, view_count: int, tmp_path: Path) -> None:
    options = ["optim.name=sgd", "optim.lr=0.05", "optim.decay_all=true", "optim.schedule=constant", *FAST]
    options += [f"encoder.backbone={backbone}", f"views.count={view_count}", "method.label_smoothing=0.1"]
    recipe = tiny(*options, **CLASSIFY)
    run_silently(recipe, tmp_path / "run")

    with rng.seeded(recipe.seed, "initial weights"):
        encoder = Encoder(backbone, size=16)
        classifier = nn.Linear(encoder.num_features, 4)
    encoder.train()
    parameters = [*encoder.backbone.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4)
    views = config.build(VIEWS, recipe.views)
    loader = Loader(load_data(recipe).train, batch_size=16, seed=recipe.seed)
    for number, (images, labels, _) in enumerate(loader.batches(0, 6)):
        augmented = views(images, rng.key(recipe.seed, "views", number)).flatten(0, 1)
        scores = classifier(encoder.features(augmented))
        loss = functional.cross_entropy(scores, labels.repeat(view_count), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    trained = exported_weights(tmp_path / "run")
    expected = {f"backbone.{name}": value for name, value in encoder.backbone.state_dict().items()}
    assert trained.keys() == expected.keys()  # no head
    for name, value in expected.items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in classifier_weights(tmp_path / "run").items():
        torch.testing.assert_close(value, classifier.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
    last = [row for row in metric_rows(tmp_path / "run") if "loss" in row][-1]
    assert last["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert last["train_accuracy"] == pytest.approx(
        (scores.argmax(1) == labels.repeat(view_count)).float().mean().item()
    )


# Contrastive


def test_joint_with_weight_0_trains_the_encoder_of_contrastive(tmp_path: Path) -> None:
    contrastive = {"method": {"name": "contrastive", "positives": "class"}, "loss": {"name": "supcon"}}
    run_silently(tiny(*FAST, **contrastive), tmp_path / "contrastive")
    run_silently(tiny(*FAST, "method.weight=0.0", **JOINT), tmp_path / "joint")
    run_silently(tiny(*FAST, "method.weight=0.5", **JOINT), tmp_path / "weighted")
    weights = exported_weights(tmp_path / "contrastive")
    assert are_equal(exported_weights(tmp_path / "joint"), weights)
    assert not are_equal(exported_weights(tmp_path / "weighted"), weights)
    for row in metric_rows(tmp_path / "weighted"):
        if "loss" in row:
            assert row["loss"] == pytest.approx(row["contrastive_loss"] + 0.5 * row["cross_entropy"], rel=1e-5)


def test_joint_needs_the_features_of_the_whole_batch(tmp_path: Path) -> None:
    options = ["encoder.backbone=test_vit", "train.micro_batch_size=8"]
    with pytest.raises(
        UsageError, match=r"train\.micro_batch_size stores no features, and the method joint needs them"
    ):
        run_silently(tiny(*options, **JOINT), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_micro_batches_train_the_classifier_of_the_batch(tmp_path: Path) -> None:
    options = ["encoder.backbone=test_vit", *FAST]
    run_silently(tiny(*options, **CLASSIFY), tmp_path / "whole")
    run_silently(tiny(*options, "train.micro_batch_size=4", **CLASSIFY), tmp_path / "parts")
    for name, value in classifier_weights(tmp_path / "whole").items():
        torch.testing.assert_close(classifier_weights(tmp_path / "parts")[name], value, rtol=1e-3, atol=1e-4)


# A frozen encoder

FROZEN = ("method.freeze_encoder=true", *FAST)


def built(*overrides: str) -> Parts:
    recipe = tiny(*overrides, **CLASSIFY)
    return build(recipe, load_data(recipe), torch.device("cpu"))


def test_micro_batches_pass_through_the_batchnorm_of_a_frozen_encoder(tmp_path: Path) -> None:
    run_silently(tiny(*FROZEN, **CLASSIFY), tmp_path / "whole")
    run_silently(tiny(*FROZEN, "train.micro_batch_size=4", **CLASSIFY), tmp_path / "parts")
    for name, value in classifier_weights(tmp_path / "whole").items():
        torch.testing.assert_close(classifier_weights(tmp_path / "parts")[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"test_resnet has \d+ BatchNorm layers"):
        built("train.micro_batch_size=4")


def test_a_frozen_encoder_is_trained_on_any_number_of_ranks() -> None:
    options = {"allowed": (), "drop_path": 0.0}
    assert "the weights equal those" in check_same_ranks(1, 2, built(*FROZEN).method, **options)
    with pytest.raises(UsageError, match="BatchNorm layers normalize the images of each rank"):
        check_same_ranks(1, 2, built().method, **options)


def test_header_and_notes_say_that_the_encoder_is_frozen() -> None:
    recipe = tiny(*FROZEN, **CLASSIFY)
    parts = built(*FROZEN)
    [details] = [details for what, _, details in describe(recipe, parts) if what == "encoder"]
    num_classifier = 4 * parts.encoder.num_features + 4
    assert f"(none trained; those of the classifier are: {num_classifier:,})" in details
    [note] = random_weights_note(recipe)
    assert note.startswith("method.freeze_encoder leaves weights of the backbone untrained")


def test_a_classifier_that_diverges_on_a_frozen_backbone_is_judged_first(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = tiny("method.freeze_encoder=true", "optim.lr=300.0", "train.report=false", **CLASSIFY)
    train(recipe, tmp_path / "run", logger=Logger(prints=True))
    printed = capsys.readouterr().out
    assert "divergence: the cross-entropy is " in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training"]["frozen_backbone"] is True
    assert results["training"]["warnings"] == {"divergence": [1, 2]}
    assert "diverged" in results["verdict"]["sentence"].partition(". Accuracy ")[0]
    assert (
        "The backbone was not trained, so the features are those of the encoder before"
        in results["verdict"]["sentence"]
    )
    assert not any("Raw pixels" in line for line in results["verdict"]["advice"])


@pytest.mark.parametrize("frozen", ["method.freeze_encoder=true", "encoder.freeze=all"])
def test_accuracy_decides_where_nothing_else_changes(frozen: str, tmp_path: Path) -> None:
    """kNN on a frozen backbone is the same after every epoch, and would call the first one the best."""
    options = [frozen, "train.epochs=4", "optim.lr=0.03", "train.final_weights=best", "train.report=false"]
    recipe = tiny(*options, **CLASSIFY)
    run_silently(recipe, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["headline"] == "accuracy"
    assert results["model"]["metric"] == "accuracy"
    logged = [row["accuracy"] for row in metric_rows(tmp_path / "run") if "accuracy" in row]
    assert results["metrics"]["trained"]["accuracy"] == max(*logged, results["metrics"]["trained"]["accuracy"])
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    assert describe(recipe, parts)[-1] == ("weights", "best", "by Accuracy (eval.accuracy)")


def test_early_stopping_by_accuracy_needs_its_evaluation() -> None:
    tables = {"eval": {"knn": {"k": [1], "every_epochs": 1}, "accuracy": {}}}
    stops = ("method.freeze_encoder=true", "train.early_stopping_epochs=2")
    with pytest.raises(UsageError, match=r"set eval\.accuracy\.every_epochs"):
        tiny(*stops, **CLASSIFY, **tables)
    tiny(*stops[1:], **CLASSIFY, **tables)  # kNN decides


def test_settings_of_an_encoder_that_is_frozen_are_refused() -> None:
    options = [
        "encoder.backbone=test_vit",
        "encoder.lora_rank=2",
        "optim.layer_decay=0.5",
        "method.encoder_lr_scale=0.1",
    ]
    message = "encoder.lora_rank=2 and optim.layer_decay=0.5 and method.encoder_lr_scale=0.1 would have no effect"
    with pytest.raises(UsageError, match=message):
        built(*FROZEN, *options)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_an_odd_batch_is_refused_before_training(name: str) -> None:
    with pytest.raises(UsageError, match="pair the images of a batch, and this rank has 15"):
        built(f"method.{name}=0.5", "train.batch_size=15")


# Resumption


def untimed_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without what depends on the time."""
    timed = ("seconds", "views_per_second", "waiting")
    return [{key: value for key, value in row.items() if key not in timed} for row in metric_rows(folder)]


@pytest.mark.parametrize("method", [CLASSIFY | {"method": {"name": "classify", "mixup": 0.4, "cutmix": 1.0}}, JOINT])
def test_interrupted_run_ends_in_the_same_weights(
    method: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny("train.report=false", "train.baselines=false", **method)
    run_silently(recipe, tmp_path / "whole")
    train_step = loop.train_step

    def interrupted_step(parts: Parts, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        if step.number == 4:
            raise KeyboardInterrupt
        return train_step(parts, model, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            run_silently(recipe, tmp_path / "interrupted")
    assert read_status(tmp_path / "interrupted")["step"] == 3
    run_silently(recipe, tmp_path / "interrupted")
    assert are_equal(exported_weights(tmp_path / "whole"), exported_weights(tmp_path / "interrupted"))
    assert are_equal(classifier_weights(tmp_path / "whole"), classifier_weights(tmp_path / "interrupted"))
    assert untimed_rows(tmp_path / "whole") == untimed_rows(tmp_path / "interrupted")


# Accuracy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify") / "run"
    run_silently(tiny("train.report=false", "data.classes=7", **CLASSIFY), folder)
    return folder


def test_accuracy_is_in_the_results_and_the_metrics_of_epochs(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert {"knn@5", "map@r", "accuracy", "accuracy@5"} <= set(results["metrics"]["trained"])
    assert "accuracy" not in results["metrics"]["untrained"]  # it would guess
    assert results["headline"] == "knn@5"
    assert {"accuracy", "accuracy@5"} <= set(results["intervals"]["trained"])
    assert results["protocol"]["evaluators"]["accuracy"] == {"name": "accuracy", "every_epochs": 1, "k": [1, 5]}
    assert all("accuracy" in row for row in results["classes"])
    assert any("accuracy" in row and row["epoch"] == 1 for row in metric_rows(run))
    assert read_classifier(run).classes == tuple(f"class {number}" for number in range(7))


def test_evaluate_shows_the_accuracy_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        evaluate([str(run), "--out", str(tmp_path / "again.json"), "--only", "knn,accuracy", "eval.knn.k=[1,5]"]) == 0
    )
    metrics = json.loads((tmp_path / "again.json").read_text())["metrics"]
    expected = result_metrics(run)["trained"]
    for name in ("accuracy", "accuracy@5"):
        assert metrics["encoder"][name] == pytest.approx(expected[name])
    assert "accuracy" not in metrics["untrained"]
    assert "Accuracy" in capsys.readouterr().out


def test_accuracy_on_other_classes_is_left_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = ["data.classes=4", "--no-baselines"]
    assert evaluate([str(run), *other, "--only", "knn", "eval.knn.k=[1,5]"]) == 0
    message = "has other classes: 7 classes (class 0, class 1, class 2, class 3, class 4, ...) there, 4 classes"
    assert message in capsys.readouterr().out
    assert evaluate([str(run), *other, "--only", "accuracy"]) == 3
    assert message in capsys.readouterr().err


def test_accuracy_needs_a_classifier(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"eval\.accuracy measures a classifier"):
        run_silently(tiny(eval={"accuracy": {}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Labels


@pytest.mark.parametrize(("classes", "message"), [(0, "has no labels. Add them"), (1, "needs at least 2 classes")])
@pytest.mark.parametrize("method", [CLASSIFY, JOINT])
def test_classes_are_needed(
    classes: int, message: str, method: dict[str, Any], tmp_path: Path, restored_registries: None
) -> None:
    from reptk import DATASETS
    from reptk.data import Data, Split
    from reptk.data.sources.generated import generated

    @DATASETS.register("few_classes")
    def few_classes() -> Data:
        data = generated(train=48, bank=40, query=20, classes=1, size=16)
        if classes:
            return data
        split = Split(data.train.images, torch.full_like(data.train.labels, -1))
        return Data(split, None, None, (), "no labels")

    with pytest.raises(DataError, match=message):
        run_silently(tiny(data={"name": "few_classes"}, **method), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""Stages that start from a run: the linear stage by hand, fine-tuning with the classifier of a run, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reptk import config
from reptk.config import Recipe, load
from reptk.config.registry import VIEWS
from reptk.core import rng
from reptk.core.errors import DataError, UsageError
from reptk.core.files import sha256_of
from reptk.data import Loader
from reptk.embeddings.encoding.embedder import Embedder
from reptk.models.classifier import read_classifier
from reptk.models.encoder import Encoder
from reptk.training.build import build
from reptk.training.load_data import load_data
from tiny_runs import are_equal, exported_weights, result_metrics, run_silently, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = ["train.batch_size=16", "train.report=false"]
CONTRASTIVE = {"method": {"name": "contrastive", "positives": "class"}, "loss": {"name": "supcon"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of SupCon, whose backbone has BatchNorm."""
    folder = tmp_path_factory.mktemp("stages") / "supcon"
    run_silently(tiny("train.baselines=false", "train.report=false", **CONTRASTIVE), folder)
    return folder


@pytest.fixture(scope="module")
def linear_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear stage of SupCon's protocol, of 20 epochs, after it."""
    folder = tmp_path_factory.mktemp("stages") / "linear"
    run_silently(stage("linear", run, "train.epochs=20", "optim.lr=0.5"), folder)
    return folder


def stage(name: str, run: Path, *overrides: str) -> Recipe:
    return load(name, [f"start.run={run}", *BATCH, *overrides])


def classifier_weights(folder: Path) -> dict[str, Tensor]:
    return read_classifier(folder).module.state_dict()


# The linear stage


def test_linear_stage_is_the_published_procedure(run: Path, linear_run: Path) -> None:
    """main_linear.py of SupContrast: encoder in evaluation mode, SGD, lr x 0.2 after 60, 75 and 90 % of the epochs."""
    recipe = load(linear_run)
    encoder = Encoder.from_run(run)
    # The initial weights of the classifier are drawn after those of the encoder.
    with rng.seeded(recipe.seed, "initial weights"):
        Encoder("test_resnet", size=16)
        classifier = nn.Linear(encoder.num_features, 4)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[12, 15, 18], gamma=0.2)
    views = config.build(VIEWS, recipe.views)
    loader = Loader(load_data(recipe).train, batch_size=16, seed=recipe.seed)
    for number, (images, labels, _) in enumerate(loader.batches(0, 60)):
        [augmented] = views(images, rng.key(recipe.seed, "views", number))
        with torch.no_grad():
            features = encoder.features(augmented)
        loss = functional.cross_entropy(classifier(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number % 3 == 2:
            scheduler.step()
    for name, value in classifier_weights(linear_run).items():
        torch.testing.assert_close(value, classifier.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_linear_stage_leaves_the_encoder_as_it_was(run: Path, linear_run: Path) -> None:
    before, after = exported_weights(run), exported_weights(linear_run)
    backbone = {name: value for name, value in before.items() if name.startswith("backbone.")}
    assert are_equal(after, backbone)  # running statistics included
    metrics, stage_metrics = result_metrics(run)["trained"], result_metrics(linear_run)
    for name in ("knn@5", "map@r"):
        assert stage_metrics["trained"][name] == stage_metrics["untrained"][name] == pytest.approx(metrics[name])
    assert stage_metrics["trained"]["accuracy"] > 0.3


def test_results_record_where_the_stage_started(run: Path, linear_run: Path) -> None:
    results = json.loads((linear_run / "results.json").read_text())
    assert results["headline"] == "accuracy"
    assert results["protocol"]["start"] == {
        "run": str(run),
        "recipe": "tiny",
        "encoder_sha256": sha256_of(run / "model" / "model.safetensors"),
    }
    assert results["protocol"]["untrained"] == f"the encoder before training (that of {run})"
    recipe = load(linear_run)
    assert recipe.start.run == str(run)
    assert recipe.title.startswith("linear start.run=")


@pytest.mark.parametrize("name", ["linear", "linear_tcl", "finetune"])
def test_stage_has_data_encoder_size_and_evaluators_of_the_run(name: str, run: Path) -> None:
    recipe, first = stage(name, run), load(run)
    assert recipe.data == first.data
    assert (recipe.encoder.backbone, recipe.encoder.stem) == ("test_resnet", "timm")
    assert recipe.encoder.weights == str(run / "model")
    assert recipe.views["size"] == 16
    assert recipe.views["count"] == 1
    assert list(recipe.eval) == ["accuracy", "knn"]
    assert recipe.eval["knn"]["k"] == [1, 5]
    # The arguments of replaced views are those of the new ones, but for size and number.
    other = stage(name, run, "views.name=digits")
    assert (other.views["name"], other.views["size"], other.views["count"]) == ("digits", 16, 1)
    assert stage(name, run, "views.name=digits", "views.count=2").views["count"] == 2
    # A run's folder is a complete recipe.
    assert config.validate(config.read(run / "recipe.toml")) == first


def test_frozen_classifier_is_trained_alone(run: Path) -> None:
    recipe = stage("linear", run)
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    trained = [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == set(map(id, parts.method.classifier.parameters()))
    assert {group["weight_decay"] for group in parts.optimizer.param_groups} == {0.0}


def test_preprocessing_is_that_of_the_first_run(run: Path, linear_run: Path) -> None:
    """A stage reads weights, and yet evaluates as the run that was not trained from any."""
    assert load(linear_run).start.pretrained is False
    assert not Embedder.open(linear_run).started_from_weights


def test_labels_are_those_of_the_run(run: Path) -> None:
    with_share = ["data.labelled=0.5"]
    recipe = stage("linear", run, *with_share, "start.label_seed=1", "seed=2")
    labels = {seed: load_data(tiny(*with_share, f"seed={seed}")).train.labels for seed in (1, 2)}
    assert torch.equal(load_data(recipe).train.labels, labels[1])
    assert not torch.equal(labels[1], labels[2])


# Fine-tuning


def test_finetune_goes_on_with_the_classifier_of_a_linear_stage(linear_run: Path, tmp_path: Path) -> None:
    recipe = stage("finetune", linear_run, "train.epochs=2", "optim.warmup_epochs=0")
    parts = build(recipe, load_data(recipe), torch.device("cpu"))
    assert are_equal(parts.method.classifier.state_dict(), classifier_weights(linear_run))
    rates = {group.get("lr_scale", 1.0) for group in parts.optimizer.param_groups}
    assert rates == {1.0, 0.1}
    run_silently(recipe, tmp_path / "finetuned")
    metrics = result_metrics(tmp_path / "finetuned")
    assert metrics["untrained"]["accuracy"] == result_metrics(linear_run)["trained"]["accuracy"]
    assert not are_equal(exported_weights(tmp_path / "finetuned"), exported_weights(linear_run))
    gains = json.loads((tmp_path / "finetuned" / "results.json").read_text())["gains"]["untrained"]
    assert "accuracy" in gains


def test_finetune_has_a_new_classifier_after_a_run_without_one(run: Path, linear_run: Path) -> None:
    for recipe in (stage("finetune", run), stage("finetune", linear_run, "start.classifier=new")):
        parts = build(recipe, load_data(recipe), torch.device("cpu"))
        assert not parts.has_trained_classifier
        assert not are_equal(parts.method.classifier.state_dict(), classifier_weights(linear_run))


def test_a_classifier_of_other_classes_is_refused(linear_run: Path) -> None:
    recipe = stage("finetune", linear_run, "data.classes=3")
    with pytest.raises(DataError) as error:
        build(recipe, load_data(recipe), torch.device("cpu"))
    assert str(error.value) == (
        f"start.classifier=run: the classifier of {linear_run} has other classes: 4 classes (class 0, class 1, "
        "class 2, class 3) there, 3 classes (class 0, class 1, class 2) here. For a new classifier: start.classifier=new"
    )


def test_stage_is_resumed_by_its_command(run: Path, linear_run: Path, tmp_path: Path) -> None:
    shutil.copytree(linear_run, tmp_path / "run")
    recipe = stage("linear", run, "train.epochs=20", "optim.lr=0.5")
    assert run_silently(recipe, tmp_path / "run") == result_metrics(linear_run)["trained"]
    with pytest.raises(UsageError, match=r"optim\.lr"):
        run_silently(stage("linear", run, "train.epochs=20", "optim.lr=0.25"), tmp_path / "run")

"""What is wrong with a recipe: the key, the value, what is allowed and the nearest valid spelling, all at once."""

import copy
import tomllib

import pytest

from recipe_files import LOSS_PLUGIN, TINY, load_error, write
from reptk.config import RecipeError, build, complete, load, validate
from reptk.config.part_tables import label_options
from reptk.config.plugins import load_plugin
from reptk.config.registry import DATASETS, LOSSES, REGISTRIES

MISTAKES = {
    "typo in a fixed key": (
        ["train.epoch=3"],
        "  train.epoch  unknown key; did you mean 'epochs'? (known: epochs, batch_size, sampler, micro_batch_size, "
        "micro_batch_norm, precision, device, workers, "
        "channels_last, compile, clip_norm, grad_checkpointing, ema_decay, evaluated_weights, sync_batchnorm, log_every_steps, "
        "checkpoint_every_epochs, checkpoint_every_steps, "
        "checkpoint_every_minutes, keep_checkpoints, keep_best, early_stopping_epochs, final_weights, check_files, "
        "rank_timeout_seconds, max_omitted_steps, "
        "baselines, report, trackers)",
    ),
    "unknown section": (
        ["optimizer.lr=3"],
        "  optimizer  unknown key; did you mean 'optim'? (known: name, seed, plugins, overrides, start, data, views, encoder, "
        "method, loss, optim, train, eval, trackers, expect)",
    ),
    "unknown tracker": (
        ["train.trackers=tensorbord"],
        "  train.trackers  no tracker 'tensorbord'. Nearest: tensorboard. There are: mlflow, tensorboard, trackio, wandb",
    ),
    "unknown tracker in a table": (
        ["trackers.wandbb.project=x"],
        "  trackers.wandbb  no tracker 'wandbb'. Nearest: wandb. There are: mlflow, tensorboard, trackio, wandb",
    ),
    "typo in a tracker's argument": (
        ["trackers.wandb.projekt=x"],
        "  trackers.wandb.projekt  'wandb' has no argument 'projekt'; did you mean 'project'? "
        "It takes project, entity, run_name, group, tags, mode",
    ),
    "none of a tracker's choices": (
        ["trackers.wandb.mode=away"],
        "  trackers.wandb.mode  must be 'online' or 'offline', got 'away'",
    ),
    "a tracker that is no table": (["trackers.wandb=true"], "  trackers.wandb  must be a table"),
    "early stopping without evaluations": (
        ["train.early_stopping_epochs=3"],
        "  train.early_stopping_epochs  is 3, but the headline number is not measured during training; set "
        "eval.knn.every_epochs, e.g. 1",
    ),
    "the best weights without evaluations": (
        ["train.final_weights=best", "eval.linear.every_epochs=1"],
        "  train.final_weights  is best, but the headline number is not measured during training; set "
        "eval.knn.every_epochs, e.g. 1",
    ),
    "negative patience": (
        ["train.early_stopping_epochs=-1"],
        "  train.early_stopping_epochs  must be greater than or equal to 0, got -1",
    ),
    "typo in a part's argument": (
        ["loss.temprature=0.1"],
        "  loss.temprature  'tcl' has no argument 'temprature'; did you mean 'temperature'? "
        "It takes temperature, k1, k2, learn_temperature",
    ),
    "argument of another loss": (
        ["loss.name=supcon", "loss.k1=5"],
        "  loss.k1  'supcon' has no argument 'k1'; k1 belongs to tcl. It takes temperature, form, learn_temperature",
    ),
    "a data set without arguments": (
        ["data.name=photos", "data.sizes=3"],
        "  data.sizes  'photos' has no argument 'sizes'. It takes labelled, only_labelled, shuffle",
    ),
    "typo in an evaluator's argument": (
        ["eval.knn.temprature=1"],
        "  eval.knn.temprature  'knn' has no argument 'temprature'; did you mean 'temperature'? "
        "It takes k, temperature, recall, precision, retrieval, index, engine, every_epochs",
    ),
    "text for a number": (
        ["loss.temperature=warm"],
        "  loss.temperature  must be a valid number, unable to parse string as a number, got 'warm'",
    ),
    "fraction for an integer": (
        ["train.epochs=2.5"],
        "  train.epochs  must be a valid integer, got a number with a fractional part, got 2.5",
    ),
    "out of range": (["train.batch_size=0"], "  train.batch_size  must be greater than or equal to 2, got 0"),
    "out of a part's range": (["loss.temperature=0"], "  loss.temperature  must be greater than 0, got 0"),
    "out of a list's range": (["eval.knn.k=[1, 0]"], "  eval.knn.k.1  must be greater than or equal to 1, got 0"),
    "no such sampler": (
        ["train.sampler.name=balanced"],
        "  train.sampler.name  must be 'random', 'pk', 'class_balanced', 'square_root' or 'positives', got 'balanced'",
    ),
    "sampler without a table": (["train.sampler=pk"], "  train.sampler  must be a table, got 'pk'"),
    "K of another sampler": (
        ["train.sampler.images_per_class=4"],
        "  train.sampler  images_per_class=4 is that of name = 'pk', and the name is 'random'; set train.sampler.name=pk, or "
        "leave it out",
    ),
    "hard negatives of another sampler": (
        ["train.sampler.hard_negatives=true"],
        "  train.sampler  hard_negatives=true chooses the classes of name = 'pk', and the name is 'random'; set "
        "train.sampler.name=pk, or leave it out",
    ),
    "a loss of classes without labels as ids": (
        ["loss.name=proxy_anchor", "method.positives=instance"],
        "  method.positives  is 'instance', and loss 'proxy_anchor' needs labels as ids; set method.positives=class",
    ),
    "typo in the sampler": (
        ["train.sampler.images_pr_class=4"],
        "  train.sampler.images_pr_class  unknown key; did you mean 'images_per_class'? (known: name, images_per_class, "
        "labeled_per_batch, hard_negatives)",
    ),
    "share of labels out of range": (
        ["data.labelled=1.5"],
        "  data.labelled  must be a share above 0 and at most 1, or the file of a list, got 1.5",
    ),
    "no share of labels": (
        ["data.labelled=true", "data.only_labelled=1"],
        "  data.labelled       must be a share above 0 and at most 1, or the file of a list, got True\n"
        "  data.only_labelled  must be true or false, got 1",
    ),
    "spelling of labelled": (
        ["data.labeled=0.1"],
        "  data.labeled  'generated' has no argument 'labeled'; did you mean 'labelled'? It takes classes, size, train, bank, "
        "query, labelled, only_labelled, shuffle",
    ),
    "an order of images": (
        ["data.shuffle=window:0"],
        "  data.shuffle  must be global, or window:G with a number of shards such as window:16, got 'window:0'",
    ),
    "an order that is no text": (
        ["data.shuffle=true"],
        "  data.shuffle  must be global, or window:G with a number of shards such as window:16, got True",
    ),
    "not finite": (["optim.lr=nan"], "  optim.lr  must be a finite number, got nan"),
    "not finite in a part": (["loss.k1=inf"], "  loss.k1  must be a finite number, got inf"),
    "none of the choices": (
        ["method.positives=klass"],
        "  method.positives  must be 'instance' or 'class', got 'klass'",
    ),
    "none of a section's choices": (
        ["optim.schedule=cosin"],
        "  optim.schedule  must be 'cosine', 'constant' or 'multistep', got 'cosin'",
    ),
    "multistep without milestones": (
        ["optim.schedule=multistep"],
        "  optim.milestones  is missing: shares of the run, e.g. [0.6, 0.75, 0.9], for schedule 'multistep'",
    ),
    "milestones of a cosine": (
        ["optim.milestones=[0.5]"],
        "  optim.milestones  is for schedule 'multistep', and optim.schedule is 'cosine'",
    ),
    "milestones in epochs": (["optim.milestones=[60]"], "  optim.milestones.0  must be less than 1, got 60"),
    "an argument that has no default": (["data.name=folder"], "  data.root  is missing"),
    "a value for a part": (["loss=tcl"], "  loss.name  say which loss: {loss}"),
    "a name that is a number": (["loss.name=3"], "  loss.name  no loss '3'. There are: {loss}"),
    "unknown loss": (["loss.name=supkon"], "  loss.name  no loss 'supkon'. Nearest: supcon. There are: {loss}"),
    "unknown data set": (
        ["data.name=cifar101"],
        "  data.name  no data set 'cifar101'. Nearest: cifar10, cifar100. There are: {data set}",
    ),
    "unknown views": (["views.name=zzz"], "  views.name  no views 'zzz'. There are: {views}"),
    "unknown evaluator": (["eval.zzz.k=[1]"], "  eval.zzz.name  no evaluator 'zzz'. There are: {evaluator}"),
    "no table for an evaluator": (["eval.knn=3"], "  eval.knn  must be a table"),
    "every_epochs": (
        ["eval.knn.every_epochs=-1"],
        "  eval.knn.every_epochs  must be an integer of at least 0, got -1",
    ),
}

"""Overrides and the whole message after its first line; {loss} and the like stand for all names of that kind."""


@pytest.mark.parametrize(("pairs", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_explained(pairs, message):
    for registry in REGISTRIES:
        message = message.replace(f"{{{registry.kind}}}", ", ".join(registry.names()))
    assert load_error(*pairs) == f"tiny does not validate\n{message}"


@pytest.mark.parametrize("key", ["data", "views", "encoder", "method", "loss", "optim", "train"])
def test_missing_table_is_reported(key):
    table = tomllib.loads(TINY)
    del table[key]
    with pytest.raises(RecipeError) as error:
        validate({"name": "tiny", **table})
    hint = ""
    if key == "loss":
        hint = f": method 'contrastive' takes one, e.g. loss.name=supcon ({', '.join(LOSSES.names())})"
    assert str(error.value) == f"tiny does not validate\n  {key}  is missing{hint}"


def test_all_problems_are_reported_at_once_in_columns():
    message = load_error("train.epochs=0", "optim.lr=-1", "loss.k3=1", "eval.knn.k=[]", "data.name=nothing", "x=1")
    head, *lines = message.splitlines()
    assert head == "tiny does not validate"
    keys = ["optim.lr", "train.epochs", "x", "data.name", "loss.k3", "eval.knn.k"]
    assert [line.split()[0] for line in lines] == keys
    start = 2 + len("train.epochs") + 2
    assert all(line[start - 2 : start].isspace() and not line[start].isspace() for line in lines)


def test_problems_are_listed_for_scripts():
    with pytest.raises(RecipeError) as error:
        load(write("tiny.toml"), ["train.epochs=0", "loss.k1=-1"])
    assert [key for key, _ in error.value.problems] == ["train.epochs", "loss.k1"]


def test_error_can_be_copied():
    """As when rank 0 sends it to the other ranks."""
    with pytest.raises(RecipeError) as error:
        load(write("tiny.toml"), ["train.epochs=0"])
    copied = copy.copy(error.value)
    assert type(copied) is RecipeError
    assert str(copied) == str(error.value)
    assert copied.problems == error.value.problems


def test_empty_recipe_lists_what_it_needs():
    message = load_error(text="")
    keys = [line.split()[0] for line in message.splitlines()[1:]]
    # Whether a loss is needed depends on the method.
    assert keys == ["data", "views", "encoder", "method", "optim", "train"]


def test_warmup_is_shorter_than_the_run():
    message = load_error("train.epochs=20", "optim.warmup_epochs=20")
    assert message.splitlines()[1:] == ["  optim.warmup_epochs  must be below train.epochs (20), got 20; e.g. 2"]


def test_warmup_of_a_shorter_run_is_shortened_in_proportion():
    path = write(
        "warm.toml", TINY.replace("epochs = 1", "epochs = 20").replace("lr = 0.05", "lr = 0.05\nwarmup_epochs = 2")
    )
    assert load(path, ["train.epochs=1"]).optim.warmup_epochs == 0.1
    assert load(path, ["train.epochs=5"]).optim.warmup_epochs == 0.5
    assert load(path, ["train.epochs=40"]).optim.warmup_epochs == 2
    # A warm-up that is set in the same command counts as it is.
    assert load(path, ["train.epochs=5", "optim.warmup_epochs=2"]).optim.warmup_epochs == 2
    with pytest.raises(RecipeError, match=r"must be below train\.epochs \(1\), got 2"):
        load(path, ["train.epochs=1", "optim.warmup_epochs=2"])
    assert load(path, ["train.epochs=5"], shorten_warmup=False).optim.warmup_epochs == 2


def test_complete_fills_in_the_defaults_of_one_part():
    assert complete("loss", {"name": "simclr"}) == {"name": "simclr", "temperature": 0.5, "learn_temperature": False}
    with pytest.raises(RecipeError, match=r"eval\.near\.kk  'knn' has no argument 'kk'; did you mean 'k'\?"):
        complete("eval.near", {"name": "knn", "kk": [1]})


def test_keys_of_labels_belong_to_every_data_set():
    recipe = load(write("tiny.toml"), ["data.labelled=1"])
    assert (recipe.data["labelled"], recipe.data["only_labelled"]) == (1.0, False)
    assert load(write("dumped/tiny.toml", recipe.dump())) == recipe
    assert load(write("tiny.toml"), ["data.labelled=list.txt"]).data["labelled"] == "list.txt"
    assert "labelled" not in load(write("tiny.toml")).data
    assert len(build(DATASETS, recipe.data).train) == 32, "they are no arguments of the data set"


def test_a_data_set_may_have_an_argument_of_that_name():
    plugin = """
from reptk import DATASETS

@DATASETS.register("few_labels")
def few_labels(labelled: int = 3): ...
"""
    load_plugin(write("few_labels.py", plugin))
    data = load(write("tiny.toml"), ["data.name=few_labels", "data.labelled=7"]).data
    assert data == {"name": "few_labels", "labelled": 7}
    assert label_options(data) == {}


# Methods with and without a loss

METHOD_PLUGIN = """
from reptk import METHODS

@METHODS.register("without_loss")
class WithoutLoss:
    def __init__(self, encoder, views, momentum: float = 0.9) -> None: ...
"""


@pytest.fixture
def without_loss():
    """The name of a registered method that takes no loss."""
    load_plugin(write("without_loss.py", METHOD_PLUGIN))
    return "without_loss"


WITHOUT_LOSS_TABLE = TINY.replace('[loss]\nname = "tcl"\ntemperature = 0.2\nk1 = 100.0\n', "")


def test_method_without_a_loss_needs_no_loss_table(without_loss):
    text = WITHOUT_LOSS_TABLE.replace("contrastive", without_loss)
    recipe = load(write("tiny.toml", text))
    assert recipe.loss is None
    assert recipe.method == {"name": "without_loss", "momentum": 0.9}
    assert "loss" not in tomllib.loads(recipe.dump())
    assert load(write("dumped/tiny.toml", recipe.dump())) == recipe


def test_loss_table_of_a_method_without_a_loss_is_an_error(without_loss):
    text = TINY.replace("contrastive", without_loss)
    message = load_error(text=text)
    assert message == "tiny does not validate\n  loss  method 'without_loss' takes no loss; remove the [loss] table"


def test_method_with_a_loss_needs_a_loss_table():
    losses = ", ".join(LOSSES.names())
    assert load_error(text=WITHOUT_LOSS_TABLE) == (
        f"tiny does not validate\n  loss  is missing: method 'contrastive' takes one, e.g. loss.name=supcon ({losses})"
    )


def test_overriding_the_method_drops_a_loss_that_it_does_not_take(without_loss):
    recipe = load(write("tiny.toml"), [f"method.name={without_loss}"])
    assert recipe.loss is None


def test_loss_that_is_overridden_as_well_is_not_dropped(without_loss):
    """Who sets a key of the loss expects it to have an effect."""
    message = load_error(f"method.name={without_loss}", "loss.k1=5")
    assert "method 'without_loss' takes no loss" in message


def test_supplied_parameters_of_a_method_are_not_for_recipes(without_loss):
    message = load_error(f"method.name={without_loss}", "method.encoder=mine")
    assert message.splitlines()[1:] == ["  method.encoder  'without_loss' has no argument 'encoder'. It takes momentum"]


# Plugins


def test_part_of_a_plugin_validates_like_any_part():
    write("parts/my_loss.py", LOSS_PLUGIN)
    message = load_error("loss.name=my_loss", "loss.margn=1", plugins=("parts/my_loss.py",))
    assert message.splitlines()[1:] == [
        "  loss.margn  'my_loss' has no argument 'margn'; did you mean 'margin'? It takes margin"
    ]


@pytest.mark.parametrize("value", ["3", "[3]"])
def test_plugins_that_are_no_list_of_names_are_explained(value):
    assert "plugins" in load_error(text=f"plugins = {value}\n{TINY}")


def test_text_in_place_of_a_list_of_plugins_is_explained():
    # A text is not read as a list of letters, the first of which would be a plugin named m.
    assert "plugin m" not in load_error(text=f'plugins = "my_loss.py"\n{TINY}')


def test_plugins_cannot_be_overridden():
    assert "plugin" in load_error('plugins=["gone.py"]')

"""How a recipe is found, overridden, checked and written back; and what it says when it is wrong."""

import sys
import tomllib
from pathlib import Path

import pytest

from reptk.config import RecipeError, available, build, find, load, override, read, signature, validate
from reptk.config.registry import DATASETS, LOSSES, REGISTRIES
from reptk.core.errors import UsageError

TINY = """\
seed = 3

[data]
name = "generated"
train = 32

[views]
name = "simclr_small"
size = 32

[encoder]
backbone = "test_resnet"

[method]
name = "contrastive"

[loss]
name = "tcl"
temperature = 0.2
k1 = 100.0

[optim]
lr = 0.05

[train]
epochs = 1
batch_size = 16

[eval.knn]
k = [1]
"""

A_LOSS = """
from reptk import LOSSES

@LOSSES.register("my_loss")
class MyLoss:
    def __init__(self, margin: float = 0.2) -> None: ...
"""


@pytest.fixture(autouse=True)
def _as_before(tmp_path, monkeypatch, restored_registries):
    """Whatever a test registers or imports from its own folder is restored_registries after it, which it spends there."""
    monkeypatch.chdir(tmp_path)


def _write(path: str, text: str = TINY) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def _message(*arguments: str, text: str = TINY, plugins: tuple[str, ...] = ()) -> str:
    with pytest.raises(UsageError) as error:
        load(_write("tiny.toml", text), arguments, plugins=plugins)
    return str(error.value)


# Overriding


@pytest.mark.parametrize(
    ("table", "pairs", "made"),
    [
        ({"train": {"epochs": 1}}, ["train.epochs=5"], {"train": {"epochs": 5}}),
        ({"train": {"epochs": 1, "workers": 2}}, ["train.epochs=5"], {"train": {"epochs": 5, "workers": 2}}),
        ({}, ["seed=1", "seed=2"], {"seed": 2}),
        ({}, ["eval.knn.k=[1, 5]"], {"eval": {"knn": {"k": [1, 5]}}}),
        ({"eval": {"knn": {"k": [1]}}}, ["eval.knn.every_epochs=2"], {"eval": {"knn": {"k": [1], "every_epochs": 2}}}),
        ({"expect": {"value": 1}}, ["name=mine"], {"expect": {"value": 1}, "name": "mine"}),
    ],
)
def test_dotted_keys_reach_into_tables(table, pairs, made):
    assert override(table, pairs) == made


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
def test_a_value_is_toml_or_else_text(text, value):
    made = override({}, [f"a.b={text}"])["a"]["b"]
    assert made == value
    assert type(made) is type(value)


TCL = {"name": "tcl", "temperature": 0.2, "k1": 100.0}


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
def test_another_part_drops_the_old_arguments_in_any_order_of_pairs(pairs, loss):
    assert override({"loss": dict(TCL)}, pairs) == {"loss": loss}


@pytest.mark.parametrize("key", ["data", "views", "method", "loss"])
def test_every_part_drops_old_arguments(key):
    assert override({key: {"name": "old", "x": 1}}, [f"{key}.name=new"]) == {key: {"name": "new"}}


def test_sections_that_are_no_parts_keep_their_keys():
    table = {"optim": {"name": "sgd", "lr": 1.0}, "encoder": {"backbone": "resnet18", "head_out": 64}}
    made = override(table, ["optim.name=adamw", "encoder.backbone=resnet50"])
    assert made == {"optim": {"name": "adamw", "lr": 1.0}, "encoder": {"backbone": "resnet50", "head_out": 64}}


def test_an_evaluator_under_a_key_of_its_own():
    table = {"eval": {"near": {"name": "knn", "k": [1]}}}
    assert override(table, ["eval.near.name=view_retrieval"]) == {"eval": {"near": {"name": "view_retrieval"}}}
    assert load(_write("tiny.toml"), ["eval.near.name=knn", "eval.near.k=[2]"]).eval["near"]["k"] == [2]


def test_naming_an_evaluator_as_its_key_does_changes_nothing():
    assert load(_write("tiny.toml"), ["eval.knn.name=knn"]).eval == load("tiny.toml").eval


def test_overriding_leaves_the_table_alone():
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
def test_a_malformed_pair_is_explained(pair, message):
    with pytest.raises(UsageError) as error:
        override({"seed": 0, "loss": dict(TCL)}, [pair])
    assert str(error.value) == message


def test_overridden_values_arrive_with_their_types():
    recipe = load(_write("tiny.toml"), ["loss.temperature=.5", "loss.k1=7", "train.epochs=5", "eval.knn.k=[1, 5]"])
    assert recipe.loss == {"name": "tcl", "temperature": 0.5, "k1": 7.0, "k2": 1.0, "learn_temperature": False}
    assert isinstance(recipe.loss["k1"], float)
    assert recipe.train.epochs == 5
    assert recipe.eval["knn"]["k"] == [1, 5]


def test_an_override_drops_the_expected_result():
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
    path = _write("tiny.toml", TINY + expect)
    assert load(path).expect.value == 0.75
    assert load(path, ["loss.k1=5"]).expect is None


# What is complete, and what is written


def test_a_recipe_is_complete_and_frozen():
    recipe = load(_write("tiny.toml"))
    assert recipe.name == "tiny"
    assert recipe.seed == 3
    assert recipe.loss == {"name": "tcl", "temperature": 0.2, "k1": 100.0, "k2": 1.0, "learn_temperature": False}
    assert recipe.views["strength"] == 0.5
    assert recipe.eval["knn"]["temperature"] == 0.07
    assert recipe.optim.name == "sgd"
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        ["loss.name=supcon", "loss.form=in"],
        ["views.name=none", "views.size=28", "train.device=cuda:1", "encoder.head_width=7"],
        ["views.name=simclr_small", "views.count=3", 'views.third=[{name="RandomGrayscale", p=0.2}]'],
        ["data.name=folder", 'data.root=a "quoted" \\ path\twith ünicode', "name=mine-2.0+x"],
        ["eval.near.name=knn", "eval.near.k=[2, 3]", "eval.near.every_epochs=2", "eval.view_retrieval.limit=10"],
    ],
)
def test_a_dumped_recipe_reads_back_the_same(pairs):
    recipe = load(_write("tiny.toml"), pairs)
    again = load(_write("elsewhere/recipe.toml", recipe.dump()))
    assert again == recipe
    assert again.dump() == recipe.dump()


def test_a_dump_holds_every_default():
    table = tomllib.loads(load(_write("tiny.toml")).dump())
    assert {"precision", "workers", "clip_norm"} <= set(table["train"])
    for key, registry in (("data", DATASETS), ("loss", LOSSES)):
        assert set(table[key]) == {"name", *signature.names(registry.get(table[key]["name"]))}


# Where recipes are found


def test_a_run_folder_is_a_recipe():
    recipe = load(_write("tiny.toml"), ["seed=9"])
    _write("runs/tiny/1/recipe.toml", recipe.dump())
    assert load("runs/tiny/1") == recipe
    assert load(Path("runs/tiny/1"), ["seed=3"]) == load("tiny.toml")


def test_a_recipe_under_the_current_folder_is_found_by_name():
    _write("recipes/mine.toml")
    assert find("mine") == Path("recipes/mine.toml")
    assert load("mine").name == "mine"
    assert "mine" in available()


def test_the_current_folder_wins_over_shipped_recipes():
    assert available()["tcl_selfsup_photos"] != Path("recipes/tcl_selfsup_photos.toml")
    _write("recipes/tcl_selfsup_photos.toml")
    with pytest.warns(UserWarning, match=r"recipes/tcl_selfsup_photos\.toml hides the recipe of that name in /"):
        assert load("tcl_selfsup_photos").seed == 3


def test_a_file_wins_over_a_name():
    _write("recipes/mine.toml")
    _write("mine", TINY.replace("seed = 3", "seed = 4"))
    assert load("mine").seed == 4


@pytest.fixture
def installed(monkeypatch):
    """A distribution that offers recipes: `acme_tiny`."""
    _write("site/acme-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    _write("site/acme-1.2.dist-info/entry_points.txt", "[reptk.recipes]\nacme = acme.recipes\n")
    package = Path(_write("site/acme/__init__.py", ""))
    _write("site/acme/recipes/__init__.py", "")
    _write("site/acme/recipes/acme_tiny.toml")
    monkeypatch.syspath_prepend("site")
    return package


def test_recipes_of_installed_distributions_are_found(installed):
    assert load("acme_tiny").name == "acme_tiny"
    assert {"acme_tiny", "tcl_selfsup_photos"} <= set(available())


def test_a_broken_distribution_does_not_hide_the_other_recipes(installed):
    installed.write_text("import no_such_dependency")
    with pytest.warns(UserWarning, match="acme.recipes cannot be found"):
        assert "tcl_selfsup_photos" in available()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tcl_selfsup_photo", "no recipe 'tcl_selfsup_photo'. Nearest: tcl_selfsup_photos"),
        ("qqqq", "no recipe 'qqqq'. All of them: python -m reptk.recipe --list"),
        ("gone.toml", "no recipe at gone.toml (looked in {here})"),
        ("some/where", "no recipe at some/where (looked in {here}/some)"),
    ],
)
def test_a_recipe_that_is_nowhere_is_explained(tmp_path, name, message):
    with pytest.raises(UsageError) as error:
        find(name)
    assert str(error.value).startswith(message.format(here=tmp_path))


# What is wrong with it


GOLDEN = {
    "typo in a fixed key": (
        ["train.epoch=3"],
        "  train.epoch  unknown key; did you mean 'epochs'? (known: epochs, batch_size, micro_batch_size, micro_batch_norm, "
        "precision, device, workers, "
        "channels_last, compile, clip_norm, sync_batchnorm, log_every_steps, checkpoint_every_epochs, baselines, report)",
    ),
    "unknown section": (
        ["optimizer.lr=3"],
        "  optimizer  unknown key; did you mean 'optim'? (known: name, seed, plugins, data, views, encoder, method, "
        "loss, optim, train, eval, expect)",
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
    "a part without arguments": (
        ["data.name=photos", "data.sizes=3"],
        "  data.sizes  'photos' has no argument 'sizes'. It takes no arguments",
    ),
    "typo in an evaluator's argument": (
        ["eval.knn.temprature=1"],
        "  eval.knn.temprature  'knn' has no argument 'temprature'; did you mean 'temperature'? "
        "It takes k, temperature, recall, precision, retrieval, index",
    ),
    "text for a number": (
        ["loss.temperature=warm"],
        "  loss.temperature  must be a valid number, unable to parse string as a number, got 'warm'",
    ),
    "fraction for an integer": (
        ["train.epochs=2.5"],
        "  train.epochs  must be a valid integer, got a number with a fractional part, got 2.5",
    ),
    "number for text": (["encoder.backbone=50"], "  encoder.backbone  must be a valid string, got 50"),
    "out of range": (["train.batch_size=0"], "  train.batch_size  must be greater than or equal to 2, got 0"),
    "out of a part's range": (["loss.temperature=0"], "  loss.temperature  must be greater than 0, got 0"),
    "out of a list's range": (["eval.knn.k=[1, 0]"], "  eval.knn.k.1  must be greater than or equal to 1, got 0"),
    "not finite": (["optim.lr=nan"], "  optim.lr  must be a finite number, got nan"),
    "not finite in a part": (["loss.k1=inf"], "  loss.k1  must be a finite number, got inf"),
    "none of the choices": (
        ["method.positives=klass"],
        "  method.positives  must be 'instance' or 'class', got 'klass'",
    ),
    "none of a section's choices": (
        ["optim.schedule=cosin"],
        "  optim.schedule  must be 'cosine' or 'constant', got 'cosin'",
    ),
    "an argument that has no default": (["data.name=folder"], "  data.root  is missing"),
    "a value for a part": (["loss=tcl"], "  loss.name  say which loss: {loss}"),
    "a name that is no text": (["loss.name=3"], "  loss.name  say which loss: {loss}"),
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


@pytest.mark.parametrize(
    ("pairs", "message"),
    [pytest.param(*row, id=name) for name, row in GOLDEN.items()],
)
def test_a_mistake_is_explained(pairs, message):
    """GOLDEN holds the whole text; {loss} and the like stand for all names of that kind."""
    for registry in REGISTRIES:
        message = message.replace(f"{{{registry.kind}}}", ", ".join(registry.names()))
    assert _message(*pairs) == f"tiny does not validate\n{message}"


@pytest.mark.parametrize("key", ["data", "views", "encoder", "method", "loss", "optim", "train"])
def test_a_missing_part_is_named(key):
    table = tomllib.loads(TINY)
    del table[key]
    with pytest.raises(RecipeError) as error:
        validate({"name": "tiny", **table})
    assert str(error.value) == f"tiny does not validate\n  {key}  is missing"


def test_all_problems_are_reported_at_once_in_columns():
    message = _message("train.epochs=0", "optim.lr=-1", "loss.k3=1", "eval.knn.k=[]", "data.name=nothing", "x=1")
    head, *lines = message.splitlines()
    assert head == "tiny does not validate"
    keys = ["optim.lr", "train.epochs", "x", "data.name", "loss.k3", "eval.knn.k"]
    assert [line.split()[0] for line in lines] == keys
    start = 2 + len("train.epochs") + 2
    assert all(line[start - 2 : start].isspace() and not line[start].isspace() for line in lines)


def test_problems_are_listed_for_scripts():
    with pytest.raises(RecipeError) as error:
        load(_write("tiny.toml"), ["train.epochs=0", "loss.k1=-1"])
    assert [key for key, _ in error.value.problems] == ["train.epochs", "loss.k1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[data\n", "tiny.toml is not valid TOML: "),
        (b"seed = 1\nseed = 2\n", "tiny.toml is not valid TOML: Cannot overwrite a value (at line 2, column 9)"),
        (b"lr = .5\n", "tiny.toml is not valid TOML: Invalid value (at line 1, column 6)"),
        (b"\xff\xfe", "cannot read tiny.toml: 'utf-8' codec can't decode"),
    ],
)
def test_a_file_that_is_not_toml_says_where(text, message):
    Path("tiny.toml").write_bytes(text)
    with pytest.raises(UsageError) as error:
        read(Path("tiny.toml"))
    assert str(error.value).startswith(message)


def test_an_empty_recipe_lists_what_it_needs():
    message = _message(text="")
    assert [line.split()[0] for line in message.splitlines()[1:]] == [
        "data", "views", "encoder", "method", "loss", "optim", "train",
    ]  # fmt: skip


# Plugins of a recipe

ANNOUNCED = pytest.mark.filterwarnings("ignore:.*brings a plugin, which is run")


def _with_plugins(*specs: str) -> str:
    return f"plugins = {list(specs)!r}\n" + TINY.replace("tcl", "my_loss").replace(
        "temperature = 0.2\nk1 = 100.0\n", ""
    )


def test_a_plugin_beside_the_recipe_is_loaded():
    _write("mine/parts/my_loss.py", A_LOSS)
    recipe = _write("mine/tiny.toml", _with_plugins("parts/my_loss.py"))
    with pytest.warns(UserWarning, match=r"mine/tiny\.toml brings a plugin, which is run: .*/mine/parts/my_loss\.py"):
        recipe = load(recipe)
    assert recipe.loss == {"name": "my_loss", "margin": 0.2}
    assert recipe.plugins == (str(Path("mine/parts/my_loss.py").resolve()),)


@pytest.mark.parametrize("spec", ["../my_loss.py", "{here}/my_loss.py", "json", "my_loss"])
def test_a_plugin_from_elsewhere_is_refused(tmp_path, spec):
    _write("my_loss.py", A_LOSS)
    spec = spec.format(here=tmp_path)
    recipe = _write("mine/tiny.toml", _with_plugins(spec))
    with pytest.raises(UsageError) as error:
        load(recipe)
    assert str(error.value) == f"mine/tiny.toml asks for the plugin {spec}. If you trust it, name it: --plugin {spec}"
    assert "my_loss" not in sys.modules


def test_a_link_beside_the_recipe_does_not_smuggle_a_plugin_in():
    _write("my_loss.py", A_LOSS)
    recipe = _write("mine/tiny.toml", _with_plugins("my_loss.py"))
    Path("mine/my_loss.py").symlink_to("../my_loss.py")
    with pytest.raises(UsageError, match="If you trust it, name it"):
        load(recipe)


def test_a_plugin_from_elsewhere_is_loaded_when_the_user_names_it():
    _write("my_loss.py", A_LOSS)
    recipe = load(_write("mine/tiny.toml", _with_plugins("../my_loss.py")), plugins=["my_loss.py"])
    assert recipe.plugins == (str(Path("my_loss.py").resolve()),)


@ANNOUNCED
def test_plugins_that_come_with_reptk_need_no_consent():
    recipe = load(_write("tiny.toml", f'plugins = ["reptk.plugins.dcl"]\n{TINY}'), ["loss.name=dcl"])
    assert recipe.plugins == ("reptk.plugins.dcl",)
    assert recipe.loss == {"name": "dcl", "temperature": 0.1}
    sys.modules.pop("reptk.plugins.dcl")  # registered for this test alone


def test_a_plugin_of_the_users_validates_like_any_part():
    _write("parts/my_loss.py", A_LOSS)
    message = _message("loss.name=my_loss", "loss.margn=1", plugins=("parts/my_loss.py",))
    assert message.splitlines()[1:] == [
        "  loss.margn  'my_loss' has no argument 'margn'; did you mean 'margin'? It takes margin"
    ]


@pytest.mark.parametrize("value", ["3", "[3]"])
def test_plugins_that_are_no_list_of_names_are_explained(value):
    assert "plugins" in _message(text=f"plugins = {value}\n{TINY}")


def test_a_text_for_plugins_is_explained():
    assert "plugin m" not in _message(text=f'plugins = "my_loss.py"\n{TINY}')


def test_plugins_are_not_for_overriding():
    assert "plugin" in _message('plugins=["gone.py"]')


STRANGE_DEFAULTS = """
from math import inf
from reptk import LOSSES

@LOSSES.register("my_loss")
class MyLoss:
    def __init__(self, {parameter}, margin: float = 0.2) -> None:
        self.odd = odd
"""


@ANNOUNCED
@pytest.mark.parametrize(
    "parameter",
    [
        "odd=None",
        "odd: int | None = None",
        "odd: tuple[int, ...] = (1, 2)",
        "odd: float = inf",
        "odd=print",
        "odd=(print, 1)",
        r"odd=b'\xff'",
    ],
)
def test_a_default_is_what_the_part_is_built_with_before_and_after_a_dump(parameter):
    _write("my_loss.py", STRANGE_DEFAULTS.format(parameter=parameter))
    recipe = load(_write("tiny.toml", _with_plugins("my_loss.py")), ["loss.margin=0.3"])
    again = load(_write("again.toml", recipe.model_copy(update={"plugins": ("my_loss.py",)}).dump()))
    parts = [LOSSES.get("my_loss")(), build(LOSSES, recipe.loss), build(LOSSES, again.loss)]
    expected, *made = (list(part.odd) if isinstance(part.odd, tuple) else part.odd for part in parts)
    assert made == [expected, expected]

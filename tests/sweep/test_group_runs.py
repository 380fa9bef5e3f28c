"""Runs at hand as settings of one comparison."""

import json
from pathlib import Path

import pytest

from reptk.core.errors import UsageError
from reptk.data.fingerprint import Fingerprint, write_fingerprint
from reptk.sweep.comparison_table import build_table
from reptk.sweep.group_runs import find_runs, group_runs
from reptk.sweep.table_texts import footnotes
from sweep_runs import tiny, write_run


def make(folder: Path, *overrides: str, value: float = 0.5, **options) -> Path:
    return write_run(folder, {"knn@5": value}, tiny(*overrides), **options)


def settings_of(folders: list[Path]) -> list[tuple[str, int]]:
    return [(item.setting, item.seed) for item in group_runs(folders).runs]


def test_runs_that_differ_in_the_seed_are_one_setting(tmp_path: Path) -> None:
    folders = []
    for temperature in ("0.1", "0.5"):
        for seed in (0, 1):
            pairs = (f"loss.temperature={temperature}", f"seed={seed}", f"train.workers={seed}")
            folders.append(make(tmp_path / f"{temperature}-{seed}", *pairs))
    assert settings_of(folders) == [
        ("loss.temperature=0.1", 0),
        ("loss.temperature=0.1", 1),
        ("loss.temperature=0.5", 0),
        ("loss.temperature=0.5", 1),
    ]
    assert group_runs(folders).differences == ["loss.temperature: 0.1, 0.5"]


def test_runs_with_and_without_baselines_are_one_setting(tmp_path: Path) -> None:
    pairs = [("seed=0", "train.baselines=true"), ("seed=1", "train.baselines=false")]
    assert settings_of([make(tmp_path / str(pair), *pair) for pair in pairs]) == [("", 0), ("", 1)]
    # A run from trained weights may end in them, if their numbers are known.
    weights = start(tmp_path / "start")
    folders = [make(tmp_path / f"weights {pair}", f"encoder.weights={weights}", *pair) for pair in pairs]
    assert len({setting for setting, _ in settings_of(folders)}) == 2


def start(folder: Path, *overrides: str) -> Path:
    """A run with a model, from which others start."""
    if not folder.exists():
        write_run(folder, {"knn@5": 0.5}, tiny(*overrides))
        (folder / "model").mkdir()
    return folder / "model"


def test_stages_of_runs_that_differ_in_the_seed_are_one_setting(tmp_path: Path) -> None:
    folders = []
    for temperature in ("0.1", "0.5"):
        for seed in (0, 1):
            weights = start(tmp_path / f"start-{temperature}-{seed}", f"loss.temperature={temperature}", f"seed={seed}")
            pairs = (f"encoder.weights={weights}", f"seed={seed}")
            folders.append(make(tmp_path / f"{temperature}-{seed}", *pairs))
    labels = [f"encoder.weights={tmp_path}/start-{temperature}-0/model" for temperature in ("0.1", "0.5")]
    assert settings_of(folders) == [(labels[0], 0), (labels[0], 1), (labels[1], 0), (labels[1], 1)]
    assert settings_of(folders[:2]) == [("", 0), ("", 1)]
    # Weights of a run that is gone, or of another place in it, have nothing but their path.
    (tmp_path / "start-0.1-1" / "recipe.toml").unlink()
    assert len({setting for setting, _ in settings_of(folders[:2])}) == 2


def test_stages_of_stages_are_compared_by_where_they_began(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        first = start(tmp_path / f"first-{seed}", f"seed={seed}")
        second = start(tmp_path / f"second-{seed}", f"encoder.weights={first}", f"seed={seed}", "optim.lr=0.1")
        folders.append(make(tmp_path / f"third-{seed}", f"encoder.weights={second}", f"seed={seed}"))
    assert settings_of(folders) == [("", 0), ("", 1)]


def test_stages_with_one_seed_have_those_of_the_runs_they_start_from(tmp_path: Path) -> None:
    folders = []
    for seed in (3, 4):
        folders.append(
            make(tmp_path / str(seed), f"encoder.weights={start(tmp_path / f'start-{seed}', f'seed={seed}')}")
        )
    folders.append(make(tmp_path / "again", f"encoder.weights={tmp_path / 'start-4' / 'model'}"))
    grouped = group_runs(folders)
    assert [(item.setting, item.seed) for item in grouped.runs] == [("", 3), ("", 4)]
    assert grouped.warnings == [f"left out: {tmp_path / 'again'} repeats {tmp_path / '4'} (seed 4)"]


def test_stages_of_several_runs_with_several_seeds_each_are_all_compared(tmp_path: Path) -> None:
    folders = []
    for temperature in ("0.1", "0.5"):
        for start_seed in (1, 2, 3):
            weights = start(tmp_path / f"start-{start_seed}", f"seed={start_seed}")
            for seed in (0, 1):
                pairs = (f"encoder.weights={weights}", f"seed={seed}", f"loss.temperature={temperature}")
                value = 0.5 + start_seed / 100 + seed / 1000 + float(temperature) / 10
                folders.append(make(tmp_path / f"{temperature}-{start_seed}-{seed}", *pairs, value=value))
    folders.append(make(tmp_path / "again", *pairs))
    grouped = group_runs(folders)
    expected = [(start_seed, seed) for start_seed in (1, 2, 3) for seed in (0, 1)]
    assert [(item.start_seed, item.seed) for item in grouped.runs] == 2 * expected
    assert grouped.warnings == [f"left out: {tmp_path / 'again'} repeats {tmp_path / '0.5-3-1'} (seed 3:1)"]
    table = build_table(grouped.runs)
    assert table.rows[0].seeds == ["1:0", "1:1", "2:0", "2:1", "3:0", "3:1"]
    difference = table.rows[1].differences["knn@5"]
    assert (difference.count, difference.mean) == (6, pytest.approx(-0.04))
    assert any("start from the same run are not independent" in line for line in footnotes(table))


def test_a_run_that_starts_from_itself_is_compared_by_its_path(tmp_path: Path) -> None:
    folders = [make(tmp_path / name, f"encoder.weights={tmp_path / name}") for name in ("a", "b")]
    assert len({setting for setting, _ in settings_of(folders)}) == 2


def test_a_replaced_part_comes_first(tmp_path: Path) -> None:
    a = make(tmp_path / "a", "optim.lr=0.1")
    b = make(tmp_path / "b", "loss.name=tcl", "loss.k1=7")
    assert settings_of([a, b]) == [("loss.name=supcon optim.lr=0.1", 0), ("loss.name=tcl optim.lr=0.001", 0)]
    # An argument that only one of the losses has is named where it tells two runs apart.
    c = make(tmp_path / "c", "loss.name=tcl", "loss.k1=8")
    assert [label for label, _ in settings_of([a, b, c])] == [
        "loss.name=supcon optim.lr=0.1",
        "loss.name=tcl optim.lr=0.001 loss.k1=7",
        "loss.name=tcl optim.lr=0.001 loss.k1=8",
    ]
    assert "loss.k1: unset, 7, 8" in group_runs([a, b, c]).differences


def test_the_share_of_labels_is_in_the_label(tmp_path: Path) -> None:
    folders = [
        make(tmp_path / "all"),
        make(tmp_path / "0.1", "data.labelled=0.1"),
        make(tmp_path / "0.5", "data.labelled=0.5", "data.only_labelled=true"),
    ]
    assert [label for label, _ in settings_of(folders)] == [
        "data.labelled=unset data.only_labelled=unset",
        "data.labelled=0.1 data.only_labelled=false",
        "data.labelled=0.5 data.only_labelled=true",
    ]


def test_a_key_that_some_recipes_lack_is_unset(tmp_path: Path) -> None:
    folders = [make(tmp_path / "a"), make(tmp_path / "b", "train.micro_batch_size=8")]
    assert [label for label, _ in settings_of(folders)] == ["train.micro_batch_size=unset", "train.micro_batch_size=8"]
    # Arguments of another sampler say nothing about this one.
    sampler = ("train.sampler.name=class_balanced", "train.sampler.labeled_per_batch=4", "data.labelled=0.5")
    folders = [make(tmp_path / "c", "data.labelled=0.5"), make(tmp_path / "d", *sampler)]
    first, second = [label for label, _ in settings_of(folders)]
    assert first == "train.sampler.name=random"
    assert second == "train.sampler.name=class_balanced"


def test_what_differs_is_named_even_if_much_else_does(tmp_path: Path) -> None:
    pairs = ["seed=0", "optim.lr=0.1", "optim.weight_decay=0.1", "train.epochs=3", "loss.temperature=0.2"]
    folders = [make(tmp_path / "other")]
    for number in (1, 2, 3):
        folders.append(make(tmp_path / str(number), *pairs, f"eval.knn.k=[{number}]"))
    labels = [label for label, _ in settings_of(folders)]
    assert len(set(labels)) == 4
    for number in (1, 2, 3):
        assert f" eval.knn.k={number}" in labels[number]


def test_values_of_a_recipes_file_are_named_as_well_as_overrides(tmp_path: Path) -> None:
    folders = []
    for name, temperature in (("a", "0.1"), ("b", "0.1"), ("b", "0.5")):
        recipe = tiny(f"loss.temperature={temperature}").model_copy(update={"name": name, "overrides": ()})
        folders.append(write_run(tmp_path / f"{name}{temperature}", {"knn@5": 0.5}, recipe))
    assert [label for label, _ in settings_of(folders)] == ["a", "b loss.temperature=0.1", "b loss.temperature=0.5"]


def test_recipes_by_name(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"knn@5": 0.5}, tiny())
    b = write_run(
        tmp_path / "b", {"knn@5": 0.5}, tiny("loss.name=tcl").model_copy(update={"name": "other", "overrides": ()})
    )
    assert settings_of([a, b]) == [("tiny", 0), ("other", 0)]
    assert group_runs([a, b]).differences[0] == "recipe: other, tiny"


def test_a_repeated_run_is_no_second_seed(tmp_path: Path) -> None:
    folders = [make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", "seed=1")]
    grouped = group_runs(folders)
    assert [item.run.folder.name for item in grouped.runs] == ["a", "c"]
    assert grouped.warnings == [f"left out: {tmp_path / 'b'} repeats {tmp_path / 'a'} (seed 0)"]
    assert grouped.differences == []


def test_damaged_and_unfinished_runs_are_left_out_with_a_line(tmp_path: Path) -> None:
    folders = [make(tmp_path / name) for name in ("a", "b", "c", "d")]
    (folders[0] / "results.json").write_text('{"metrics": 3}')
    (folders[1] / "results.json").unlink()
    (folders[2] / "recipe.toml").write_text("no = [recipe")
    grouped = group_runs(folders)
    assert [item.run.folder.name for item in grouped.runs] == ["d"]
    assert len(grouped.warnings) == 3
    for folder, warning in zip(folders, grouped.warnings, strict=False):
        assert str(folder) in warning
    with pytest.raises(UsageError, match="no run can be used"):
        group_runs(folders[:2])


@pytest.mark.parametrize(
    ("overrides", "protocol", "message"),
    [
        (("data.name=digits",), {}, "data.name"),
        ((), {"images": {"bank": 40, "query": 19}}, "number of query images 19 and 20"),
        ((), {"images": {"bank": 41, "query": 20}}, "number of bank images 41 and 40"),
    ],
)
def test_runs_on_other_data_are_refused(
    tmp_path: Path, overrides: tuple[str, ...], protocol: dict, message: str
) -> None:
    folders = [make(tmp_path / "a"), make(tmp_path / "b", *overrides, protocol=protocol)]
    with pytest.raises(UsageError, match=message):
        group_runs(folders)


def test_other_queries_with_the_same_count_are_refused(tmp_path: Path) -> None:
    a = make(tmp_path / "a", hits=[True] * 8)
    b = make(tmp_path / "b", "seed=1", hits=[True] * 8)
    assert len(group_runs([a, b]).runs) == 2
    from safetensors.torch import load_file, safe_open, save_file

    path = b / "evaluation.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["labels"] = tensors["labels"].roll(1)
    save_file(tensors, path, metadata)
    with pytest.raises(
        UsageError, match=r"the labels of the queries in .* and .* differ, so their numbers cannot be compared"
    ):
        group_runs([a, b])


def of_folder(folder: Path, root: str, *overrides: str, files: dict[str, str] | None = None) -> Path:
    """A run on images in a folder, whose fingerprint lists these files."""
    recipe = tiny(*overrides)
    recipe = recipe.model_copy(update={"data": {"name": "folder", "root": root, "size": 16}})
    write_run(folder, {"knn@5": 0.5}, recipe)
    if files is not None:
        write_fingerprint(Fingerprint({"query": {"images": 20}}, files, "stat"), folder)
    return folder


def test_the_same_folder_by_another_path_is_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    roots = ("photos", "./photos", str(tmp_path / "photos"), "link")
    folders = [of_folder(tmp_path / str(seed), root, f"seed={seed}") for seed, root in enumerate(roots)]
    assert settings_of(folders) == [("", seed) for seed in range(4)]
    assert group_runs(folders).warnings == []


def test_data_that_was_moved_is_compared_by_its_fingerprint(tmp_path: Path) -> None:
    files = {"a.png": "10,1", "b.png": "20,2"}
    a = of_folder(tmp_path / "a", "before", files=files)
    b = of_folder(tmp_path / "b", "after", "seed=1", files=files)
    assert settings_of([a, b]) == [("", 0), ("", 1)]
    c = of_folder(tmp_path / "c", "after", "seed=2", files={**files, "b.png": "21,2"})
    d = of_folder(tmp_path / "d", "after", "seed=3")
    for other in (c, d):
        with pytest.raises(UsageError, match=r"were evaluated on different data.*data.root after and before"):
            group_runs([a, other])


def test_another_training_set_and_protocol_are_said(tmp_path: Path) -> None:
    folders = [
        make(tmp_path / "a", protocol={"leave_one_out": False}),
        make(tmp_path / "b", "data.train=32", protocol={"leave_one_out": True}),
    ]
    warnings = group_runs(folders).warnings
    assert warnings[0] == "data.train differs; the numbers of evaluated images are the same"
    assert warnings[1].startswith("the protocol differs: leave_one_out of 1 run is not that of")


def test_an_evaluator_that_one_run_alone_has_is_no_other_protocol(tmp_path: Path) -> None:
    """Cross-entropy has an accuracy, and SupCon has none."""
    knn = {"knn": {"k": [1, 20]}}
    a = make(tmp_path / "a", protocol={"evaluators": knn})
    b = make(tmp_path / "b", "seed=1", protocol={"evaluators": {**knn, "accuracy": {"k": [1, 5]}}})
    assert group_runs([a, b]).warnings == []
    c = make(tmp_path / "c", "seed=1", protocol={"evaluators": {"knn": {"k": [1, 200]}}})
    [warning] = group_runs([a, c]).warnings
    assert warning.startswith("the protocol differs: evaluators.knn.k of 1 run is not that of")


def test_the_labels_of_training_are_no_other_protocol(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        text = f"8 of 48 training images have a label (10 % of each class, seed {seed})"
        pairs = ("data.labelled=0.1", f"seed={seed}")
        folders.append(make(tmp_path / str(seed), *pairs, protocol={"splits": f"generated; {text}"}))
    folders.append(make(tmp_path / "all", protocol={"splits": "generated"}))
    assert group_runs(folders).warnings == []


def test_an_encoder_without_a_recipe_is_a_setting_of_its_own(tmp_path: Path) -> None:
    a = make(tmp_path / "a")
    b = make(tmp_path / "resnet50")
    (b / "recipe.toml").unlink()
    assert settings_of([a, b]) == [("", 0), ("resnet50", 0)]


def test_text_of_strangers_is_printed_in_one_line(tmp_path: Path) -> None:
    a = make(tmp_path / "a")
    b = make(tmp_path / "b")
    text = (b / "recipe.toml").read_text().replace('backbone = "test_resnet"', 'backbone = "\\u001b[31mred\\nline"')
    (b / "recipe.toml").write_text(text)
    grouped = group_runs([a, b])
    for line in [*grouped.differences, *(item.setting for item in grouped.runs)]:
        assert line.isprintable()


def test_folders_of_runs_and_sweeps(tmp_path: Path) -> None:
    numbered = [make(tmp_path / "runs" / "tiny" / str(number), f"seed={number}") for number in (2, 10, 1)]
    assert find_runs([tmp_path / "runs" / "tiny"]) == [numbered[2], numbered[0], numbered[1]]
    cell = make(tmp_path / "sweep" / "runs" / "seed=0")
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({}))
    assert find_runs([tmp_path / "sweep", cell, tmp_path / "sweep"]) == [cell]
    with pytest.raises(UsageError, match="it holds none of"):
        find_runs([tmp_path])
    with pytest.raises(UsageError, match="no such folder"):
        find_runs([tmp_path / "gone"])

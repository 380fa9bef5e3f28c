"""reptk report: what stands on the page, that names stay text, and what bad folders are told."""

import base64
import hashlib
import io
import json
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from report_runs import RECIPE, make_run
from reptk import DATASETS
from reptk.commands import main
from reptk.config import build
from reptk.data import Data, InMemory, Split
from reptk.errors import DataError
from reptk.evaluate.evidence import FILE as EVIDENCE
from reptk.evaluate.evidence import Evidence
from reptk.evaluate.mean import Mean
from reptk.report import compare, layouts, write
from reptk.report.atlas import MOST_PIXELS, atlas_of
from reptk.report.curves import MOST_POINTS, _range, _thinned
from reptk.report.gallery import Album, choices
from reptk.report.html import element, json_script, readable
from reptk.report.pictures import Source, uri_of
from reptk.report.runs import read

pytestmark = pytest.mark.usefixtures("one_thread")
EVIL = (
    '</script><img src=x onerror="alert(1)">',
    "two\nlines & \"quotes' <b>",
    "\u202eedocu \ud800",
    "{{x}} ${y} <!--",
)


class Page(HTMLParser):
    """Elements, texts and data of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.data = json.loads(next(text for text in self.scripts if text.startswith("{")))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def ids(self, *among: str) -> list[str]:
        return [attrs["id"] for tag, attrs in self.elements if "id" in attrs and (not among or tag in among)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("more") / "b", seed=1, noise=2.5, loss={"temperature": 0.3})


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write(run, tmp_path_factory.mktemp("page") / "page.html"))


# What stands on it


def test_the_sections_come_in_the_order_in_which_one_wants_to_know(page: Page) -> None:
    order = page.ids("section")
    assert order[:6] == ["verdict", "numbers", "curves", "gallery", "space", "classes"]
    assert order[6:] == ["health", "recipe", "views", "protocol", "repeat"]
    assert not page.open, "every element is closed"
    assert len(set(page.ids())) == len(page.ids())


def test_numbers_with_intervals_baselines_and_gains(page: Page, run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    text = page.text()
    assert results["verdict"]["sentence"] in text
    assert results["verdict"]["advice"][0] in text
    for row, values in results["metrics"].items():
        assert row in text
        for metric, value in values.items():
            low, high = results["intervals"][row][metric]
            assert f"{100 * value:.1f}" in text
            if row == "trained":
                assert f"{100 * low:.1f} \u2013 {100 * high:.1f}" in text
    gain = results["gains"]["raw pixels"]["knn@5"][0]
    assert f"{100 * gain:+.1f}" in text


def test_it_needs_nothing_from_outside(page: Page) -> None:
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name in ("src", "href", "srcset", "action", "style", *(key for key in attrs if key.startswith("on"))):
            assert (attrs.get(name) or "#").startswith("#"), (tag, attrs)
    assert not re.search(r"@import|url\(|https?:(?!//www\.w3\.org)", page.source.replace("http-equiv", ""))


def test_its_policy_allows_this_style_and_this_script_alone(page: Page) -> None:
    policy = next(
        attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data: blob:; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_each_picture_is_the_image_of_its_number(page: Page, run: Path) -> None:
    data = build(DATASETS, RECIPE["data"])
    names = [attrs["data-picture"] for tag, attrs in page.elements if tag == "img"]
    shown = [name for name in names if not name.startswith("view/")]
    assert len(shown) > 100
    for name in set(shown):
        _, split, number = name.split("/")
        expected = getattr(data, split).images.fetch(torch.tensor([int(number)]))[0]
        assert (opened(page.data["pictures"][name]) == expected.permute(1, 2, 0).numpy()).all()


def test_the_thumbnails_are_those_of_the_points(page: Page) -> None:
    atlas, data = page.data["atlases"]["a0"], build(DATASETS, RECIPE["data"])
    sheet = opened(atlas["uri"]).astype(int)
    assert page.data["maps"][0]["atlas"] == "a0"
    for point in range(40):
        top, left = (place * atlas["cell"] for place in divmod(point, atlas["columns"]))
        expected = data.query.images.fetch(torch.tensor([point]))[0].permute(1, 2, 0).numpy().astype(int)
        shown = sheet[top : top + atlas["height"], left : left + atlas["width"]]
        gaps = [
            abs(shown - image.permute(1, 2, 0).numpy().astype(int)).mean()
            for image in data.query.images.fetch(torch.arange(40))
        ]
        assert shown.shape == expected.shape
        assert int(np.argmin(gaps)) == point


def opened(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert kind == f"data:image/{image.format.lower()}"
        return np.array(image.convert("RGB"))


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    first, second = (write(run, tmp_path / name).read_bytes() for name in ("1.html", "2.html"))
    assert first == second


def test_the_recipe_beside_the_shipped_one(tmp_path: Path) -> None:
    changed = {"name": "simclr_digits", "loss": {"temperature": 0.31}}
    text = Page(write(make_run(tmp_path / "run", **changed))).text()
    assert "loss.temperature" in text
    assert "0.31" in text
    assert re.search(r"simclr_digits , with \d+ values changed", text)


def test_the_command_repeats_the_recipe(tmp_path: Path) -> None:
    from reptk.report import recipes

    folder = tmp_path / "run"
    folder.mkdir()
    import reptk

    overrides = ["loss.temperature=0.25", "train.epochs=3", "eval.knn.k=[1, 5]"]
    (folder / "recipe.toml").write_text(reptk.load("simclr_digits", overrides).dump())
    (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 2.0}\n')
    made = read(folder, "run")
    command = recipes.command_of(made, recipes.source_of(made))
    assert command.startswith("python -m reptk.recipe simclr_digits ")
    import shlex

    again = reptk.load(*(lambda words: (words[3], words[4:]))(shlex.split(command)))
    assert again.model_copy(update={"expect": None}) == reptk.load("simclr_digits", overrides)


# Names


def test_names_stay_text(tmp_path: Path) -> None:
    page = Page(write(make_run(tmp_path / "r & <i>'\"", classes=EVIL)))
    assert not page.open
    assert {tag for tag, _ in page.elements}.isdisjoint({"b1", "i"})
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    text = page.text()
    assert readable(EVIL[0]) in text
    assert "two\u240alines" in text
    assert "\u202e" not in page.source
    assert page.data["maps"][0]["classes"] == [readable(name) for name in EVIL]


def test_html_is_escaped_by_construction() -> None:
    assert element("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'
    assert element("p", element("b", "x"), None, ["y", "&"], hidden=True, id=None) == "<p hidden><b>x</b>y&amp;</p>"
    script = json_script("d", {"</script>": float("nan"), "x": ["<!--", "\u2028", 1.5]})
    assert "</script>" not in script[:-9]
    assert "<!--" not in script
    assert json.loads(script[script.index(">") + 1 : -9]) == {"</script>": None, "x": ["<!--", "\u2028", 1.5]}


def test_file_names_of_any_kind(tmp_path: Path) -> None:
    for name in ("<b>", "\u5199\u771f"):
        for number in range(20):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.effect_noise((20, 20), 90 + number).convert("RGB").save(
                tmp_path / "photos" / name / f"<u>'{number}.png"
            )
    part = {"name": "folder", "root": str(tmp_path / "photos"), "size": 16, "holdout": 4}
    run = make_run(tmp_path / "run", data=part)
    text = Page(write(run)).text()
    assert re.search(r"<u>'\d+\.png", text)


# Several runs


def test_runs_beside_each_other(run: Path, other: Path, tmp_path: Path) -> None:
    page = Page(write([run, other], tmp_path / "both.html"))
    text = page.text()
    assert "a leads in kNN@5" in text
    assert [space["name"] for space in page.data["maps"]] == ["a", "b"]
    assert len(page.data["atlases"]) == 1, "the same images once"
    assert {"gallery-tab-0", "gallery-tab-1", "g0-tab-0", "g1-tab-3"} <= set(page.ids())
    assert "loss.temperature" in text
    assert sum("data-series" in attrs and len(json.loads(attrs["data-series"])) == 2 for _, attrs in page.elements) >= 3
    assert "less, beyond the interval" in text


def test_a_run_beside_its_copy_does_not_differ(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    text = Page(write([run, tmp_path / "again"], tmp_path / "both.html")).text()
    assert "do not differ in kNN@5 beyond chance" in text
    assert "All runs have the same recipe." in text
    assert "beyond the interval" not in text


def test_differences_of_independent_samples_and_in_pairs() -> None:
    apart = compare.from_intervals(0.8, (0.75, 0.84), 0.7, (0.64, 0.76))
    assert (apart.value, apart.low, apart.high) == pytest.approx(
        (0.1, 0.1 - np.hypot(0.05, 0.06), 0.1 + np.hypot(0.04, 0.06))
    )
    assert apart.exceeds
    assert not compare.from_intervals(0.8, (0.7, 0.9), 0.7, (0.6, 0.8)).exceeds
    assert not compare.from_intervals(0.8, None, 0.7, (0.6, 0.8)).exceeds
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2000, generator=generator) < 0.8
    b = a & (torch.rand(2000, generator=generator) < 0.97)
    _, low, high = Mean(a.float()).gain_over(Mean(b.float()))
    gaps = a.double() - b.double()
    middle, wide = gaps.mean().item(), 1.96 * gaps.std().item() / len(gaps) ** 0.5
    assert (low, high) == pytest.approx((middle - wide, middle + wide), abs=1e-3)
    assert low > 0, "in pairs, a small difference shows"
    assert Mean(a.float()).gain_over(Mean(a.float())) == (0, 0, 0)


def test_another_folder_is_another_data_set() -> None:
    one = {"name": "folder", "root": "mine", "cache": False}
    assert compare.which_data(one) == compare.which_data(one | {"cache": True})
    assert compare.which_data(one) != compare.which_data(one | {"root": "yours"})


def test_pairs_need_the_same_queries(run: Path, other: Path, tmp_path: Path) -> None:
    first, second = read(run, "a"), read(other, "b")
    assert compare.difference(second, first, "knn@5").how == "paired"
    assert compare.difference(second, first, "recall@1").how == "paired"
    elsewhere = make_run(tmp_path / "c", data={"query": 44})
    assert compare.difference(read(elsewhere, "c"), first, "knn@5").how == "intervals"


# The map


def test_principal_components_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9)
    made, share = layouts.principal(features, 2)
    theirs = PCA(2).fit(features.numpy())
    expected = torch.from_numpy(theirs.transform(features.numpy()))
    assert torch.allclose(made.abs(), expected.abs().float(), atol=1e-3)
    assert share.tolist() == pytest.approx(theirs.explained_variance_ratio_.tolist(), abs=1e-5)
    assert layouts.principal(features[:1], 2)[0].tolist() == [[0, 0]]
    placed = layouts.quantised(made)
    assert placed.min() >= 0
    assert placed.max() <= 65535
    ratio = (made.amax(0) - made.amin(0)) / (placed.amax(0) - placed.amin(0))
    assert ratio[0] == pytest.approx(ratio[1].item(), rel=1e-3)


def test_a_further_layout(run: Path, tmp_path: Path) -> None:
    page = Page(write(run, tmp_path / "page.html", map="tsne"))
    assert list(page.data["maps"][0]["layouts"]) == ["pca", "tsne"]
    assert "map-layout" in page.ids("select")


def test_umap_missing_is_said_before_anything_is_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "find_spec", lambda name: None)
    with pytest.raises(Exception, match="reptk\\[viz\\]"):
        write(run, tmp_path / "page.html", map="umap")
    assert not list(tmp_path.iterdir())


# Sizes


@pytest.mark.parametrize("most", [1_500_000, 60_000])
def test_thumbnails_keep_to_their_bytes(most: int) -> None:
    noise = torch.randint(256, (500, 3, 120, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    atlas = atlas_of(Split(InMemory(noise), torch.zeros(500)), torch.arange(500), most)
    assert len(atlas.uri) <= most
    sheet = opened(atlas.uri)
    assert sheet.shape[0] * sheet.shape[1] <= MOST_PIXELS
    assert sheet.shape[1] == atlas.columns * atlas.cell
    assert max(atlas.width, atlas.height) <= atlas.cell


def test_an_album_keeps_to_its_bytes() -> None:
    noise = torch.randint(256, (40, 3, 90, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    split = Split(InMemory(noise), torch.zeros(40))
    source, album = Source("d0", Data(split, split, split, (), "")), Album()
    for most in (30_000, 60_000):
        album.allow(most)
        album.add(source, "query", torch.arange(40))
        assert most / 2 < sum(map(len, album.uris.values())) <= most
    assert 'data-picture="d0/query/0"' in album.image(source, "query", 0, "it")
    assert album.image(source, "query", 39, "it").startswith("<span")


@pytest.mark.usefixtures("forgotten")
def test_unreadable_images_leave_their_place_empty(tmp_path: Path) -> None:
    class Torn(InMemory):
        def fetch(self, numbers: torch.Tensor) -> torch.Tensor:
            if bool((numbers == 3).any()):
                raise DataError("torn")
            return super().fetch(numbers)

    @DATASETS.register("torn")
    def torn() -> Data:
        data = build(DATASETS, RECIPE["data"] | {"query": 12})
        query = Split(Torn(data.query.images.fetch(torch.arange(len(data.query)))), data.query.labels)
        return Data(data.train, data.bank, query, data.classes, data.protocol)

    page = Page(write(make_run(tmp_path / "run", data={"name": "torn"})))
    assert page.data["atlases"]["a0"]["missing"] == [3]
    assert "d0/query/3" not in page.data["pictures"]
    assert {f"d0/query/{number}" for number in range(12) if number != 3} <= set(page.data["pictures"])
    assert "no picture" in page.text()


def test_small_pictures_are_kept_to_the_bit_and_large_ones_reduced() -> None:
    image = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    assert (opened(uri_of(image)) == image.permute(1, 2, 0).numpy()).all()
    assert opened(uri_of(torch.randint(256, (3, 300, 200), dtype=torch.uint8))).shape == (128, 85, 3)


def test_long_curves_are_thinned_without_moving_them() -> None:
    points = [(float(at), 2.0 * at) for at in range(10_007)]
    thin = _thinned(points)
    assert len(thin) <= MOST_POINTS
    assert all(y == pytest.approx(2 * x) for x, y in thin)
    assert _thinned(points[:5]) == points[:5]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.83), (-3.2, -1.1), (5, 5), (0, 0), (1e-6, 3e-3)])
def test_axes_have_round_ends_that_hold_everything(low: float, high: float) -> None:
    (first, last), ticks = _range(low, high)
    assert first <= low <= high <= last
    assert 2 <= len(ticks) <= 6
    assert first < last


def test_a_thousand_classes(tmp_path: Path) -> None:
    names = tuple(f"class <{number}>" for number in range(1000))
    page = Page(write(make_run(tmp_path / "run", data={"classes": 1000, "bank": 1000, "query": 1000}, classes=names)))
    assert len(page.data["maps"][0]["classes"]) == 1000
    assert len(page.source) < 4_000_000


# Runs that lack something


def test_an_unfinished_run_has_curves(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "recipe.toml", "metrics.jsonl")
    (folder / "status.json").write_text('{"status": "running"}')
    page = Page(write(folder))
    assert "tiny is running: there are curves, and no numbers yet." in page.text()
    assert {"curves", "recipe", "views"} <= set(page.ids("section"))
    assert {"gallery", "space", "numbers"}.isdisjoint(page.ids("section"))


def test_an_old_run_has_numbers_without_intervals(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "recipe.toml", "metrics.jsonl")
    results = json.loads((run / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({key: results[key] for key in ("metrics", "headline", "protocol")}))
    page = Page(write(folder))
    assert re.search(
        r"kNN@5 is [\d.]+ %, [\d.]+ points above the untrained encoder and [\d.]+ points above raw pixels", page.text()
    )
    assert "95 %" not in page.text()


def test_an_evaluation_alone_has_no_curves(run: Path, tmp_path: Path) -> None:
    page = Page(write(partial(run, tmp_path, "results.json", EVIDENCE)))
    assert {"numbers", "gallery", "space", "classes"} <= set(page.ids("section"))
    assert {"curves", "recipe", "views"}.isdisjoint(page.ids("section"))


def test_classes_and_confusions_as_results_have_them(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "results.json", EVIDENCE)
    results = json.loads((folder / "results.json").read_text())
    results["classes"] = [{"name": "rare", "bank": 3, "queries": 7, "knn@5": 0.123, "mean": None}]
    results["confusions"] = [{"class": "rare", "taken_for": "common", "count": 5, "of": 7}]
    (folder / "results.json").write_text(json.dumps(results))
    text = Page(write(folder)).text()
    assert "rare taken for common" in text.replace("  ", " ")
    assert "5 of 7" in text
    assert "12.3" in text


def test_a_log_that_broke_off_in_the_middle_of_a_line(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "metrics.jsonl")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "epoch": NaN, "loss": NaN}\n{"step": 14, "ep')
    assert "curves" in Page(write(folder)).ids("section")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "no_such_data"}, "No pictures. The data set cannot be opened"),
        ({"query": 20}, "No pictures. The data set has changed since: it has no longer the images"),
        ({"classes": 3}, "No pictures. The data set has changed since: its labels are no longer those"),
    ],
)
def test_data_that_is_gone_or_another(change: dict, said: str, run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "results.json", EVIDENCE)
    results = json.loads((folder / "results.json").read_text())
    results["protocol"]["data"] |= change
    (folder / "results.json").write_text(json.dumps(results))
    page = Page(write(folder))
    assert said in page.text()
    assert not page.data["pictures"]
    assert page.data["maps"][0]["count"] == 40


def test_without_labels_there_are_neighbours_only(run: Path, tmp_path: Path) -> None:
    folder = partial(run, tmp_path, "results.json", "recipe.toml")
    known = Evidence.load(run)
    absent = torch.full_like(known.labels, -1)
    changed = {
        "vote": "",
        "classes": (),
        "labels": absent,
        "predicted": absent,
        "neighbour_labels": known.neighbour_labels * 0 - 1,
    }
    changed |= {"query_split": "bank", "confidence": known.confidence * 0}
    Evidence(**{**known.__dict__, **changed}).save(folder)
    page = Page(write(folder))
    assert "classes" not in page.ids("section")
    assert page.data["maps"][0]["labels"] is None
    assert "wrong" not in " ".join(attrs.get("alt") or "" for _, attrs in page.elements)
    assert any(attrs.get("data-picture", "").startswith("d0/bank/") for _, attrs in page.elements)


def partial(run: Path, tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "part"
    folder.mkdir()
    for name in names:
        shutil.copy(run / name, folder / name)
    return folder


# The gallery


def test_surest_failures_come_first(other: Path) -> None:
    evidence = read(other, "b").evidence
    tabs = {name: rows for name, _, rows in choices(evidence)}
    wrong = evidence.predicted != evidence.labels
    assert list(tabs) == ["Surest failures", "Failures", "Right", "Random"]
    assert bool(wrong[tabs["Surest failures"]].all())
    assert bool(wrong[tabs["Failures"]].all())
    assert not bool(wrong[tabs["Right"]].any())
    assert len(evidence.confidence[wrong].unique()) > 1
    confidence = evidence.confidence[tabs["Surest failures"]].tolist()
    assert confidence == sorted(confidence, reverse=True)
    assert confidence[0] == evidence.confidence[wrong].max()


# Bad input


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda run: shutil.rmtree(run), 2, "no such folder"),
        (lambda run: [path.unlink() for path in run.iterdir()], 2, "neither results.json nor metrics.jsonl"),
        (lambda run: (run / "results.json").write_text("{"), 3, "is damaged"),
        (lambda run: (run / "results.json").write_text("[1]"), 3, "is damaged"),
        (
            lambda run: (run / "results.json").write_text('{"metrics": {"trained": {"knn@5": "high"}}}'),
            3,
            "metrics.trained.knn@5",
        ),
        (lambda run: (run / "results.json").write_bytes(b"\xff\xfe"), 3, "is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("not JSON\n"), 3, "none of its 1 lines"),
        (lambda run: (run / EVIDENCE).write_bytes(b"x" * 100), 3, "evaluate the run again"),
        (lambda run: (run / "recipe.toml").write_text("= 1"), 2, "not valid TOML"),
        (lambda run: (run / "report.html").mkdir(), 4, "it is a folder"),
    ],
)
def test_a_bad_folder_is_one_message(spoil, code: int, said: str, run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "run")
    spoil(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(tmp_path / "run")]) == code
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "the following arguments are required"),
        (["RUN", "RUN"], 2, "is named twice"),
        (["RUN", "--map", "lda"], 2, "invalid choice"),
        (["RUN", "--out", "no/such/folder/page.html"], 4, "Choose another --out"),
        (["RUN", "--out", "page.html", "--png", "taken"], 4, "Choose another --png"),
    ],
)
def test_mistakes(arguments, code: int, said: str, run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    assert main(["report", *(str(run) if word == "RUN" else word for word in arguments)]) == code
    assert said in capsys.readouterr().err


# PNG


def test_plots_are_the_same_each_time(run: Path, other: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = [write([run, other], tmp_path / "page.html", png=tmp_path / name).parent / name for name in ("1", "2")]
    names = ["confusion.png", "curves.png", "map.png"]
    assert [sorted(path.name for path in folder.iterdir()) for folder in made] == [names, names]
    for name in names:
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()
        with Image.open(made[0] / name) as image:
            assert len(np.unique(np.array(image.convert("L")))) > 10, "something is drawn"


def test_without_matplotlib_there_is_the_page_and_a_line(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("reptk.report.plots.find_spec", lambda name: None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        path = write(run, tmp_path / "page.html", png=tmp_path)
    assert [str(one.message) for one in said if "matplotlib" in str(one.message)] == [
        "PNG plots need matplotlib, which is not installed: pip install 'reptk[viz]'"
    ]
    assert path.is_file()


def test_the_command_writes_into_the_run(run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    said = capsys.readouterr()
    assert re.fullmatch(r".*report\.html: \d+\.\d MB, opens in any browser, needs no network\n", said.out)
    assert not said.err

"""The benchmarks, at sizes that measure nothing: they run, and the results that they compare are equal."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import reptk

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = ["encoder.backbone=test_resnet", "train.batch_size=16", "train.device=cpu"]
GENERATED = ["data.name=generated", "data.train=64", "views.size=32"]


@pytest.fixture(autouse=True)
def _empty_folder(one_thread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch, arguments: str = "", **constants: object) -> ModuleType:
    """Import a benchmark with other constants and command-line arguments."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for constant, value in constants.items():
        assert hasattr(module, constant)
        setattr(module, constant, value)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments.split()])
    return module


def test_every_benchmark_is_tested() -> None:
    source = Path(__file__).read_text()
    assert all(f'benchmark("{path.stem}"' in source for path in FOLDER.glob("*.py"))


def test_views(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    module = benchmark("views", monkeypatch, "--rounds 1 --images 4 --sizes 32", LEAST_SECONDS=0.01)
    monkeypatch.setattr(module, "_peers", dict)
    module.main()
    output = capsys.readouterr().out
    assert "reptk, exact_hue" in output
    assert "torchvision v2, one draw for all" in output


def test_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    benchmark("step", monkeypatch, ROUNDS=1).main(["simclr_digits", *TINY])
    assert "step / bare" in capsys.readouterr().out


def test_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("skimage")
    benchmark("input", monkeypatch, "--rounds 1 --images 16 --batch 8").main()
    assert "DataLoader, 2 workers" in capsys.readouterr().out


def test_losses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    module = benchmark("losses", monkeypatch, "--sizes 64 --classes 5 --memory --device cpu", CLASS_SIZE=64)
    module.main()
    output = capsys.readouterr().out
    assert "reptk simclr" in output
    assert "reptk tcl" in output


def test_knn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("faiss")
    sizes = {"BANK": 1500, "QUERIES": 20, "SMALLER": 300, "DEEP_CLASSES": 10, "K": (1, 5), "KINDS": ("Flat",)}
    module = benchmark("knn", monkeypatch, "--rounds 1 --only votes kinds", **sizes)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    module.main()
    output = capsys.readouterr().out
    assert "reptk.evaluate.knn, five k, both votes" in output
    assert "recall@10 1.000" in output


@pytest.mark.filterwarnings("ignore:.*has random weights")
def test_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("end_to_end", monkeypatch)
    recipe = reptk.load("simclr_fashion_mnist", [*GENERATED, *TINY, "train.epochs=1"])
    assert set(module._baselines(recipe)) == {"pixels", "untrained"}
    assert 0 <= module._trained("reptk", recipe, 2)["knn@20"] <= 1


@pytest.mark.parametrize(
    ("section", "fragment"),
    [
        ("losses", "| 64 |"),
        ("views", "simclr_small, 32 to 32 px"),
        ("step", "*Step over bare backbone*"),
        ("knn", "*kNN*: the GPU's numbers equal the CPU's"),
    ],
)
def test_gpu(section: str, fragment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the section "step" adds the folder of the benchmarks
    benchmark("gpu", monkeypatch).main(["--section", section, "--device", "cpu", "--tiny"])
    assert fragment in capsys.readouterr().out

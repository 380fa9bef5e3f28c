"""The benchmarks, at sizes that measure nothing: they run, and the results that they compare are equal."""

import importlib.util
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

import reptk
from reptk.sweep.grid import load_cells, parse_grid

FOLDER = Path(__file__).parents[2] / "benchmarks"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
TINY = ["encoder.backbone=test_resnet", "train.batch_size=16", "train.device=cpu"]
GENERATED = ["data.name=generated", "data.train=64", "views.size=32"]


@pytest.fixture(autouse=True)
def _empty_folder(one_thread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch, arguments: str = "", **constants: object) -> ModuleType:
    """Import a benchmark with other constants and command-line arguments."""
    monkeypatch.syspath_prepend(FOLDER)
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
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for path in FOLDER.glob("*.py"):
        assert f'benchmark("{path.stem}"' in source or f'"{path.name}"' in source, path.name


def test_views(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    module = benchmark("views", monkeypatch, "--rounds 1 --images 4 --sizes 32", LEAST_SECONDS=0.01)
    monkeypatch.setattr(module, "_peers", dict)
    module.main()
    output = capsys.readouterr().out
    assert "reptk, exact_hue" in output
    assert "torchvision v2, one draw for all" in output


def test_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    module = benchmark("step", monkeypatch, ROUNDS=1)
    for recipe in (["simclr_digits"], ["ce_digits", "method.freeze_encoder=true"]):
        module.main([*recipe, *TINY])
        assert "step / bare" in capsys.readouterr().out
    multi_crop = ["views.name=multi_crop", "views.small_count=3", "views.small_size=16"]
    module.main(["dino_photos", *multi_crop, *TINY, *GENERATED])
    output = capsys.readouterr().out
    assert "32 views of 32 px and 48 views of 16 px" in output


def test_comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All settings validate; one sweep and the linear stages that start from its runs are trained, and make tables."""
    module = benchmark("comparison", monkeypatch)
    fields = module.Comparison._fields
    for data, comparison in module.COMPARISONS.items():
        for table in module.TABLES:
            for recipe, *values in comparison._asdict()[table].values():
                assert load_cells(parse_grid(recipe, values)), (data, table)
    small = {field: {} for field in fields} | {
        "with_labels": {"supcon": ["supcon_digits", "loss.form=out,in"]},
        "seeds": 1,
    }
    monkeypatch.setitem(module.COMPARISONS, "photos", module.Comparison(**small))
    options = ["--epochs", "1", "--linear-epochs", "1", "--jobs", "2"]
    assert module.main(["photos", *TINY, "data.name=generated", "data.train=32", *options]) == 0
    folder = tmp_path / "comparison" / "photos" / "tables"
    assert "loss.form=in" in (folder / "with_labels" / "comparison.md").read_text()
    assert "Accuracy" in (folder / "linear" / "comparison.md").read_text()


def test_shard_index(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # which the benchmark sets, too
    benchmark("shard_index", monkeypatch, "60000", HEADER_SAMPLES=100).main()
    output = capsys.readouterr().out
    assert output.count("60,000") == 2
    assert "samples a second" in output


def test_checkpoints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--minutes", "0.01", "--interval", "0.3", *TINY, *GENERATED]
    assert benchmark("checkpoints", monkeypatch).main(arguments) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| 5 MB every 0 s, 2 | ")


def test_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("skimage")
    benchmark("input", monkeypatch, "--rounds 1 --images 16 --batch 8").main()
    assert "DataLoader, 2 workers" in capsys.readouterr().out


@pytest.mark.slow
def test_explore(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pytest.importorskip("selenium")
    pytest.importorskip("plotly")
    if not (shutil.which("chromium") and shutil.which("chromedriver") and FASHION_MNIST.is_dir()):
        pytest.skip("needs chromium with its chromedriver, and Fashion-MNIST")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert benchmark("explore", monkeypatch).main(["--points", "300", "--seconds", "0.3"]) == 0
    output = capsys.readouterr().out
    assert "300 points, ready after" in output
    for name in ("drag", "wheel", "hover"):
        assert f"| {name} | " in output
    assert "JavaScript heap" in output


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


def test_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("measuring", monkeypatch)
    calls = []
    seconds = module.seconds_of_rounds({name: partial(calls.append, name) for name in "abc"}, range(5), uncounted=2)
    assert [len(seconds[name]) for name in "abc"] == [3, 3, 3]
    orders = {tuple(calls[first : first + 3]) for first in range(0, 15, 3)}
    assert len(orders) > 1
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert list(module.rounds_within(0.0, at_least=2, at_most=9)) == [0, 1]
    assert list(module.rounds_within(60.0, at_least=2, at_most=4)) == [0, 1, 2, 3]
    growth_mb, _ = module.memory_growth(lambda: torch.ones(1 << 23))  # 32 MB
    assert 30 < growth_mb < 40
    assert module.versions_line(["no-such-package"]).endswith("no-such-package absent")


def test_out_of_time_a_command_ends_with_all_its_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Children that ignore an interrupt, or started a session of their own, included."""
    module = benchmark("processes", monkeypatch, GRACE_SECONDS=3)
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    parent = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background ignores it
children = [subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=is_new) for is_new in (False, True)]
print(*(child.pid for child in children))
time.sleep(60)
"""
    output = tmp_path / "output.txt"
    assert module.run_limited([sys.executable, "-c", parent], output, seconds=3) is None
    numbers, *rest = output.read_text().splitlines()
    assert "KeyboardInterrupt" in rest
    for number in numbers.split():
        wait_for_end(Path("/proc") / number / "stat")


def wait_for_end(status_file: Path, seconds: float = 20.0) -> None:
    """Wait until a process that was killed has ended, or is a zombie that its new parent has not collected."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = status_file.read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"{status_file.parent.name} is still running")


def test_commands_give_their_exit_code_and_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = benchmark("processes", monkeypatch)
    output = tmp_path / "output.txt"
    assert module.run_limited([sys.executable, "-c", "print('x'); raise SystemExit(3)"], output, seconds=60) == 3
    assert output.read_text() == "x\n"
    with pytest.raises(subprocess.CalledProcessError):
        module.run_script("no_such_script.py")


@pytest.mark.parametrize("section", ["device", "losses", "views", "step", "knn"])
def test_sections_for_a_gpu(section: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    module = benchmark("gpu_sections", monkeypatch)
    assert module.main([section, "--device", "cpu", "--tiny"]) == 0
    rows = {
        "device": "CPU, 1 threads",
        "losses": "| 64 | bfloat16 |",
        "views": "| simclr_small, 32 to 32 px, batches of 4 |",
        "step": "*Step over bare backbone*: ",
        "knn": "*kNN*: the GPU's numbers equal the CPU's",
    }
    assert rows[section] in capsys.readouterr().out


def test_a_row_that_cannot_be_measured_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module = benchmark("gpu_sections", monkeypatch)

    def out_of_memory(z: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("no memory\nfor it")

    monkeypatch.setattr(module, "_cross_entropy_gradient", out_of_memory)
    monkeypatch.setattr(module, "TINY", module.TINY._replace(bfloat16_rows=(128,)))
    assert module.main(["losses", "--device", "cpu", "--tiny"]) == 1
    rows = capsys.readouterr().out
    assert "*64 rows of torch.float32*: OutOfMemoryError: no memory\n" in rows
    assert "| 128 | bfloat16 |" in rows


@pytest.mark.slow
def test_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = benchmark("gpu", monkeypatch)
    arguments = ["--device", "cpu", "--tiny", "--only", "losses", "tests", "--out", str(tmp_path), "--minutes", "60"]
    assert module.main(arguments) == 0
    results = (tmp_path / "results.md").read_text()
    assert results.startswith("CPU, ")
    assert "| 64 | float32 |" in results
    assert "| 64 | bfloat16 |" in results


def test_gpu_names_the_section_that_ran_out_of_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    module = benchmark("gpu", monkeypatch)
    exit_codes = {"device": 0, "knn": None, "losses": 0, "tests": 1}
    outputs = {
        "device": "a device\n",
        "knn": "| kNN |\nsomething else\n",
        "losses": "| losses |\n",
        "tests": "a PASSED\nb FAILED\nFAILED b - it is wrong\n=== 1 failed, 1 passed in 0.1s ===\n",
    }
    limits = {}

    def run_limited(command: list[str], output: Path, seconds: float) -> int | None:
        limits[output.stem] = seconds
        output.write_text(outputs[output.stem])
        return exit_codes[output.stem]

    monkeypatch.setattr(module, "run_limited", run_limited)
    assert module.main(["--only", "tests", "knn", "losses", "--out", str(tmp_path)]) == 1
    results = (tmp_path / "results.md").read_text().splitlines()
    assert results[:3] == ["a device", "", "| kNN |"]
    assert results[3].startswith("*knn*: stopped after ")
    assert results[4:6] == ["", "| losses |"]
    assert results[7:] == [
        "*Tests*: 1 failed, 1 passed in 0.1s",
        "FAILED b - it is wrong",
        f"*tests*: exit code 1; see {tmp_path / 'tests.txt'}",
    ]
    assert list(limits) == ["device", "knn", "losses", "tests"]
    # Nothing took any time: the last section gets all of it.
    assert 8 * 60 - module.RESERVED_SECONDS - 5 < limits["tests"] <= 8 * 60 - module.RESERVED_SECONDS


def test_gpu_stops_without_a_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    module = benchmark("gpu", monkeypatch)

    def run_limited(command: list[str], output: Path, seconds: float) -> int:
        output.write_text("RuntimeError: no CUDA\n")
        return 1

    monkeypatch.setattr(module, "run_limited", run_limited)
    assert module.main(["--out", str(tmp_path)]) == 1
    assert "RuntimeError: no CUDA" in capsys.readouterr().err

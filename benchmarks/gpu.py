"""Everything that needs a GPU, in one command of at most eight minutes: losses, views, a training step, kNN, tests.

python benchmarks/gpu.py [--out gpu_results] [--only losses views step knn tests] [--minutes 8]

Each section of `gpu_sections.py` runs in a separate process with its share of the time, so that one that hangs or fails does
not stop the others; time that a section does not need goes to those after it. The tests come last and get all that is left.
What a section prints is written to OUT/SECTION.txt. The results are the rows of "On a GPU" in benchmarks/README.md, as
Markdown, printed and written to OUT/results.md after every section. Goals are next to the results they are for.

On a machine without a GPU, `--device cpu --tiny` runs the same code at sizes that measure nothing, without the tests.
"""

import argparse
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from processes import run_limited

SHARES = {"knn": 0.1, "losses": 0.2, "views": 0.15, "step": 0.17, "tests": 0.38}
"""Sections in the order they run, and their shares of the time."""

DEVICE_SECONDS = 60.0
"""Time for the first import of torch, which reads gigabytes, and the first use of the GPU."""

RESERVED_SECONDS = 15.0
"""Part of the total in which Python starts and the last section is stopped."""


def main(argv: list[str] | None = None) -> int:
    """Run the sections; returns 1 if one of them failed or ran out of time."""
    args = _parse(argv)
    deadline = time.monotonic() + 60 * args.minutes - RESERVED_SECONDS
    args.out.mkdir(parents=True, exist_ok=True)
    device_output = args.out / "device.txt"
    if run_limited(_command("device", args), device_output, DEVICE_SECONDS) != 0:
        print(f"the device cannot be used:\n{device_output.read_text()}", file=sys.stderr)
        return 1
    results = [device_output.read_text().splitlines()[-1]]
    print(results[0], flush=True)
    all_succeeded = True
    sections = [section for section in SHARES if section in args.only]
    for number, section in enumerate(sections):
        share = SHARES[section] / sum(SHARES[later] for later in sections[number:])
        seconds = share * max(0.0, deadline - time.monotonic())
        output = args.out / f"{section}.txt"
        exit_code = run_limited(_command(section, args), output, seconds)
        rows = _result_rows(section, output)
        if exit_code != 0:
            reason = f"exit code {exit_code}" if exit_code is not None else f"stopped after {seconds:.0f} s"
            rows.append(f"*{section}*: {reason}; see {output}")
            all_succeeded = False
        print("\n".join(["", *rows]), flush=True)
        results += ["", *rows]
        (args.out / "results.md").write_text("\n".join(results) + "\n")
    return 0 if all_succeeded else 1


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--only", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all sections together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that measure nothing")
    args = parser.parse_args(argv)
    if args.device == "cpu":
        args.only = [section for section in args.only if section != "tests"]
    return args


def _command(section: str, args: argparse.Namespace) -> list[str]:
    folder = Path(__file__).resolve().parent
    if section == "tests":
        tests = folder.parent / "tests"
        # Test files that cannot be imported, because they need another package, must not stop the others.
        options = ["-m", "gpu", "-v", "--continue-on-collection-errors", "--durations=10"]
        # Most of the time is the compilation of kernels, on one core for each process.
        if find_spec("xdist") is not None:
            options += ["-n", "6", "-p", "no:benchmark"]
        return [sys.executable, "-m", "pytest", *options, f"--rootdir={folder.parent}", str(tests)]
    command = [sys.executable, str(folder / "gpu_sections.py"), section, "--device", args.device]
    if args.tiny:
        command.append("--tiny")
    return command


def _result_rows(section: str, output: Path) -> list[str]:
    """Return the Markdown rows in a section's output; of the tests the summary and what failed."""
    lines = output.read_text(errors="replace").splitlines()
    if section != "tests":
        return [line for line in lines if line.startswith(("|", "*"))]
    passed = sum(" PASSED" in line for line in lines)
    failed = sum(" FAILED" in line for line in lines)
    summary = f"{passed} passed and {failed} failed before the end"
    for line in lines:
        # The last line of pytest: "==== 12 passed, 3 skipped in 45.67s ====".
        if line.startswith("=") and line.rstrip(" =").endswith("s") and " in " in line:
            summary = line.strip("= ")
    return [f"*Tests*: {summary}", *(line for line in lines if line.startswith(("FAILED", "ERROR")))]


def _exit_on_signal(number: int, _: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    # A closed terminal must not leave a section running: on SystemExit its processes are stopped.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGHUP, _exit_on_signal)
    sys.exit(main())

"""Reading finished runs for a table: what is needed of each, and one line about those that cannot be used."""

from dataclasses import replace
from pathlib import Path

from reptk.core.errors import ReptkError
from reptk.report.run_files import Run, read_run


def read_measured_run(folder: Path, name: str) -> Run | str:
    """Return what a table needs of a run, or the reason for which it cannot be used.

    Args:
        folder: the run's; its files are untrusted.
        name: of the run in the table.
    """
    if (folder / "recipe.toml").is_file() and not (folder / "results.json").is_file():
        return f"{folder} is not finished: there is no results.json"
    try:
        run = read_run(folder, name)
    except ReptkError as error:
        return str(error)
    if not run.results.main_metrics:
        return f"{folder} is not finished: there is no number in its results.json"
    # Of many runs, the features of all queries and the logs would fill the memory.
    predictions = run.predictions
    if predictions is not None:
        predictions = replace(predictions, features=predictions.features[:, :0].clone())
    return replace(run, log=[], predictions=predictions)

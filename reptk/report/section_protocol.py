"""The protocol: how the numbers were measured, on what, and by which versions."""

from collections.abc import Sequence
from dataclasses import dataclass

from reptk.report.recipe_diff import format_value
from reptk.report.run_files import Run

LAST_KEYS = ("versions", "commit")


@dataclass(frozen=True)
class ProtocolRow:
    """One fact, and what it is for each run."""

    name: str
    values: list[str]


@dataclass(frozen=True)
class ProtocolSection:
    """What templates/protocol.html.j2 shows; `heads` are those of the columns with values."""

    heads: list[str]
    rows: list[ProtocolRow]


def protocol_section(runs: Sequence[Run]) -> ProtocolSection | None:
    """Return the protocols of the runs; None if there are none."""
    protocols = [run.results.protocol for run in runs]
    keys: dict[str, None] = {}
    for protocol in protocols:
        keys |= dict.fromkeys(protocol)
    if not keys:
        return None
    heads = ["value"]
    if len(runs) > 1:
        heads = [run.name for run in runs]
    rows = []
    # The environment comes last: it is long, and rarely what one looks for.
    for key in sorted(keys, key=lambda key: key in LAST_KEYS):
        values = [format_value(protocol.get(key, "")) for protocol in protocols]
        rows.append(ProtocolRow(key.replace("_", " "), values))
    return ProtocolSection(heads, rows)

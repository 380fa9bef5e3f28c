"""A run, or several beside each other, as one HTML page that needs nothing else: `write(["runs/a", "runs/b"])`."""

from reptk.report.writing import write

__all__ = ["write"]

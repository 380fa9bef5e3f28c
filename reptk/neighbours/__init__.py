"""Nearest neighbours by inner product, exactly."""

from reptk.neighbours.exact import check_rows, engine, search

__all__ = ["check_rows", "engine", "search"]

"""Runs of many settings and seeds, and the tables that compare runs: `reptk sweep`, `reptk compare`, `reptk verify`."""

"""Experiment trackers: services that draw the curves of runs. They get the rows of metrics.jsonl, each once.

A run that leaves out a step (`train.max_omitted_steps`) goes back to a checkpoint, and metrics.jsonl loses the rows after it. A
service that cannot remove rows keeps them: some then have both, the old rows and the new ones, and others the old ones alone
(`Tracker.forget`, `Tracker.accepts_rows_again`)."""

from reptk.trackers.feed import STATE_FILE, TrackerFeed, read_rows
from reptk.trackers.mlflow import MLflow
from reptk.trackers.protocol import TrackedRun, Tracker
from reptk.trackers.tensorboard import TensorBoard
from reptk.trackers.trackio import Trackio
from reptk.trackers.wandb import WandB

__all__ = [
    "STATE_FILE",
    "MLflow",
    "TensorBoard",
    "TrackedRun",
    "Tracker",
    "TrackerFeed",
    "Trackio",
    "WandB",
    "read_rows",
]

"""Experiment trackers: services that draw the curves of runs. They get exactly the rows of metrics.jsonl."""

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

"""The parts of a run on their device, and its settings as plain values."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import nn

from reptk.config import Table
from reptk.core import rng
from reptk.core.device import Precision
from reptk.data import Data, Loader
from reptk.evaluate import Evaluator
from reptk.evaluate.verdict import PRETRAINED
from reptk.methods import Method, Step
from reptk.models.encoder import Encoder
from reptk.training.checkpoint_writer import CheckpointInterval
from reptk.training.early_stopping import ends_in_best
from reptk.training.finite_check import FiniteCheck
from reptk.training.loss_scaling import ScaledOptimizer
from reptk.training.optim import Schedule
from reptk.training.scheduled_values import ScheduledValues
from reptk.training.weight_average import CLASSIFIER, ENCODER
from reptk.views import Views


class Settings(NamedTuple):
    """What training, its messages and its results need from a recipe, as plain values.

    total_steps: optimizer steps of the whole run.
    views_per_step: views of the global batch, over all ranks.
    name: title of the recipe, with its overrides.
    loss_name: name of the loss, or of the method if it takes no loss; for messages.
    takes_loss: whether the method takes a loss on embeddings and ids, which compares rows.
    input_advice: how to shorten the wait for images, as the end of a sentence; see `input_bound_advice`.
    initial_weights: "pretrained", "random" or "starting", those of the backbone before training.
    start_run: folder of the run that a stage starts from; None for no stage.
    data_table, evaluator_tables: the recipe's `[data]`, with the preprocessing that was used, and `[eval]`, which results.json
        records.
    """

    name: str
    seed: int
    epochs: int
    steps_per_epoch: int
    total_steps: int
    views_per_step: int
    precision: Precision
    clip_norm: float
    lr: float
    loss_name: str
    takes_loss: bool
    log_every_steps: int
    checkpoint_interval: CheckpointInterval
    keep_checkpoints: int
    keeps_best: bool
    early_stopping_epochs: int
    final_weights: str
    rank_timeout_seconds: float
    max_omitted_steps: int
    evaluates_ema: bool
    drop_path: float
    workers: int
    measures_baselines: bool
    writes_report: bool
    input_advice: str
    initial_weights: str
    start_run: str | None
    data_table: Table
    evaluator_tables: dict[str, Table]

    @property
    def ends_in_best(self) -> bool:
        """Whether the run ends in the weights of its best evaluation, not in the last ones."""
        return ends_in_best(self.final_weights, self.early_stopping_epochs)

    @property
    def keeps_initial(self) -> bool:
        """Whether the checkpoint of step 0 remains: the run may end in its weights."""
        return self.initial_weights == PRETRAINED and self.measures_baselines


@dataclass
class Parts:
    """The parts of a run, on their device.

    ema: the moving average of the weights of the method's encoder and classifier; None if there is none.
    has_trained_classifier: whether the method starts with the classifier of an earlier run.
    headline_evaluator: the key of the evaluator whose metric is the headline.
    every_epochs: for each key of `evaluators`, after every how many epochs it also runs during training; 0 for never.
    evaluation_views: a second instance of the method's views, which is not sharded over the ranks.
    """

    data: Data
    loader: Loader
    method: Method
    optimizer: torch.optim.Optimizer
    scaled_optimizer: ScaledOptimizer
    finite_check: FiniteCheck
    schedule: Schedule
    scheduled_values: ScheduledValues
    evaluators: dict[str, Evaluator]
    headline_evaluator: str
    has_trained_classifier: bool
    every_epochs: dict[str, int]
    evaluation_views: Views
    device: torch.device
    settings: Settings
    ema: ModelEmaV3 | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder that is evaluated and exported: the one that the method decides on, or its moving average."""
        if self.ema is not None and self.settings.evaluates_ema:
            return self.ema.module[ENCODER]
        return self.method.encoder

    @property
    def classifier(self) -> nn.Linear | None:
        """The classifier that is evaluated and exported with the encoder; None if the method trains none."""
        if self.method.classifier is not None and self.ema is not None and self.settings.evaluates_ema:
            return self.ema.module[CLASSIFIER]
        return self.method.classifier

    def step(self, number: int) -> Step:
        """Return step `number`, counted from 0, with its random key."""
        settings = self.settings
        return Step(number, settings.total_steps, rng.key(settings.seed, "views", number), settings.steps_per_epoch)

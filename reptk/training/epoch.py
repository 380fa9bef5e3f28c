"""The end of an epoch: the evaluations that are due, diagnostics of the embeddings, a checkpoint, and a line of output."""

from pathlib import Path

from reptk.core.console import EpochProgress, Logger
from reptk.core.metric_names import display_name
from reptk.evaluate.diagnostics import concerns
from reptk.evaluate.results import headline
from reptk.training.build import Parts
from reptk.training.evaluation import evaluate_now
from reptk.training.health import INPUT_BOUND_SHARE, input_bound_message
from reptk.training.state import RunState, save


class EpochEnd:
    """The loop calls `run` after the last step of every epoch; its time is not counted as training.

    Args:
        parts: the run's.
        state: the run's; its clock is stopped during the call.
        folder: the run's.
        logger: where to print and log.
    """

    def __init__(self, parts: Parts, state: RunState, folder: Path, logger: Logger) -> None:
        self.parts = parts
        self.state = state
        self.folder = folder
        self.logger = logger
        self._reported: set[str] = set()
        """Kinds of warnings that were printed; each is printed once in a run."""

    def announce(self) -> None:
        """Print the step from which a run is resumed, and its baselines."""
        if self.state.step:
            self.logger.line(f"resumed after step {self.state.step}")
        baselines = self.state.baselines
        if baselines:
            metric = headline(baselines["untrained"].metrics)
            pixels = 100 * baselines["raw pixels"].metrics[metric]
            untrained = 100 * baselines["untrained"].metrics[metric]
            name = display_name(metric)
            weights = self.parts.settings.initial_weights
            self.logger.line(f"before training  {name}: raw pixels {pixels:.1f} %, {weights} weights {untrained:.1f} %")

    def run(self, progress: EpochProgress, waited_seconds: float) -> None:
        """Evaluate, save and report.

        Args:
            progress: to report to.
            waited_seconds: time of this epoch that the device spent waiting for images.
        """
        state, settings = self.state, self.parts.settings
        # Seconds and views per second are those of training alone.
        state.clock.stop()
        epoch = state.step // settings.steps_per_epoch
        # Before evaluation and checkpoint, which are no part of the epoch's time.
        waiting_share = state.clock.share_of_epoch(waited_seconds)
        metrics = self._evaluate_due(epoch, progress)
        warnings = self._diagnose(epoch, metrics, waiting_share, progress)
        if epoch % settings.checkpoint_every_epochs == 0 or epoch == settings.epochs:
            save(self.parts, state, self.folder)
        progress.epoch(epoch, state.meter.loss, state.clock.views_per_second, state.seconds_left(settings))
        if waiting_share > INPUT_BOUND_SHARE:
            warnings["input"] = input_bound_message(waiting_share, settings.input_advice)
        for kind, text in warnings.items():
            if kind not in self._reported:
                self.logger.line(text)
                self._reported.add(kind)
        state.clock.start()

    def warn_of_steps_without_positives(self) -> None:
        """Print how many steps of the run had no positives, and so no gradient."""
        count = self.state.meter.steps_without_positives
        if count:
            self.logger.line(
                f"{count} of {self.parts.settings.total_steps} steps had no two rows of one id, hence loss 0 and nothing to "
                "learn from: more views, a larger batch, or fewer classes would pair them"
            )

    def say_skipped_steps(self) -> None:
        """Print how many steps of the run changed nothing, since their gradients overflowed float16."""
        optimizer = self.parts.scaled_optimizer
        if optimizer.skipped_steps:
            total_steps = self.parts.settings.total_steps
            self.logger.line(
                f"{optimizer.skipped_steps} of {total_steps} steps were skipped, since their gradients overflowed float16; the "
                f"loss is scaled by {optimizer.scale:g} now. A few at the start of a run are usual"
            )

    def _evaluate_due(self, epoch: int, progress: EpochProgress) -> dict[str, float]:
        """Return the metrics of the evaluators that are due after this epoch."""
        if epoch == self.parts.settings.epochs:
            return {}  # the final evaluation follows
        due = []
        for key, evaluator in self.parts.evaluators.items():
            every_epochs = self.parts.every_epochs[key]
            if every_epochs and epoch % every_epochs == 0:
                due.append(evaluator)
        if not due:
            return {}
        with progress.stages(f"evaluation after epoch {epoch}") as report:
            return evaluate_now(self.parts, due, during_training=True, progress=report).metrics

    def _diagnose(
        self, epoch: int, metrics: dict[str, float], waiting_share: float, progress: EpochProgress
    ) -> dict[str, str]:
        """Log the metrics and the diagnostics of the last step's embeddings; return warnings by kind."""
        meter = self.state.meter
        row = {"step": self.state.step, "epoch": epoch, "waiting": round(waiting_share, 3)}
        suffix = []
        name = ""
        if metrics:
            name = headline(metrics)
            suffix.append(f"{display_name(name)} {100 * metrics[name]:.1f} %")
        warnings: dict[str, str] = {}
        if meter.z is not None:
            untrained = self.state.baselines.get("untrained")
            untrained_metrics = {} if untrained is None else untrained.metrics
            health, warnings = concerns(
                meter.z,
                meter.ids,
                meter.loss,
                temperature=meter.scalars.get("temperature"),
                accuracy=metrics.get(name),
                untrained=untrained_metrics.get(name),
            )
            if meter.ids is None:
                # "Shortcut" compares the loss with that of random embeddings, which only a contrastive loss has.
                warnings.pop("shortcut", None)
            # The number of dimensions is the same in every row.
            row |= {key: round(value, 4) for key, value in health.items() if key != "dimensions"}
            suffix.append(f"rank {row['rank']:.0f}/{meter.z.shape[1]}")
        self.logger.metrics(**row, **metrics)
        progress.suffix = "  ".join(suffix)
        return warnings

"""The end of an epoch: diagnostics of the embeddings, the evaluations that are due, and a line of output."""

from typing import Any

from reptk.core.console import EpochProgress
from reptk.core.metric_names import display_name
from reptk.evaluate import Evaluator
from reptk.evaluate.diagnostics import concerns, divergence_message, prototypes_message, shortcut_message
from reptk.evaluate.results import headline
from reptk.evaluate.verdict import RAW_PIXELS, UNTRAINED
from reptk.methods import Classify
from reptk.training.early_stopping import best_after, is_out_of_patience, stop_message
from reptk.training.evaluation import evaluate_now
from reptk.training.input_wait import INPUT_BOUND_SHARE, input_bound_message
from reptk.training.method_advice import prototypes_advice, temperature_key
from reptk.training.mining import HardNegativeMiner
from reptk.training.optim import learning_rate
from reptk.training.parts import Parts
from reptk.training.run_process import RunProcess
from reptk.training.state import RunState


class EpochEnd:
    """What the loop calls after the last step of every epoch, in two parts, between which a checkpoint may be written.

    Args:
        parts: the run's.
        state: the run's; its clock is stopped between `begin` and the end of `finish`.
        process: where to print, log and save.
    """

    def __init__(self, parts: Parts, state: RunState, process: RunProcess) -> None:
        self.parts = parts
        self.state = state
        self.process = process
        self.logger = process.logger
        self._warnings: dict[str, str] = {}
        """Warnings of this epoch by kind."""
        self._reported: set[str] = set()
        """Kinds of warnings that were printed; each is printed once in a run."""

    def announce(self) -> None:
        """Print the step from which a run is resumed, and its baselines."""
        if self.state.step:
            self.logger.line(f"resumed after step {self.state.step}")
        baselines = self.state.baselines
        if baselines and baselines[UNTRAINED].metrics:
            untrained, pixels = baselines[UNTRAINED].metrics, baselines[RAW_PIXELS].metrics
            metric = headline(untrained)
            values = [f"{self.parts.settings.initial_weights} weights {100 * untrained[metric]:.1f} %"]
            if metric in pixels:  # which have no classifier
                values.insert(0, f"{RAW_PIXELS} {100 * pixels[metric]:.1f} %")
            self.logger.line(f"before training  {display_name(metric)}: {', '.join(values)}")

    def begin(self, waited_seconds: float) -> None:
        """Compute the diagnostics of the last step, which a checkpoint then holds until `finish` has logged them.

        Args:
            waited_seconds: time of this epoch that the device spent waiting for images.
        """
        state, meter = self.state, self.state.meter
        # Seconds and views per second are those of training alone.
        state.clock.stop()
        waiting_share = state.clock.share_of_epoch(waited_seconds)
        row: dict[str, Any] = {"step": state.step, "epoch": self._epoch, "waiting": round(waiting_share, 3)}
        self._warnings = {}
        if meter.z is not None:
            health, self._warnings = concerns(
                meter.z,
                meter.ids,
                temperature=meter.scalars.get("temperature"),
                temperature_key=temperature_key(self.parts.settings),
            )
            for kind in self._warnings:
                state.warnings.setdefault(kind, []).append(self._epoch)
            # The number of dimensions is the same in every row.
            row |= {key: round(value, 4) for key, value in health.items() if key != "dimensions"}
        self._check_divergence()
        self._check_prototypes()
        if waiting_share > INPUT_BOUND_SHARE:
            self._warnings["input"] = input_bound_message(waiting_share, self.parts.settings.input_advice)
        state.unfinished_epoch = row

    def finish(self, progress: EpochProgress) -> None:
        """Evaluate, log and report.

        Args:
            progress: to report to.
        """
        state, settings, meter = self.state, self.parts.settings, self.state.meter
        row = state.unfinished_epoch or {}
        metrics = self._evaluate_due(progress)
        suffix = []
        if metrics:
            name = headline(metrics)
            suffix.append(f"{display_name(name)} {100 * metrics[name]:.1f} %")
            self._check_shortcut(metrics[name], name)
        if "rank" in row:
            suffix.append(f"rank {row['rank']:.0f}")
            if meter.z is not None:
                suffix[-1] += f"/{meter.z.shape[1]}"
        self.logger.metrics(**row, **metrics)
        state.unfinished_epoch = None
        state.metrics_rows = self.logger.metrics_rows
        if metrics:
            self._record_evaluation(metrics)
        progress.suffix = "  ".join(suffix)
        progress.epoch(self._epoch, meter.loss, state.clock.views_per_second, state.seconds_left(settings))
        for kind, text in self._warnings.items():
            if kind not in self._reported:
                self.logger.line(text)
                self._reported.add(kind)
        state.clock.start()

    @property
    def stops_early(self) -> bool:
        """Whether the last evaluations were no better than one before them, for as long as the recipe waits."""
        settings = self.parts.settings
        return is_out_of_patience(self.state.best_evaluation, settings.early_stopping_epochs, settings.steps_per_epoch)

    def log_early_stopping(self) -> None:
        """Print why the run ends before its last epoch, if it does."""
        state, settings = self.state, self.parts.settings
        if state.best_evaluation is None or state.step == settings.total_steps:
            return
        message = stop_message(
            state.best_evaluation,
            patience_epochs=settings.early_stopping_epochs,
            steps_per_epoch=settings.steps_per_epoch,
            epochs=settings.epochs,
            schedule=self.parts.schedule.kind,
            lr=learning_rate(self.parts.optimizer),
        )
        self.logger.line(message)

    @property
    def has_evaluation(self) -> bool:
        """Whether an evaluation is due after this epoch."""
        return bool(self._due_evaluators())

    @property
    def _epoch(self) -> int:
        return self.state.step // self.parts.settings.steps_per_epoch

    def _record_evaluation(self, metrics: dict[str, float]) -> None:
        """Record the headline number after this epoch, if it was measured, and keep the checkpoint if it is the best so far."""
        state = self.state
        if not self._is_due(self.parts.headline_evaluator):
            return
        best = best_after(state.best_evaluation, metrics, state.step)
        state.best_evaluation = best
        if self.parts.settings.keeps_best and best is not None and best.step == state.step:
            self.process.mark_best(self.parts, state)

    def _check_divergence(self) -> None:
        """Add the warning about a classifier whose loss is far above that of one that knows nothing."""
        classifier = self.parts.method.classifier
        cross_entropy = self.state.meter.cross_entropy
        if isinstance(self.parts.method, Classify):
            cross_entropy = self.state.meter.loss
        if classifier is None or cross_entropy is None:
            return
        message = divergence_message(cross_entropy, classifier.out_features)
        if message is not None:
            self._warnings["divergence"] = message
            self.state.warnings.setdefault("divergence", []).append(self._epoch)

    def _check_prototypes(self) -> None:
        """Add the warning about assignments to prototypes that are the same for all images."""
        entropies = self.state.meter.assignment_entropies
        if entropies is None or "collapse" in self._warnings:
            return
        message = prototypes_message(*entropies, prototypes_advice(self.parts))
        if message is not None:
            self._warnings["prototypes"] = message
            self.state.warnings.setdefault("prototypes", []).append(self._epoch)

    def _check_shortcut(self, accuracy: float, metric: str) -> None:
        """Add the warning about a loss that is low for a wrong reason."""
        meter = self.state.meter
        untrained = self.state.baselines.get(UNTRAINED)
        # The loss is compared with that of random embeddings, log(candidates), which is that of contrastive losses. The
        # methods that take no loss, such as VICReg, have other scales.
        if not self.parts.settings.takes_loss:
            return
        if meter.z is None or meter.ids is None or untrained is None or "collapse" in self._warnings:
            return
        if metric not in untrained.metrics:
            return
        # Losses without a temperature, such as Smooth-AP, are no softmax and have another value for random embeddings.
        if "temperature" not in meter.scalars:
            return
        num_candidates = meter.num_candidates
        if num_candidates is None:
            num_candidates = len(meter.z) - 1
        message = shortcut_message(
            meter.contrastive_loss, num_candidates, accuracy=accuracy, untrained=untrained.metrics[metric]
        )
        if message is not None:
            self._warnings["shortcut"] = message
            self.state.warnings.setdefault("shortcut", []).append(self._epoch)

    def log_steps_without_positives(self) -> None:
        """Print how many steps of the run had no positives, and so no gradient."""
        count = self.state.meter.steps_without_positives
        if count:
            self.logger.line(
                f"{count} of {self.state.step} steps had no two rows of one id, hence loss 0 and nothing to "
                "learn from: more views, a larger batch, or fewer classes would pair them"
            )

    def log_skipped_steps(self) -> None:
        """Print how many steps of the run changed nothing, since their gradients overflowed float16."""
        optimizer = self.parts.scaled_optimizer
        if optimizer.skipped_steps:
            self.logger.line(
                f"{optimizer.skipped_steps} of {self.state.step} steps were skipped, since their gradients overflowed float16; "
                f"the loss is scaled by {optimizer.scale:g} now. A few at the start of a run are usual"
            )

    def _due_evaluators(self) -> list[Evaluator]:
        if self.state.step == self.parts.settings.total_steps:
            return []  # the final evaluation follows
        due = [evaluator for key, evaluator in self.parts.evaluators.items() if self._is_due(key)]
        hard_negatives = self.parts.loader.sampler.hard_negatives
        if hard_negatives is not None:
            # For the batches of the next epoch, which the loader does not compose before they are requested.
            due.append(HardNegativeMiner(hard_negatives, self.parts.device))
        return due

    def _is_due(self, key: str) -> bool:
        """Whether an evaluator runs after this epoch."""
        every_epochs = self.parts.every_epochs[key]
        return every_epochs > 0 and self._epoch % every_epochs == 0

    def _evaluate_due(self, progress: EpochProgress) -> dict[str, float]:
        """Return the metrics of the evaluators that are due after this epoch."""
        due = self._due_evaluators()
        if not due:
            return {}
        # On several ranks, a signal in the last step has not stopped the run yet.
        self.process.signals.raise_if_received()
        with progress.stages(f"evaluation after epoch {self._epoch}") as report:
            return evaluate_now(self.parts, due, during_training=True, progress=report).metrics

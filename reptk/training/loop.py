"""train(recipe, out): the loop, in running order. Every run ends in its numbers beside two baselines."""

import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import reptk
from reptk import report
from reptk.config import Recipe
from reptk.core import distributed, environment, rng
from reptk.core.console import Logger
from reptk.core.errors import EnvironmentProblem, NumericalError, ReptkError
from reptk.core.metric_names import display_name
from reptk.data import DevicePrefetcher
from reptk.evaluate import Evaluation, concerns, evaluate_encoder, evaluate_pixels
from reptk.evaluate.results import build_results, headline, protocol, remarks, table_columns, write_results
from reptk.training import checkpoint, run_folder
from reptk.training.build import Built, assemble, data_of
from reptk.training.meters import (
    DIVERGED,
    INPUT_BOUND,
    Interrupt,
    Step,
    Watch,
    at_step,
    finite_losses,
    input_bound,
    without_pairs,
)
from reptk.training.optim import learning_rate

Numbers = dict[str, float]
Rows = dict[str, Evaluation]


def train(recipe: Recipe, out: str | Path | None = None, *, resume: bool = False, log: Logger | None = None) -> Numbers:
    """Train a recipe and evaluate it.

    Args:
        recipe: from `load`.
        out: the run's folder, new or empty; None for the next free `runs/NAME/N`. When resuming: the run's folder.
        resume: go on from the folder's last checkpoint.
        log: where to speak; standard output by default.

    Returns:
        The trained encoder's numbers, e.g. `{"knn@20": 0.75, ...}`, shares between 0 and 1.

    Raises:
        ReptkError: its subclass says whose turn it is; the run's status.json says why it failed.
    """
    device = distributed.setup(recipe.train.device)
    log = log or Logger(prints=distributed.is_main())
    data = data_of(recipe)
    built = assemble(recipe, data, device)
    folder = distributed.run_on_main(
        lambda: run_folder.reopen(recipe, Path(out)) if resume else run_folder.claim(recipe, out)
    )
    try:
        numbers = _train(recipe, built, folder, log)
    except KeyboardInterrupt:
        _end(folder, log, "interrupted", None)
        log.line(f"interrupted. To go on: python -m reptk.recipe {folder} --resume{_again(recipe)}")
        raise
    except Exception as error:
        _end(folder, log, "failed", f"{type(error).__name__}: {error}")
        raise
    _end(folder, log, "finished", None)
    if recipe.train.report:
        with log.status("drawing the report"):
            said = distributed.run_on_main(lambda: _report(folder, built))
        log.line(f"  {said}")
    return numbers


def _again(recipe: Recipe) -> str:
    """Plugins that a resumed run has to be given anew: modules, which a run folder holds no copy of."""
    modules = [spec for spec in recipe.plugins if not spec.endswith(".py") and not spec.startswith("reptk.plugins.")]
    return "".join(f" --plugin {spec}" for spec in modules)


def describe(recipe: Recipe, built: Built) -> list[tuple[str, str, str]]:
    """What a run is made of, as rows (what, name, details)."""
    data, encoder, train = built.data, built.encoder, recipe.train
    weights = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    images = f"{len(data.train):,} training" + (f", {len(data.query):,} query images" if data.query else " images")
    classes = f", {len(data.classes)} classes" if data.classes else ", no labels"
    head = "-".join(str(layer.out_features) for layer in encoder.head if isinstance(layer, nn.Linear)) or "none"
    arguments = ", ".join(
        f"{key} {value}" for key, value in recipe.loss.items() if key != "name" and value is not False
    )
    ranks = "1 rank" if distributed.world_size() == 1 else f"{distributed.world_size()} ranks"
    course = f"{recipe.optim.name} lr {recipe.optim.lr:g}, {recipe.optim.schedule}"
    views, made = recipe.views, built.method.views
    count = getattr(made, "count", views.get("count", 2))
    sizes = " and ".join(str(size) for size in dict.fromkeys(getattr(made, "sizes", [views.get("size", 224)])))
    return [
        ("data", recipe.data["name"], images + classes),
        ("views", f"{views['name']} x{count}", f"{sizes} px, {getattr(made, 'how', 'own')}, {built.device}"),
        ("encoder", recipe.encoder.backbone, f"{weights:.1f} M weights, {encoder.num_features} features, head {head}"),
        ("loss", recipe.loss["name"], f"{arguments}; positives by {recipe.method.get('positives', '?')}"),
        (
            "train",
            f"{train.epochs} epochs",
            f"batch {train.batch_size} ({ranks}), {course}, {train.precision}, seed {recipe.seed}",
        ),
    ]


def _train(recipe: Recipe, built: Built, folder: Path, log: Logger) -> Numbers:
    where, commit = f"  {recipe.name}  ->  {folder}", environment.git_commit()
    log.line(f"reptk {reptk.__version__}{where}", style="bold")
    log.facts(describe(recipe, built))
    state = checkpoint.load_last(folder / "checkpoints")
    first_step = _restore(built, state) if state else 0
    with log.status("evaluating raw pixels and the untrained encoder"):
        baselines = _kept_baselines(state) if state else _baselines(recipe, built)
    log.write_metrics_to(folder / "metrics.jsonl", first_step)
    if first_step:
        log.line(f"resumed after step {first_step}")
    if baselines:
        log.line(_before(baselines))
    watch = Watch(state["seconds"], state.get("steps_without_pairs", 0)) if state else Watch()
    seconds = _epochs(recipe, built, folder, log, baselines, first_step, watch)
    with log.status("evaluating the trained encoder"):
        trained = _evaluate(recipe, built)
    _finish(recipe, built, folder, log, {**baselines, "trained": trained}, seconds, commit)
    return trained.metrics


def _epochs(
    recipe: Recipe, built: Built, folder: Path, log: Logger, baselines: Rows, first_step: int, watch: Watch
) -> float:
    """The loop. Returns the seconds spent in training steps, those before an interruption included."""
    train, per_epoch = recipe.train, built.loader.steps_per_epoch
    total = train.epochs * per_epoch
    model = _parallel(built)
    model.train()
    batches = DevicePrefetcher(built.loader.batches(first_step, total), built.device)
    told: set[str] = set()
    watch.start()
    window: list[Step] = []
    with log.progress(train.epochs, per_epoch, first_step) as progress, Interrupt() as interrupt:
        for step in range(first_step, total):
            images, labels, index = next(batches)
            built.schedule.step_update(step)
            window = [made._replace(z=None, ids=None) for made in window]
            window.append(train_step(recipe, built, model, images, labels, index, step))
            views = window[-1].rows
            done = step + 1
            if built.device.type == "cpu" or done % train.log_every_steps == 0 or done % per_epoch == 0:
                values, last = finite_losses(recipe, window, step), window[-1]
                watch.add(len(window) * views, without_pairs(window))
                window.clear()
                progress.step(done, values[-1], watch.rate(), (total - done) * watch.per(views))
                if done % train.log_every_steps == 0:
                    log.metrics(
                        step=done, epoch=done / per_epoch, loss=values[-1], lr=learning_rate(built.optimizer),
                        views_per_second=round(watch.rate(), 1), seconds=round(watch.seconds, 2),
                        **({"steps_without_pairs": watch.lonely_steps} if watch.lonely_steps else {}),
                    )  # fmt: skip
            if done % per_epoch == 0:
                epoch = done // per_epoch
                watch.stop()
                waiting = watch.share(batches.waited())
                progress.extra, found = _during(recipe, built, log, baselines, epoch, done, last, waiting)
                if epoch % train.checkpoint_every_epochs == 0 or done == total:
                    state = _state(built, done, watch, baselines)
                    distributed.run_on_main(partial(_save, folder, done, state))
                progress.epoch(epoch, values[-1], watch.rate(), (total - done) * watch.per(views))
                if waiting > INPUT_BOUND:
                    found["input"] = input_bound(waiting, recipe, built.data.train.images, built.device)
                for kind in found.keys() - told:
                    log.line(found[kind])
                told |= found.keys()
                watch.start()
            if interrupt.asked:
                watch.stop()
                _save(folder, done, _state(built, done, watch, baselines))
                raise KeyboardInterrupt
    if watch.lonely_steps:
        log.line(
            f"{watch.lonely_steps} of {total} steps had no two rows of one id, hence loss 0 and nothing to learn from: "
            "more views, a larger batch, or fewer classes would pair them"
        )
    return watch.seconds


def train_step(
    recipe: Recipe, built: Built, model: nn.Module, images: Tensor, labels: Tensor, index: Tensor, step: int
) -> Step:
    """One step of the optimizer."""
    torch.manual_seed(rng.key(recipe.seed, "dropout", step, distributed.rank()))
    with torch.autocast(built.device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"):
        try:
            made = model(images, labels, index, rng.key(recipe.seed, "views", step))
        except NumericalError as cause:
            raise NumericalError(f"{at_step(recipe, step)}; {cause}; {DIVERGED}") from cause
    made["loss"].backward()
    if recipe.train.clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip_norm)
    built.optimizer.step()
    built.optimizer.zero_grad()
    loss = made["loss"].detach()
    z = made.get("z", loss.view(1, 1))
    broken = (~z.isfinite().all(1)).sum()
    return Step(loss, z, made.get("ids"), len(z), broken, made.get("pairs", torch.ones_like(loss, dtype=torch.bool)))


def _evaluate(recipe: Recipe, built: Built, due: Iterable[Any] | None = None) -> Evaluation:
    """The encoder's numbers as it is now: of all evaluators, or of some."""
    distributed.broadcast_buffers(built.method)
    return evaluate_encoder(
        built.encoder,
        built.data,
        built.evaluators.values() if due is None else due,
        views=built.evaluation_views,
        device=built.device,
        bf16=recipe.train.precision == "bf16",
        workers=recipe.train.workers,
        during_training=due is not None,
    )


def _baselines(recipe: Recipe, built: Built) -> Rows:
    """What raw pixels and the encoder before training achieve."""
    if not recipe.train.baselines:
        return {}
    raw = evaluate_pixels(
        built.data, built.evaluators.values(), views=built.evaluation_views, workers=recipe.train.workers
    )
    return {"raw pixels": raw, "untrained": _evaluate(recipe, built)}


def _kept_baselines(state: dict[str, Any]) -> Rows:
    return {row: Evaluation.from_state(kept) for row, kept in state["baselines"].items()}


def _during(
    recipe: Recipe, built: Built, log: Logger, baselines: Rows, epoch: int, step: int, last: Step, waiting: float
) -> tuple[str, dict[str, str]]:
    """Evaluators that are due after this epoch, and how the embeddings lie: a few words for the line, and what is amiss."""
    due = [built.evaluators[key] for key, every in built.every_epochs.items() if every and epoch % every == 0]
    numbers: Numbers = {}
    if due and epoch < recipe.train.epochs:
        numbers = _evaluate(recipe, built, due).metrics
    name = headline(numbers) if numbers else ""
    before = baselines["untrained"].metrics if "untrained" in baselines else {}
    state, found = concerns(
        last.z,
        last.ids,
        last.loss.item(),
        temperature=_temperature(built),
        accuracy=numbers.get(name),
        untrained=before.get(name),
    )
    state = {key: round(value, 4) for key, value in state.items() if key != "dimensions"}
    log.metrics(step=step, epoch=epoch, waiting=round(waiting, 3), **state, **numbers)
    words = [f"{display_name(name)} {100 * numbers[name]:.1f} %"] if numbers else []
    return "  ".join([*words, f"rank {state['rank']:.0f}/{last.z.shape[1]}"]), found


def _temperature(built: Built) -> float | None:
    """The loss's temperature as it is now, where it has one."""
    made = getattr(getattr(built.method, "loss", None), "temperature", None)
    value = made() if callable(made) else made
    return float(value) if isinstance(value, int | float | Tensor) else None


def _finish(
    recipe: Recipe,
    built: Built,
    folder: Path,
    log: Logger,
    rows: Rows,
    seconds: float,
    commit: str | None,
) -> None:
    found = build_results(rows, built.data, _protocol(recipe, built, seconds, commit))
    log.line()
    log.results(table_columns(rows["trained"].metrics), found["metrics"])
    log.verdict(found["verdict"], remarks(rows["trained"]))
    distributed.run_on_main(lambda: _write_results(built, folder, found, rows["trained"]))
    log.line(f"  results  {folder / 'results.json'}     model  {folder / 'model'}     trained in {seconds:.0f} s")


def _write_results(built: Built, folder: Path, found: dict[str, Any], trained: Evaluation) -> None:
    built.encoder.save(folder / "model")
    write_results(folder, found, trained)


def _report(folder: Path, built: Built) -> str:
    """A page that fails does not fail the run; it can be drawn again."""
    try:
        with warnings.catch_warnings():
            # Plugins of the run are at work already; whoever draws it later is told that they are run.
            warnings.filterwarnings("ignore", message=".* brings a plugin, which is run")
            return f"report   {report.write(folder, data=built.data)}"
    except (ReptkError, OSError) as cause:
        return f"no report: {cause}. Try again: reptk report {folder}"


def _protocol(recipe: Recipe, built: Built, seconds: float, commit: str | None) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        **protocol(recipe.data, built.data, recipe.eval, built.encoder, commit=commit),
        "epochs": recipe.train.epochs,
        "seed": recipe.seed,
        "train_seconds": round(seconds, 1),
        "device": str(built.device) if built.device.type == "cpu" else torch.cuda.get_device_name(built.device),
        "ranks": distributed.world_size(),
    }


def _before(baselines: Rows) -> str:
    name = headline(baselines["untrained"].metrics)
    pixel, untrained = (100 * baselines[row].metrics[name] for row in ("raw pixels", "untrained"))
    return f"before training  {display_name(name)}: raw pixels {pixel:.1f} %, untrained encoder {untrained:.1f} %"


def _parallel(built: Built) -> nn.Module:
    if distributed.world_size() == 1:
        return built.method
    devices = [built.device] if built.device.type == "cuda" else None
    return DistributedDataParallel(built.method, device_ids=devices)


def _state(built: Built, step: int, watch: Watch, baselines: Rows) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": watch.seconds,
        "steps_without_pairs": watch.lonely_steps,
        "baselines": {row: evaluation.state_dict() for row, evaluation in baselines.items()},
        "method": built.method.state_dict(),
        "optimizer": built.optimizer.state_dict(),
    }


def _save(folder: Path, step: int, state: dict[str, Any]) -> None:
    broken = [
        name for name, value in state["method"].items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise NumericalError(
            f"after step {step}, {len(broken)} weights hold NaN or infinity, {broken[0]} first; nothing is saved"
        )
    try:
        checkpoint.save(folder / "checkpoints", step, state)
    except (OSError, RuntimeError) as cause:
        raise EnvironmentProblem(f"cannot save a checkpoint in {folder}: {cause}") from cause


def _restore(built: Built, state: dict[str, Any]) -> int:
    built.method.load_state_dict(state["method"])
    built.optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _end(folder: Path, log: Logger, status: str, reason: str | None) -> None:
    if distributed.is_main() or status == "failed":
        try:
            run_folder.set_status(folder, status, **({"reason": reason} if reason else {}))
        except OSError as cause:
            log.line(f"cannot write {folder / 'status.json'}: {cause}")

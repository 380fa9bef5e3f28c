"""train(recipe, out): the loop, in running order. Every run ends in its numbers beside two baselines."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import reptk
from reptk import checkpoint, dist, run
from reptk.build import Built, assemble, data_of
from reptk.config import Recipe
from reptk.data import Feed
from reptk.errors import EnvironmentProblem, NumericalError
from reptk.evaluate import engine, measure, measure_pixels
from reptk.keyed import fold
from reptk.log import Log, title
from reptk.optim import learning_rate
from reptk.watch import (
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

Numbers = dict[str, float]


def train(recipe: Recipe, out: str | Path | None = None, *, resume: bool = False, log: Log | None = None) -> Numbers:
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
    device = dist.start(recipe.train.device)
    log = log or Log(speaks=dist.is_main())
    data = data_of(recipe)
    built = assemble(recipe, data, device)
    folder = dist.from_main(lambda: run.reopen(recipe, Path(out)) if resume else run.claim(recipe, out))
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
    ranks = "1 rank" if dist.world() == 1 else f"{dist.world()} ranks"
    course = f"{recipe.optim.name} lr {recipe.optim.lr:g}, {recipe.optim.schedule}"
    views, made = recipe.views, built.objective.views
    count = getattr(made, "count", views.get("count", 2))
    sizes = " and ".join(str(size) for size in dict.fromkeys(getattr(made, "sizes", [views.get("size", 224)])))
    return [
        ("data", recipe.data["name"], images + classes),
        ("views", f"{views['name']} x{count}", f"{sizes} px, {getattr(made, 'how', 'own')}, {built.device}"),
        ("encoder", recipe.encoder.backbone, f"{weights:.1f} M weights, {encoder.num_features} features, head {head}"),
        ("loss", recipe.loss["name"], f"{arguments}; positives by {recipe.objective.get('positives', '?')}"),
        (
            "train",
            f"{train.epochs} epochs",
            f"batch {train.batch_size} ({ranks}), {course}, {train.precision}, seed {recipe.seed}",
        ),
    ]


def _train(recipe: Recipe, built: Built, folder: Path, log: Log) -> Numbers:
    where, commit = f"  {recipe.name}  ->  {folder}", run.commit()
    log.line(f"reptk {reptk.__version__}{where}", style="bold")
    log.facts(describe(recipe, built))
    state = checkpoint.load_last(folder / "checkpoints")
    first_step = _restore(built, state) if state else 0
    with log.working("evaluating raw pixels and the untrained encoder"):
        baselines = state["baselines"] if state else _baselines(recipe, built)
    log.write_metrics_to(folder / "metrics.jsonl", first_step)
    if first_step:
        log.line(f"resumed after step {first_step}")
    if baselines:
        log.line(_before(baselines))
    watch = Watch(state["seconds"], state.get("steps_without_pairs", 0)) if state else Watch()
    seconds = _epochs(recipe, built, folder, log, baselines, first_step, watch)
    with log.working("evaluating the trained encoder"):
        numbers = _evaluate(recipe, built)
    _finish(recipe, built, folder, log, {**baselines, "trained": numbers}, seconds, commit)
    return numbers


def _epochs(
    recipe: Recipe, built: Built, folder: Path, log: Log, baselines: dict[str, Numbers], first_step: int, watch: Watch
) -> float:
    """The loop. Returns the seconds spent in training steps, those before an interruption included."""
    train, per_epoch = recipe.train, built.loader.steps_per_epoch
    total = train.epochs * per_epoch
    model = _parallel(built)
    model.train()
    batches = Feed(built.loader.batches(first_step, total), built.device)
    told = False
    watch.start()
    window: list[Step] = []
    with log.progress(train.epochs, per_epoch, first_step) as progress, Interrupt() as interrupt:
        for step in range(first_step, total):
            images, labels, index = next(batches)
            built.schedule.step_update(step)
            window = [made._replace(z=None) for made in window]
            window.append(train_step(recipe, built, model, images, labels, index, step))
            views = window[-1].rows
            done = step + 1
            if built.device.type == "cpu" or done % train.log_every_steps == 0 or done % per_epoch == 0:
                values, z = finite_losses(recipe, window, step), window[-1].z
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
                progress.extra = _during(recipe, built, log, epoch, done, z, waiting) or progress.extra
                if epoch % train.checkpoint_every_epochs == 0 or done == total:
                    state = _state(built, done, watch, baselines)
                    dist.from_main(partial(_save, folder, done, state))
                progress.epoch(epoch, values[-1], watch.rate(), (total - done) * watch.per(views))
                if waiting > INPUT_BOUND and not told:
                    log.line(input_bound(waiting, recipe, built.data.train.images, built.device))
                    told = True
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
    torch.manual_seed(fold(recipe.seed, "dropout", step, dist.rank()))
    with torch.autocast(built.device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"):
        try:
            made = model(images, labels, index, fold(recipe.seed, "views", step))
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
    return Step(loss, z, len(z), broken, made.get("pairs", torch.ones_like(loss, dtype=torch.bool)))


def _evaluate(recipe: Recipe, built: Built, evaluators: Iterable[Any] | None = None) -> Numbers:
    """The encoder's numbers as it is now: of all evaluators, or of some."""
    dist.copy_buffers_from_main(built.objective)
    return measure(
        built.encoder,
        built.data,
        built.evaluators.values() if evaluators is None else evaluators,
        views=built.evaluation_views,
        device=built.device,
        bf16=recipe.train.precision == "bf16",
        workers=recipe.train.workers,
    )


def _baselines(recipe: Recipe, built: Built) -> dict[str, Numbers]:
    """What raw pixels and the encoder before training achieve."""
    if not recipe.train.baselines:
        return {}
    raw = measure_pixels(built.data, built.evaluators.values(), built.evaluation_views, recipe.train.workers)
    return {"raw pixels": raw, "untrained": _evaluate(recipe, built)}


def _during(recipe: Recipe, built: Built, log: Log, epoch: int, step: int, z: Tensor, waiting: float) -> str:
    """Evaluators that are due after this epoch, and how many dimensions the embeddings use; a few words for the line."""
    due = [built.evaluators[key] for key, every in built.every_epochs.items() if every and epoch % every == 0]
    dimensions = effective_rank(z)
    words = [f"rank {dimensions:.0f}/{z.shape[1]}"]
    numbers: Numbers = {}
    if due and epoch < recipe.train.epochs:
        numbers = _evaluate(recipe, built, [getattr(part, "during_training", part) for part in due])
        words.insert(0, f"{title(headline(numbers))} {100 * numbers[headline(numbers)]:.1f} %")
    log.metrics(step=step, epoch=epoch, rank=round(dimensions, 2), waiting=round(waiting, 3), **numbers)
    return "  ".join(words)


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of (N, D) embeddings: 1 if all are parallel, at most min(N, D).

    RankMe (Garrido et al. 2023, arXiv 2210.02885); a value that falls towards 1 means collapse.
    """
    values = torch.linalg.svdvals(z.float())
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def headline(numbers: Numbers) -> str:
    """The metric that stands for all: kNN with k = 20 where there is one, else the first."""
    return "knn@20" if "knn@20" in numbers else next(iter(numbers))


def _finish(
    recipe: Recipe,
    built: Built,
    folder: Path,
    log: Log,
    rows: Mapping[str, Numbers],
    seconds: float,
    commit: str | None,
) -> None:
    columns = [name for name in rows["trained"] if not name.startswith("knn_majority")]
    log.line()
    log.results(columns, rows)
    protocol = _protocol(recipe, built, seconds) | {"commit": commit}  # of the code as it was when the run began
    results = {"metrics": dict(rows), "headline": headline(rows["trained"]), "protocol": protocol}
    dist.from_main(lambda: _write_results(built, folder, results))
    log.line(f"  results  {folder / 'results.json'}     model  {folder / 'model'}     trained in {seconds:.0f} s")


def _write_results(built: Built, folder: Path, results: dict[str, Any]) -> None:
    built.encoder.save(folder / "model")
    checkpoint.replace_text(folder / "results.json", json.dumps(results, indent=2) + "\n")


def _protocol(recipe: Recipe, built: Built, seconds: float) -> dict[str, Any]:
    data = built.data
    return {
        "recipe": recipe.name,
        "data": recipe.data,
        "splits": data.protocol,
        "images": {
            name: len(split) for name in ("train", "bank", "query") if (split := getattr(data, name)) is not None
        },
        "classes": len(data.classes),
        "leave_one_out": data.bank is not None and data.bank is data.query,
        "evaluators": recipe.eval,
        "features": "backbone output, evaluation mode, L2-normalised; similarity: cosine; search: exact",
        "votes": "knn: weighted by exp(similarity / temperature); knn_majority: one vote each, ties to the larger weight",
        "evaluation_image": {"size_px": built.encoder.config["size"], "crop": data.crop},
        "search_engine": engine(),
        "epochs": recipe.train.epochs,
        "seed": recipe.seed,
        "train_seconds": round(seconds, 1),
        "device": str(built.device) if built.device.type == "cpu" else torch.cuda.get_device_name(built.device),
        "ranks": dist.world(),
        "threads": torch.get_num_threads(),
        **({"decoded_by": data.train.images.decoded_by} if hasattr(data.train.images, "decoded_by") else {}),
        "versions": run.versions(),
    }


def _before(baselines: dict[str, Numbers]) -> str:
    name = headline(baselines["untrained"])
    pixel, untrained = (100 * baselines[row][name] for row in ("raw pixels", "untrained"))
    return f"before training  {title(name)}: raw pixels {pixel:.1f} %, untrained encoder {untrained:.1f} %"


def _parallel(built: Built) -> nn.Module:
    if dist.world() == 1:
        return built.objective
    devices = [built.device] if built.device.type == "cuda" else None
    return DistributedDataParallel(built.objective, device_ids=devices)


def _state(built: Built, step: int, watch: Watch, baselines: dict[str, Numbers]) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": watch.seconds,
        "steps_without_pairs": watch.lonely_steps,
        "baselines": baselines,
        "objective": built.objective.state_dict(),
        "optimizer": built.optimizer.state_dict(),
    }


def _save(folder: Path, step: int, state: dict[str, Any]) -> None:
    broken = [
        name for name, value in state["objective"].items() if value.is_floating_point() and not value.isfinite().all()
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
    built.objective.load_state_dict(state["objective"])
    built.optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _end(folder: Path, log: Log, status: str, reason: str | None) -> None:
    if dist.is_main() or status == "failed":
        try:
            run.set_status(folder, status, **({"reason": reason} if reason else {}))
        except OSError as cause:
            log.line(f"cannot write {folder / 'status.json'}: {cause}")

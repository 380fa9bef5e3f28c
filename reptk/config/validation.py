"""A table as a `Recipe`: every part complete, and every problem listed at once."""

from pydantic import ValidationError

from reptk.config import signature
from reptk.config.part_tables import (
    PARTS,
    complete_evaluator,
    complete_part,
    complete_trackers,
    headline_evaluator,
    takes_loss,
    trains_classifier_alone,
)
from reptk.config.registry import LOSSES, METHODS
from reptk.config.schema import Recipe, RecipeError, Table
from reptk.config.signature import Problem


def validate(table: Table) -> Recipe:
    """Turn a table into a `Recipe`, every part completed with its defaults.

    Raises:
        RecipeError: listing all problems.
    """
    problems: list[Problem] = []
    completed = dict(table)
    for key, registry in PARTS.items():
        if key in table:  # pydantic reports tables that are missing
            completed[key] = complete_part(key, registry, table[key], problems)
    problems += _check_loss_table(table)
    evaluators = table.get("eval") or {"knn": {}}
    if isinstance(evaluators, dict):
        completed["eval"] = {}
        for key, part in evaluators.items():
            completed["eval"][key] = complete_evaluator(key, part, problems)
    completed["trackers"] = complete_trackers(table, problems)
    try:
        recipe = Recipe.model_validate(completed)
    except ValidationError as error:
        problems = [*signature.problems_of(error, Recipe), *problems]
    if not problems:
        problems = [
            *_check_warmup(recipe),
            *_check_milestones(recipe),
            *_check_best(recipe),
            *_check_loss_of_classes(recipe),
        ]
    if problems:
        raise RecipeError(str(table.get("name", "recipe")), problems)
    return recipe


def _check_loss_table(table: Table) -> list[Problem]:
    """Check that there is a `[loss]` table if the method has a parameter `loss`, and none if it has not."""
    method = table.get("method")
    if not isinstance(method, dict) or method.get("name") not in METHODS.names():
        return []  # reported already
    name = method["name"]
    if takes_loss(method) and "loss" not in table:
        return [("loss", f"is missing: method {name!r} takes one, e.g. loss.name=supcon ({', '.join(LOSSES.names())})")]
    if not takes_loss(method) and "loss" in table:
        return [("loss", f"method {name!r} takes no loss; remove the [loss] table")]
    return []


def _check_loss_of_classes(recipe: Recipe) -> list[Problem]:
    """Check that a loss with learned vectors of each class gets labels as ids."""
    if recipe.loss is None or not LOSSES.takes(recipe.loss["name"], "num_classes"):
        return []
    positives = recipe.method.get("positives")
    if positives == "class":
        return []
    name = recipe.loss["name"]
    if positives is None:
        return [
            (
                "loss.name",
                f"is {name!r}, which needs labels as ids, and method {recipe.method['name']!r} does not say that it passes "
                "them; use method.name=contrastive method.positives=class",
            )
        ]
    return [
        ("method.positives", f"is {positives!r}, and loss {name!r} needs labels as ids; set method.positives=class")
    ]


def _check_warmup(recipe: Recipe) -> list[Problem]:
    epochs, warmup = recipe.train.epochs, recipe.optim.warmup_epochs
    if warmup < epochs:
        return []
    return [("optim.warmup_epochs", f"must be below train.epochs ({epochs}), got {warmup:g}; e.g. {epochs / 10:g}")]


def _check_best(recipe: Recipe) -> list[Problem]:
    """Check that the headline number is measured during training if the run depends on when it was best."""
    train = recipe.train
    if train.early_stopping_epochs:
        key, value = "train.early_stopping_epochs", train.early_stopping_epochs
    elif train.final_weights == "best":
        key, value = "train.final_weights", train.final_weights
    else:
        return []
    is_alone = trains_classifier_alone(recipe.method, recipe.encoder)
    measuring = headline_evaluator(recipe.eval, trains_classifier_alone=is_alone)
    if recipe.eval[measuring]["every_epochs"]:
        return []
    return [
        (
            key,
            f"is {value}, but the headline number is not measured during training; set eval.{measuring}.every_epochs, "
            "e.g. 1",
        )
    ]


def _check_milestones(recipe: Recipe) -> list[Problem]:
    is_multistep = recipe.optim.schedule == "multistep"
    if is_multistep and not recipe.optim.milestones:
        return [("optim.milestones", "is missing: shares of the run, e.g. [0.6, 0.75, 0.9], for schedule 'multistep'")]
    if recipe.optim.milestones and not is_multistep:
        return [("optim.milestones", f"is for schedule 'multistep', and optim.schedule is {recipe.optim.schedule!r}")]
    return []

"""The catalog of parts: those of installed distributions, with the reason of what cannot be imported."""

import pytest

from recipe_files import LOSS_PLUGIN
from reptk.cli import main
from reptk.config.part_catalog import arguments_of, listed_parts
from reptk.config.plugins import load_parts
from reptk.config.registry import DATASETS, EVALUATORS, LOSSES

CLASS = '''
class Kite:
    """Flies (Franklin et al. 1752, e.g. In a storm). Nothing more."""

    def __init__(self, tail: int, name: str = "red", widths: tuple[int, ...] = (1, 2), wind=None, **others): ...
'''


def test_an_installed_part_is_listed_with_its_distribution(toys, install):
    install("acme", {"kite": "acme_toys:Kite"}, {"acme_toys.py": CLASS})
    [part] = listed_parts([toys])
    assert part == (
        "toy",
        "kite",
        "acme 1.2, acme_toys.Kite",
        "Flies (Franklin et al. 1752, e.g. In a storm)",
        ("tail (required)", "name=red", "widths=[1, 2]", "wind (optional)"),
        None,
    )


@pytest.mark.parametrize("module", ["import no_such_dependency", "raise SystemExit(3)", "1 / 0"])
def test_a_broken_part_is_listed_with_the_reason_and_the_others_as_well(toys, install, module):
    install("acme", {"kite": "acme_toys:Kite"}, {"acme_toys.py": module})
    install("zeus", {"ball": "zeus_toys:Kite"}, {"zeus_toys.py": CLASS})
    ball, kite = listed_parts([toys])
    assert (ball.name, ball.problem) == ("ball", None)
    assert kite.origin == "acme 1.2"
    assert kite.problem.startswith("toy 'kite' of acme 1.2 cannot be imported (acme_toys:Kite): ")


def test_what_every_part_of_a_kind_takes_is_among_its_arguments():
    """Which images have labels and their order, of every data set; how often it runs while training, of every evaluator."""
    for part in listed_parts([DATASETS]):
        assert part.arguments[-3:] == ("labelled (optional)", "only_labelled=false", "shuffle=global")
    for part in listed_parts([EVALUATORS]):
        assert part.arguments[-1] == "every_epochs=0"


def test_an_argument_of_that_name_is_listed_once():
    @DATASETS.register("few_labels")
    def few_labels(labelled: int = 3): ...

    [part] = [part for part in listed_parts([DATASETS]) if part.name == "few_labels"]
    assert part.arguments == ("labelled=3", "only_labelled=false", "shuffle=global")


def test_supplied_parameters_are_no_arguments():
    def method(encoder, views, momentum=0.9): ...

    assert arguments_of(method, ("encoder", "views")) == ("momentum=0.9",)


def test_a_module_that_is_listed_by_an_entry_point_need_not_register(install):
    text = LOSS_PLUGIN.replace('@LOSSES.register("my_loss")', "")
    install("acme", {"acme_loss": "acme_losses:MyLoss"}, {"acme_losses.py": text}, group="reptk.losses")
    assert load_parts("acme_losses") == [(LOSSES, "acme_loss")]


def test_the_command_lists_broken_parts(install, capsys):
    install("acme", {"acme_loss": "acme_losses:MyLoss"}, {"acme_losses.py": "1 / 0"}, group="reptk.losses")
    assert main(["plugin", "list", "--kind", "loss"]) == 0
    printed = capsys.readouterr().out
    assert "acme_loss  (acme 1.2)\n      BROKEN: loss 'acme_loss' of acme 1.2 cannot be imported" in printed
    assert "  tcl  (" in printed
    assert printed.endswith(", 1 broken\n")

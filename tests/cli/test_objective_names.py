"""The lists of names that help texts need without importing torch are those of the objectives."""

from sparsepo.cli.demo import OBJECTIVES as OF_DEMO
from sparsepo.cli.saved_runs import OBJECTIVES as OF_EVALUATE
from sparsepo.objectives import OBJECTIVES


def test_command_line_names_every_objective() -> None:
    assert tuple(OBJECTIVES) == OF_EVALUATE == OF_DEMO

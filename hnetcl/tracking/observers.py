"""The observers of a run, by name."""

from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Console

from hnetcl.choices import OBSERVERS
from hnetcl.errors import one_of
from hnetcl.tracking.progress import Progress
from hnetcl.training import Observer, RunDirectory


def observers(
    names: Collection[str],
    console: Console,
    directory: RunDirectory,
    config: dict[str, Any],
    keys: Sequence[str] = (),
    run_name: str = "",
) -> list[Observer]:
    """Those with these names, in the order in which they hear of events; close them in the opposite order.

    Args:
        names: "progress", "tensorboard", "figures". Figures are shown in TensorBoard as well where both are there.
        console: where progress is shown.
        directory: of the run; its config.yaml has been written.
        config: the run's configuration, flat.
        keys: all that a configuration can have.
        run_name: what TensorBoard calls the run; "" leaves it with its directory's name.

    Raises:
        ArgumentError: there is no observer of that name.
    """
    for name in names:
        if name not in OBSERVERS:
            raise one_of("observers", name, OBSERVERS)
    made: list[Observer] = []
    board = None
    if "progress" in names:
        made.append(Progress(console))
    if "tensorboard" in names:
        from hnetcl.tracking.tensorboard import TensorBoard

        board = TensorBoard(directory.tensorboard, directory.read_text(directory.config), config, keys, run_name)
        made.append(board)
    if "figures" in names:
        from hnetcl.tracking.figurewriter import FigureWriter

        made.append(FigureWriter(directory.figures, board.add_picture if board else None))
    return made

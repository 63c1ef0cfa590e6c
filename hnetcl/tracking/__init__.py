"""What people see of a run: progress, TensorBoard, figures, tables. The only room that knows a screen.

`figures` and `tensorboard` are imported only where they are used, for matplotlib and TensorBoard are slow to import.
"""

from hnetcl.tracking.console import Console, log_to
from hnetcl.tracking.observers import observers
from hnetcl.tracking.progress import Progress
from hnetcl.tracking.tables import at_chance, comparison_table, no_better_than_the_mean, number, result_table, text_table

__all__ = [
    "Console",
    "Progress",
    "at_chance",
    "comparison_table",
    "log_to",
    "no_better_than_the_mean",
    "number",
    "observers",
    "result_table",
    "text_table",
]

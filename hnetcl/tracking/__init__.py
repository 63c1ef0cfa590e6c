"""What people see of a run: progress, TensorBoard, figures, tables. The only room that knows a screen."""

from hnetcl.tracking.console import Console, log_to
from hnetcl.tracking.figures import FigureWriter
from hnetcl.tracking.progress import Progress
from hnetcl.tracking.tables import comparison_table, number, result_table
from hnetcl.tracking.tensorboard import TensorBoard

__all__ = ["Console", "FigureWriter", "Progress", "TensorBoard", "comparison_table", "log_to", "number", "result_table"]

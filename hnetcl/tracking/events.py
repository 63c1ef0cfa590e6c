"""TensorBoard's event files: dropping what a killed run wrote after its newest checkpoint.

TensorBoard's own way, `purge_step`, knows one axis for all tags; a run has two, steps and trained tasks.
"""

import io
import logging
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import DataLossError
from tensorboard.summary.writer.record_writer import RecordWriter

from hnetcl.errors import one_line
from hnetcl.files import write_file

logger = logging.getLogger("hnetcl")
PER_STEP = ("loss", "penalty", "batch_accuracy", "gradient_norm", "learning_rate")  # tags over steps; a method may add more
PER_TASK = ("accuracy", "val_accuracy", "misfit", "distance", "embedding")  # tags over trained tasks
PICTURES = ("accuracy_matrix", "accuracy_curves", "row_statistics", "learned")  # those of the newest task are drawn anew
AT_THE_END = ("metrics/", "_hparams_/experiment", "_hparams_/session_end_info")  # written anew when the run ends


def drop_events(folder: Path, tasks: int, steps: int) -> None:
    """Drops from the event files in a folder what comes after so many tasks and steps, and what a run's end writes anew.

    Args:
        folder: it need not exist.
        tasks: that were trained before the checkpoint.
        steps: of the run up to there; 0 drops everything.
    """
    files = sorted(path for path in folder.glob("events.out.tfevents.*") if path.is_file())
    for path in files:
        if steps == 0:
            path.unlink()
            continue
        kept = io.BytesIO()
        writer = RecordWriter(kept)
        try:
            for record in RawEventFileLoader(str(path)).Load():
                event = Event.FromString(record)
                if all(_stays(value.tag, event.step, tasks, steps) for value in event.summary.value):
                    writer.write(record)
        except (DataLossError, DecodeError, OSError, ValueError) as error:
            logger.warning(f"{path.name} is damaged ({one_line(error)}): TensorBoard shows its events up to there")
        write_file(path, kept.getvalue(), flush=False)


def _stays(tag: str, step: int, tasks: int, steps: int) -> bool:
    if tag.startswith(AT_THE_END):
        return False
    if tag in PICTURES:
        return step < tasks
    return step <= (tasks if tag.split("/")[0] in PER_TASK else steps)

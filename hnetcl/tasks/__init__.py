"""Sequences of tasks: classifications of images or points, and regressions."""

from hnetcl.tasks.batches import Batches, batch_sizes
from hnetcl.tasks.fourier import Fourier
from hnetcl.tasks.images import Images, Load, image_set, listed
from hnetcl.tasks.losses import Loss, loss_of, score, score_name
from hnetcl.tasks.permuted import permuted_sequence
from hnetcl.tasks.points import AsTheyAre
from hnetcl.tasks.preprocess import Preprocess
from hnetcl.tasks.sequence import ActiveClasses, Head, TaskSequence
from hnetcl.tasks.sources import data_folder, load_images
from hnetcl.tasks.split import split_sequence
from hnetcl.tasks.task import Split, Task

__all__ = [
    "ActiveClasses",
    "AsTheyAre",
    "Batches",
    "Fourier",
    "Head",
    "Images",
    "Load",
    "Loss",
    "Preprocess",
    "Split",
    "Task",
    "TaskSequence",
    "batch_sizes",
    "data_folder",
    "image_set",
    "listed",
    "load_images",
    "loss_of",
    "permuted_sequence",
    "score",
    "score_name",
    "split_sequence",
]

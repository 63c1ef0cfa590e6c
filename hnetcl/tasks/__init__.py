"""Sequences of image-classification tasks."""

from hnetcl.tasks.batches import Batches
from hnetcl.tasks.permuted import permuted_sequence
from hnetcl.tasks.sequence import Preprocess, Split, Task, TaskSequence
from hnetcl.tasks.sources import Images, load_images
from hnetcl.tasks.split import split_sequence

__all__ = [
    "Batches",
    "Images",
    "Preprocess",
    "Split",
    "Task",
    "TaskSequence",
    "load_images",
    "permuted_sequence",
    "split_sequence",
]

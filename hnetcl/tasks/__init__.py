"""Sequences of image-classification tasks."""

from hnetcl.tasks.batches import Batches, batch_sizes
from hnetcl.tasks.images import Images, Load, image_set, listed
from hnetcl.tasks.permuted import permuted_sequence
from hnetcl.tasks.sequence import ActiveClasses, Head, Preprocess, Split, Task, TaskSequence
from hnetcl.tasks.sources import data_folder, load_images
from hnetcl.tasks.split import split_sequence

__all__ = [
    "ActiveClasses",
    "Batches",
    "Head",
    "Images",
    "Load",
    "Preprocess",
    "Split",
    "Task",
    "TaskSequence",
    "batch_sizes",
    "data_folder",
    "image_set",
    "listed",
    "load_images",
    "permuted_sequence",
    "split_sequence",
]

"""The continual-learning loop, evaluation, and the files of a run."""

from hnetcl.training.answers import Predictions
from hnetcl.training.checkpoints import Stop
from hnetcl.training.classes import ClassAccuracy, class_accuracies, read_classes, write_classes
from hnetcl.training.engine import engine, resolve_device
from hnetcl.training.evaluation import Protocol, accuracies, accuracy, images_at_once
from hnetcl.training.observer import Observer, RunStart, Step, TaskEnd
from hnetcl.training.optimizers import OptimizerFactory
from hnetcl.training.result import Result
from hnetcl.training.rundir import RunDirectory
from hnetcl.training.statistics import statistics_report
from hnetcl.training.step import TrainingStep
from hnetcl.training.trainer import Trainer

__all__ = [
    "ClassAccuracy",
    "Observer",
    "OptimizerFactory",
    "Predictions",
    "Protocol",
    "Result",
    "RunDirectory",
    "RunStart",
    "Step",
    "Stop",
    "TaskEnd",
    "Trainer",
    "TrainingStep",
    "accuracies",
    "accuracy",
    "class_accuracies",
    "engine",
    "images_at_once",
    "read_classes",
    "resolve_device",
    "statistics_report",
    "write_classes",
]

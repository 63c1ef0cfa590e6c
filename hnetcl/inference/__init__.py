"""Which task a sample belongs to, where it is not told: a score a file, or a recognizer that learns when tasks end."""

from hnetcl.inference.candidates import (
    Candidates,
    Criterion,
    add_recognizer,
    as_criterion,
    candidates,
    compare_tasks,
    infer_tasks,
    learns,
    open_recognizer,
    teach,
)
from hnetcl.inference.classifier import Classifier, NearestMean, open_classifier
from hnetcl.inference.recognizer import Recognizer, Scorer
from hnetcl.inference.scores import agreement, confidence, entropy

__all__ = [
    "Candidates",
    "Classifier",
    "Criterion",
    "NearestMean",
    "Recognizer",
    "Scorer",
    "add_recognizer",
    "agreement",
    "as_criterion",
    "candidates",
    "compare_tasks",
    "confidence",
    "entropy",
    "infer_tasks",
    "learns",
    "open_classifier",
    "open_recognizer",
    "teach",
]

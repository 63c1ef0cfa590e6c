"""What a sequence of tasks is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hnetcl.errors import ArgumentError
from hnetcl.tasks.augmentation import Augmentation
from hnetcl.tasks.datasets import tasks_of
from hnetcl.tasks.losses import Loss, require_regression
from hnetcl.tasks.task import Split, Task, require_classes

Head = Literal["task", "shared", "all"]
ActiveClasses = Literal["all", "seen", "current"]


@dataclass(frozen=True, eq=False)
class TaskSequence:
    """Tasks in order, all with the same image shape; each may have another number of classes.

    Args:
        name: for people.
        tasks: at least one, each a classification: of two classes at least, all with training and with test images; or, under
            another loss, each a regression to one number.
        facts: what pins the sequence (plain JSON values).
        origin: where the images come from, for messages.
        head: which logits a network has for them, K being the largest number of classes of a task. "task": K, those of one task
            at a time; a task with fewer classes uses the first. "shared": K, the same for all tasks, all of which come into
            question for any. "all": one for each class of each task, task after task; labels are numbered likewise.
        loss: of all tasks, see `loss_of`.

    Raises:
        ArgumentError: the tasks are not like that.
    """

    name: str
    tasks: tuple[Task, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    head: Head = "task"
    loss: Loss = "cross_entropy"
    _on: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        dataset = self.facts.get("dataset", self.name)
        if not self.tasks:
            raise ArgumentError("num_tasks", 0, "must be at least 1")
        shapes = {task.preprocess.in_shape(s.images.shape[1:]) for task in self.tasks for s in (task.train, task.test)}
        if len(shapes) > 1:
            found = f"[C, H, W] are {sorted(shapes)}"
            raise ArgumentError("dataset", dataset, f"{found}, but must be the same in all tasks and splits")
        if self.loss != "cross_entropy":
            require_regression(dataset, self.head, self.tasks)
            return
        done: set[tuple[Split, Split, tuple[str, ...]]] = set()  # permuted tasks share their images: they are looked at once
        for number, task in enumerate(self.tasks):
            look = task.train, task.test, task.classes
            if look not in done:
                require_classes(dataset, self.origin, f"task {number}", *look)
            done.add(look)

    @classmethod
    def from_datasets(
        cls,
        train: Iterable[Any],
        test: Iterable[Any],
        *,
        name: str = "datasets",
        classes: Sequence[str] | None = None,
        val_size: int = 0,
        seed: int = 0,
        preprocess: Literal["standardized", "none", "constants"] = "standardized",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        augment: Augmentation = "none",
        device: torch.device | str | None = None,
    ) -> "TaskSequence":
        """A sequence of torch datasets, one for each task: all items are read once, and lie on a device from then on.

            TaskSequence.from_datasets([e.dataset for e in avalanche.train_stream], [e.dataset for e in avalanche.test_stream])
            TaskSequence.from_datasets(ClassIncremental(MNIST(train=True), 2), ClassIncremental(MNIST(train=False), 2))

        Args:
            train, test: a dataset for each task. Its items are an image, its label, and whatever else: a PIL image, a tensor
                [C, H, W] or an array [H, W, C], of uint8 or of floats k / 255, as `ToTensor` makes them. What is drawn anew at
                every access is read once.
            classes: the name of label k in place k; None: labels are their own names. A task's classes are the labels that its
                training images have, in their order.
            val_size: images of every task held out from training, drawn by `seed`.
            preprocess, mean, std: see `preprocessing`; by the training images of all tasks together.
            augment: see `augmented`.
            device: where they lie; None: where the items do.

        Raises:
            ArgumentError: not as many datasets for tests as for training, an item of another kind, images of several shapes, or
                what the constructor refuses.
        """
        tasks = tasks_of(
            train,
            test,
            name=name,
            classes=classes,
            val_size=val_size,
            seed=seed,
            preprocess=preprocess,
            mean=mean,
            std=std,
            augment=augment,
            device=device,
        )
        return cls(name, tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.tasks[0].in_shape

    @property
    def class_counts(self) -> tuple[int, ...]:
        """The number of classes of each task."""
        return tuple(len(task.classes) for task in self.tasks)

    @property
    def num_classes(self) -> int:
        """K, the largest number of classes of a task."""
        return max(self.class_counts)

    @property
    def num_outputs(self) -> int:
        """Logits that a network has."""
        return sum(self.class_counts) if self.head == "all" else self.num_classes

    def first_class(self, task: int) -> int:
        """The number of a task's class 0 among the classes of all tasks, task after task."""
        return sum(self.class_counts[:task])

    def first_output(self, task: int) -> int:
        """The logit of a task's class 0."""
        return self.first_class(task) if self.head == "all" else 0

    def strata(self, task: int, labels: Tensor) -> Tensor:
        """The class of each sample of a task among the classes of all tasks, int64 [N]; a regression is one class."""
        if self.loss != "cross_entropy":
            return torch.full_like(labels, task, dtype=torch.long)
        return labels + (self.first_class(task) - self.first_output(task))

    def task_of_class(self, device: torch.device) -> Tensor:
        """The task of each class, numbered as by `first_class`, int64."""
        return self._counts(device)[1]

    def own_outputs(self, tasks: Tensor) -> Tensor | None:
        """Which of K logits tasks have, where these are a task's own and tasks differ in their number of classes; else None.

        Args:
            tasks: of any shape [...].

        Returns:
            bool [..., K].
        """
        if self.head != "task" or len(set(self.class_counts)) == 1:
            return None
        counts = self._counts(tasks.device)[0][tasks.reshape(-1)].reshape(tasks.shape)  # a 0-dim index would wait for a GPU
        return torch.arange(self.num_outputs, device=tasks.device) < counts[..., None]

    def active(self, classes: ActiveClasses, task: int, labels: Tensor, own: int | Tensor | None = None) -> Tensor | None:
        """Which logits a loss looks at; None for all.

        Args:
            classes: with head="all": "all"; "seen", those of the tasks so far; "current", of each sample those of its own task.
            task: the newest.
            labels: of a batch [N].
            own: the task that the batch is of, a number or a 0-dim tensor; the newest where left out.

        Returns:
            bool [num_outputs], or [N, num_outputs] for "current".
        """
        if self.head != "all":
            own = task if own is None else own
            return self.own_outputs(own if isinstance(own, Tensor) else torch.full((), own, device=labels.device))
        if classes == "all":
            return None
        tasks = self.task_of_class(labels.device)
        return tasks <= task if classes == "seen" else tasks == tasks[labels][:, None]

    def _counts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`class_counts` and `task_of_class` on a device, where they are put once: a step must not wait for that."""
        if device not in self._on:
            counts = torch.tensor(self.class_counts, device=device)
            self._on[device] = counts, torch.arange(len(self), device=device).repeat_interleave(counts)
        return self._on[device]

    def manifest(self) -> dict[str, Any]:
        """All that tells whether two runs saw the same data, as plain JSON values."""
        splits = [{"train": task.train, "val": task.val, "test": task.test} for task in self.tasks]
        # Permuted tasks share their images: each set of images is hashed once.
        digests = {split: split.sha256() for split in {split for named in splits for split in named.values()}}
        tasks = [
            {
                "classes": list(task.classes),
                **task.facts,
                **task.preprocess.facts,
                **({} if task.augment == "none" else {"augment": task.augment}),
                **({} if self.loss == "cross_entropy" else {"loss": self.loss}),
                "shape": list(task.in_shape),
                "mean": task.preprocess.mean.flatten().tolist(),
                "std": task.preprocess.std.flatten().tolist(),
                "sizes": {name: len(split) for name, split in named.items()},
                "sha256": {name: digests[split] for name, split in named.items()},
            }
            for task, named in zip(self.tasks, splits, strict=True)
        ]
        return {"name": self.name, **self.facts, "tasks": tasks}

"""`hnetcl export`: tasks of a finished run as files that need no hnetcl."""

import math
from pathlib import Path

import torch

from hnetcl.build import Parts, build
from hnetcl.cli.claim import check_data
from hnetcl.cli.reload import load_weights, recorded, saved_config, whole_run
from hnetcl.config import Config, ExportConfig
from hnetcl.errors import ArgumentError
from hnetcl.exporting import Export
from hnetcl.exporting import export as export_network
from hnetcl.files import read_file, require_plain
from hnetcl.memory import allocating
from hnetcl.tasks import score_name
from hnetcl.training import Protocol, RunDirectory, engine, images_at_once
from hnetcl.training.sealed import digest


def export(config: ExportConfig) -> list[Export]:
    """Writes one task of a finished run, or all, and prints what each file computed when it was loaded back.

    The files take images as the data set has them: padding, permutation or rotation, and standardization are in them.

    Raises:
        ArgumentError: what an evaluation refuses; a run whose network depends on the batch, or that classifies by more than
            logits; or a folder that holds something else or can't be written.
    """
    directory = RunDirectory(config.run)
    tensors = whole_run(directory, config.run)
    trained = saved_config(directory, "run")
    trained.data["root"] = config.data["root"] or trained.data["root"]
    out = _folder(directory, config.out)
    with engine(trained.seed, threads=trained.trainer["threads"], deterministic=trained.trainer["deterministic"]):
        parts = build(trained, torch.device("cpu"))
        check_data(directory, parts, "run")
        try:
            load_weights(parts.model, tensors, directory)
            before = recorded(directory, len(parts.sequence))[-1]
        except ValueError as error:
            raise ArgumentError("run", config.run, f"can't be reloaded: {error}") from error
        last = len(parts.sequence) - 1
        if config.task is not None and config.task > last:
            raise ArgumentError("task", config.task, f"the run has tasks 0 to {last}")
        if parts.model.classifier is not None:
            rule = f"classifies by {type(parts.model.classifier).__name__}; a file would have no more than logits"
            raise ArgumentError("run", config.run, f"method={trained.method['name']} {rule}")
        about = {"run": str(directory.path.resolve()), "model_sha256": digest(read_file(directory.model))}
        exported = _Exported(trained, parts)
        exported.tell_what_differs()
        tasks = range(last + 1) if config.task is None else [config.task]
        return [exported.write(task, out / f"task_{task}", config, before[task], about) for task in tasks]


class _Exported:
    """What a run's tasks are as files.

    Where the run infers the task, a file is told it. Where one network with logits for all classes finds the class among all of
    them, so does the file. Else it has the logits that come into question for the task.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config, self.model, self.sequence = config, parts.model, parts.sequence
        sequence, self.at_once = parts.sequence, config.trainer["eval_batch_size"]
        self.at_once = self.at_once or images_at_once(parts.model, sequence[0])
        self.protocol = Protocol(
            config.scenario, config.inference, self.at_once, sequence.head, sequence.class_counts, sequence.loss
        )
        self.infers = self.protocol.infers(parts.model)
        self.among_all = config.scenario == "class" and not self.infers
        self.low = config.trainer["precision"] == "bfloat16"

    def tell_what_differs(self) -> None:
        """Prints why a file is not all that the run is."""
        if self.infers:
            print(f"scenario={self.config.scenario}: the run infers the task of each image; a file is one task's")
        if self.low:
            print("trainer.precision=bfloat16: the run computes in bfloat16, a file in float32")

    def outputs(self, task: int) -> tuple[int, int] | None:
        """From which logit to before which one a task's file has."""
        ranges = None if self.among_all else self.protocol.outputs(len(self.sequence), self.sequence.num_classes)
        return None if ranges is None else ranges[task]

    def classes(self, task: int) -> list[str | None]:
        """The class of each logit; None for one that is of no class of the task."""
        if self.among_all:
            return [name for each in self.sequence.tasks for name in each.classes]
        first, end = self.outputs(task) or (0, self.sequence.num_outputs)
        own = self.sequence[task].classes
        return [*own, *[None] * (end - first - len(own))]

    def is_recorded(self) -> bool:
        """Whether R holds a file's accuracy."""
        domain_of_all = self.config.scenario == "domain" and self.sequence.head == "all"
        return not (self.infers or domain_of_all)

    def write(self, task: int, folder: Path, config: ExportConfig, before: float, about: dict[str, str]) -> Export:
        """Writes a task's files, and prints a line for each."""
        data, padding = self.sequence[task], self.sequence.facts.get("padding", 0)
        height, width = (size - padding for size in data.test.images.shape[2:])
        images, labels = data.test.images[..., padding:height, padding:width], data.test.labels
        classes, standard = self.classes(task), data.preprocess
        wanted = before if self.is_recorded() and math.isfinite(before) else None
        facts = {
            **about,
            "sequence": self.sequence.name,
            "scenario": self.config.scenario,
            "classes": classes,
            "preprocessing": {
                "padding": padding,
                **data.facts,
                **standard.facts,
                "mean": standard.mean.flatten().tolist(),
                "std": standard.std.flatten().tolist(),
            },
            "recorded": wanted,
        }
        with allocating("trainer.eval_batch_size", self.at_once):
            found = export_network(
                self.model,
                task,
                folder,
                images,
                labels + self.sequence.first_class(task) if self.among_all else labels,
                formats=config.formats,
                preprocess=standard,
                padding=padding,
                outputs=self.outputs(task),
                about=facts,
                batch_size=self.at_once,
            )
        shape = ", ".join(map(str, images.shape[1:]))
        kind = str(images.dtype).removeprefix("torch.")
        print(f"task {task} ({', '.join(data.classes)}): {kind} [N, {shape}] -> logits [N, {len(classes)}]")
        self._tell(found, len(images), wanted)
        return found

    def _tell(self, found: Export, images: int, before: float | None) -> None:
        from hnetcl.tracking import number

        name = score_name(self.sequence.loss)
        beside = "" if before is None else f" (recorded: {number(before)})"
        for file in found.files:
            assert file.score is not None
            same = f"all {images:,} predictions are the run's"
            if self.sequence.loss != "cross_entropy":
                same = f"all {images:,} outputs are the run's within {file.distance:.1e}"
            elif file.differing:
                same = f"{images - file.differing:,} of {images:,} predictions are the run's, the others are ties"
            print(f"{file.path}: {file.size:,} bytes, {name} {number(file.score)}{beside}, {same}")
        assert found.score is not None
        if before is not None and not self.low and not math.isclose(found.score, before, rel_tol=1e-12):
            print("these are not the recorded numbers: another device, or another version of torch?")


def _folder(directory: RunDirectory, out: str | None) -> Path:
    """Where the tasks' folders are made; never through a link of a run's directory, which may be another's.

    Raises:
        ArgumentError: there is one.
    """
    if out is not None:
        return Path(out)
    folder = directory.path / "export"
    try:
        require_plain(folder, folder=True)
    except (OSError, ValueError) as error:
        raise ArgumentError("out", folder, f"{error}; allowed: out=FOLDER, elsewhere") from error
    return folder

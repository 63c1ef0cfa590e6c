"""Image sets of any labels and names: right, or refused in one line before a run has a directory."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hnetcl.cli.jobs import evaluate, train
from hnetcl.cli.main import CONF
from hnetcl.config import Config, EvaluationConfig
from hnetcl.errors import ArgumentError
from hnetcl.tasks import (
    Images,
    Preprocess,
    Split,
    Task,
    TaskSequence,
    image_set,
    load_images,
    permuted_sequence,
    sources,
    split_sequence,
)
from hnetcl.training import RunDirectory

Compose = Callable[..., Config]
Write = Callable[..., Path]
BRIGHT = 250


def script(name: str, *arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    path = CONF.parent / "scripts" / f"{name}.py"
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def write(data_root: Path, tmp_path: Path) -> Write:
    """Writes tiny.safetensors with other tensors, or with other values of its labels, into a folder of its own."""

    def call(labels: Any = None, names: Any = None, folder: str = "data", **changes: Tensor) -> Path:
        tensors = load_file(data_root / "tiny.safetensors")
        if labels is not None:
            table = torch.tensor(labels)
            tensors |= {f"{split}_labels": table[tensors[f"{split}_labels"]] for split in ("train", "test")}
        metadata = {} if names is None else {"classes": names if isinstance(names, str) else json.dumps(names)}
        (tmp_path / folder).mkdir(exist_ok=True)
        save_file(
            {name: v.contiguous() for name, v in (tensors | changes).items()}, tmp_path / folder / "tiny.safetensors", metadata
        )
        return tmp_path / folder

    return call


def tiny_in(root: Path, tiny: list[str]) -> list[str]:
    return [f"data.root={root}" if value.startswith("data.root=") else value for value in tiny]


@pytest.mark.parametrize(
    ("labels", "names", "classes", "left_out"),
    [
        ([1, 2, 3, 4, 5, 6], None, "123456", ()),
        ([0, 1, 2, 5, 6, 9], None, "012569", ("3 to 4", "7 to 8")),
        ([1, 2, 3, 4, 5, 6], list("-abcdef"), "abcdef", ("-",)),  # as torchvision names the classes of EMNIST's letters
        ([0, 1, 2, 3, 4, 5], list("abcdefgh"), "abcdef", ("g", "h")),
        ([7, 3, 5, 1, 0, 2], list("abcdefgh"), "hdfbac", ("e", "g")),
    ],
)
def test_the_classes_are_the_labels_that_training_images_have(
    labels: list[int], names: list[str] | None, classes: str, left_out: tuple[str, ...], write: Write, data_root: Path
) -> None:
    """Whatever number a class has in the file, its images keep its name, and no class is lost or shared."""
    images, plain = load_images("tiny", write(labels, names)), load_images("tiny", data_root)
    assert images.classes == tuple(sorted(classes))
    assert images.left_out == left_out
    for split in ("train", "test"):
        numbers, before = getattr(images, f"{split}_labels"), getattr(plain, f"{split}_labels")
        assert [images.classes[k] for k in numbers.tolist()] == [classes[k] for k in before.tolist()]
    sequence = split_sequence(lambda _: images, num_tasks=3, val_size=20)
    assert all(sorted(task.train.labels.unique().tolist()) == [0, 1] for task in sequence.tasks)
    assert all(sorted(task.test.labels.unique().tolist()) == [0, 1] for task in sequence.tasks)
    assert sequence.manifest()["left_out"] == list(left_out)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "int32", "uint16", "uint32", "uint64"])
def test_labels_of_any_integer_dtype_are_the_same_labels(kind: str, write: Write, data_root: Path) -> None:
    plain = load_images("tiny", data_root)
    tensors = {f"{s}_labels": getattr(plain, f"{s}_labels").to(getattr(torch, kind)) for s in ("train", "test")}
    images = load_images("tiny", write(**tensors))
    assert torch.equal(images.train_labels, plain.train_labels)
    assert images.classes == plain.classes


def test_a_label_of_10_to_the_8_is_a_name_like_any_other(write: Write) -> None:
    started = time.perf_counter()
    images = load_images("tiny", write([0, 1, 2, 3, 10**8, 10**18]))
    assert images.classes == ("0", "1", "2", "3", str(10**8), str(10**18))
    assert split_sequence(lambda _: images, num_tasks=3, val_size=20)[2].classes == (str(10**8), str(10**18))
    assert time.perf_counter() - started < 5  # not a measurement: it took 20 seconds and all memory


def some(split: str, keep: Callable[[Tensor], Tensor], data_root: Path) -> dict[str, Tensor]:
    """A split with those of its images whose labels are to be kept."""
    tensors = load_file(data_root / "tiny.safetensors")
    rows = keep(tensors[f"{split}_labels"])
    return {f"{split}_{what}": tensors[f"{split}_{what}"][rows] for what in ("images", "labels")}


def first_images(labels: Tensor, counts: dict[int, int]) -> Tensor:
    """So many of the images of some classes, all of the others."""
    keep = torch.ones_like(labels, dtype=torch.bool)
    for label, count in counts.items():
        keep[(labels == label).nonzero().flatten()[count:]] = False
    return keep


NAMES = ["ant", "bee", "cow", "dog", "emu", "fox"]
REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], list[str], str]] = {
    "a test split without a class": (
        lambda root: some("test", lambda y: y != 3, root),
        [],
        r"task\.dataset=tiny: .*tiny\.safetensors: task 1 has no test images of class 'dog'",
    ),
    "a test split without a whole task": (
        lambda root: some("test", lambda y: y > 1, root),
        [],
        r"tiny\.safetensors: task 0 has no test images of classes 'ant', 'bee'",
    ),
    "an empty test split": (
        lambda root: some("test", lambda y: y > 9, root), [], r"data\.root=.*: tiny\.safetensors has no test images$",
    ),
    "an empty training split": (
        lambda root: some("train", lambda y: y > 9, root), [], r"tiny\.safetensors has no train images$",
    ),
    "a class without training images": (
        lambda root: some("train", lambda y: (y != 0) & (y != 4), root),
        [],
        r"tiny\.safetensors has test images of classes 'ant', 'emu', but no training images",
    ),
    "one image in a task": (
        lambda root: some("train", lambda y: first_images(y, {2: 1, 3: 0}), root),
        ["task.val_size=0"],
        r"has test images of class 'dog', but no training images",
    ),
    "a val_size that leaves one image": (
        lambda root: {}, ["task.val_size=119"], r"task\.val_size=119: must be from 0 to 118 \(a task has 120 images\)",
    ),
    "a val_size that takes a class": (
        lambda root: some("train", lambda y: first_images(y, {4: 1}), root),
        ["task.val_size=59"],
        r"task\.val_size=59: leaves no training images of class 'emu'",
    ),
    "a val_size that takes a class of permuted tasks": (
        lambda root: some("train", lambda y: first_images(y, {0: 1}), root),
        ["task=permuted_mnist", "task.val_size=290"],
        r"task\.val_size=290: leaves no training images of class 'ant'",
    ),
    "permuted tasks without a class": (
        lambda root: some("test", lambda y: y != 3, root), ["task=permuted_mnist"], r"task 0 has no test images of class 'dog'",
    ),
    "one class": (
        lambda root: some("train", lambda y: y == 2, root) | some("test", lambda y: y == 2, root),
        ["task=permuted_mnist"],
        r"tiny\.safetensors: task 0 has one class, but a classification needs two",
    ),
    "test images of another size": (
        lambda root: {"test_images": torch.zeros(120, 1, 8, 16, dtype=torch.uint8)},
        [],
        r"holds training images of shape \(1, 16, 16\), but test images of shape \(1, 8, 16\)",
    ),
    "test images of another number of channels": (
        lambda root: {"test_images": torch.zeros(120, 3, 16, 16, dtype=torch.uint8)},
        [],
        r"training images of shape \(1, 16, 16\), but test images of shape \(3, 16, 16\)",
    ),
    "no channels": (
        lambda root: {
            "train_images": torch.zeros(360, 0, 16, 16, dtype=torch.uint8),
            "test_images": torch.zeros(120, 0, 16, 16, dtype=torch.uint8),
        },
        [],
        r"holds train_images \(360, 0, 16, 16\): an image needs channels, height and width",
    ),
    "no height": (
        lambda root: {"train_images": torch.zeros(360, 1, 0, 16, dtype=torch.uint8)},
        [],
        r"holds train_images \(360, 1, 0, 16\): an image needs channels, height and width",
    ),
    "labels that are no integers": (
        lambda root: {"train_labels": torch.zeros(360)}, [], r"holds train_labels \(360,\) torch\.float32, expected",
    ),
    "too few names": (lambda root: {"names": NAMES[:5]}, [], r"names 5 classes but has labels up to 5"),
    "names that are no JSON": (lambda root: {"names": "ant, bee"}, [], r"metadata `classes` that is not JSON"),
    "names that are no list": (lambda root: {"names": {"ant": 0}}, [], r"metadata `classes` that is not a list of strings"),
    "names that are numbers": (lambda root: {"names": [0, 1, 2, 3, 4, 5]}, [], r"`classes` that is not a list of strings"),
    "two classes of one name": (lambda root: {"names": [*NAMES[:5], "ant"]}, [], r"tiny\.safetensors names two classes 'ant'"),
    "a name of two lines": (lambda root: {"names": [*NAMES[:5], "a\nb"]}, [], r"names a class 'a\\nb', which can't be printed"),
    "an empty name": (lambda root: {"names": [*NAMES[:5], " "]}, [], r"names a class ' ', which can't be printed"),
    "half a character": (lambda root: {"names": [*NAMES[:5], "\ud800"]}, [], r"names a class '\\ud800', which can't be"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_no_directory(
    case: str, write: Write, data_root: Path, tiny: list[str], compose: Compose, tmp_path: Path
) -> None:
    changes, overrides, message = REFUSED[case]
    root = write(**{"names": NAMES, **changes(data_root)})
    task = [value for value in overrides if value.startswith("task=")]
    others = [value for value in overrides if value not in task]
    with pytest.raises(ArgumentError, match=message) as caught:
        train(compose(*task, *tiny_in(root, tiny), *others, f"run.dir={tmp_path / 'run'}"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_class_that_no_task_has_needs_no_test_images(write: Write, data_root: Path) -> None:
    images = load_images("tiny", write(**some("test", lambda y: y < 4, data_root)))
    assert len(split_sequence(lambda _: images, num_tasks=2, val_size=20)) == 2
    with pytest.raises(ArgumentError, match="task 2 has no test images of classes '4', '5'"):
        split_sequence(lambda _: images, num_tasks=3, val_size=20)


@pytest.mark.slow
def test_classes_that_are_left_out_are_told(write: Write, tiny: list[str], compose: Compose, tmp_path: Path) -> None:
    root = write([0, 1, 2, 3, 4, 6], ["ant", "bee", "cow", "dog", "emu", "[/fly]", "犬"])
    run = train(compose(*tiny_in(root, tiny), "trainer.steps=2", f"run.dir={tmp_path / 'run'}"))
    log = (run / "train.log").read_text(encoding="utf-8")
    assert "left out, for there are no training images: class '[/fly]'" in log
    assert "emu, 犬" in log
    with pytest.raises(ArgumentError, match=r"has 6 classes, 2 a task; it has no training images of class '\[/fly\]'"):
        train(compose(*tiny_in(root, tiny), "task.num_tasks=4"))


@pytest.mark.slow
def test_names_that_look_like_markup_are_shown_as_they_are(write: Write, tiny: list[str], tmp_path: Path) -> None:
    """Through the real command line, in a folder and a locale that are no help."""
    root = write(
        names=["[/x]", "[bold]", ":cat:", "$a_{1}$", "%s {0}", "犬"], folder="my [data]"
    )  # letters that a locale lacks are refused on the command line, see test_cli
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "home").symlink_to(tmp_path)
    environment["HOME"] = str(tmp_path / "home")
    run = tmp_path / "run"
    arguments = [*tiny_in(Path(f"'~/{root.name}'"), tiny), "trainer.steps=2", f"run.dir={run}"]
    process = script("train", *arguments, cwd=tmp_path, env=environment)
    assert process.returncode == 0, process.stderr
    again = script("evaluate", f"run={run}", cwd=tmp_path, env=environment)
    assert again.returncode == 0, again.stderr
    for text in (process.stdout, again.stdout):
        assert all(names in text for names in ("[/x], [bold]", ":cat:, $a_{1}$", "%s {0}, \\u72ac"))
    assert "%s {0}, 犬" in (run / "train.log").read_text(encoding="utf-8")


def _same(images: Images, _: str) -> Images:
    return images


def test_pixels_are_standardized_by_the_training_images_of_the_tasks(write: Write, data_root: Path) -> None:
    """Those held out count, so that val_size moves nothing; classes that no task has, and test images, don't."""
    plain = load_images("tiny", data_root)
    white = plain.train_images.clone()
    white[plain.train_labels == 5] = 255
    white_test = torch.full_like(plain.test_images, 255)
    other = load_images("tiny", write(train_images=white, test_images=white_test))
    for val_size in (0, 50):
        first, second = (split_sequence(partial(_same, images), num_tasks=2, val_size=val_size) for images in (plain, other))
        used = plain.train_images[plain.train_labels < 4].double() / 255
        for sequence in (first, second):
            assert float(sequence[1].preprocess.mean) == pytest.approx(float(used.mean()), abs=1e-7)
            assert float(sequence[1].preprocess.std) == pytest.approx(float(used.std(correction=0)), abs=1e-7)
        assert first.manifest()["tasks"][0]["mean"] == second.manifest()["tasks"][0]["mean"]
    third = split_sequence(lambda _: other, num_tasks=3, val_size=0)
    assert float(third[0].preprocess.mean) > float(first[0].preprocess.mean) + 0.05
    permuted = permuted_sequence(lambda _: plain, num_tasks=2, padding=2, val_size=20)
    assert float(permuted[1].preprocess.mean) == pytest.approx(float(plain.train_images.double().mean() / 255), abs=1e-7)


def test_every_channel_has_its_own_constants(data_root: Path) -> None:
    plain = load_images("tiny", data_root)
    flat = torch.full_like(plain.train_images, 7)
    colour = torch.cat([plain.train_images, 255 - plain.train_images, flat], 1)
    images = Images("colour", colour, plain.train_labels, colour, plain.train_labels, plain.classes)
    preprocess = split_sequence(lambda _: images, num_tasks=3, val_size=0)[0].preprocess
    mean, std = preprocess.mean.flatten().tolist(), preprocess.std.flatten().tolist()
    assert mean == pytest.approx([mean[0], 1 - mean[0], 7 / 255])
    assert std == pytest.approx([std[0], std[0], 1 / 255])  # never below one grey level
    assert preprocess(colour).isfinite().all()


def test_whitening_a_class_that_no_task_has_moves_no_saved_run(
    write: Write,
    data_root: Path,
    tiny: list[str],
    compose: Compose,
    compose_evaluation: Callable[..., EvaluationConfig],
    tmp_path: Path,
) -> None:
    two = [*tiny, "task.num_tasks=2", "trainer.steps=20", f"run.dir={tmp_path / 'run'}"]
    run = train(compose(*two))
    recorded = evaluate(compose_evaluation(f"run={run}"))
    tensors = load_file(data_root / "tiny.safetensors")
    tensors["train_images"][tensors["train_labels"] > 3] = BRIGHT
    tensors["test_images"][tensors["test_labels"] > 3] = BRIGHT
    root = write(train_images=tensors["train_images"], test_images=tensors["test_images"])
    assert evaluate(compose_evaluation(f"run={run}", f"data.root={root}")) == recorded
    tensors["train_images"][tensors["train_labels"] > 2] = BRIGHT
    root = write(train_images=tensors["train_images"])
    with pytest.raises(ArgumentError, match="the data of task 0 is not what the run was trained on: mean, std differ"):
        evaluate(compose_evaluation(f"run={run}", f"data.root={root}"))


def test_runs_keep_their_constants_and_refuse_others(
    tiny: list[str], compose: Compose, compose_evaluation: Callable[..., EvaluationConfig], tmp_path: Path
) -> None:
    run = train(compose(*tiny, "trainer.steps=2", f"run.dir={tmp_path / 'run'}"))
    path, directory = run / "tasks.json", RunDirectory(run)
    manifest, tensors = json.loads(path.read_text()), directory.load_model()
    for change, message in (
        (lambda task: task.update(mean=[0.5]), "the data of task 0 is not what the run was trained on: mean differ"),
        (lambda task: task.pop("std"), "holds no mean and standard deviation of the pixels: an earlier version wrote it"),
    ):
        other = json.loads(json.dumps(manifest))
        change(other["tasks"][0])
        path.write_text(json.dumps(other))
        directory.save_model(tensors)  # as if the run had written that
        with pytest.raises(ArgumentError, match=message) as caught:
            evaluate(compose_evaluation(f"run={run}"))
        assert "\n" not in str(caught.value)
        directory.model.unlink()
        with pytest.raises(ArgumentError, match=message):
            train(compose(*tiny, "trainer.steps=2", f"run.dir={run}", "resume=true"))
    for tasks in ([1, 2, 3], manifest["tasks"][:2]):
        path.write_text(json.dumps({"tasks": tasks}))
        directory.save_model(tensors)
        with pytest.raises(ArgumentError, match=r"tasks\.json (is damaged|has 2 tasks, but config\.yaml makes 3)"):
            evaluate(compose_evaluation(f"run={run}"))


def test_sequences_made_in_python_are_classifications_too() -> None:
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    whole, preprocess = Split(images, labels), Preprocess(torch.zeros(1), torch.ones(1))
    ones, wide = Split(images, torch.ones_like(labels)), Split(images.repeat(1, 1, 1, 2), labels)

    def sequence(train: Split, test: Split, classes: str = "ab") -> TaskSequence:
        good = Task(("a", "b"), whole, whole, whole, preprocess)
        return TaskSequence("mine", (good, Task(tuple(classes), train, whole, test, preprocess)))

    assert len(sequence(whole, whole)) == 2
    for arguments, message in (
        ((ones, whole), "dataset=mine: mine: task 1 has no training images of class 'a'"),
        ((whole, ones), "task 1 has no test images of class 'a'"),
        ((whole, Split(images[:0], labels[:0])), "task 1 has no test images of classes 'a', 'b'"),
        ((whole, Split(images, labels * 2)), "task 1 has 2 classes, but test labels up to 2"),
        ((whole, wide), "must be the same in all tasks and splits"),
        ((whole, whole, "abc"), "task 1 has no training images of class 'c'"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(message)):
            sequence(*arguments)
    with pytest.raises(ArgumentError, match="one class, but a classification needs two"):
        TaskSequence("mine", (Task(("a",), Split(images, labels * 0), whole, Split(images, labels * 0), preprocess),))
    with pytest.raises(ArgumentError, match="num_tasks=0"):
        TaskSequence("mine", ())
    with pytest.raises(ArgumentError, match=r"images=mine: holds test_labels torch\.int64 up to 1, expected int64 below 1"):
        Images("mine", images, labels * 0, images, labels, ("a",))


def test_names_and_labels_need_no_file() -> None:
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([5, 9, 5, 9], dtype=torch.uint8)
    tensors = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels.flip(0)}
    found = image_set("mine", tensors)
    assert (found.classes, found.test_labels.tolist()) == (("5", "9"), [1, 0, 1, 0])


def test_the_packaged_images_need_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
    assert len(load_images("mnist").train_images) == 60000
    with pytest.raises(ArgumentError, match=r"root=None: name a folder with the images, for there is no home"):
        load_images("kmnist")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "DOWNLOADS", {})
    with pytest.raises(ArgumentError, match="dataset=kmnist: allowed: "):
        load_images("kmnist")
    with pytest.raises(ArgumentError, match=r"root=~nobody-of-that-name/x: there is no such home"):
        load_images("mnist", "~nobody-of-that-name/x")


@pytest.mark.parametrize("folder", ["a file", "x" * 300])
def test_a_folder_that_cannot_be_used_is_told(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
    with pytest.raises(ArgumentError, match=r"root=.*: kmnist\.safetensors can't be read or written there"):
        load_images("kmnist")
    assert len(load_images("mnist").train_images) == 60000


NOBODY = """
import os, pwd, runpy, sys

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown  # as for a container's user that has no entry
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_mnist_trains_without_a_home(tmp_path: Path, tiny: list[str]) -> None:
    """Through the real command line."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME")}
    values = [v for v in tiny if not v.startswith(("data.", "task."))]
    values += ["task.num_tasks=1", "trainer.steps=1", "trainer.eval_batch_size=2000", f"run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", NOBODY, str(CONF.parent / "scripts" / "train.py"), *values]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run" / "metrics.json").exists()

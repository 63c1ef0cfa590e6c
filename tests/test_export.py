"""`hnetcl export`: files that compute what the run computes, where there is no hnetcl."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from test_cli import script
from torch import Tensor, nn

import hnetcl
from hnetcl import config
from hnetcl.cli.export import export
from hnetcl.cli.jobs import train
from hnetcl.config import Config, ExportConfig, parse_export
from hnetcl.errors import ArgumentError
from hnetcl.training import RunDirectory

Compose = Callable[..., Config]
WITHOUT = """
import sys


class Absent:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "hnetcl":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Absent())
sys.dont_write_bytecode = True
import torch
from safetensors.torch import load_file, save_file

folder, images = sys.argv[1], load_file(sys.argv[2])["test_images"]
program = torch.export.load(f"{folder}/network.pt2").module()
sys.path.append(folder)
from network import Network

network = Network()
network.load_state_dict(load_file(f"{folder}/network.safetensors"))
with torch.no_grad():
    logits = {f"{name} {n}": call(images[:n]) for name, call in (("program", program), ("state", network)) for n in (1, 7, 120)}
assert not any(name.partition(".")[0] == "hnetcl" for name in sys.modules)
save_file(logits, sys.argv[3])
"""


def told(run: Path, **values: Any) -> ExportConfig:
    """The arguments of an export."""
    defaults = {"task": 1, "out": None, "formats": ["program"], "imports": [], "data": {"root": None}}
    return parse_export({"run": str(run), **defaults, **values})


def recorded(run: Path, task: int = 1) -> float:
    return RunDirectory(run).read_accuracy()[-1][task]


@pytest.fixture(scope="module")
def permuted(
    small_job: list[str], data_root: Path, tmp_path_factory: pytest.TempPathFactory, compose_once: Compose
) -> tuple[Path, Path]:
    """A run whose images are padded and permuted, and the folder of task 1, exported by the command from another directory."""
    place = tmp_path_factory.mktemp("permuted")
    values = ["task=permuted_mnist", "bn=quaternion", "net=lenet", "net.channels=[8,8]", "net.hidden=[16]", "observers=[]"]
    run = train(compose_once(*[v for v in small_job if not v.startswith("net.")], *values, f"run.dir={place / 'run'}"))
    done = script("export", f"run={run}", "task=1", "out=files", cwd=place)
    assert done.returncode == 0, done.stderr
    accuracy = f"accuracy {recorded(run):.6f} (recorded: {recorded(run):.6f}), all 120 predictions are the run's"
    lines = done.stdout.splitlines()
    assert lines[0] == "task 1 (0, 1, 2, 3, 4, 5): uint8 [N, 1, 16, 16] -> logits [N, 6]"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        f"files/task_1/network.{suffix}" for suffix in ("pt2", "onnx", "safetensors")
    ]
    assert all(line.endswith(accuracy) for line in lines[1:])
    return run, place / "files" / "task_1"


@pytest.fixture(scope="module")
def compose_once() -> Compose:
    """As `compose`, for what many tests share."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from hnetcl.cli.main import CONF, option_names
    from hnetcl.cli.plain import typed_config
    from hnetcl.cli.words import prepared

    def call(*overrides: str) -> Config:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return typed_config(hydra.compose("config", prepared(overrides, option_names("config"))), overrides)

    return call


def test_the_files_predict_what_the_run_predicts(permuted: tuple[Path, Path], data_root: Path, tmp_path: Path) -> None:
    """All test images, as the data set has them; batches of any size; without hnetcl, for program and state dict."""
    run, folder = permuted
    data = load_file(data_root / "tiny.safetensors")
    images, labels = data["test_images"], data["test_labels"]
    model, facts = hnetcl.load(run, device="cpu"), RunDirectory(run).read_tasks()[1]
    order = torch.randperm(400, generator=torch.Generator().manual_seed(facts["permutation_seed"]))
    x = nn.functional.pad(images, [2] * 4).flatten(2)[..., order].reshape(-1, 1, 20, 20)
    with torch.no_grad():
        wanted = model((x / 255 - facts["mean"][0]) / facts["std"][0], task=1)
    (tmp_path / "without.py").write_text(WITHOUT)
    words = [str(folder), str(data_root / "tiny.safetensors"), str(tmp_path / "logits")]
    subprocess.run([sys.executable, "-I", "without.py", *words], cwd=tmp_path, check=True)
    found = load_file(tmp_path / "logits")
    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 7, 120):
        found[f"onnx {n}"] = torch.from_numpy(session.run(["logits"], {"images": images[:n].numpy()})[0])
    assert len(found) == 9
    for name, logits in found.items():
        own = wanted[: int(name.split()[1])]
        torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-5)
        assert logits.argmax(1).equal(own.argmax(1))
    assert int((found["onnx 120"].argmax(1) == labels).sum()) / 120 == recorded(run)


def test_the_description(permuted: tuple[Path, Path]) -> None:
    run, folder = permuted
    said = json.loads((folder / "export.json").read_text())
    assert said["task"] == 1
    assert said["classes"] == ["0", "1", "2", "3", "4", "5"]
    assert said["input"] == {"name": "images", "dtype": "uint8", "shape": ["N", 1, 16, 16]}
    assert said["output"] == {"name": "logits", "dtype": "float32", "shape": ["N", 6]}
    assert said["preprocessing"]["padding"] == 2
    assert said["score"] == said["recorded"] == recorded(run)
    assert {path.name for path in folder.iterdir()} == {"export.json", *said["files"]}
    for name, entry in said["files"].items():
        content = (folder / name).read_bytes()
        assert (len(content), hnetcl.training.sealed.digest(content)) == (entry["bytes"], entry["sha256"])
    code = (folder / "network.py").read_text()
    assert "Conv2d(1, 8, kernel_size=(5, 5), stride=(1, 1))" in code  # its structure, in the comment
    assert not any(word in code.partition("import torch")[2] for word in ("batch_norm", "einsum", "hnetcl"))  # all is folded


CASES = {
    "virtual, rotated": ["task=rotated_mnist", "task.padding=1", "bn=virtual", "bn.algebra=complex", "task.num_tasks=2"],
    "all classes": ["method=replay", "scenario=class", "task.classes_per_task=[2,4]", "task.num_tasks=2", "bn=complex"],
    "own outputs, generated": ["task.classes_per_task=[4,2]", "task.num_tasks=2", "bn=quaternion", "bn.stats=generated"],
    "one head for all": ["method=finetune", "hnet=direct", "head=all", "bn.stats=learnable", "trainer.precision=bfloat16"],
    "regression": ["task=regression_1d", "net.norm=none", "task.num_tasks=2"],
}


@pytest.mark.parametrize("case", CASES)
def test_accuracies_are_those_that_the_run_recorded(
    case: str, tiny: list[str], compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = CASES[case]
    direct = any(word.startswith("method=") for word in values)
    dropped = ("hnet.",) * direct + ("data.", "task.dataset", "task.val_size", "hnet.") * (case == "regression")
    words = [word for word in tiny if not (dropped and word.startswith(dropped))]
    run = train(compose(*words, *values, "observers=[]", f"run.dir={tmp_path / 'run'}"))
    (found,) = export(told(run, formats=["state" if case == "virtual, rotated" else "program"]))
    assert found.score is not None
    assert found.files[0].score == pytest.approx(recorded(run), abs=1e-6 if case == "regression" else 0)
    said = json.loads((run / "export" / "task_1" / "export.json").read_text())
    assert said["classes"] == {
        "all classes": ["0", "1", "2", "3", "4", "5"],
        "own outputs, generated": ["4", "5"],
        "virtual, rotated": ["0", "1", "2", "3", "4", "5"],
        "regression": ["y"],
    }.get(case, ["2", "3"])
    assert said["output"]["shape"] == ["N", len(said["classes"])]
    assert ("in float32" in capsys.readouterr().out) == (case == "one head for all")


def test_an_export_again(permuted: tuple[Path, Path], tmp_path: Path) -> None:
    """The same network's files are replaced, those of other formats stay; what is not an export's is left alone."""
    run, folder = permuted
    out = tmp_path / "files"
    shutil.copytree(folder, out / "task_1")
    for name in ("network.pt2", "network.onnx"):
        (out / "task_1" / name).write_text("")
    (out / "task_1" / "network.py").unlink()
    export(told(run, out=str(out)))
    said = json.loads((out / "task_1" / "export.json").read_text())
    assert set(said["files"]) == {"network.safetensors", "network.onnx", "network.pt2"}
    assert (out / "task_1" / "network.onnx").read_text() == ""
    assert (out / "task_1" / "network.pt2").stat().st_size == said["files"]["network.pt2"]["bytes"] > 0
    (out / "task_1" / "network.py").write_text("mine")
    with pytest.raises(ArgumentError, match=r"task_1: holds network\.py, which no export wrote"):
        export(told(run, out=str(out), formats=["state"]))
    (out / "task_1").rename(out / "task_0")
    (out / "task_2").mkdir()
    (out / "task_2" / "notes").write_text("mine")
    for task, rule in enumerate(("the export of another network", "", r"files, and no export\.json that says they are")):
        if rule:
            with pytest.raises(ArgumentError, match=rf"task_{task}: holds {rule}.*; allowed: a new or empty folder"):
                export(told(run, out=str(out), task=task))
    assert sorted(path.name for path in out.iterdir()) == ["task_0", "task_2"]  # nothing half is left


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"task": 3}, "task=3: the run has tasks 0 to 2"),
        ({"formats": []}, r"formats=\[\]: "),
        ({"formats": ["jit"]}, r"formats=\['jit'\]: "),
        ({"formats": ["onnx"]}, r"formats=\[onnx\]: onnx needs onnxruntime: pip install 'hnetcl\[export\]'; allowed without: "),
        ({"out": "{run}/config.yaml"}, "out={run}/config.yaml/task_1: can't be written"),
    ],
)
def test_refusals(values: dict[str, Any], line: str, permuted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = permuted
    monkeypatch.setattr(config, "find_spec", lambda name: None if name == "onnxruntime" else name)
    values = {key: value.format(run=run) if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(ArgumentError, match=line.replace("{run}", str(run))):
        export(told(run, **values))


def test_runs_that_have_no_file(tiny: list[str], compose: Compose, tmp_path: Path) -> None:
    """A network that looks at the batch; a classifier that is none of the network's; a run that is not finished, or damaged."""
    values = [*tiny, "trainer.steps=2", "task.num_tasks=2", "observers=[]"]
    run = train(compose(*values, "bn.stats=batch", f"run.dir={tmp_path / 'batch'}"))
    with pytest.raises(ArgumentError, match=r"bn\.stats=batch: body\.\d normalizes by the batch's own statistics"):
        export(told(run))
    words = [word for word in values if not word.startswith("hnet.")]
    run = train(compose(*words, "method=icarl", "scenario=class", f"run.dir={tmp_path / 'icarl'}"))
    with pytest.raises(ArgumentError, match="method=icarl classifies by NearestMean; a file would have no more than logits"):
        export(told(run))
    (run / "export").symlink_to(tmp_path / "batch")
    with pytest.raises(ArgumentError, match=r"out=.*export is a symbolic link"):
        export(told(run))
    (run / "accuracy.csv").write_text("trained\n")
    done = script("export", f"run={run}", "formats=[program]", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "can't be reloaded: accuracy.csv is damaged" in done.stderr
    (run / "model.safetensors").unlink()
    with pytest.raises(ArgumentError, match=r"can't be reloaded: model\.safetensors is missing"):
        export(told(run))


class Forked(nn.Module):
    """Batch norm behind a convolution, alone, and behind a sum; several outputs; a layer in two places; a doubled branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.again, self.head, self.drop = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.first(self.conv(x)).relu()
        y = self.second(self.again(self.again(y)) + y)
        return {"hidden": y, "logits": self.head(self.drop(y.mean((2, 3))))}


@pytest.mark.parametrize("algebra", ["real", "quaternion"])
def test_a_model_of_ones_own(algebra: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = hnetcl.convert_batchnorm(Forked(), algebra=algebra)
    model, x = hnetcl.wrap(net, 2, hnet="chunked", hidden=[8]), torch.randn(20, 4, 6, 6)
    for _ in range(3):
        model(x, task=1)
    found = hnetcl.export(model, 1, tmp_path / "net", x, formats=["program"])
    assert model.training
    assert found.score is None
    assert (found.files[0].differing, found.files[0].size) == (0, (tmp_path / "net" / "network.pt2").stat().st_size)
    program = torch.export.load(tmp_path / "net" / "network.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(x[:3]), model.eval()(x[:3], task=1)["logits"], rtol=1e-4, atol=1e-5)
    for bad, line in (((x, x), "images=tuple: must be one tensor"), (x[:1], "images=1 images: must be")):
        with pytest.raises(ArgumentError, match=line):
            hnetcl.export(model, 1, tmp_path / "other", bad, formats=["program"])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="task=2: there are tasks 0 to 1"):
        hnetcl.export(model, 2, tmp_path / "other", x, formats=["program"])


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(len(x), 4))  # type: ignore[no-any-return]


def test_what_torch_cannot_trace_is_told_in_one_line(tmp_path: Path) -> None:
    model = hnetcl.wrap(Counting(), 2, hnet="chunked", hidden=[8])
    with pytest.raises(
        ArgumentError, match=r"net=Counting: torch\.export can't trace it \(its code fixes the number of images"
    ):
        hnetcl.export(model, 0, tmp_path / "net", torch.randn(4, 4), formats=["program"])
    assert not list(tmp_path.iterdir())

"""Benchmarks: what is measured, and the command line. No test asserts how long anything takes."""

import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from benchmarks import bn, conv_bn, layers, memory, peers
from benchmarks.command import main
from benchmarks.compare import compare
from benchmarks.contenders import Contender, Field
from benchmarks.measure import Step, in_turn, median_ratio, peak_bytes, resident_bytes, saved_bytes

from hnetcl.algebra import ALGEBRA_DIMS
from hnetcl.bn import ConvBatchNorm
from hnetcl.bn.statistics import STATS
from hnetcl.errors import ArgumentError
from hnetcl.layers import Conv2d, Linear

CPU = torch.device("cpu")
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"
CONV = {"channels": 8, "kernel": 3, "padding": 1, "rounds": 1, "eval": False}
LAYERS = {"channels": 16, "kernel": 3, "groups": 2, "rounds": 1}
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is known on Linux only")


def names(shape: str = "8,8,2,2", dtype: str = "float32", evaluate: bool = False) -> list[str]:
    """Of all contenders but those that a compiler would have to build first."""
    field = bn.field(Namespace(shape=shape, dtype=dtype, eval=evaluate, rounds=1), CPU)
    return [c.name for c in field.contenders if not c.name.endswith("compiled")]


@pytest.mark.parametrize("k", [0, 1, 5])
def test_saved_bytes_are_those_of_all_saved_tensors(k: int) -> None:
    """Each of k exponentials saves its result."""

    def step() -> None:
        y = x
        for _ in range(k):
            y = y.exp()

    x = torch.zeros(100, requires_grad=True)
    assert saved_bytes(step) == k * x.nbytes


def test_a_storage_saved_twice_counts_once() -> None:
    """A product with itself and with a view of itself saves one storage; tensors that died are not mistaken for others."""
    x = torch.zeros(100, requires_grad=True)
    assert saved_bytes(lambda: x * x * x[:1]) == 2 * x.nbytes  # x and x * x
    assert saved_bytes(lambda: [x.exp().sum().backward() for _ in range(3)]) == 3 * x.nbytes


@pytest.mark.parametrize("k", [0, 1, 5])
def test_peak_bytes_are_those_alive_together(k: int) -> None:
    """k temporaries at once, one after them, and nothing of what was there before."""
    before = torch.zeros(6400)

    def step() -> None:
        together = [torch.zeros(1600) for _ in range(k)]
        together.clear()
        torch.zeros(1600)
        before.add_(1)

    assert peak_bytes(step, CPU) == max(k, 1) * 6400


def test_in_turn_takes_every_step_once_a_round() -> None:
    """All steps run in each round before any runs again, and every run has its time."""
    calls: list[str] = []
    seconds = in_turn({name: lambda name=name: calls.append(name) for name in "abc"}, 4, CPU)  # type: ignore[misc]
    assert [sorted(calls[k : k + 3]) for k in range(0, 12, 3)] == [list("abc")] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(s >= 0 for values in seconds.values() for s in values)


def test_the_ratio_is_taken_within_rounds() -> None:
    """A machine that is slow for some rounds changes nothing."""
    assert median_ratio([2.0, 200.0, 2000.0], [1.0, 100.0, 1000.0]) == 2


def saving(k: int) -> Step:
    """A step that saves k tensors of 400 bytes."""
    x = torch.zeros(100, requires_grad=True)

    def step() -> list[torch.Tensor]:
        return [x.exp() for _ in range(k)]

    return step


def test_ratios_are_to_each_contenders_own_base() -> None:
    """Saved and peak bytes are multiples of the unit and of the base's; a base's ratios are 1."""
    bases = {"a": (1, None), "b": (3, "a"), "c": (4, None), "d": (2, "c")}
    contenders = [Contender(name, lambda k=k: saving(k), base) for name, (k, base) in bases.items()]  # type: ignore[misc]
    figures = compare(contenders, 400, 2, CPU).figures
    assert [f["base"] for f in figures] == ["a", "a", "c", "c"]
    assert [f["saved"] for f in figures] == [1, 3, 4, 2]
    assert [f["saved_ratio"] for f in figures] == [1, 3, 1, 0.5]
    assert [f["peak_ratio"] for f in figures] == [
        f["peak"] / figures[k]["peak"] for k, f in zip((0, 0, 2, 2), figures, strict=True)
    ]
    assert [figures[k]["ratio"] for k in (0, 2)] == [1, 1]


def test_chosen_contenders_bring_their_bases() -> None:
    """And no others; only those that are kept are asked whether they can be built."""

    def refuse() -> None:
        raise ArgumentError("shape", 3, "too small")

    contenders = [Contender(name, lambda: saving(1), base) for name, base in [("a", None), ("b", "a"), ("c", None)]]
    contenders.append(Contender("d", lambda: saving(1), "c", refuse))
    field = Field(contenders, {}, lambda _: pytest.fail("nothing is measured"))
    assert [c.name for c in field.only(["b"]).contenders] == ["a", "b"]
    assert [c.name for c in field.only(["c", "a"]).contenders] == ["a", "c"]
    with pytest.raises(ArgumentError, match="too small"):
        field.only(["d"])


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "absent"),
    [
        ("8,8,2,2", "float32", [], set()),
        ("8,8,2,2", "float32", ["--eval"], set()),
        ("1,8", "float32", ["--eval"], set()),
        ("8,8,2", "float32", [], {"complexPyTorch"}),
        ("2,8,2,2,2", "float64", [], {"complexPyTorch"}),
        ("8,8,2,2", "bfloat16", [], {"complextorch", "complexPyTorch"}),
    ],
)
def test_all_contenders_are_measured(
    shape: str, dtype: str, options: list[str], absent: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every contender gets finite figures, on the screen and in the JSON file, or a reason why it got none."""
    for package in ("hypnettorch", "complextorch", "complexPyTorch"):
        pytest.importorskip(package, reason=f"{package} is not installed (it is in the extra `peers`)")
    wanted, path = names(shape, dtype, "--eval" in options), tmp_path / "figures.json"
    main(["bn", f"--shape={shape}", f"--dtype={dtype}", *options, "--rounds=2", f"--json={path}", "--only", *wanted])
    record: dict[str, Any] = json.loads(path.read_text())
    screen = capsys.readouterr().out
    assert set(record["absent"]) == absent
    assert [f["name"] for f in record["figures"]] == [name for name in wanted if name not in absent]
    for figures in record["figures"]:
        assert all(math.isfinite(figures[key]) and figures[key] > 0 for key in ("seconds", "ratio", "saved", "peak"))
        assert figures["saved"] >= 1
    assert all(name in screen for name in wanted)
    assert record["figures"][0]["ratio"] == 1
    assert record["input_bytes"] == math.prod(record["shape"]) * getattr(torch, dtype).itemsize
    assert {"cpu", "threads", "torch", "python"} <= set(record)


def test_every_algebra_and_backend_is_a_contender() -> None:
    """The names tell algebra, whitening and backend; the real ones have one whitening only."""
    found = names()
    assert found[0] == "torch"
    assert len(set(found)) == len(found)
    for algebra in ALGEBRA_DIMS:
        backends = {name.rpartition("/")[2] for name in found if name.startswith(f"{algebra}/")}
        assert backends >= {"reference", "closed_form"}
        assert f"{algebra}/virtual/closed_form" in found
    assert {name.removeprefix("real/") for name in found if name.startswith("real/")} == {
        "reference",
        "closed_form",
        "virtual/closed_form",
    }


def test_a_compiled_contender_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Or left out with the reason, where nothing can be compiled."""
    main(["bn", "--shape=8,8", "--rounds=1", "--only", "quaternion/cholesky/compiled"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "quaternion/cholesky/compiled" in line]
    assert len(lines) == 1
    assert (len(lines[0]) == 13) or lines[0][1:4] == ["is", "left", "out:"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("options", [[], ["--eval"]])
def test_fused_contenders_are_measured_beside_their_pairs(dtype: str, options: list[str], tmp_path: Path) -> None:
    """Ratios of a fused contender are to its pair, and it saves the convolution's output less."""
    path = tmp_path / "figures.json"
    arguments = ["--shape=4,8,16,16", f"--dtype={dtype}", "--channels=8", "--rounds=1", f"--json={path}"]
    main(["conv_bn", *arguments, *options, "--only", "*/closed_form"])
    record: dict[str, Any] = json.loads(path.read_text())
    figures = {f["name"]: f for f in record["figures"]}
    assert len(figures) == 2 * len(ALGEBRA_DIMS)
    for algebra in ALGEBRA_DIMS:
        pair, fused = (figures[f"{algebra}/{kind}/closed_form"] for kind in ("pair", "fused"))
        assert pair["base"] == fused["base"] == pair["name"]
        assert pair["ratio"] == pair["saved_ratio"] == pair["peak_ratio"] == 1
        assert fused["saved_ratio"] == fused["saved"] / pair["saved"]
        assert pair["saved"] - fused["saved"] == pytest.approx(1, abs=0.2)  # the output is as large as the input
        assert fused["ratio"] > 0
    assert record["mode"] == ("evaluation" if options else "training")


@pytest.mark.parametrize("algebra", ALGEBRA_DIMS)
@pytest.mark.parametrize("training", [True, False])
def test_a_fused_contender_does_its_pairs_work(algebra: str, training: bool) -> None:
    """From the same weights come the same gradients."""
    task = conv_bn.Task((3, 8, 6, 5), 4, 3, 1, torch.float64, CPU, training)
    found = []
    for is_fused in (False, True):
        torch.manual_seed(0)
        found.append(task.step(algebra, is_fused, "closed_form")())
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(("options", "channels_alone"), [([], 1), (["--groups=2"], 2)])
def test_convolutions_of_numbers_are_measured_beside_torchs(options: list[str], channels_alone: int, tmp_path: Path) -> None:
    """Every algebra, and other libraries' layers where they are there and can do it."""
    path = tmp_path / "figures.json"
    main(["layers", "--shape=2,8,6,6", "--channels=16", "--rounds=1", f"--json={path}", *options])
    record: dict[str, Any] = json.loads(path.read_text())
    names = [f["name"] for f in record["figures"]]
    assert names[: 1 + len(ALGEBRA_DIMS)] == ["torch", *ALGEBRA_DIMS]
    assert {*names, *record["absent"]} == {
        *("torch", *ALGEBRA_DIMS, "complextorch", "complexPyTorch", "speechbrain/complex", "speechbrain/quaternion")
    }
    assert all(f["base"] == "torch" and f["ratio"] > 0 for f in record["figures"])
    assert record["groups"] == channels_alone


@pytest.mark.parametrize("name", ["complextorch", "complexPyTorch"])
def test_a_peers_convolution_has_as_much_to_do(name: str) -> None:
    """Its input and its weights hold as many real values as ours."""
    pytest.importorskip(name, reason=f"{name} is not installed (it is in the extra `peers`)")
    found = layers.field(Namespace(shape="3,8,5,5", dtype="float32", **LAYERS), CPU)
    step = next(c for c in found.contenders if c.name == name).build()
    ours = next(c for c in found.contenders if c.name == "complex").build()
    sizes = [
        [t.numel() * (2 if t.is_complex() else 1) for t in cast(tuple[torch.Tensor, ...], each())] for each in (step, ours)
    ]
    assert [sizes[0][0], sum(sizes[0])] == [sizes[1][0], sum(sizes[1])]


def test_every_compiled_pair_is_a_contender() -> None:
    """Real numbers have none, for torch's own kernel is never compiled."""
    names = {c.name for c in conv_bn.field(Namespace(shape="4,8,6,6", dtype="float32", **CONV), CPU).contenders}
    compiled = {f"{a}/{kind}/compiled" for a in ALGEBRA_DIMS if a != "real" for kind in ("pair", "fused")}
    assert {name for name in names if name.endswith("compiled")} == compiled


def test_every_kind_of_batch_norm_trains() -> None:
    """All modes in all algebras, virtual and fused ones, other whitening and other backends."""
    found = [c.name for c in memory.contenders(CPU)]
    assert len(set(found)) == len(found)
    assert {f"{algebra}/{kind}" for algebra in ALGEBRA_DIMS for kind in (*STATS, "virtual", "fused")} <= set(found)
    assert {"complex/naive", "quaternion/naive", "quaternion/reference", "quaternion/compiled"} <= set(found)


@ON_LINUX
def test_memory_of_training_is_told(tmp_path: Path) -> None:
    """At two steps, and the growth between them in percent."""
    path, wanted = tmp_path / "figures.json", ["real/fused", "complex/virtual", "quaternion/generated"]
    main(["memory", "--steps=2", "--settle=1", f"--json={path}", "--only", *wanted])
    record: dict[str, Any] = json.loads(path.read_text())
    assert [f["name"] for f in record["figures"]] == wanted
    for f in record["figures"]:
        assert min(f["settled"], f["final"]) > 0
        assert f["growth"] == pytest.approx(100 * (f["final"] - f["settled"]) / f["settled"])


@pytest.mark.parametrize("k", [0, 1000])
def test_what_leaks_is_seen(k: int) -> None:
    """Memory in use after the settling steps, and after all of them: k bytes more for each step between."""
    kept = [0]

    def step() -> None:
        kept.append(k)

    assert memory.growth(step, 1000, 50, lambda: sum(kept)) == (50 * k, 1000 * k)


@ON_LINUX
def test_resident_memory_holds_what_is_written() -> None:
    """A tensor of 64 MB is seen, and seen to go."""
    before = resident_bytes()
    x = torch.ones(16_000_000)
    assert resident_bytes() - before == pytest.approx(x.nbytes, rel=0.1)
    del x
    assert abs(resident_bytes() - before) < 6_400_000


@pytest.mark.parametrize("name", [c.name for c in memory.contenders(CPU) if c.name != "quaternion/compiled"])
def test_memory_is_measured_of_real_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step teaches every parameter, those of the statistics included."""
    nets: list[torch.nn.Module] = []
    training = memory.training

    def kept(net: torch.nn.Module, device: torch.device) -> Step:
        nets.append(net)
        return training(net, device)

    monkeypatch.setattr(memory, "training", kept)
    step = next(c for c in memory.contenders(CPU) if c.name == name).build()
    before = {key: value.detach().clone() for key, value in nets[0].named_parameters()}
    for _ in range(2):
        step()
    assert not [key for key, value in nets[0].named_parameters() if torch.equal(value, before[key])]
    kinds = {type(layer) for layer in nets[0].modules()}
    assert {Conv2d, Linear} <= kinds
    assert (ConvBatchNorm in kinds) == name.endswith("fused")


def test_memory_is_told_on_linux_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere one line says so."""
    monkeypatch.setattr(memory, "STATM", Path("/nowhere/statm"))
    with pytest.raises(SystemExit) as raised:
        main(["memory", "--device=cpu"])
    out, err = capsys.readouterr()
    assert (raised.value.code, out) == (2, "")
    assert err == "device=cpu: resident memory is known on Linux only, which tells it in /nowhere/statm\n"


def test_missing_libraries_are_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not installed is told, and all else is measured."""
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    main(["bn", "--shape=8,8", "--rounds=1", "--only", "*torch*", "real/closed_form"])
    screen = capsys.readouterr().out
    assert "hypnettorch is left out: not installed" in screen
    assert "complextorch is left out: not installed" in screen
    assert "real/closed_form" in screen


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--shape=64,63", "--only", "quaternion/*"],
            "shape=64,63: the channels must be a positive multiple of 4 (quaternion)",
        ),
        (["--shape=64,63", "--only", "complextorch"], "shape=64,63: the channels must be a positive multiple of 2 (complex)"),
        (["--shape=64"], "shape=64: must be 2 to 5 positive whole numbers"),
        (["--shape=64,-4"], "shape=64,-4: must be 2 to 5 positive whole numbers"),
        (["--shape=1,64,1,1"], "shape=1,64,1,1: batch statistics need more than one value per channel"),
        (["--dtype=int8"], "dtype=int8: allowed: bfloat16, float16, float32, float64"),
        (["--device=tpu"], "device=tpu: not available on this machine"),
        (["--rounds=0"], "rounds=0: must be at least 1"),
        (["--rounds=x"], "argument --rounds: invalid int value: 'x'"),
        (["--threads=0"], "threads=0: must be at least 1"),
        (["--only", "quaternions/*"], "only=quaternions/*: "),
        (["--json=/nowhere/figures.json"], "json=/nowhere/figures.json: must be a file in an existing directory"),
        (["--json=/"], "json=/: must be a file in an existing directory"),
        (["--size=3"], "unrecognized arguments: --size=3"),
        (["conv_bn", "--shape=32,64,32"], "shape=32,64,32: must be 4 positive whole numbers, as in 32,64,32,32"),
        (["conv_bn", "--shape=8,6,4,4"], "shape=8,6,4,4: the channels must be a positive multiple of 4 (quaternion); --only"),
        (["conv_bn", "--channels=6"], "channels=6: the channels must be a positive multiple of 4 (quaternion); --only"),
        (["conv_bn", "--channels=0"], "channels=0: must be at least 1"),
        (["conv_bn", "--padding=-1"], "padding=-1: must be at least 0"),
        (["conv_bn", "--kernel=40"], "kernel=40: must be at most 34, the padded side"),
        (["conv_bn", "--shape=1,4,3,3", "--padding=0"], "shape=1,4,3,3: batch statistics need more than one value per channel"),
        (["conv_bn", "--dtype=int8"], "dtype=int8: allowed: bfloat16"),
        (["conv_bn", "--rounds=0"], "rounds=0: must be at least 1"),
        (["layers", "--shape=8,6,4,4"], "shape=8,6,4,4: the channels must be a positive multiple of 4 (quaternion); --only"),
        (["layers", "--channels=6"], "channels=6: the channels must be a positive multiple of 4 (quaternion); --only"),
        (["layers", "--groups=32"], "groups=32: must divide the quaternion numbers; --only leaves contenders out"),
        (["layers", "--kernel=2"], "kernel=2: must be odd"),
        (["memory", "--steps=0"], "steps=0: must be at least 1"),
        (["memory", "--settle=0"], "settle=0: must be at least 1"),
        (["memory", "--steps=50"], "steps=50: must be more than settle=50"),
        (["memory", "--only", "octonion/*"], "only=octonion/*: "),
        (["memory", "--rounds=3"], "unrecognized arguments: --rounds=3"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured, the exit status is 2, and the one line names the argument and its value."""
    with pytest.raises(SystemExit) as raised:
        main(arguments if arguments[0] in ("conv_bn", "layers", "memory") else ["bn", *arguments])
    out, err = capsys.readouterr()
    assert raised.value.code == 2
    assert err.startswith(line)
    assert len(err.splitlines()) == 1
    assert not out


def test_the_script_runs(tmp_path: Path) -> None:
    """The figures are all that it writes to the screen."""
    arguments = ["bn", "--shape=8,8", "--rounds=1", "--only", "complex/*/closed_form"]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "complex/zca/closed_form" in done.stdout
    assert not list(tmp_path.iterdir())

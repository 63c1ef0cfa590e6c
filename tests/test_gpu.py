"""What only a CUDA device can show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from choices import allowed
from steps import run_of, take

from hnetcl.algebra import ALGEBRAS
from hnetcl.bn import BatchNormLayer, auxiliary_loss, using_task
from hnetcl.cli.jobs import train
from hnetcl.config import Config
from hnetcl.errors import DivergedError
from hnetcl.hnets import HyperNetwork
from hnetcl.methods import Inputs
from hnetcl.methods.finetune import Finetune
from hnetcl.methods.output_regularizer import OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.nets import MLP
from hnetcl.registry import names
from hnetcl.training import TrainingStep
from hnetcl.training.clip import clip_gradients
from hnetcl.training.optimizers import sgd
from hnetcl.training.watch import Watch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["closed_form", "compiled"])
@pytest.mark.parametrize("stats", ["tracked", "learnable", "distilled"])
def test_the_layer_gives_on_the_gpu_what_it_gives_on_the_cpu(algebra: Any, training: bool, backend: Any, stats: Any) -> None:
    torch.manual_seed(0)
    layer = BatchNormLayer(16, algebra=algebra, stats=stats).train(training)
    x = torch.randn(32, 16, 5, 5)
    outcomes = []
    for device in ("cpu", "cuda"):
        copy = BatchNormLayer(16, algebra=algebra, stats=stats, backend=backend).train(training).to(device)
        copy.load_state_dict(layer.state_dict())
        on_device = x.to(device).detach().requires_grad_()
        y = copy(on_device)
        (y.pow(3).sum() + auxiliary_loss(copy)).backward()
        gradients = (t.grad for t in (on_device, *copy.parameters()) if t.grad is not None)
        outcomes.append([y.detach().cpu(), *(g.cpu() for g in gradients), *(b.cpu() for b in copy.buffers())])
    for on_cpu, on_gpu in zip(*outcomes, strict=True):
        torch.testing.assert_close(on_cpu, on_gpu, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("stats", allowed("bn", "layer", "stats"))
def test_choosing_a_row_never_waits_for_the_gpu(algebra: Any, stats: Any) -> None:
    """Nor does a training step with it, by int or by tensor."""
    layer, x = (
        BatchNormLayer(16, algebra=algebra, stats=stats, whitening="cholesky").cuda(),
        torch.randn(32, 16, 5, device="cuda"),
    )
    if layer.num_stats:
        layer.checkpoint_stats()
    row = torch.ones((), dtype=torch.long, device="cuda")
    for step in range(3):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step may initialise libraries
        try:
            with using_task(layer, 1):
                (layer(x).square().sum() + auxiliary_loss(layer)).backward()
            (layer(x, stats_id=row).square().sum() + auxiliary_loss(layer)).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sample": 1},
        {"lookahead": True, "tasks_at_once": 2},
        {"targets_device": "cpu", "targets_dtype": "bfloat16", "sample": 2},
        {"targets_device": "cpu", "tasks_at_once": 1, "importance": "fisher"},
        {"targets": "online", "sample": 2, "importance": "fisher"},
    ],
    ids=str,
)
def test_a_step_never_waits_for_the_gpu(algebra: Any, options: dict[str, Any]) -> None:
    net = MLP((1, 8, 8), 3, hidden=(16, 16), algebra=algebra, norm=lambda width: BatchNormLayer(width, algebra=algebra))
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    hnet = HyperNetwork(
        {name: value.shape for name, value in initial.items()}, 4, "chunked", hidden=(8,), chunk_size=50, initial=initial
    )
    model, method = HyperModel(net, hnet).cuda(), OutputRegularizer(beta=0.1, **options)
    method.load_state_dict({"fisher": torch.rand(3, hnet.num_generated)})
    x, y = torch.randn(32, 1, 8, 8, device="cuda"), torch.zeros(32, dtype=torch.long, device="cuda")
    optimizer = torch.optim.Adam(hnet.parameters(), fused=True)
    run = run_of(model, 3, optimizer, torch.Generator("cuda"))
    method.start_task(run)
    trained = TrainingStep(model, method, torch.device("cuda"), "off")
    for step in range(3):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step may initialise libraries
        try:
            assert "penalty" in take(trained, run, x, y)[0].parts
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def steps(compile: Any, precision: Any, algebra: Any) -> dict[str, torch.Tensor]:
    """What four tasks of eight steps each leave; a step that waits for the GPU is an error.

    The first steps of a task may wait: they compile, and record CUDA graphs.
    """
    torch.manual_seed(0)
    net = MLP((1, 8, 8), 3, hidden=(16, 16), algebra=algebra, norm=lambda width: BatchNormLayer(width, algebra=algebra))
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    hnet = HyperNetwork(
        {name: value.shape for name, value in initial.items()}, 4, "chunked", hidden=(8,), chunk_size=50, initial=initial
    )
    model, method = HyperModel(net, hnet, precision=precision).cuda(), OutputRegularizer(beta=0.1)
    step = TrainingStep(model, method, torch.device("cuda"), compile)
    generator = torch.Generator("cuda").manual_seed(0)
    for task in range(4):
        optimizer, schedule = sgd(lr=0.05).make(model, 8)
        run = run_of(model, task, optimizer, generator)
        method.start_task(run)
        watch = Watch(model, task, optimizer, torch.device("cuda"))
        for number in range(8):
            torch.cuda.set_sync_debug_mode("error" if number > 4 else "default")
            try:
                x = torch.randn(32, 1, 8, 8, generator=generator, device="cuda")
                y = torch.randint(3, (32,), generator=generator, device="cuda")
                watch.look(*take(step, run, x, y))
                optimizer.step()
                schedule.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        watch.close()
    return {name: value.cpu() for name, value in model.saved_tensors().items()}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch's compiler
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_step_replays_cuda_graphs(algebra: str, precision: str) -> None:
    """It never waits for the GPU, leaves no part of it out of the graphs, and trains as plain code does."""
    from torch._dynamo.utils import counters

    skipped = counters["inductor"]["cudagraph_skips"]
    found = steps("on", precision, algebra)
    assert counters["inductor"]["cudagraph_skips"] == skipped
    rtol, atol = (1e-2, 1e-3) if precision == "float32" else (0.1, 0.1)
    torch.testing.assert_close(found, steps("off", precision, algebra), rtol=rtol, atol=atol)


@pytest.mark.parametrize("optimizer", names("optimizer"))
def test_numbers_that_are_not_finite_end_the_run_and_no_checkpoint_is_written(
    optimizer: str, tiny: list[str], compose: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="task 0, "):
        train(compose(*tiny, "device=cuda", f"optimizer={optimizer}", "optimizer.lr=1e20", f"run.dir={tmp_path}"))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_main_job_runs(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    path = train(compose(*tiny, "device=cuda", f"run.dir={tmp_path}"))
    assert (path / "metrics.json").exists()


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of what it does itself
def test_micro_batches_that_run_as_cuda_graphs_add_up() -> None:
    """A graph writes its gradients where those of the part before lie. Clipping them waits for nothing."""
    net = MLP((1, 8, 8), 3, hidden=(16, 16))
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    shapes = {name: value.shape for name, value in initial.items()}
    model = HyperModel(net, HyperNetwork(shapes, 2, "full", hidden=(8,), initial=initial)).cuda()
    x, y = torch.randn(32, 1, 8, 8, device="cuda"), torch.randint(3, (32,), device="cuda")
    run, found = run_of(model, 0, torch.optim.Adam(model.parameters(), fused=True), torch.Generator("cuda")), []
    for compile, parts in (("off", 1), ("on", 4)):
        step = TrainingStep(model, Finetune(), torch.device("cuda"), compile, accumulate=parts)
        for _ in range(4):  # the third time as a graph
            step(run, Inputs(x, y, 0))
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    parameters, norm = list(model.parameters()), torch.nn.utils.get_total_norm(found[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_gradients(parameters, norm, 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")

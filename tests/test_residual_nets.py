"""Networks for CIFAR: as large as published, as others compute them, in every algebra, and right from the first step."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peers import peer
from safetensors.torch import load_file
from stops import Stops
from torch import Tensor, nn

import hnetcl
from hnetcl.algebra import ALGEBRAS, as_algebra
from hnetcl.bn import BatchNormLayer, fold_batchnorm
from hnetcl.cli.jobs import evaluate, train
from hnetcl.cli.main import CONF
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.nets import ResNet, ResNet18, WideResNet, Zenke
from hnetcl.nets.residual import PaddedShortcut
from hnetcl.registry import make, register
from hnetcl.vision import import_torchvision

IMAGE = (3, 32, 32)
Make = Callable[..., nn.Module]


def made(make: Make, algebra: str = "real", num_outputs: int = 10, norm: bool = True, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = partial(BatchNormLayer, algebra=algebra) if norm else None  # type: ignore[arg-type]
    return make(IMAGE, num_outputs, layer, algebra=algebra, **options)


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


PUBLISHED: dict[str, tuple[Make, dict[str, Any], int]] = {
    # He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million; exact in github.com/akamaster/pytorch_resnet_cifar10
    "ResNet-20": (ResNet, {"depth": 20}, 269_722),
    "ResNet-32": (ResNet, {"depth": 32}, 464_154),
    "ResNet-44": (ResNet, {"depth": 44}, 658_586),
    "ResNet-56": (ResNet, {"depth": 56}, 853_018),
    "ResNet-110": (ResNet, {"depth": 110}, 1_727_962),
    "ResNet-20 with projections": (ResNet, {"depth": 20, "shortcut": "B"}, 272_474),
    # github.com/kuangliu/pytorch-cifar, and the reduced one of github.com/facebookresearch/GradientEpisodicMemory
    "ResNet-18 for CIFAR": (ResNet18, {}, 11_173_962),
    "ResNet-18, reduced": (ResNet18, {"width": 20, "num_outputs": 100}, 1_109_240),
    "ResNet-18 of torchvision": (ResNet18, {"stem": "imagenet", "num_outputs": 1000}, 11_689_512),
    # Zagoruyko & Komodakis 2016, tables 4 and 5: 36.5 million; exact in github.com/xternalz/WideResNet-pytorch
    "WRN-28-2": (WideResNet, {}, 1_467_610),
    "WRN-28-10": (WideResNet, {"widen": 10}, 36_479_194),
    "WRN-16-8": (WideResNet, {"depth": 16, "widen": 8}, 10_961_370),
    # hypnettorch 0.0.4
    "Zenke et al.": (Zenke, {"norm": False}, 1_250_858),
}


@pytest.mark.parametrize(("make", "options", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_it_has_as_many_parameters_as_published(make: Make, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert size(made(make, **options)) == count


@pytest.mark.slow
def test_the_pages_counts(compose: Callable[..., Config]) -> None:
    page = (CONF.parent / "docs" / "networks.md").read_text()
    rows = re.findall(r"^\| `(net=.*?)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert len(rows) == 10
    for words, *counts in rows:
        values = compose(*words.split()).net
        norm = values.pop("norm") == "batch"
        for algebra, count in zip(ALGEBRAS, counts, strict=True):
            if int(count.replace(",", "")) in {known for *_, known in PUBLISHED.values()}:
                continue  # it is built elsewhere here
            layer = partial(BatchNormLayer, algebra=as_algebra(algebra)) if norm else None
            with torch.device("meta"):
                net = make("net", {**values, "algebra": algebra}, in_shape=IMAGE, num_outputs=10, norm=layer)
            assert f"{size(net):,}" == count, f"{words} {algebra}"


@pytest.mark.parametrize("algebra", ["complex", "quaternion"])
@pytest.mark.parametrize("name", ["ResNet-20", "ResNet-20 with projections", "ResNet-18, reduced", "WRN-28-2", "Zenke et al."])
def test_inner_layers_have_a_dth_of_the_weights(name: str, algebra: str) -> None:
    """At the same width. The first layer and the head are real."""
    make, options, _ = PUBLISHED[name]

    def weights(algebra: str, **more: Any) -> tuple[int, int]:
        with torch.device("meta"):
            net = made(make, algebra, **{**options, **more})
        layers = [p.numel() for p in net.parameters() if p.ndim > 2]  # convolutions and linear layers
        return sum(layers[1:-1]), layers[0] + layers[-1]

    inner, outer = weights("real")
    d = as_algebra(algebra).dim
    assert weights(algebra) == (inner / d, outer)
    if make is not Zenke:  # d times as wide: d times d of the weights, a dth of which is left
        wide = options.get("width", 64 if make is ResNet18 else 16)
        assert weights(algebra, width=wide, width_unit="numbers")[0] == inner * d


def real_weights(net: nn.Module) -> list[Tensor]:
    """Parameters in order, weights as torch's layers have them."""
    return [p.detach().squeeze(0) if p.ndim > 1 else p.detach() for p in net.parameters()]


def test_resnet18_computes_what_torchvisions_does() -> None:
    theirs = import_torchvision().models.resnet18(num_classes=7)
    ours = made(ResNet18, num_outputs=7, stem="imagenet")
    with torch.no_grad():
        for own, other in zip(real_weights(ours), theirs.parameters(), strict=True):
            own.copy_(other)
    x = torch.randn(4, 3, 64, 64)
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))


@pytest.mark.filterwarnings("ignore:Use attribute:DeprecationWarning")
def test_resnet_computes_what_hypnettorchs_does() -> None:
    theirs = peer("hypnettorch.mnets.resnet").ResNet(n=1, use_bias=False, verbose=False)
    ours = made(ResNet, depth=8)
    named = dict(ours.named_parameters())
    norms = [p for p in named.values() if p.ndim == 1 and p is not named["head.bias"]]
    with torch.no_grad():
        for own, other in zip([*norms, *(p for p in named.values() if p.ndim > 1)], theirs.internal_params, strict=True):
            own.copy_(other[None] if other.ndim > 1 else other)
    x = torch.randn(4, *IMAGE)
    for training in (True, False):
        last_axis = x.movedim(1, -1).flatten(1)
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(last_axis))


def test_wide_resnet_computes_what_the_paper_says() -> None:
    """One block a stage: norm, ReLU, convolution, twice; behind the first ReLU the way parts for a 1 x 1 convolution."""
    net = made(WideResNet, depth=10, widen=2, width=4)
    weights = iter(real_weights(net))

    def norm(x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, next(weights), next(weights), training=True))

    x = torch.randn(4, *IMAGE)
    h = F.conv2d(x, next(weights), padding=1)
    for i in range(3):  # in the order of the parameters: convolution, norm, convolution; shortcut; the norm before all
        stride = 2 if i else 1
        first, inner_gamma, inner_beta, second, shortcut, gamma, beta = (next(weights) for _ in range(7))
        active = F.relu(F.batch_norm(h, None, None, gamma, beta, training=True))
        inner = F.conv2d(active, first, None, stride, 1)
        inner = F.relu(F.batch_norm(inner, None, None, inner_gamma, inner_beta, training=True))
        h = F.conv2d(inner, second, padding=1) + F.conv2d(active, shortcut, None, stride)
    h = norm(h).mean((2, 3))
    torch.testing.assert_close(net(x), F.linear(h, next(weights), next(weights)))


@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_padding_adds_whole_numbers(algebra: str) -> None:
    """Zeros before and behind: what is multiplied by a number and then padded is what is padded and then multiplied."""
    known = as_algebra(algebra)
    d = known.dim
    x, weight = torch.randn(2, 4 * d, 5, 6), torch.randn(d, 1, 1)
    pad = PaddedShortcut(3 * d, 2, known)
    assert pad(x).shape == (2, 7 * d, 3, 3)
    matrix = known.block_matrix(weight)

    def times(x: Tensor) -> Tensor:
        return torch.einsum("ab,nbqhw->naqhw", matrix, x.unflatten(1, (d, -1))).flatten(1, 2)

    torch.testing.assert_close(pad(times(x)), times(pad(x)))
    torch.testing.assert_close(pad(x).square().sum(), x[..., ::2, ::2].square().sum())


def deviations(net: nn.Module, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Standard deviations of what stem, stages and head yield at the start."""
    found: list[Tensor] = []
    layers = [net.stem, *net.stages, net.head]  # type: ignore[misc]
    hooks = [layer.register_forward_hook(lambda *given: found.append(given[2].detach().std())) for layer in layers]
    torch.manual_seed(1)
    logits = run(torch.randn(8, 3, 16, 16))
    F.cross_entropy(logits, torch.arange(8)).backward()
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


DEEP: dict[str, Callable[..., nn.Module]] = {
    "resnet": partial(ResNet, depth=110),
    "resnet, projections": partial(ResNet, depth=110, shortcut="B"),
    "wide resnet": partial(WideResNet, depth=106, widen=1),
}


@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("make", DEEP.values(), ids=DEEP)
def test_activations_keep_their_scale_through_110_layers(make: Make, norm: bool, algebra: str) -> None:
    """With norm every block adds to the variance what one block yields: 54 make it 7 times as wide at most."""
    net = made(make, algebra, norm=norm)
    found = deviations(net, net)
    widest = 54**0.5 if norm else 3.0
    assert (found[1:-1] / found[0]).max() < 1.3 * widest
    assert (found[1:-1] / found[0]).min() > 0.3
    assert 0.1 < found[-1] < 3 * widest
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("hnet", ["chunked", "structured"])
def test_a_generated_resnet110_starts_at_its_own_scale(hnet: str, algebra: str) -> None:
    net = made(ResNet, algebra, depth=110)
    own = deviations(net, net)
    options: dict[str, Any] = {"hidden": [64, 64], "embedding_dim": 96, "compression": 0.95}
    model = hnetcl.wrap(made(ResNet, algebra, depth=110), num_tasks=2, hnet=hnet, **options)
    assert model.hnet.compression <= 0.95
    generated = torch.stack([deviations(model.net, partial(model, task=task)) for task in range(2)]).mean(0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.hnet.parameters())
    ratio = generated / own
    assert ratio[:-1].min() > 0.75
    assert ratio[:-1].max() < 1.35
    assert 0.2 < ratio[-1] < 4  # one layer's ten outputs


SMALL: dict[str, Callable[..., nn.Module]] = {
    "resnet": partial(ResNet, depth=8, width=4),
    "resnet18": partial(ResNet18, width=4),
    "wide resnet": partial(WideResNet, depth=10, width=4),
    "zenke": partial(Zenke, channels=(4, 8), hidden=(8,)),
}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 20), (2, 11, 14)], ids=str)
@pytest.mark.parametrize("algebra", ALGEBRAS)
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_images_of_any_size_and_folded_batch_norm(make: Make, algebra: str, shape: tuple[int, ...]) -> None:
    net = make(shape, 7, partial(BatchNormLayer, algebra=algebra), algebra=algebra)  # type: ignore[arg-type]
    x = torch.randn(5, *shape)
    assert net(x).shape == (5, 7)
    torch.testing.assert_close(fold_batchnorm(net.eval())(x), net(x))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ResNet, {"depth": 18}, r"depth=18: must be 6 n \+ 2, as 20, 32, 44, 56 and 110 are"),
        (ResNet, {"depth": 2}, "depth=2: must be at least 8"),
        (ResNet, {"width": 18, "algebra": "quaternion"}, r"width=18: every width must be a multiple of 4 \(quaternion\)"),
        (ResNet, {"width_unit": "quaternions"}, "width_unit=quaternions: allowed: channels, numbers"),
        (ResNet, {"shortcut": "C"}, "shortcut=C: .*allowed: A, B"),
        (ResNet18, {"stem": "large"}, "stem=large: allowed: imagenet, small"),
        (WideResNet, {"depth": 26}, r"depth=26: must be 6 n \+ 4, as 16, 22, 28 and 40 are"),
        (WideResNet, {"dropout": 1.0}, "dropout=1.0: .*less than 1"),
        (Zenke, {"dropout": 0.6}, "dropout=0.6: .*at most 0.5"),
        (Zenke, {"channels": (8, 8, 8, 8)}, r"channels=\[8, 8, 8, 8\]: too many convolutions for images of \(3, 32, 32\)"),
    ],
)
def test_what_is_refused(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        made(make, **options)


RUNS = {
    "resnet": ["net=resnet20", "net.depth=8", "net.width=4", "bn=quaternion"],
    "resnet, no norm": ["net=resnet", "net.depth=8", "net.width=4", "net.norm=none", "bn=complex"],
    "resnet18": ["net=resnet18", "net.width=4", "bn=fused", "bn.algebra=quaternion"],
    "wide resnet": ["net=wide_resnet", "net.depth=10", "net.width=4", "net.dropout=0.3", "bn=virtual", "hnet=structured"],
    "zenke": ["net=zenke", "net.channels=[4,8]", "net.hidden=[8]", "bn=complex", "method=ewc"],
}


@pytest.mark.usefixtures("users_parts")
@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_a_run_goes_on_to_the_same_numbers(
    words: list[str], tiny: list[str], compose: Callable[..., Config], compose_evaluation: Callable[..., Any], tmp_path: Path
) -> None:
    """Stopped within a task, dropout included; and a reload gives what training gave."""
    without = ("net.", "hnet.") if "method=ewc" in words else ("net.",)
    own = [word for word in tiny if not word.startswith(without)]
    own += [*words, "trainer.steps=5", "task.num_tasks=2"]
    own += ["hnet.chunk_size=500"] if "method=ewc" not in words else []
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(compose(*own, "observers=[]", f"run.dir={whole}"))
    register("observer", "stops")(Stops)
    Stops.lives = 0
    with pytest.raises(SystemExit):
        train(compose(*own, "observers=[stops]", f"run.dir={halves}"))
    train(compose(*own, "observers=[stops]", f"run.dir={halves}", "resume=true"))
    first, second = (load_file(run / "model.safetensors") for run in (whole, halves))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (whole / "accuracy.csv").read_bytes() == (halves / "accuracy.csv").read_bytes()
    last = (whole / "accuracy.csv").read_text().splitlines()[-1].split(",")[1:]
    assert evaluate(compose_evaluation(f"run={whole}", "device=cpu")) == [float(value) for value in last]

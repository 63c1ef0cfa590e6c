"""Images as complex numbers, and networks whose first layer takes them as such."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hnetcl
from hnetcl import BatchNormLayer
from hnetcl.algebra import COMPLEX
from hnetcl.build import build
from hnetcl.cli.jobs import evaluate, train
from hnetcl.config import Config, parse_evaluation
from hnetcl.errors import ArgumentError
from hnetcl.nets import MLP, LeNet, ResNet, ResNet18, WideResNet, Zenke
from hnetcl.tasks import Fourier, TaskSequence, load_images, split_sequence
from hnetcl.tasks.preprocess import standardize

NETS = (MLP, LeNet, Zenke, ResNet, ResNet18, WideResNet)

SIZES = [(1, 28, 28), (3, 9, 16), (2, 7, 5), (1, 1, 4)]


def pixels(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 256, (40, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("shape", SIZES)
def test_the_transform_is_numpys_and_has_an_inverse(shape: tuple[int, ...]) -> None:
    """Real parts first, frequency 0 in the middle; sizes odd and even, and no squares."""
    images = pixels(shape)
    plain = standardize(images)
    fourier = Fourier(plain.mean, plain.std)
    x = fourier(images)
    assert x.shape == (40, *fourier.in_shape(shape)) == (40, 2 * shape[0], *shape[1:])
    assert x.dtype == torch.float32
    expected = np.fft.fftshift(np.fft.fft2(plain(images).double().numpy(), norm="ortho"), axes=(-2, -1))
    torch.testing.assert_close(torch.complex(*x.double().chunk(2, 1)), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fourier.pixels(x), plain(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SIZES)
def test_numbers_have_the_length_of_the_pixels(shape: tuple[int, ...]) -> None:
    """Parseval: the mean of |F|^2 is 1 over the images that pixels are standardized by."""
    images = pixels(shape)
    plain = standardize(images)
    x = Fourier(plain.mean, plain.std)(images)
    modulus = x.chunk(2, 1)[0].square() + x.chunk(2, 1)[1].square()
    torch.testing.assert_close(modulus.mean((0, 2, 3)), torch.ones(shape[0]), rtol=1e-4, atol=0)
    middle = x[:, : shape[0], shape[1] // 2, shape[2] // 2]
    torch.testing.assert_close(middle, plain(images).sum((2, 3)) / (shape[1] * shape[2]) ** 0.5, rtol=1e-3, atol=1e-4)


def test_pixels_are_permuted_first() -> None:
    images, order = pixels((1, 4, 6)), torch.randperm(24)
    mean, std = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    moved = images.flatten(2)[:, :, order].reshape(images.shape)
    torch.testing.assert_close(Fourier(mean, std, order)(images), Fourier(mean, std)(moved))


@pytest.fixture
def sequence(data_root: Path) -> TaskSequence:
    return split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20, transform="fourier")


def test_a_sequence_tells_it(sequence: TaskSequence, data_root: Path) -> None:
    """The images are those of the split sequence, hashes and constants too; the manifest says what is made of them."""
    plain = split_sequence(lambda _: load_images("tiny", data_root), num_tasks=3, val_size=20)
    assert (sequence.name, sequence.in_shape, plain.in_shape) == ("fourier_tiny", (2, 16, 16), (1, 16, 16))
    for fourier, task in zip(sequence.manifest()["tasks"], plain.manifest()["tasks"], strict=True):
        assert fourier["transform"] == "fourier"
        assert fourier["shape"] == [2, 16, 16]
        differing = {key for key in fourier.keys() | task.keys() if fourier.get(key) != task.get(key)}
        assert differing == {"transform", "shape"}


@pytest.mark.parametrize("net", NETS)
def test_the_first_layer_takes_numbers(net: Any) -> None:
    """Half of a real layer's weights; multiplying all numbers by one multiplies what it makes by that."""
    norm = lambda width: BatchNormLayer(width, algebra="complex")  # noqa: E731
    made = net((2, 16, 16), 3, norm, algebra="complex", in_algebra="complex")
    lifted = net((2, 16, 16), 3, norm, algebra="complex")
    first, real = (next(m for m in each.modules() if hasattr(m, "algebra") and hasattr(m, "weight")) for each in (made, lifted))
    assert first.algebra == COMPLEX
    assert first.weight.numel() * 2 == real.weight.numel()
    flat = (lambda x: x.flatten(1)) if net is MLP else (lambda x: x)
    x = torch.randn(4, 2, 16, 16)
    a, b = 0.6, -1.3
    re, im = x.chunk(2, 1)
    y = torch.complex(*first(flat(x)).chunk(2, 1))
    turned = first(flat(torch.cat([a * re - b * im, b * re + a * im], 1)))
    torch.testing.assert_close(torch.complex(*turned.chunk(2, 1)), (a + b * 1j) * y, rtol=1e-4, atol=1e-5)
    assert made(x).shape == (4, 3)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 16, 16), {"in_algebra": "complex"}, "in_algebra=complex: must be real, or the network's own; allowed: real"),
        ((2, 16, 16), {"in_algebra": "complex", "algebra": "quaternion"}, "in_algebra=complex: must be real, or the network's"),
        ((3, 16, 16), {"in_algebra": "complex", "algebra": "complex"}, "in_algebra=complex: needs 2 channels for a number"),
    ],
)
def test_refused_in_one_line(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    for net in NETS:
        with pytest.raises(ArgumentError) as caught:
            net(shape, 3, **options)
        assert str(caught.value).startswith(message)


def test_complex_images_are_refused() -> None:
    images, y = torch.randn(8, 1, 4, 4, dtype=torch.complex64), torch.arange(8) % 2
    dataset = torch.utils.data.TensorDataset(images, y)
    with pytest.raises(ArgumentError, match=r"\Atrain\[0\]\[0\]=\w+: is of torch.complex64, expected uint8; numbers.*\Z"):
        TaskSequence.from_datasets([dataset], [dataset])


def test_a_run_and_its_reload(tiny: list[str], compose: Callable[..., Config], tmp_path: Path) -> None:
    """It learns, an evaluation finds the same numbers, and the model is rebuilt without the data."""
    small = [word for word in tiny if not word.startswith("trainer.steps")]
    own = ["task=fourier_mnist", "bn=complex", "net.in_algebra=complex", "trainer.steps=60", "observers=[]"]
    dataset = [word for word in small if word.startswith(("data.", "task."))]
    run = train(compose(*own, *small, *dataset, f"run.dir={tmp_path}"))
    values = {"run": str(run), "task": None, "stats": "own", "scenario": None, "inference": None, "device": "auto"}
    found = evaluate(parse_evaluation(values | {"imports": [], "data": {"root": None}}))
    recorded = json.loads((run / "metrics.json").read_text())["average_accuracy"]
    assert sum(found) / len(found) == pytest.approx(recorded, abs=1e-12)
    assert recorded > 0.7
    model = hnetcl.load(run)
    assert model(torch.randn(3, 2, 16, 16), 0).shape == (3, 2)
    assert model.net.get_parameter("body.1.weight").shape == (2, 8, 256)


@pytest.mark.parametrize("method", ["replay", "icarl", "agem"])
def test_memories_hold_what_they_need(method: str, tiny: list[str], compose: Callable[..., Config]) -> None:
    """Exemplars are images, and become numbers when they are drawn; a reservoir holds numbers."""
    small = [word for word in tiny if not word.startswith(("hnet.", "trainer.steps"))]
    config = compose("task=fourier_mnist", *small, f"method={method}", "method.size=12", "scenario=class", "bn=complex")
    parts = build(config, torch.device("cpu"))
    from hnetcl.training import Trainer

    generator = torch.Generator().manual_seed(0)
    Trainer(
        parts.model, parts.sequence, parts.method, parts.optimizer, generator, "class", steps=3, batch_size=8, evaluate="last"
    ).fit()
    shapes = {tuple(value.shape[1:]) for value in parts.method.state_dict().values() if value.ndim == 4}
    assert shapes == {(1, 16, 16) if method == "icarl" else (2, 16, 16)}

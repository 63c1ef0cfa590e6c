"""GDumb: what is in its memory, and what it trains on."""

import random
from collections.abc import Callable

import pytest
import torch

from hnetcl.build import build
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.methods import Run
from hnetcl.methods.gdumb import GDumb
from hnetcl.tasks.exemplars import even_counts

CPU = torch.device("cpu")
Compose = Callable[..., Config]
SMALL = ["method=gdumb", "bn=real", "trainer.steps=3", "trainer.batch_size=8", "observers=[]"]


def greedy(stream: list[int], size: int) -> dict[int, int]:
    """The sampler of Prabhu et al. 2020, algorithm 1: images one by one; the largest class gives way."""
    held: dict[int, int] = {}
    for label in stream:
        share = size // len(held.keys() | {label})
        if held.get(label, 0) < share:
            if sum(held.values()) >= size:
                held[max(held, key=lambda k: held[k])] -= 1
            held[label] = held.get(label, 0) + 1
    return held


def test_counts_are_those_of_the_greedy_sampler() -> None:
    """But for what is left over from equal shares, which the greedy one leaves to chance."""
    draw = random.Random(0)
    for _ in range(200):
        available = [draw.randint(1, 30) for _ in range(draw.randint(1, 8))]
        size = draw.randint(len(available), 120)
        counts = even_counts(available, size)
        assert sum(counts) == min(size, sum(available))
        assert all(0 < n <= most for n, most in zip(counts, available, strict=True))
        full = [n for n, most in zip(counts, available, strict=True) if n < most]
        assert all(n <= min(full) + 1 for n in counts) if full else counts == available
    stream = [label for label in range(5) for _ in range(40)]
    assert all(abs(greedy(stream, 33)[k] - n) <= 1 for k, n in enumerate(even_counts([40] * 5, 33)))


@pytest.mark.parametrize(
    "words",
    [["scenario=class"], ["scenario=task"], ["hnet=chunked"], ["scenario=domain", "task=permuted_mnist"]],
)
def test_a_step_sees_the_memory_alone(words: list[str], tiny: list[str], compose: Compose) -> None:
    """All starts at its initial values; the memory is even over classes; a step's images come from it, none from `draw`."""
    hypernetwork = "hnet=chunked" in words
    small = [word for word in tiny if hypernetwork or not word.startswith("hnet.")]
    parts = build(compose(*small, *SMALL, *words, "method.size=31"), CPU)
    method, sequence, model = parts.method, parts.sequence, parts.model
    assert isinstance(method, GDumb)
    generator = torch.Generator().manual_seed(0)
    start = {name: value.clone() for name, value in model.hnet.named_parameters()}

    def refuse(of: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("asks for a batch of the task")

    for task in range(len(sequence)):
        optimizer, _ = parts.optimizer.make(model, 3)
        run = Run(model, task, sequence, optimizer, generator, batch_size=16)
        method.start_task(run)
        for name, value in model.hnet.named_parameters():
            torch.testing.assert_close(value, start[name], rtol=0, atol=0)
        counts = method.memory.held(sequence.first_class(task + 1))
        assert method.stored_images == sum(counts) == 31
        assert max(counts) - min(counts) <= 1
        allowed = [sequence[t].preprocess(sequence[t].train.images) for t in range(task + 1)]
        labels = [sequence[t].train.labels + sequence.first_output(t) for t in range(task + 1)]
        memory = method.memory
        stored = {
            (memory.images[k].numpy().tobytes(), int(c), int(t))
            for k, (c, t) in enumerate(zip(memory.labels(sequence), memory.tasks(sequence), strict=True))
        }
        for step in range(3):
            run.step = step
            inputs = method.inputs(run, refuse)
            among = [int(inputs.task)] if model.is_conditioned else range(task + 1)
            for x, y in zip(inputs.x, inputs.y, strict=True):
                found = [
                    (sequence[t].train.images[k].numpy().tobytes(), int(y), t)
                    for t in among
                    for k in (allowed[t] == x).flatten(1).all(1).nonzero().flatten()
                    if labels[t][k] == y
                ]
                assert any(each in stored for each in found)
        with torch.no_grad():
            for value in model.hnet.parameters():
                value.add_(1)  # what a training would change


def test_what_can_not_be_kept_is_refused(tiny: list[str], compose: Compose) -> None:
    small = [word for word in tiny if not word.startswith("hnet.")]
    with pytest.raises(ArgumentError, match="at least 6"):
        build(compose(*small, *SMALL, "method.size=5"), CPU)
    with pytest.raises(ArgumentError, match=r"bn\.name.*reference batches"):
        build(compose(*small, "method=gdumb", "bn=virtual"), CPU)
    with pytest.raises(ArgumentError, match="inference=entropy"):
        build(compose(*tiny, *SMALL, "hnet=chunked", "scenario=class", "inference=statistics"), CPU)

"""What a run is made of, and what trains it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hnetcl.build import Parts, build, named
from hnetcl.cli.bounds import bound_config
from hnetcl.config import Config
from hnetcl.errors import ArgumentError
from hnetcl.registry import given, make, names
from hnetcl.tasks import data_folder
from hnetcl.training import Trainer, engine, resolve_device


@contextmanager
def possible(config: Config) -> Iterator[None]:
    """Within, all references can be trained.

    Raises:
        ArgumentError: one can't.
    """
    for name in dict.fromkeys(config.references):
        try:
            with built(bound_config(config, name)):
                pass
        except ArgumentError as error:
            raise ArgumentError("references", name, f"can't be trained beside this run ({error})") from error
    yield


@contextmanager
def built(config: Config) -> Iterator[tuple[Parts, Trainer]]:
    """Within, random numbers, threads and the like are the run's; its parts, and what trains them.

    Raises:
        ArgumentError: the configuration can't be built.
    """
    if config.data["root"] is not None:
        config.data["root"] = str(_data_folder(config.data["root"]).absolute())
    values = dict(config.trainer)
    threads, deterministic, _ = (values.pop(key) for key in ("threads", "deterministic", "precision"))
    device = resolve_device(config.device)
    with engine(config.seed, threads=threads, deterministic=deterministic):
        parts = build(config, device)
        generator = torch.Generator(device).manual_seed(config.seed)
        with named("trainer", inference="", scenario="", head="", logits="", layers="inference"):
            trainer = Trainer(
                *(parts.model, parts.sequence, parts.method, parts.optimizer, generator, config.scenario, config.inference),
                config.active_classes or "seen",
                **values,
            )
        _check_measured(config, trainer)
        yield parts, trainer


def _data_folder(root: str) -> Path:
    try:
        return data_folder(root)
    except ArgumentError as error:
        raise error.within("data") from error


def _check_measured(config: Config, trainer: Trainer) -> None:
    """A sweeper can't look for the best of what is not measured."""
    name, measured = config.optimized_metric, dict[str, Any](trainer.measured())
    counts = trainer.sequence.class_counts  # logits are measured in any case: here those of an image of each class
    measured |= {"logits": [torch.eye(each) for each in counts], "labels": [torch.arange(each) for each in counts]}
    known = [each for each in names("metric") if not math.isnan(make("metric", {"name": each}, **measured))]
    if trainer.sequence.loss != "cross_entropy":
        known = [each for each in known if not {"logits", "labels"} & set(given("metric", each))]
        if name in names("metric") and name not in known:
            rule = f"is about classes, and the sequence is a regression; allowed: {', '.join(known)}"
            raise ArgumentError("optimized_metric", name, rule)
    if name in names("metric") and name not in known:
        rule = f"takes more than trainer.evaluate={trainer.evaluate} measures; allowed with it: {', '.join(known)}"
        raise ArgumentError("optimized_metric", name, rule)

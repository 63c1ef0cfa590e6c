"""Config -> the objects of a run, part by part."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hnetcl.bn import ConvBatchNorm, VirtualBatchNormLayer, convert_batchnorm
from hnetcl.config import Config, Values, takes_norm
from hnetcl.errors import ArgumentError
from hnetcl.inference import add_recognizer
from hnetcl.memory import allocating, require
from hnetcl.methods import Method
from hnetcl.model import HyperModel
from hnetcl.nets import require_logits
from hnetcl.registry import find, make
from hnetcl.tasks import Images, TaskSequence, load_images
from hnetcl.training import OptimizerFactory
from hnetcl.wrapping import trained_layers, untold_init, wrap


@dataclass(frozen=True)
class Parts:
    """What a configuration says, as objects on one device."""

    sequence: TaskSequence
    model: HyperModel
    method: Method
    optimizer: OptimizerFactory


def build(config: Config, device: torch.device) -> Parts:
    """Builds a run's parts. Random numbers come from torch's global generator.

    Raises:
        ArgumentError: a part refuses a value; named as on the command line.
    """
    with named("method"):
        method: Method = _made("method", config.method, Method)
    with named("optimizer"):
        optimizer: OptimizerFactory = _made("optimizer", config.optimizer, OptimizerFactory)
    sequence = build_sequence(config, device)
    model = build_model(config, sequence.in_shape, sequence.num_outputs, len(sequence))
    with named("method"):
        method.check(model, sequence)
    return Parts(sequence, model.to(device), method, optimizer)


def build_model(config: Config, in_shape: Sequence[int], num_outputs: int, num_tasks: int) -> HyperModel:
    """The main network under its hypernetwork."""
    with allocating(*_largest("net", config.net), watch=True):
        net = build_net(config, in_shape, num_outputs)
    options = {key: value for key, value in config.hnet.items() if key != "name"}
    how: dict[str, Any] = {"generate": config.generate, "shared": config.shared, "init": config.init}
    how |= {"precision": config.trainer["precision"], "rows": config.chosen_rows}
    if "stats" in config.bn:  # not every norm has modes
        how["stats"] = config.bn["stats"]
    if config.holds_directly:
        how |= {"num_outputs": num_outputs, "head": config.chosen_head}
    with allocating(*_largest("hnet", config.hnet), watch=True):
        try:
            model = wrap(net, num_tasks, hnet=config.hnet["name"], **how, **options)
        except ArgumentError as error:
            raise error.within("hnet") if error.name in options else error from error
    with named("inference"):
        add_recognizer(model, config.inference)
    with named("method"):
        model.classifier = _made("method", config.method, Method).classifier()
    return model


def build_sequence(config: Config, device: torch.device) -> TaskSequence:
    """The task sequence, its images on the device."""

    def load(dataset: str) -> Images:
        with allocating("dataset", dataset):
            return load_images(dataset, config.data["root"]).to(device)

    with named("task", root="data"):
        given = {"load": load, "seed": config.seed, "root": config.data["root"], "device": device}
        sequence: TaskSequence = _made("task", config.task, TaskSequence, **given)
    return replace(sequence, head=config.chosen_head)


def build_net(config: Config, in_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """The main network, with batch norm as `bn` says."""
    _require_norm_layers(config)
    name, values = config.net["name"], {key: value for key, value in config.net.items() if key != "norm"}
    norm = partial(_norm, config.bn) if config.net.get("norm") == "batch" else None
    made = partial(make, "net", values, in_shape=tuple(in_shape), num_outputs=num_outputs, norm=norm)
    ours = takes_norm(name) and find("net", name).__module__.startswith("hnetcl.")
    with named("net"):
        if ours:
            with torch.device("meta"):  # takes no memory, and draws nothing
                size = sum(value.nbytes for value in made().state_dict().values())
            require(*_largest("net", config.net), size)
        net: nn.Module = made()
    try:
        if not ours:
            require_logits(net, name, in_shape, num_outputs)
    except ArgumentError as error:
        if "model" not in config.net:
            raise
        raise ArgumentError("net.model", config.net["model"], error.allowed) from error
    _require_used(config, net)
    if takes_norm(name):
        return net
    if config.init is None and not config.holds_directly and config.bn["algebra"] != "real" and trained_layers(net):
        raise untold_init(net)  # `wrap` could not tell any more: layers of another algebra start afresh
    # Layers without Gamma and beta stay so, synchronised ones too, unless all are told to be.
    kept = {key for key, default in (("affine", True), ("sync", False)) if config.bn[key] == default}
    try:
        return convert_batchnorm(net, **{key: value for key, value in config.bn.items() if key not in {"name", "rows", *kept}})
    except ArgumentError as error:
        if error.name != "num_features":  # a layer by its path, or an argument of the bn group
            raise error.within("bn" if error.name in config.bn else "net") from error
        rule = f"{config.net.get('model', name)} has a batch-norm layer of {error.value} channels, {error.allowed}"
        raise ArgumentError("bn.algebra", config.bn["algebra"], rule) from error


@contextmanager
def named(group: str, **groups: str) -> Iterator[None]:
    """Within, a refused argument is named with its group in front.

    Args:
        groups: argument -> another group that it belongs to, or "".
    """
    try:
        yield
    except ArgumentError as error:
        where = groups.get(error.name, group)
        if "." in error.name or error.name == where or not where:
            raise
        raise error.within(where) from error


def _made(kind: str, values: Values, wanted: type, **offered: Any) -> Any:
    """A part, which must be of that class."""
    part = make(kind, values, **offered)
    if not isinstance(part, wanted):
        raise ArgumentError(kind, values["name"], f"gives a {type(part).__name__}; allowed: a {wanted.__name__}")
    return part


def _require_norm_layers(config: Config) -> None:
    """Refuses another norm than the batch-norm layer for networks that are not built with the norm that is chosen.

    Raises:
        ArgumentError: the network asks for no norm, or is to have none.
    """
    name, net = config.bn["name"], config.net["name"]
    if name == "layer" or config.net.get("norm") == "batch":
        return
    if takes_norm(net):
        raise ArgumentError("bn.name", name, f"would go unused with net.norm={config.net['norm']}; allowed with it: layer")
    raise ArgumentError("bn.name", name, f"is for networks that ask for their norm layers; allowed with net={net}: layer")


def _require_used(config: Config, net: nn.Module) -> None:
    """Refuses a norm of which the network that was built has no layer.

    Raises:
        ArgumentError: the network has no virtual layer, or no convolution that is one layer with the norm behind it.
    """
    name, modules = config.bn["name"], list(net.modules())
    if name == "virtual" and not any(isinstance(module, VirtualBatchNormLayer) for module in modules):
        raise ArgumentError("bn.name", name, f"net={config.net['name']} has no norm layer; allowed with it: layer")
    if name == "fused" and not any(isinstance(module, ConvBatchNorm) for module in modules):
        rule = f"net={config.net['name']} has no convolution with a norm behind it; allowed with it: layer, virtual"
        raise ArgumentError("bn.name", name, rule)


def _norm(bn: Values, width: int) -> nn.Module:
    with named("bn", num_features=""):
        layer: nn.Module = make("bn", {key: value for key, value in bn.items() if key != "rows"}, num_features=width)
    return layer


def _largest(group: str, values: Values) -> tuple[str, Any]:
    """The key with the largest number, which most probably makes a part too large for memory, and its value."""
    sizes = {key: max(v) if isinstance(v, list) and v and isinstance(v[0], int) else v for key, v in values.items()}
    numbers = {key: size for key, size in sizes.items() if type(size) is int}
    key = max(numbers, key=lambda key: numbers[key], default="model" if "model" in values else "name")
    return f"{group}.{key}", values[key]

"""Config -> the objects of a run. A part's constructor takes the values of its YAML by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hnetcl.bn import BatchNormLayer, convert_batchnorm
from hnetcl.config import Checked, Config, DirectConfig, ModuleConfig
from hnetcl.errors import ArgumentError
from hnetcl.memory import allocating, require
from hnetcl.methods import Finetune, Joint, Method, OutputRegularizer
from hnetcl.model import HyperModel
from hnetcl.nets import MLP, LeNet, custom_net, torchvision_net
from hnetcl.tasks import TaskSequence, load_images, permuted_sequence, split_sequence
from hnetcl.training import OptimizerFactory
from hnetcl.wrapping import trained_layers, untold_init, wrap

SEQUENCES: dict[str, Callable[..., TaskSequence]] = {"split": split_sequence, "permuted": permuted_sequence}
NETS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "lenet": LeNet,
    "torchvision": torchvision_net,
    "custom": custom_net,
}
METHODS: dict[str, Callable[..., Method]] = {
    "output_regularizer": OutputRegularizer,
    "finetune": Finetune,
    "joint": Joint,
}


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
    sequence = build_sequence(config, device)
    model = build_model(config, sequence.in_shape, sequence.num_classes, len(sequence))
    method = _make("method", METHODS, config.method)
    optimizer = build_optimizer(config)
    return Parts(sequence, model.to(device), method, optimizer)


def build_model(config: Config, in_shape: Sequence[int], num_classes: int, num_tasks: int) -> HyperModel:
    """The main network under its hypernetwork."""
    with allocating(*_largest("net", config.net, "model"), watch=True):
        net = build_net(config, in_shape, num_classes)
    options = asdict(config.hnet)
    how: dict[str, Any] = {"generate": config.generate, "shared": config.shared, "init": config.init, "stats": config.bn.stats}
    how |= {"hnet": options.pop("name"), "precision": config.trainer.precision}
    if isinstance(config.hnet, DirectConfig):
        how |= {"num_outputs": num_classes}
    with allocating(*_largest("hnet", config.hnet, "name"), watch=True):
        try:
            return wrap(net, num_tasks, **how, **options)
        except ArgumentError as error:
            raise error.within("hnet") if error.name in options else error from error


def build_sequence(config: Config, device: torch.device) -> TaskSequence:
    """The task sequence, its images on the device."""
    values = asdict(config.task)
    dataset = values.pop("dataset")
    try:
        with allocating("dataset", dataset):
            images = load_images(dataset, config.data.root)
    except ArgumentError as error:
        raise error.within("data" if error.name == "root" else "task") from error
    sequence: TaskSequence = _construct("task", SEQUENCES, values, images=images.to(device), seed=config.seed)
    return sequence


def build_net(config: Config, in_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The main network, with batch norm as `bn` says."""
    bn, shape = asdict(config.bn), {"in_shape": tuple(in_shape), "num_classes": num_classes}
    if not isinstance(config.net, ModuleConfig):
        norm = partial(BatchNormLayer, **bn) if config.net.norm == "batch" else None
        make = partial(_make, "net", NETS, config.net, **shape, norm=norm)
        with torch.device("meta"):  # takes no memory, and draws nothing
            size = sum(value.nbytes for value in make().state_dict().values())
        require(*_largest("net", config.net, "name"), size)
        made: nn.Module = make()
        return made
    net = _make("net", NETS, config.net, **shape)
    direct = isinstance(config.hnet, DirectConfig)
    if config.init is None and not direct and config.bn.algebra != "real" and trained_layers(net):
        raise untold_init(net)  # `wrap` could not tell any more: layers of another algebra start afresh
    # Layers without Gamma and beta stay so, synchronised ones too, unless all are told to be.
    kept = {key for key, default in (("affine", True), ("sync", False)) if bn[key] == default}
    try:
        return convert_batchnorm(net, **{key: value for key, value in bn.items() if key not in kept})
    except ArgumentError as error:
        if error.name != "num_features":  # a layer by its path, or an argument of the bn group
            raise error.within("bn" if error.name in bn else "net") from error
        rule = f"{config.net.model} has a batch-norm layer of {error.value} channels, {error.allowed}"
        raise ArgumentError("bn.algebra", config.bn.algebra, rule) from error


def build_optimizer(config: Config) -> OptimizerFactory:
    """Makes the optimizer of every task."""
    values = asdict(config.optimizer)
    common = {key: values.pop(key) for key in ("name", "lr", "schedule", "weight_decay")}
    try:
        return OptimizerFactory(**common, options=values)
    except ArgumentError as error:
        raise error.within("optimizer") from error


def _largest(group: str, part: Checked, otherwise: str) -> tuple[str, Any]:
    """The key with the largest number, which most probably makes a part too large for memory, and its value."""
    values = asdict(part)
    sizes = {key: max(v) if isinstance(v, list) and v and isinstance(v[0], int) else v for key, v in values.items()}
    numbers = {key: size for key, size in sizes.items() if type(size) is int}
    key = max(numbers, key=lambda key: numbers[key], default=otherwise)
    return f"{group}.{key}", values[key]


def _make(group: str, makers: Mapping[str, Callable[..., Any]], config: Checked, **known_at_run_time: Any) -> Any:
    return _construct(group, makers, asdict(config), **known_at_run_time)


def _construct(group: str, makers: Mapping[str, Callable[..., Any]], values: dict[str, Any], **known_at_run_time: Any) -> Any:
    """Calls the maker that `values` names with the other values as arguments."""
    try:
        return makers[values.pop("name")](**{**values, **known_at_run_time})
    except ArgumentError as error:
        raise error.within(group) from error

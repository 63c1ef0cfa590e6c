"""Any module under a hypernetwork, in one call."""

from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hnetcl.bn import NormLayer, convert_batchnorm, writable_parameters
from hnetcl.errors import ArgumentError
from hnetcl.hnets import DirectHyperNetwork, initial_parameters, make_hypernetwork
from hnetcl.model import HyperModel, Precision, Shared
from hnetcl.patterns import matching
from hnetcl.registry import check_value, checking, declared_options

NORMS = (NormLayer, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)


@checking
def wrap(
    module: nn.Module,
    num_tasks: int,
    *,
    generate: Any = "all",
    shared: Shared = "trained",
    init: Literal["own", "fan_in", "fan_out", "torch", "given"] | None = None,
    stats: str = "tracked",
    precision: Precision = "float32",
    rows: Literal["task", "shared"] = "task",
    hnet: str | Callable[..., nn.Module] = "chunked",
    **options: Any,
) -> HyperModel:
    """Puts a module under a hypernetwork, which writes its parameters for every task.

        model = hnetcl.wrap(torchvision.models.resnet18(num_classes=10), num_tasks=10)
        logits = model(images, task=3)

    The module's batch-norm layers become `BatchNormLayer`s with a row of statistics per task; before training, what is written
    has the scale that the module's own initial values have. Tied parameters are written once. Frozen parameters
    (`requires_grad=False`) are written only where a pattern names them: else they stay what they are, whatever `shared` says.

    A pretrained module: with `init="given"` every task starts at the module's own values exactly, and learns a change of them.

        model = hnetcl.wrap(pretrained, num_tasks=10, init="given")

    Args:
        module: maps a batch to logits; it is changed.
        num_tasks: known from the start.
        generate: what is written: "all", "norm" (the parameters of norm layers), or name patterns as in a shell.
        shared: what becomes of all other parameters, see `HyperModel`.
        init: "own", "fan_in", "fan_out" or "torch": the values whose variance the written parameters start with, see
            `initial_parameters`, the values themselves are lost; "given": the module's own values are kept. None is "own", but
            not for a module that has been trained, as far as its batch norm tells: that is refused, for which of the two is
            meant only its owner knows. A fresh head behind a trained network needs no `init`.
        stats: of the batch-norm layers, see `BatchNormLayer`.
        precision, rows: see `HyperModel`.
        hnet: "direct", or the generator of a hypernetwork: a registered name, or a callable, see `HyperNetwork`.
        options: further arguments of it.

    Raises:
        ArgumentError: a pattern that no parameter matches, nothing to write, parameters that are frozen all, without a size yet
            or of whole numbers, a trained module without `init`, one on the meta device, or an argument of a part is refused.
    """
    _check(module, num_tasks, stats)
    trained = trained_layers(module)
    net = convert_batchnorm(module, stats=stats)
    chosen = _chosen(net, generate)
    values = initial_parameters(net, init or "own")
    initial = {name: values[name] for name in chosen}
    shapes = {name: value.shape for name, value in initial.items()}
    given = init == "given" or (init is None and hnet == "direct" and bool(trained))
    made = make_hypernetwork(shapes, num_tasks, hnet, initial=initial, given=given, **options)
    redraws = init is None and not isinstance(made, DirectHyperNetwork)
    if redraws and any(name.rpartition(".")[0] in trained for name in chosen):
        raise untold_init(net)
    return HyperModel(net, made, shared=shared, precision=precision, rows=rows)


def _check(module: nn.Module, num_tasks: Any, stats: str) -> None:
    """Refuses what would fail later, or never be noticed."""
    if not _is_whole(num_tasks):
        raise ArgumentError("num_tasks", num_tasks, "must be a whole number")
    check_value("stats", stats, declared_options("hnetcl.bn.layer", "BatchNormLayer")["stats"].type)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            rule = f"{name} has no values (device=meta): put the module on a device with to_empty, and give it values"
            raise ArgumentError("module", type(module).__name__, rule)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def trained_layers(net: nn.Module) -> set[str]:
    """The names of all modules up to the last batch-norm layer that has seen batches; empty where none has."""
    names, last = [], 0
    for name, module in net.named_modules():
        names.append(name)
        count = getattr(module, "num_batches_tracked", None)
        if isinstance(count, Tensor) and not count.is_meta and not is_lazy(count) and bool((count > 0).any()):
            last = len(names)
    return set(names[:last])


def untold_init(net: nn.Module) -> ArgumentError:
    """The error for a trained network that would be drawn anew without a word."""
    rule = f"{type(net).__name__} has been trained (its batch norm has seen batches); given keeps its weights, own draws anew"
    return ArgumentError("init", None, rule)


def _chosen(net: nn.Module, generate: Iterable[str] | str) -> list[str]:
    """The names to write, in the module's order."""
    parameters = writable_parameters(net)
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise ArgumentError("module", type(net).__name__, f"{name} has no size yet: call the module with a batch before")
    patterns = _patterns(generate)
    if patterns not in (["all"], ["norm"]):
        chosen = matching("generate", patterns, list(parameters))
    else:
        chosen = _by_kind(net, parameters, patterns[0])
    for name in chosen:
        if not (parameters[name].is_floating_point() or parameters[name].is_complex()):
            rule = f"{name} is of {parameters[name].dtype}, which can't be learned"
            raise ArgumentError("generate", generate, rule)
    return chosen


def _by_kind(net: nn.Module, parameters: dict[str, nn.Parameter], generate: str) -> list[str]:
    """The names of all parameters, or of those of norm layers, but frozen ones."""
    kind, chosen = "parameters", list(parameters)
    if generate == "norm":
        norms = {name for name, module in net.named_modules() if isinstance(module, NORMS)}
        kind, chosen = "norm layer with parameters", [name for name in chosen if name.rpartition(".")[0] in norms]
    if not chosen:
        raise ArgumentError("generate", generate, f"{type(net).__name__} has no {kind}")
    learning = [name for name in chosen if parameters[name].requires_grad]
    if not learning:
        rule = f"all are frozen in {type(net).__name__} (requires_grad=False); name patterns write frozen parameters too"
        raise ArgumentError("generate", generate, rule)
    return learning


def _patterns(generate: Any) -> list[str]:
    """The words of `generate`."""
    words = [generate] if isinstance(generate, str) else list(generate) if isinstance(generate, Iterable) else []
    if not words or not all(isinstance(word, str) and word for word in words):
        raise ArgumentError("generate", repr(generate), "must be all, norm, or patterns of parameters' names")
    return words

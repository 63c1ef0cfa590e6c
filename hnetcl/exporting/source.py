"""A traced module as Python that needs torch alone, for its state dict."""

import re
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from hnetcl.errors import printable

IMPORTS = {"torch": "", "device": "from torch import device", "inf": "from math import inf", "nan": "from math import nan"}
TEMPLATE = """\
{about}

import torch
from torch import nn
{imports}
TENSORS = {{  # name: (learnable, dtype, shape)
{tensors}
}}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        for name, (learnable, dtype, shape) in TENSORS.items():
            *path, last = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            value = torch.empty(shape, dtype=dtype)
            if learnable:
                owner.register_parameter(last, nn.Parameter(value))
            else:
                owner.register_buffer(last, value)

    def forward(self, {argument}):
{reads}
{body}
"""


def python_source(program: ExportedProgram, about: Sequence[str]) -> tuple[str, dict[str, Tensor]]:
    """A file of Python with `class Network(nn.Module)`, and the tensors of its state dict, each in memory of its own.

    Args:
        program: of one input and one output.
        about: lines of the comment at its top.

    Raises:
        ValueError: the graph holds graphs within it, as control flow does, or what is none of torch's operations.
    """
    graph, signature = deepcopy(program.graph), program.graph_signature
    for node in list(graph.nodes):
        if (
            node.target is torch.ops.aten._assert_tensor_metadata.default
        ):  # of the tracing's device, which need not be the user's
            graph.erase_node(node)
        elif node.op == "get_attr":
            raise ValueError(f"torch.export keeps a graph within the graph ({node.target}), which has no state dict")
    tensors, names, argument = {}, {}, ""
    for spec in signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            argument = spec.arg.name
            continue
        if spec.target is None or not isinstance(spec.arg.name, str):
            raise ValueError(f"torch.export keeps {spec.kind.name.lower()}, which has no state dict")
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if not isinstance(value, Tensor):
            raise ValueError(f"{spec.target} is no tensor")
        names[spec.arg.name] = spec.target
        tensors[spec.target] = spec.kind == InputKind.PARAMETER, value.detach().contiguous().clone()
    code = graph.python_code("self")
    used = {node.name for node in graph.nodes if node.op == "placeholder" and node.users}
    _, _, body = code.src.partition("):\n")
    body = "\n".join(f"    {re.sub(r';  .* = None$', '', line)}" for line in body.splitlines() if line.strip())
    body = re.sub(r"return \((\w+),\)", r"return \1", body)
    return TEMPLATE.format(
        about="\n".join(f"# {printable(line)}".rstrip() for line in about),
        imports=_imports(body, code.globals),
        tensors="\n".join(
            f"    {name!r}: ({learns}, {value.dtype}, {tuple(value.shape)})," for name, (learns, value) in tensors.items()
        ),
        argument=argument,
        reads="\n".join(
            f"        {name} = self.get_{'parameter' if tensors[target][0] else 'buffer'}({target!r})"
            for name, target in names.items()
            if name in used
        ),
        body=body,
    ), {name: value for name, (_, value) in tensors.items()}


def _imports(body: str, names: dict[str, object]) -> str:
    """What the body needs besides torch, as lines."""
    found = []
    for name in sorted(name for name in names if re.search(rf"(?<![\w.]){re.escape(name)}\b", body)):
        if name not in IMPORTS and name not in ("math", "operator", "_operator"):
            raise ValueError(f"torch.export uses {name}, which is none of torch's operations")
        found.append(IMPORTS.get(name, f"import {name}"))
    return "".join(f"{line}\n" for line in found if line)

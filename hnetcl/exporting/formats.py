"""The formats: how a traced module becomes files, and how these are loaded back."""

import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hnetcl.errors import ArgumentError, one_line
from hnetcl.exporting.source import python_source

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
LONGEST = 200  # letters of another library's error
Loaded = Callable[[Tensor], Tensor]


def traced(module: nn.Module, images: Tensor, learns: bool) -> ExportedProgram:
    """The module as a graph of torch's operations, for batches of any size from 1.

    Args:
        images: an example of two at least, in memory of its own: of a view torch.export would ask the sizes of the whole.
        learns: traced as where gradients are asked for: modules may take another way without them, which is faster in torch.

    Raises:
        ArgumentError: torch.export can't trace the module.
    """
    try:
        with torch.set_grad_enabled(learns), quiet():
            return torch.export.export(module, (images,), dynamic_shapes={INPUT: {0: Dim(BATCH, min=1)}})
    except Exception as error:  # whatever the module's code raises
        what = one_line(error)[:LONGEST]
        if f"{BATCH} as dynamic but your code specialized" in what:
            what = "its code fixes the number of images, as len(x) does where x.shape[0] does not"
        raise ArgumentError("net", type(_net(module)).__name__, f"torch.export can't trace it ({what})") from error


class Format(ABC):
    """One way of writing a traced module.

    Attributes:
        name: as it is chosen.
        suffix: of the file that is loaded.
        learns: see `traced`.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    learns: ClassVar[bool] = True

    @abstractmethod
    def contents(self, program: ExportedProgram, about: Sequence[str]) -> Mapping[str, bytes]:
        """The files, suffix -> content.

        Args:
            about: lines that say what it is, where a format has comments.

        Raises:
            ValueError: the format can't hold the program.
        """

    @abstractmethod
    def load(self, path: Path) -> Loaded:
        """What a file of this suffix computes, the way its user would load it."""


class Program(Format):
    """`torch.export.save`: loaded by `torch.export.load(path).module()`."""

    name, suffix, learns = "program", ".pt2", False

    def contents(self, program: ExportedProgram, about: Sequence[str]) -> Mapping[str, bytes]:
        buffer = io.BytesIO()
        with quiet():
            torch.export.save(program, buffer)
        return {self.suffix: buffer.getvalue()}

    def load(self, path: Path) -> Loaded:
        module = torch.export.load(path).module()
        return lambda images: module(images)


class Onnx(Format):
    """ONNX, by torch's exporter; loaded by onnxruntime."""

    name, suffix = "onnx", ".onnx"

    def contents(self, program: ExportedProgram, about: Sequence[str]) -> Mapping[str, bytes]:
        try:
            with quiet():
                made = torch.onnx.export(
                    program,
                    input_names=[INPUT],
                    output_names=[OUTPUT],
                    dynamic_shapes={INPUT: {0: BATCH}},
                    dynamo=True,
                    verbose=False,
                )
                assert made is not None
                return {self.suffix: made.model_proto.SerializeToString()}
        except Exception as error:  # a class of torch's own for each step that fails
            raise ValueError(f"torch.onnx.export can't write it ({one_line(error.__cause__ or error)[:LONGEST]})") from error

    def load(self, path: Path) -> Loaded:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


class State(Format):
    """A state dict, and the code of the module that takes it, which needs torch alone."""

    name, suffix = "state", ".safetensors"

    def contents(self, program: ExportedProgram, about: Sequence[str]) -> Mapping[str, bytes]:
        text, tensors = python_source(program, about)
        return {".py": text.encode(), self.suffix: save(tensors, {"format": "pt"})}

    def load(self, path: Path) -> Loaded:
        code: dict[str, Any] = {}
        exec(
            compile(path.with_suffix(".py").read_text(encoding="utf-8"), path.with_suffix(".py"), "exec"), code
        )  # just written
        network: nn.Module = code["Network"]()
        network.load_state_dict(load_file(path))
        network.eval()
        return lambda images: network(images)


FORMATS: dict[str, Format] = {each.name: each for each in (Program(), Onnx(), State())}


@contextmanager
def quiet() -> Iterator[None]:
    """Within, exporters and runtimes don't warn, log or print what they do: their errors are told in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _net(module: nn.Module) -> nn.Module:
    net: nn.Module = getattr(module, "net", module)
    return net

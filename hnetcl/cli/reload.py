"""A finished run, from its directory alone."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from yaml import YAMLError

from hnetcl.build import build_model
from hnetcl.cli.imports import import_all
from hnetcl.cli.parse import parse
from hnetcl.config import Config
from hnetcl.errors import ArgumentError, one_line
from hnetcl.model import HyperModel
from hnetcl.training import RunDirectory, engine, resolve_device


def load(run: str | Path, device: str = "auto", imports: Sequence[str] = ()) -> HyperModel:
    """The model of a finished run, in evaluation mode. The run's data need not be there.

        model = hnetcl.load("outputs/split_mnist/2026-11-26_10-00-00")
        logits = model(images, task=2)           # images standardized as tasks.json says: mean and std of each task
        net = model.plain(2)                     # a task's network as a module of its own

    Args:
        run: its directory.
        device: where the model is put: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" ...
        imports: the modules or files that registered the run's network; a saved run imports nothing by itself.

    Raises:
        ArgumentError: the directory holds no finished run, or a file of it is damaged; its network is not registered.
    """
    directory = RunDirectory(Path(run).expanduser())
    if not directory.holds_run():
        raise ArgumentError("run", run, "holds no run (there is no config.yaml)")
    import_all(imports)
    config = saved_config(directory, "run")
    where = resolve_device(device)
    try:
        tasks = directory.read_tasks()
        with engine(config.seed):
            model = build_model(config, tasks[0]["shape"], len(tasks[0]["classes"]), len(tasks))
        model.load_tensors(directory.load_model())
    except ArgumentError as error:
        raise told_of_imports(error, config) from error
    except (ValueError, IndexError) as error:
        raise ArgumentError("run", run, f"can't be reloaded: {one_line(error)}") from error
    return model.to(where).eval()


def told_of_imports(error: ArgumentError, config: Config) -> ArgumentError:
    """The error with what the run imported, where that may be what is missing."""
    if error.name != "net.model" or not config.imports:
        return error
    return ArgumentError(error.name, error.value, f"{error.allowed}; the run had imports=[{','.join(config.imports)}]")


def saved_config(directory: RunDirectory, name: str) -> Config:
    """The configuration that a run was started with.

    Raises:
        ArgumentError: of that name; the file is missing or damaged.
    """
    try:
        saved = OmegaConf.create(directory.read_text(directory.config))
    except (ValueError, YAMLError) as error:
        raise ArgumentError(name, directory.path, f"config.yaml is damaged ({one_line(error)})") from error
    return parse(saved)

"""Parts of a run by kind and name. The signature of what makes a part is the schema of its configuration.

    @hnetcl.register("method", "ewc")
    class EWC(Method):
        def __init__(self, *, lambda_: Annotated[float, Ge(0)] = 5000.0) -> None: ...

What stands before the `*` is given by the run, by name: a part names what it needs. Every keyword-only argument behind it is a
configuration key, with its type, bounds and default. `method=ewc method.lambda_=100` then makes `EWC(lambda_=100.0)`.

The package's own parts are found in their rooms, one file each, without being imported: their signatures are read from the
source, so that the command line refuses a value before torch is loaded, which takes seconds.
"""

import ast
import builtins
import typing
from collections import abc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from importlib import import_module
from inspect import Parameter, isclass, unwrap
from inspect import signature as call_signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast, get_type_hints

import annotated_types

from hnetcl.errors import ArgumentError, one_of
from hnetcl.values import Option, Options, Widths, check_value, checked, words

__all__ = [
    "Option",
    "Options",
    "Widths",
    "check_value",
    "checked",
    "checking",
    "declared_options",
    "find",
    "given",
    "make",
    "names",
    "options",
    "register",
    "words",
]

PACKAGE = Path(__file__).resolve().parent
KINDS = {
    "task": "tasks",
    "bn": "bn",
    "net": "nets",
    "hnet": "hnets",
    "method": "methods",
    "optimizer": "training",
    "metric": "metrics",
    "inference": "inference",
    "observer": "tracking",
}
"""Kinds of parts, and the room where the package's own lie."""
COSTS = ("compression", "parameters", "seconds", "seconds_total", "steps", "steps_per_second", "stored_images")
"""What metrics.json holds besides the metrics."""
INFERENCE_METRICS = ("task_aware", "task_agnostic", "task_inference_accuracy", "recognizer_bytes")  # where the task is not told
_TAKEN_NAMES = {"metric": (*COSTS, *INFERENCE_METRICS)}
_TAKEN_KEYS = {"net": ("name", "norm"), "bn": ("name", "rows")}  # of a configuration, which the run itself reads

Made = TypeVar("Made", bound=Callable[..., Any])

_PLAIN = {"typing": typing, "collections.abc": abc, "annotated_types": annotated_types}  # what is known without an import
_registered: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in KINDS}


@dataclass(frozen=True)
class _Declared:
    """A part of the package that may not have been imported yet."""

    module: str
    given: tuple[str, ...]
    options: Options


def register(kind: str, name: str) -> Callable[[Made], Made]:
    """Gives a part of one's own a name that the command line knows.

    Whoever calls what makes the part, the values of its keyword-only arguments are checked against their types and bounds.

    Args:
        kind: one of `KINDS`.
        name: for `KIND=NAME`. A name that is registered again means the newest.

    Returns:
        A decorator for what makes the part, a class or a function.

    Raises:
        ArgumentError: there is no such kind; the name is no word, or the package uses it; or the run needs the name of a key.
    """
    if kind not in KINDS:
        raise one_of("kind", kind, KINDS)
    if not isinstance(name, str) or not name.isidentifier():
        raise ArgumentError("name", name, "must be a word of letters, digits and _")
    if name in _TAKEN_NAMES.get(kind, ()):
        raise ArgumentError("name", name, f"metrics.json has another {kind} of that name; choose another name")

    def registered(made: Made) -> Made:
        for parameter in call_signature(made).parameters.values():
            if parameter.kind is Parameter.KEYWORD_ONLY and parameter.name in _TAKEN_KEYS.get(kind, ("name",)):
                rule = f"{kind}.{parameter.name} is a key of the run's own; choose another name for the argument of {name}"
                raise ArgumentError("name", parameter.name, rule)
        own = _declared(kind).get(name)
        if own is not None and own.module != made.__module__:
            raise ArgumentError("name", name, f"{kind}={name} is a part of hnetcl; choose another name")
        _registered[kind][name] = checking(made)
        return cast(Made, _registered[kind][name])

    return registered


def names(kind: str) -> list[str]:
    """The parts of a kind that can be chosen: the package's own, and those that were registered."""
    return sorted(_declared(kind).keys() | _registered[kind].keys())


def given(kind: str, name: str) -> tuple[str, ...]:
    """The names of what the run gives to a part, as far as the part names it.

    Raises:
        ArgumentError: there is no part of that name.
    """
    if name in _declared(kind):
        return _declared(kind)[name].given
    parameters = call_signature(find(kind, name)).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD))


def options(kind: str, name: str) -> Options:
    """The configuration keys of a part.

    Raises:
        ArgumentError: there is no part of that name.
    """
    if name in _declared(kind):
        return _declared(kind)[name].options
    return _inspected(find(kind, name))


def find(kind: str, name: str) -> Callable[..., Any]:
    """What makes a part.

    Raises:
        ArgumentError: there is no part of that name.
    """
    own = _declared(kind).get(name)
    if own is not None:
        import_module(own.module)
    if name not in _registered[kind]:
        raise one_of(kind, name, names(kind))
    return _registered[kind][name]


def make(kind: str, values: Mapping[str, Any], **offered: Any) -> Any:
    """A part, of values as the configuration has them: its `name`, and its keys.

    Args:
        offered: what the run can give; the part gets what it names.

    Raises:
        ArgumentError: there is no part of that name, it asks for what the run has not, or it refuses a value.
    """
    maker, name = find(kind, values["name"]), values["name"]
    own = {key: value for key, value in values.items() if key != "name"}
    own |= {key: offered[key] for key in given(kind, name) if key in offered}
    try:
        call_signature(maker).bind(**own)
    except TypeError as error:
        rule = f"{error}; a {kind} is given {', '.join(offered) or 'nothing'}, and arguments behind * are its configuration"
        raise ArgumentError(kind, name, rule) from error
    return maker(**own)


def checking(made: Made) -> Made:
    """A decorator: the same class or function, which refuses keyword-only arguments that its signature does not allow.

    Raises:
        ArgumentError: when it is called.
    """
    known: list[Options] = []  # read at the first call: a module's own types may come after the part

    def check(values: Mapping[str, Any]) -> None:
        if not known:
            known.append(_inspected(made))
        for key, option in known[0].items():
            if key in values:
                check_value(key, values[key], option.type)

    if isclass(made):
        if "__init__" in vars(made):
            original = made.__init__

            @wraps(original)
            def init(self: Any, *args: Any, **values: Any) -> None:
                check(values)
                original(self, *args, **values)

            type.__setattr__(made, "__init__", init)
        return made

    @wraps(made)
    def call(*args: Any, **values: Any) -> Any:
        check(values)
        return made(*args, **values)

    return cast(Made, call)


# ---------------------------------------------------------------------- reading signatures


def _inspected(made: Callable[..., Any]) -> Options:
    """The configuration keys of a part that has been imported."""
    function = unwrap(made.__init__ if isclass(made) else made)
    hints: dict[str, Any] = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        one = SimpleNamespace(__annotations__={name: hint})
        with suppress(NameError):  # a type that only a type checker imports: its values are not checked
            hints |= get_type_hints(one, function.__globals__, include_extras=True)
    parameters = call_signature(made).parameters.values()
    return {p.name: Option(hints.get(p.name, Any), p.default) for p in parameters if p.kind is Parameter.KEYWORD_ONLY}


@cache
def _declared(kind: str) -> dict[str, _Declared]:
    """The package's own parts of a kind, by name."""
    room = PACKAGE / KINDS[kind]
    files = sorted(room.rglob("*.py")) if room.is_dir() else [room.with_suffix(".py")]
    found = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        if f'@register("{kind}"' not in text:
            continue
        module = ".".join(["hnetcl", *file.relative_to(PACKAGE).with_suffix("").parts])
        for node in ast.parse(text).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "register":
                    of, name = map(ast.literal_eval, mark.args)
                    if of == kind:
                        found[name] = _Declared(module, _declared_given(module, node.name), declared_options(module, node.name))
    return found


@cache
def declared_options(module: str, name: str) -> Options:
    """The keyword-only arguments of a class or function of the package, read from its source.

    Types that only an import would tell (torch's, say) are left open: no value of a command line is of such a type.
    """
    found = _Names.of(module).function(name)
    if found is None:
        return {}
    names, node = found
    arguments = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return {
        argument.arg: Option(names.value(argument.annotation), Parameter.empty if default is None else names.value(default))
        for argument, default in arguments
    }


def _declared_given(module: str, name: str) -> tuple[str, ...]:
    found = _Names.of(module).function(name)
    return () if found is None else tuple(argument.arg for argument in found[1].args.args if argument.arg != "self")


class _AnyName(type):
    """Of a class that has every attribute, and every kind of elements: itself."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: Any) -> type:
        return cls


class _Unread(metaclass=_AnyName):
    """In place of a type that is not read."""


class _Names(dict[str, Any]):
    """What the names of a module of the package mean, as far as its source and that of other modules of the package tells."""

    def __init__(self, module: str) -> None:
        super().__init__()
        path = PACKAGE.joinpath(*module.split(".")[1:])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.imported: dict[str, tuple[str, str]] = {}  # name -> module, name there
        self.assigned: dict[str, ast.expr] = {}
        self.definitions: dict[str, ast.ClassDef | ast.FunctionDef] = {}
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module != module:  # of itself it would look on and on
                self.imported |= {a.asname or a.name: (node.module or "", a.name) for a in node.names}
            elif isinstance(node, ast.Import):
                self.update({a.name: _PLAIN[a.name] for a in node.names if a.name in _PLAIN})
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.assigned[node.targets[0].id] = node.value
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                self.definitions[node.name] = node

    @staticmethod
    @cache
    def of(module: str) -> "_Names":
        return _Names(module)

    def function(self, name: str) -> "tuple[_Names, ast.FunctionDef] | None":
        """A function, or a class's constructor, be it inherited within the package, and the names where it stands."""
        module, original = self.imported.get(name, ("", ""))
        if module.startswith("hnetcl."):
            return _Names.of(module).function(original)
        node = self.definitions.get(name)
        if node is None or isinstance(node, ast.FunctionDef):
            return None if node is None else (self, node)
        inits = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if inits:
            return self, inits[0]
        bases = (self.function(base.id) for base in node.bases if isinstance(base, ast.Name))
        return next((base for base in bases if base is not None), None)

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):  # what debuggers look for in a frame
            raise KeyError(name)
        if name in self.assigned:
            self[name] = self.value(self.assigned[name])
        elif name in self.imported:
            module, original = self.imported[name]
            if module in _PLAIN:
                self[name] = getattr(_PLAIN[module], original)
            else:
                self[name] = _Names.of(module)[original] if module.startswith("hnetcl.") else _Unread
        else:
            self[name] = vars(builtins).get(name, _Unread)
        return self[name]

    def value(self, node: ast.expr | None) -> Any:
        """What an expression means; Any where there is none."""
        return Any if node is None else eval(compile(ast.Expression(node), "<annotation>", "eval"), {}, self)

"""Signatures are the schema, read from the source or imported, of the package's parts and of users' own."""

import subprocess
import sys
from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le

import hnetcl
from hnetcl import registry
from hnetcl.errors import ArgumentError
from hnetcl.registry import Option, Widths, checked, find, given, make, names, options, register

pytestmark = pytest.mark.usefixtures("users_parts")
PARTS = [(kind, name) for kind in registry.KINDS for name in names(kind)]


def agree(read: Any, told: Any) -> bool:
    """Whether two types are the same, but for what only an import can tell."""
    if read is registry._Unread:
        return True
    if isinstance(read, list):
        return isinstance(told, list) and len(read) == len(told) and all(map(agree, read, told))
    inner, others = get_args(read), get_args(told)
    if not inner or not others:
        return bool(read == told)
    alike = get_origin(read) == get_origin(told) or get_origin(Union[read, None]) == get_origin(Union[told, None])  # noqa: UP007
    return alike and len(inner) == len(others) and all(map(agree, inner, others))


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_the_source_says_what_the_signature_says(kind: str, name: str) -> None:
    """Keys, types, bounds and defaults; and what the run gives."""
    read, made = options(kind, name), find(kind, name)
    told = registry._inspected(made)
    assert list(read) == list(told)
    for key, option in read.items():
        assert option.default == told[key].default, key
        assert agree(option.type, told[key].type), key
    before = [p.name for p in signature(made).parameters.values() if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    assert list(given(kind, name)) == before


def test_the_package_is_known_without_torch() -> None:
    """Its parts, their keys, and a whole configuration."""
    code = (
        "import sys\nfrom hnetcl import config, registry\n"
        "print(sum(len(registry.options(kind, name)) for kind in registry.KINDS for name in registry.names(kind)))\n"
        "print(len(config.all_keys()))\n"
        "assert 'torch' not in sys.modules\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(int(number) > 60 for number in process.stdout.split())


def test_register_refuses() -> None:
    with pytest.raises(ArgumentError, match=r"^kind=nets: did you mean net\?"):
        register("nets", "mine")
    with pytest.raises(ArgumentError, match=r"^name=mlp: net=mlp is a part of hnetcl; choose another name"):
        register("net", "mlp")(lambda: None)
    register("method", "mine")(lambda: None)
    with pytest.raises(ArgumentError, match=r"^method=mien: did you mean mine\? allowed: .*finetune.*mine"):
        find("method", "mien")
    assert hnetcl.register is register
    with pytest.raises(ArgumentError, match=r"^name=seconds: metrics.json has another metric of that name"):
        register("metric", "seconds")
    with pytest.raises(ArgumentError, match=r"^name=3: must be a word"):
        register("net", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "key"), [("net", "norm"), ("bn", "rows"), ("method", "name"), ("observer", "name")])
def test_keys_of_the_runs_own_are_refused(kind: str, key: str) -> None:
    """They would never reach the part."""
    names: dict[str, Any] = {}
    exec(f"def part(size=1, *, {key}=3): return {key}", names)
    with pytest.raises(ArgumentError, match=rf"^name={key}: {kind}.{key} is a key of the run's own"):
        register(kind, "mine")(names["part"])


def test_a_type_that_is_not_there_leaves_the_others_checked() -> None:
    def made(in_shape: "Sequence[int]", *, width: "Annotated[int, Ge(1)]" = 8, deep: "Nowhere" = None) -> int:  # type: ignore[name-defined]  # noqa: F821
        return width

    register("net", "partly")(made)
    assert options("net", "partly") == {"width": Option(Annotated[int, Ge(1)], 8), "deep": Option(Any, None)}
    for width in (0, "abc"):
        with pytest.raises(ArgumentError, match="width="):
            make("net", {"name": "partly", "width": width}, in_shape=(1,))


def test_the_newest_of_a_name_is_meant() -> None:
    for value in (1, 2):
        register("metric", "mine")(lambda R, value=value: value)
    assert make("metric", {"name": "mine"}, R=None) == 2


def test_parts_with_and_without_annotations() -> None:
    """Functions and classes; what is not annotated may be anything, what has no default must be given."""

    @register("method", "bare")
    def bare(model=None, *, first, second=3):  # type: ignore[no-untyped-def]
        return model, first, second

    @register("method", "told")
    class Told:
        def __init__(self, model: Any, *, first: int, second: Annotated[float, Ge(0)] = 3.0) -> None:
            self.values = model, first, second

    @register("method", "heir")
    class Heir(Told):
        pass

    for name in ("bare", "told", "heir"):
        assert given("method", name) == ("model",)
        assert list(options("method", name)) == ["first", "second"]
        assert options("method", name)["first"].required
        assert name in names("method")
    assert options("method", "bare") == {"first": Option(Any), "second": Option(Any, 3)}
    assert make("method", {"name": "bare", "first": "x"}, model=1, other=2) == (1, "x", 3)
    for name in ("told", "heir"):
        assert make("method", {"name": name, "first": 1, "second": 2}, model=1, other=2).values == (1, 1, 2)
        with pytest.raises(ArgumentError, match=r"^first=x: must be of type int"):
            make("method", {"name": name, "first": "x"}, model=1)
        with pytest.raises(ArgumentError, match=rf"^method={name}: missing .*'model'; a method is given task, and arguments"):
            make("method", {"name": name, "first": 1}, task=1)


@registry.checking
class Probe:
    def __init__(
        self,
        *,
        whole: int = 1,
        real: float = 1.0,
        flag: bool = False,
        word: str = "a",
        words: Sequence[str] = (),
        widths: Widths = (8,),
        choice: Literal["first", "second"] = "first",
        choices: Sequence[Literal["first", "second"]] = (),
        bounded: Annotated[float, Gt(0), Le(1)] = 0.5,
        many: Annotated[int, Ge(1), Le(2**31)] | None = None,
        table: dict[str, Any] | None = None,
    ) -> None:
        self.values = {**locals()}


REFUSED: list[tuple[str, Any, str]] = [
    ("whole", 1.0, "must be of type int"),
    ("whole", True, "must be of type int"),
    ("whole", "1", "must be of type int"),
    ("whole", None, "must be of type int"),
    ("real", "1", "must be of type float"),
    ("real", True, "must be of type float"),
    ("real", float("nan"), "must be a finite number"),
    ("real", float("-inf"), "must be a finite number"),
    ("flag", 1, "must be of type bool"),
    ("flag", "yes", "must be of type bool"),
    ("word", ["a"], "must be of type str"),
    ("words", "abc", "must be of type list[str]"),
    ("words", [1], "must be of type list[str]"),
    ("widths", [], "must not be empty"),
    ("widths", 8, "must be of type list[int]"),
    ("widths", [8, 0], "every value must be at least 1"),
    ("widths", [0, 0], "every value must be at least 1"),
    ("choice", "secnd", "did you mean second? allowed: first, second"),
    ("choice", 3, "allowed: first, second"),
    ("choices", ["first", "third"], "every value must be one of first, second"),
    ("bounded", 0.0, "must be greater than 0 and at most 1"),
    ("bounded", 2, "must be greater than 0 and at most 1"),
    ("bounded", float("nan"), "must be a finite number, greater than 0 and at most 1"),
    ("many", 0, "must be at least 1 and at most 2147483648"),
    ("many", 1.5, "must be of type int | None"),
    ("table", [1], "must be of type dict[str, Any] | None"),
]


@pytest.mark.parametrize(("key", "value", "rule"), REFUSED)
def test_a_value_is_refused_alike_in_python_and_in_a_configuration(key: str, value: Any, rule: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Probe(**{key: value})
    assert str(caught.value) == f"{key}={value}: {rule}"
    with pytest.raises(ArgumentError) as caught:
        checked({key: value}, registry._inspected(Probe), "method.")
    assert str(caught.value) == f"method.{key}={value}: {rule}"


def test_what_is_taken() -> None:
    """A whole number where a real one is wanted, tuples for lists, a word of digits from a command line; else as it is."""
    known = registry._inspected(Probe)
    assert checked({"real": 2, "widths": (3, 4), "word": 7}, known) == {
        "whole": 1,
        "real": 2.0,
        "flag": False,
        "word": "7",
        "words": [],
        "widths": [3, 4],
        "choice": "first",
        "choices": [],
        "bounded": 0.5,
        "many": None,
        "table": None,
    }
    assert Probe(real=2, widths=(3, 4), many=None, table={"a": [1]}).values["table"] == {"a": [1]}


def test_keys_that_are_missing_or_unknown() -> None:
    known = {"first": Option(int), "second": Option(int, 1)}
    with pytest.raises(ArgumentError, match=r"^method.first=None: is missing$"):
        checked({}, known, "method.")
    with pytest.raises(ArgumentError, match=r"^method.secnd=1: there is no such key; did you mean method.second\? .*\)$"):
        checked({"first": 1, "secnd": 1}, known, "method.", note=" (method=mine)")
    with pytest.raises(TypeError, match="secnd"):
        Probe(secnd=1)  # type: ignore[call-arg]

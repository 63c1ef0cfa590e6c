"""The words that a user typed, made ready for Hydra."""

import os
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

from hnetcl.config import CHOSEN
from hnetcl.errors import ArgumentError, one_of

NO_GROUPS: Mapping[str, Sequence[str]] = MappingProxyType({})
PATHS = ("run", "run.dir", "data.root", "hydra.sweep.dir")  # their values are taken as text, whatever characters they have


def prepared(words: Sequence[str], groups: Mapping[str, Sequence[str]] = NO_GROUPS) -> list[str]:
    """The words as Hydra must be told them.

    Paths that Hydra can't read, or would read as something else than text, are quoted, and `~` becomes the home directory.
    `trainer.epochs=` without `trainer.steps=` takes the place of the steps.

    Args:
        words: of the command line, without the program.
        groups: that need an option, and their options.

    Raises:
        ArgumentError: letters that the locale can't read, or no name chosen from a group (`task=null`, `task=[a,b]`, `~task`).
    """
    for word in words:
        if any(0xD800 <= ord(letter) < 0xE000 for letter in word):  # what Python makes of bytes that it can't read
            key, _, shown = word.encode(errors="backslashreplace").decode().partition("=")
            raise ArgumentError(key, shown, "can't be read in this locale; PYTHONUTF8=1 takes it as UTF-8")
    keys = [_key(word) for word in words]
    made: list[str] = []
    for key, word in zip(keys, words, strict=True):
        if key in groups:
            _check_options(key, word, groups[key])
        if key in PATHS:
            made.append(_path(word, sweeps=is_multirun(words)))
        elif word.partition(".")[0] in CHOSEN and "." in key:  # a key that its YAML may leave out, which Hydra would refuse
            made.append(f"++{word}")
        else:
            made.append(word)
            if key == "trainer.epochs" and "trainer.steps" not in keys and "null" not in word:
                made.append("trainer.steps=null")
    return made


def quoted(key: str, text: str) -> str:
    """`key=text` as Hydra reads it, for any text."""
    return f"{key}={text if _is_plain(text) else QuotedString(text, Quote.single).with_quotes()}"


def is_multirun(words: Sequence[str]) -> bool:
    return any(word in ("-m", "--multirun") or word.upper() == "HYDRA.MODE=MULTIRUN" for word in words)


def pasted(words: Sequence[str]) -> str:
    """Words as a shell takes them; those that Hydra needs quoted within are in double quotes, which reads best."""
    return " ".join(f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word) for word in words)


def as_text(word: str) -> str | None:
    """A word that Hydra can't read, its value quoted as a shell and Hydra take it; None where that would not help."""
    key, equals, text = word.partition("=")
    if not equals or word.startswith("-") or read(word) is not None:
        return None
    if text.startswith("[") and text.endswith("]"):
        values = [quoted("", value.strip())[1:] for value in text[1:-1].split(",")]
        made = f"{key}=[{','.join(values)}]"
    else:
        made = quoted(key, text)
    return None if read(made) is None else pasted([made])


def read(word: str) -> Override | None:
    """A word as Hydra reads it; None where it can't, which Hydra tells by itself, or where it is a flag."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _key(word: str) -> str:
    return "" if word.startswith("-") else word.partition("=")[0].lstrip("+~")


def _is_plain(text: str) -> bool:
    override = read(f"path={text}")
    return override is not None and not override.is_sweep_override() and override.value() == text


def _path(word: str, sweeps: bool) -> str:
    key, equals, text = word.partition("=")
    if not equals:
        return word
    override = read(word)
    as_typed = text == "null" or text[:1] in ("'", '"')
    if override is not None and (as_typed or (sweeps and override.is_sweep_override())):
        return word
    return quoted(key, os.path.expanduser(text))


def _check_options(group: str, word: str, names: Sequence[str]) -> None:
    override = read(word)
    if override is None:
        return
    value = None if override.is_delete() else override.value()
    for option in value.list if isinstance(value, ChoiceSweep) else [value]:
        if not isinstance(option, str | QuotedString):
            raise one_of(group, "null" if option is None else option, names)

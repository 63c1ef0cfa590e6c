"""Files of tensors that know when they are damaged."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

KEY = "hnetcl"  # of the metadata; a single one, for safetensors writes several in any order
BLANK = "0" * 64
FORMAT = 1


def sealed(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file whose metadata hold facts, and the SHA-256 of the whole file with that sum's own digits as zeros.

    Args:
        facts: JSON values.
    """
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        own[name] = value.clone() if storage in seen else value  # safetensors refuses memory that tensors share
        seen.add(storage)
    metadata = json.dumps({"format": FORMAT, "sha256": BLANK, **facts})
    content = bytearray(save(own, {KEY: metadata}))
    place = content.index(BLANK.encode())
    content[place : place + len(BLANK)] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def unsealed(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of such a file.

    Raises:
        ValueError: it is damaged, or no such file; without the file's name.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY])
        digest = facts["sha256"]
        place = content.index(digest.encode(), 8, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
        raise ValueError("is damaged, or was not written by hnetcl") from None
    sum_ = hashlib.sha256(memoryview(content)[:place])
    sum_.update(BLANK.encode())
    sum_.update(memoryview(content)[place + len(BLANK) :])
    if sum_.hexdigest() != digest:
        raise ValueError("is damaged (its checksum differs)")
    if facts.get("format") != FORMAT:
        raise ValueError(f"is of format {facts.get('format')}; this version of hnetcl reads {FORMAT}")
    try:
        return load(content), facts
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is damaged ({error})") from None


def digest(content: bytes) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def packed(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Nested dicts, lists and tuples of tensors and plain values as named tensors and JSON.

    Raises:
        TypeError: holds anything else; names where.
    """
    tensors: dict[str, Tensor] = {}

    def pack(value: Any, at: str) -> Any:
        if isinstance(value, Tensor):
            while at in tensors:  # a key may have dots
                at += "'"
            tensors[at] = value
            return {"tensor": at}
        if isinstance(value, Mapping):
            return {"dict": [[pack(key, at), pack(each, f"{at}.{key}")] for key, each in value.items()]}
        if isinstance(value, list | tuple):
            items = [pack(each, f"{at}.{i}") for i, each in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        if value is None:
            return None
        raise TypeError(f"{at} is a {type(value).__name__}, which no file can keep")

    return tensors, pack(value, "state")


def unpacked(tensors: Mapping[str, Tensor], value: Any) -> Any:
    """The inverse of `packed`.

    Raises:
        ValueError: is not what `packed` makes.
    """
    if isinstance(value, list):
        return [unpacked(tensors, each) for each in value]
    if not isinstance(value, dict):
        return value
    try:
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {unpacked(tensors, key): unpacked(tensors, each) for key, each in content}
        if kind == "tuple":
            return tuple(unpacked(tensors, each) for each in content)
        if kind == "float":
            return float(content)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError("is damaged (its structure)")

"""Files that the operator names when an engine starts: what a method has learned.

A spec names one by the name that it was allowed under, so that no client has a path read. They are
safetensors files of finite numbers, read and checked once, when they are allowed. What a file has
to hold is its method's to say.
"""

import json
import os
import re
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tokenlens.errors import SpecError
from tokenlens.methods._shared.named_file import NAME

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VARIABLE = "TOKENLENS_FILES"
"""A variable of the environment: a JSON object of names and paths."""

MAX_FILES = 64
"""Files that are allowed at once."""

MAX_BYTES = 4 << 30


class OperatorFile(NamedTuple):
    """A file that was read.

    Attributes
    ----------
    number
        In this process; a column of a request can hold it.
    tensors
        By name, float32 on the CPU.
    about
        The file's own metadata.
    """

    name: str
    number: int
    tensors: "Mapping[str, Tensor]"
    about: Mapping[str, str]


_NAMED: dict[str, OperatorFile] = {}
# By number: a request that was bound before a file was read again goes on with what it was.
_READ: list[OperatorFile] = []
_LOCK = threading.RLock()


def allow(files: "Mapping[str, str | os.PathLike[str]]") -> tuple[str, ...]:
    """Read files, and let specs name them; a name that is allowed again names the new file.

    Returns
    -------
    tuple of str
        Their names.

    Raises
    ------
    SpecError
        A name or a file that cannot be: not safetensors, no numbers, some that are not finite.
    """
    for name, path in files.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise SpecError.of("files", name, f"names that match {NAME}")
        if not isinstance(path, (str, os.PathLike)):
            raise SpecError.of(f"files.{name}", path, "the path of a safetensors file")
        with _LOCK:
            if name not in _NAMED and len(_NAMED) >= MAX_FILES:
                raise SpecError.of("files", name, f"at most {MAX_FILES} files")
            _read(name, os.fspath(path))
    return tuple(files)


def allow_from_environment() -> tuple[str, ...]:
    """Allow what :data:`VARIABLE` names and nobody has allowed yet."""
    named = from_environment()
    return allow({name: path for name, path in named.items() if name not in _NAMED})


def from_environment() -> "dict[str, str]":
    """Names and paths that :data:`VARIABLE` holds; nothing is read.

    Raises
    ------
    SpecError
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return {}
    try:
        named = json.loads(text)
    except ValueError:
        named = None
    if not isinstance(named, dict):
        raise SpecError.of(VARIABLE, text, 'a JSON object such as {"east": "vector.safetensors"}')
    return named


def _read(name: str, path: str) -> None:
    import torch
    from safetensors import SafetensorError, safe_open

    field, tensors = f"files.{name}", {}
    try:
        size = os.stat(path).st_size
        if size > MAX_BYTES:
            raise SpecError.of(field, f"{size} bytes of {path}", f"at most {MAX_BYTES}")
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    allowed = "floating-point tensors alone"
                    raise SpecError.of(field, f"{key} of {tensor.dtype} in {path}", allowed)
                tensor = tensor.float()
                if not bool(torch.isfinite(tensor).all()):
                    got = f"not finite: {key} of {path}"
                    raise SpecError.of(field, got, "a file without NaN and infinities")
                tensors[key] = tensor
    except (SafetensorError, OSError) as error:
        got = f"{error}: {path}"
        raise SpecError.of(field, got, "a safetensors file that can be read") from None
    known = _NAMED.get(name)
    if known is not None and _same(known, tensors, about):
        return
    _NAMED[name] = OperatorFile(name, len(_READ), tensors, about)
    _READ.append(_NAMED[name])


def _same(known: OperatorFile, tensors: "Mapping[str, Tensor]", about: Mapping[str, str]) -> bool:
    import torch

    return (
        known.about == about
        and known.tensors.keys() == tensors.keys()
        and all(torch.equal(known.tensors[key], tensors[key]) for key in tensors)
    )


def find(field: str, name: str) -> OperatorFile:
    """The file that a spec names.

    Raises
    ------
    SpecError
        Names the field, and the files that are allowed.
    """
    found = _NAMED.get(name)
    if found is None:
        allowed = ", ".join(sorted(_NAMED)) or "none: the operator has allowed no file"
        raise SpecError.of(field, name, f"a file that the operator allows by name ({allowed})")
    return found


def numbered(number: int) -> OperatorFile:
    """The file of a column."""
    return _READ[number]


@lru_cache(maxsize=64)
def on_device(number: int, device: "torch.device") -> "Mapping[str, Tensor]":
    """The tensors of a column's file on a device; the last ones are kept there."""
    return {name: tensor.to(device) for name, tensor in _READ[number].tensors.items()}


def tensor_of(
    file: OperatorFile, field: str, key: str, shape: "tuple[int | None, ...]"
) -> "Tensor":
    """A tensor of a file, held to a shape; ``None`` for any size.

    Raises
    ------
    SpecError
        Names the file, the tensor, what was got and what is allowed.
    """
    found = file.tensors.get(key)
    wanted = f"{key}: [{', '.join('any' if size is None else str(size) for size in shape)}]"
    fits = (
        found is not None
        and found.dim() == len(shape)
        and all(size in (None, got) for size, got in zip(shape, found.shape, strict=True))
    )
    if found is None or not fits:
        has = {name: list(tensor.shape) for name, tensor in list(file.tensors.items())[:8]}
        raise SpecError.of(field, f"{file.name} with {has}", f"a file with {wanted}")
    return found

"""Weights by declarative tables, both ways and strict: every variable is matched once, every tensor is used once."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from kerasllm import backend
from kerasllm.convert.memory import check_memory
from kerasllm.convert.readers import TensorSource
from kerasllm.errors import InputError
from kerasllm.models import variable_name

Shape = tuple[int, ...]


class Row(NamedTuple):
    """One line of a weight table.

    Attributes:
        ours: Path of our variable, `{i}` for the number of a block.
        theirs: Name of their tensor, with the same `{i}`.
        transform: Name in `TRANSFORMS`: how their tensor becomes our variable, and back.
        part: `(k, n)` where their tensor holds n of our variables side by side along its last axis, ours as number k.
    """

    ours: str
    theirs: str
    transform: str = "same"
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Table:
    """How a family's weights are named in one format.

    Args:
        rows: One for each variable that a model of the family may have. Rows of variables that a model lacks (biases,
            a projection that is tied) are passed over.
        prefix: Starts every name but those of heads; files without it are read too.
        copies: Their tensors that repeat another one (a tied projection): name to the name of the original. They are
            left out in writing; in reading they must be equal to the original.
        unused: Patterns of their tensors that hold nothing trained or nothing of ours (buffers, heads of pretraining).
    """

    rows: tuple[Row, ...]
    prefix: str = ""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def under_head(self, *rows: Row, copies: Mapping[str, str] | None = None, unused: tuple[str, ...] = ()) -> "Table":
        """The table of a task head over models of this one.

        Args:
            *rows: Of the head's own variables.
            copies: As of a table, beside this one's.
            unused: As of a table, beside this one's.
        """
        inner = tuple(row._replace(ours=f"backbone/{row.ours}") for row in self.rows)
        return Table(inner + rows, self.prefix, {**self.copies, **(copies or {})}, self.unused + unused)


class Transform(NamedTuple):
    """A two-way change of an array; `size` is the width of an attention head."""

    read: Callable[[np.ndarray, int], np.ndarray]
    write: Callable[[np.ndarray, int], np.ndarray]
    their_shape: Callable[[Shape], Shape]


def _reversed(shape: Shape) -> Shape:
    return shape[::-1]


def _halves(kernel: np.ndarray, size: int) -> np.ndarray:
    """Rows `(heads * head_dim, in)` with rotary pairs side by side, as llama.cpp and llama2.c have them, to halves."""
    pairs = kernel.reshape(-1, size // 2, 2, *kernel.shape[1:])
    return pairs.swapaxes(1, 2).reshape(kernel.shape).T


def _pairs(kernel: np.ndarray, size: int) -> np.ndarray:
    kernel = kernel.T
    halves = kernel.reshape(-1, 2, size // 2, *kernel.shape[1:])
    return halves.swapaxes(1, 2).reshape(kernel.shape)


TRANSFORMS = {
    "same": Transform(lambda a, _: a, lambda a, _: a, lambda shape: shape),
    # A PyTorch kernel is (out, in), a Keras kernel (in, out).
    "transpose": Transform(lambda a, _: a.T, lambda a, _: a.T, _reversed),
    "rotary_pairs": Transform(_halves, _pairs, _reversed),
}


class _Use(NamedTuple):
    """Which variables one tensor holds, in the order of its parts."""

    name: str
    transform: Transform
    parts: tuple[str, ...]


def read_weights(model: keras.Model, source: TensorSource, table: Table, *, also_unused: Sequence[str] = ()) -> None:
    """Give a model that was built in `backend.deferred` the weights of a checkpoint, one tensor at a time.

    Names, shapes and the memory there is are checked before anything is read (and then, whether a tensor that repeats
    another is equal to it). A tensor is cast to its variable's dtype before the next one is read, so that memory holds
    the model and a tensor or two.

    Args:
        model: The model.
        source: The checkpoint.
        table: How its tensors are named.
        also_unused: Patterns of tensors that this model has no use for, beside the table's.

    Raises:
        InputError: A variable has no tensor, a tensor no variable, a shape or dtype does not fit, or there is too
            little memory.
    """
    variables = {variable_name(weight): weight for weight in model.weights}
    names = _names(source, table)
    uses = _match({name: tuple(weight.shape) for name, weight in variables.items()}, table, set(names))
    _check(uses, variables, source, names)
    check_memory(weight_bytes(model), str(source.path))
    _check_surplus(source, names, {use.name for use in uses}, table, (*table.unused, *also_unused))
    size = _head_dim(model)
    for use in uses:
        array = use.transform.read(source.read(names[use.name]), size)
        for path, part in zip(use.parts, np.split(array, len(use.parts), axis=-1), strict=True):
            variable = variables[path]
            backend.set_value(variable, np.ascontiguousarray(part.astype(_numpy_dtype(variable.dtype))))
    backend.initialize_rest(model)


def written_weights(model: keras.Model, table: Table) -> Iterator[tuple[str, np.ndarray]]:
    """A model's weights under their names, one at a time.

    Args:
        model: A built model.
        table: How the format names its tensors.

    Yields:
        Name and array.

    Raises:
        InputError: The format has no name for a variable.
    """
    variables = {variable_name(weight): weight for weight in model.weights}
    size = _head_dim(model)
    for use in _match({name: tuple(weight.shape) for name, weight in variables.items()}, table, None):
        parts = [keras.ops.convert_to_numpy(variables[path].value) for path in use.parts]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        yield use.name, np.ascontiguousarray(use.transform.write(array, size))


def _names(source: TensorSource, table: Table) -> dict[str, str]:
    """The name in the table of every tensor, to its name in the file: the prefix is put where a file lacks it."""
    if not table.prefix or any(name.startswith(table.prefix) for name in source.tensors):
        return {name: name for name in source.tensors}
    known = {_pattern(row.theirs) for row in table.rows} | {_pattern(name) for name in table.copies}
    return {
        name if any(re.fullmatch(pattern, name) for pattern in known) else table.prefix + name: name
        for name in source.tensors
    }


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\{i\}", r"(\d+)")


def _match(variables: Mapping[str, Shape], table: Table, names: set[str] | None) -> list[_Use]:
    """The tensors that the variables need; where rows name a variable twice, the one in `names` counts."""
    patterns = [(re.compile(_pattern(row.ours)), row) for row in table.rows]
    found: dict[str, dict[int, tuple[str, Row]]] = {}
    for path in variables:
        rows = [(match, row) for pattern, row in patterns if (match := pattern.fullmatch(path))]
        if not rows:
            raise InputError(f"variable {path} has no place in this format; it cannot hold a model of this kind")
        named = [(row.theirs.replace("{i}", match[1] if match.groups() else ""), row) for match, row in rows]
        name, row = next(((n, r) for n, r in named if names is not None and n in names), named[0])
        found.setdefault(name, {})[row.part[0]] = (path, row)
    uses = []
    for name, parts in found.items():
        ordered = [parts[k] for k in sorted(parts)]
        row = ordered[0][1]
        if len(ordered) != row.part[1]:
            raise InputError(f"tensor {name} holds {row.part[1]} variables, but the model has {len(ordered)} of them")
        uses.append(_Use(name, TRANSFORMS[row.transform], tuple(path for path, _ in ordered)))
    return uses


def _check(uses: Iterable[_Use], variables: Mapping[str, Any], source: TensorSource, names: Mapping[str, str]) -> None:
    """Refuse missing tensors, and shapes and dtypes that do not fit, before anything is read."""
    for use in uses:
        if use.name not in names:
            raise InputError(
                f"{source.path}: lacks tensor {use.name} for variable {use.parts[0]}; "
                "the file and its configuration are not of the same model"
            )
        info = source.tensors[names[use.name]]
        shape = tuple(variables[use.parts[0]].shape)
        expected = use.transform.their_shape((*shape[:-1], shape[-1] * len(use.parts)))
        if tuple(info.shape) != expected:
            raise InputError(
                f"{source.path}: tensor {names[use.name]} has shape {tuple(info.shape)} but variable {use.parts[0]} "
                f"needs {expected}; the file and its configuration are not of the same model"
            )
        if str(info.dtype).startswith(("int", "uint", "bool", "complex")):
            raise InputError(
                f"{source.path}: tensor {names[use.name]} is of dtype {info.dtype}, not of real numbers; "
                "give a checkpoint that is not quantized"
            )


def _check_surplus(
    source: TensorSource, names: Mapping[str, str], used: set[str], table: Table, unused: Sequence[str]
) -> None:
    for name, stored in names.items():
        if name in used or any(re.fullmatch(pattern, stored) for pattern in unused):
            continue
        original = table.copies.get(name)
        if original in used:
            first, second = source.tensors[stored], source.tensors[names[original]]
            if tuple(first.shape) == tuple(second.shape) and np.array_equal(
                source.read(stored), source.read(names[original])
            ):
                continue
            raise InputError(
                f"{source.path}: tensor {stored} differs from {names[original]}, with which it is tied by the "
                "configuration; set tie_word_embeddings to false in config.json"
            )
        raise InputError(
            f"{source.path}: tensor {stored} has no place in the model; "
            "the file and its configuration are not of the same model"
        )


def _head_dim(model: keras.Model) -> int:
    """Width of an attention head, of the model or of what is under a task's head."""
    config = getattr(model, "backbone", model).config
    return getattr(config, "head_dim", 1)


def weight_bytes(model: keras.Model) -> int:
    """Bytes of memory that a model's weights take once they are there."""
    return sum(math.prod(w.shape) * (2 if str(w.dtype).endswith("float16") else 4) for w in model.weights)


def _numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)

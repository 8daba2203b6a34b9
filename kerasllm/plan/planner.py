"""The plan: every figure of a config on given hardware, and what to change where it does not fit."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from kerasllm.config import LSTMConfig, ModelConfig, TransformerConfig
from kerasllm.errors import InputError
from kerasllm.files import read_json
from kerasllm.plan import counts
from kerasllm.plan import memory as sizes
from kerasllm.plan.devices import Device, find_device
from kerasllm.plan.memory import Memory
from kerasllm.presets import PRESETS

CLASSES: dict[str, type[ModelConfig]] = {
    "LSTMLanguageModel": LSTMConfig,
    "TransformerLanguageModel": TransformerConfig,
}
"""Config of each class that a preset or a JSON file may name."""

USABLE = 0.9
"""Share of a device's memory that is planned with; the runtime, its buffers and fragmentation take the rest."""

TOKENS_PER_PARAMETER = 20
"""The compute-optimal token budget of Hoffmann et al. 2022 (arXiv:2203.15556, table 3), about."""

_LONGEST = 2048  # tokens of a sequence where nobody says


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One way to lay a model out.

    Attributes:
        name: `"training"` or `"serving"`.
        recompute: Whether activations are recomputed.
        sharded: Whether weights are split over the devices.
        memory: Bytes on each device.
        fits: Whether that is within the usable memory of a device; `None` where no device is given.
    """

    name: str
    recompute: bool
    sharded: bool
    memory: Memory
    fits: bool | None

    @property
    def label(self) -> str:
        """For people: what it is, and how."""
        how = ", ".join(word for word, on in (("recomputing", self.recompute), ("sharded", self.sharded)) if on)
        return f"{self.name}, {how}" if how else self.name


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a model needs. Bytes are of the whole model unless they stand in a `Scenario`, which is one device.

    Attributes:
        name: Preset, file or class.
        dtype: Dtype policy.
        batch_size: Sequences in a step, on all devices together.
        length: Tokens in a sequence.
        devices: Number of devices.
        device: What each of them is; `None` where not given.
        tokens: Training budget in tokens.
        utilization: Share of the peak rate that training reaches, without recomputation (PaLM's MFU).
        parameters: Exact number of parameters.
        table: Parameters by part.
        weight_bytes: Variables.
        gradient_bytes: Gradients.
        optimizer_bytes: AdamW's moments.
        activation_bytes: Kept for the backward pass, for the whole batch.
        recomputed_activation_bytes: The same where only the inputs of layers are kept.
        logits_bytes: float32 logits of the whole batch; 0 of an encoder with a pooler.
        cache_bytes_per_token: What each token adds to the decode state of a sequence.
        cache_bytes: Decode state for `batch_size` sequences of `length` tokens.
        forward_flops_per_token: Matrix products of a forward pass.
        training_flops_per_token: Forward and backward pass.
        training_seconds: For the budget on all devices; `None` where the rate of the device is unknown.
        decode_tokens_per_second: Most that one device can decode, all sequences it holds together; `None` where the
            bandwidth is unknown or the model does not decode.
        scenarios: Ways to lay it out, the plainest first.
        advice: What to change where nothing fits, each checked by this arithmetic.
    """

    name: str
    dtype: str
    batch_size: int
    length: int
    devices: int
    device: Device | None
    tokens: int
    utilization: float
    parameters: int
    table: dict[str, int]
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    recomputed_activation_bytes: int
    logits_bytes: int
    cache_bytes_per_token: int
    cache_bytes: int
    forward_flops_per_token: int
    training_flops_per_token: int
    training_seconds: float | None
    decode_tokens_per_second: float | None
    scenarios: tuple[Scenario, ...]
    advice: tuple[str, ...]

    def fitting(self, name: str) -> Scenario | None:
        """The plainest scenario that fits.

        Args:
            name: `"training"` or `"serving"`.
        """
        return next((s for s in self.scenarios if s.name == name and s.fits), None)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values, with totals."""
        values = dataclasses.asdict(self)
        for row, scenario in zip(values["scenarios"], self.scenarios, strict=True):
            row["memory"]["total"] = scenario.memory.total
        for name in ("training", "serving"):
            values[f"fits_{name}"] = None if self.device is None else self.fitting(name) is not None
        return {**values, "scenarios": list(values["scenarios"]), "advice": list(self.advice)}

    def summary(self) -> str:
        """A table for people."""
        from kerasllm.plan.summary import summarize

        return summarize(self)


def plan(
    config: ModelConfig,
    *,
    dtype: str = "float32",
    batch_size: int = 1,
    length: int | None = None,
    devices: int = 1,
    device: str | Device | None = None,
    tokens: int | None = None,
    utilization: float = 0.4,
    accumulate: bool = False,
    memory: float | None = None,
    bandwidth: float | None = None,
    peak: float | None = None,
    name: str | None = None,
) -> Plan:
    """Work out what a config needs for training and for serving.

    Args:
        config: A Transformer's or an LSTM's.
        dtype: Keras dtype policy, a key of `DTYPES`.
        batch_size: Sequences in a step, on all devices together.
        length: Tokens in a sequence; the model's context by default, at most 2048.
        devices: Number of devices; the batch is split over them.
        device: A key of `DEVICES`, `"cpu"` (with `memory`), or a `Device`.
        tokens: Training budget; 20 for each parameter by default (Hoffmann et al. 2022).
        utilization: Share of the peak rate that training reaches. PaLM 540B reached 0.46 (its table 3).
        accumulate: Whether the optimizer accumulates gradients (`gradient_accumulation_steps`).
        memory: Of a device in GB (10^9 bytes), instead of the table's.
        bandwidth: Of a device's memory in GB/s, instead of the table's.
        peak: Rate of a device in TFLOP/s, instead of the table's.
        name: What to call it.

    Raises:
        InputError: An argument is out of range, or the model's context is shorter than `length`.
    """
    limit = getattr(config, "max_sequence_length", None)
    length = min(limit or _LONGEST, _LONGEST) if length is None else length
    parameters = counts.parameter_count(config)
    tokens = TOKENS_PER_PARAMETER * parameters if tokens is None else tokens
    _check(config, dtype, utilization, batch_size=batch_size, length=length, devices=devices, tokens=tokens)
    if not isinstance(device, Device):
        device = find_device(device, memory, bandwidth, peak)
    layout: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size, "length": length, "devices": devices}
    scenarios = _scenarios(config, device, accumulate=accumulate, **layout)
    return Plan(
        name=name or type(config).__name__,
        device=device,
        tokens=tokens,
        utilization=utilization,
        parameters=parameters,
        table=counts.parameter_table(config),
        scenarios=scenarios,
        advice=_advice(config, device, scenarios, accumulate=accumulate, **layout),
        decode_tokens_per_second=_decode_rate(config, device, **layout),
        **layout,
        **_whole(config, dtype, batch_size, length, accumulate),
        **_work(config, device, dtype, length, tokens, devices * utilization),
    )


def _whole(config: ModelConfig, dtype: str, batch_size: int, length: int, accumulate: bool) -> dict[str, Any]:
    """Bytes of the whole model and batch, fields of a `Plan`."""
    weights, layout = sizes.weight_bytes(config, dtype), (config, dtype, batch_size, length)
    cache = sizes.dtype_sizes(dtype)[2] * counts.cache_values(config, length)
    return {
        "weight_bytes": weights,
        "gradient_bytes": weights * (2 if accumulate else 1),
        "optimizer_bytes": 2 * weights,
        "activation_bytes": sizes.activation_bytes(*layout),
        "recomputed_activation_bytes": sizes.activation_bytes(*layout, recompute=True),
        "logits_bytes": 4 * sizes.logit_values(config, batch_size, length),
        "cache_bytes_per_token": cache // length if isinstance(config, TransformerConfig) else 0,
        "cache_bytes": batch_size * cache,
    }


def _work(
    config: ModelConfig, device: Device | None, dtype: str, length: int, tokens: int, used: float
) -> dict[str, Any]:
    """Operations and seconds, fields of a `Plan`; `used` is how many devices' peak rate the training reaches."""
    training = counts.training_flops(config, length)
    rate = None if device is None else device.peak(sizes.dtype_sizes(dtype)[1])
    return {
        "forward_flops_per_token": counts.forward_flops(config, length),
        "training_flops_per_token": training,
        "training_seconds": None if rate is None else tokens * training / (used * rate),
    }


def plan_model(name: str, **options: Any) -> Plan:
    """Plan a preset, or a model described by a file: `kerasllm plan`.

    Args:
        name: A preset, or a JSON file with `class` and `config`.
        **options: Of `plan`; and `vocabulary_size`, which replaces the config's unless it is `None`.

    Raises:
        InputError: There is no such preset or file, the file is wrong, or an option is.
    """
    return plan(read_config(name, options.pop("vocabulary_size", None)), name=name, **options)


def read_config(name: str | os.PathLike[str], vocabulary_size: int | None = None) -> ModelConfig:
    """The config of a preset or of a JSON file.

    Args:
        name: A preset, or a JSON file with `class` and `config`.
        vocabulary_size: Replaces the config's.

    Raises:
        InputError: There is no such preset or file, or the file is wrong.
    """
    if name in PRESETS:
        entry: Any = PRESETS[str(name)]
    elif Path(name).suffix == ".json":
        entry = read_json(name)
    else:
        raise InputError(f"model {str(name)!r} is unknown; give a JSON file or one of {', '.join(PRESETS)}")
    cls = CLASSES.get(str(entry.get("class"))) if isinstance(entry, dict) else None
    if cls is None or not isinstance(entry.get("config"), dict):
        raise InputError(f"{name}: needs `config` and `class`, one of {', '.join(CLASSES)}")
    size = {} if vocabulary_size is None else {"vocabulary_size": vocabulary_size}
    try:
        return cls.from_dict({**entry["config"], **size})
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _check(config: ModelConfig, dtype: str, utilization: float, **numbers: int) -> None:
    sizes.dtype_sizes(dtype)
    for field, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{field} must be a positive integer, received {value!r}")
    if not 0 < utilization <= 1:
        raise InputError(f"utilization must be more than 0 and at most 1, received {utilization}")
    limit = getattr(config, "max_sequence_length", None)
    if limit is not None and numbers["length"] > limit:
        raise InputError(f"length {numbers['length']} is more than the model's max_sequence_length {limit}; lower it")


def _scenarios(
    config: ModelConfig,
    device: Device | None,
    *,
    dtype: str,
    batch_size: int,
    length: int,
    devices: int,
    accumulate: bool,
) -> tuple[Scenario, ...]:
    ways = [(recompute, sharded) for sharded in (False, True)[: min(devices, 2)] for recompute in (False, True)]
    layout = (config, dtype, batch_size, length, devices)
    rows = [
        ("training", recompute, sharded, sizes.training_memory(
            *layout, recompute=recompute, sharded=sharded, accumulate=accumulate
        ))
        for recompute, sharded in ways
    ] + [
        ("serving", False, sharded, sizes.serving_memory(*layout, sharded=sharded))
        for recompute, sharded in ways
        if not recompute
    ]  # fmt: skip
    return tuple(
        Scenario(name, recompute, sharded, used, None if device is None else used.total <= USABLE * device.memory)
        for name, recompute, sharded, used in rows
    )


def _decode_rate(
    config: ModelConfig, device: Device | None, *, dtype: str, batch_size: int, length: int, devices: int
) -> float | None:
    """Tokens per second of one device: each step reads every matrix once, and the whole cache.

    Decoding is bound by memory bandwidth until the batch is large, then by the rate of the products: Pope et al. 2022
    (arXiv:2211.05102, section 2).
    """
    per_row = counts.cache_values(config, length)
    if device is None or device.bandwidth is None or not per_row:
        return None
    variable, compute, size = sizes.dtype_sizes(dtype)
    rows = -(-batch_size // devices)
    read = variable * counts.projected_parameters(config) + size * rows * per_row
    bound, peak = rows * device.bandwidth / read, device.peak(compute)
    return bound if peak is None else min(bound, peak / counts.forward_flops(config, length))


def _advice(
    config: ModelConfig, device: Device | None, scenarios: tuple[Scenario, ...], **layout: Any
) -> tuple[str, ...]:
    """One change at a time, each of which would make training (or serving) fit."""
    if device is None:
        return ()

    def fits(name: str, **changes: Any) -> bool:
        tried = _scenarios(config, device, **{**layout, **changes})
        return any(s.fits for s in tried if s.name == name)

    found = []
    for name in ("training", "serving"):
        if any(s.fits for s in scenarios if s.name == name):
            continue
        changes = list(_changes(name, layout))
        found += [f"{name} fits with {words}" for words, values in _smallest(changes, name, fits)]
        if not any(line.startswith(name) for line in found):
            found.append(f"{name} fits with no single change; choose a larger device or a smaller model")
    return tuple(found)


def _changes(name: str, layout: dict[str, Any]) -> Any:
    """Kinds of changes, and for each the values to try, the least change first: `(kind, words, changed options)`."""
    batch, length = layout["batch_size"], layout["length"]
    for rows in _halves(batch):
        yield "batch", f"batch {rows}" + (" (accumulate gradients)" if name == "training" else ""), {"batch_size": rows}
    for tokens in _halves(length):
        yield "length", f"length {tokens}", {"length": tokens}
    if sizes.DTYPES[layout["dtype"]][0] == 4:
        words = "dtype bfloat16" + (", but no float32 master weights" if name == "training" else "")
        yield "dtype", words, {"dtype": "bfloat16"}
    count = 1
    while (count := count * 2) <= 4096:
        if count > layout["devices"]:
            yield "devices", f"{count} devices, weights sharded", {"devices": count}


def _halves(number: int) -> list[int]:
    found = []
    while number > 1:
        number //= 2
        found.append(number)
    return found


def _smallest(changes: list[Any], name: str, fits: Any) -> list[tuple[str, dict[str, Any]]]:
    """The first change of each kind that makes it fit."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for kind, words, values in changes:
        if kind not in found and fits(name, **values):
            found[kind] = words, values
    return list(found.values())

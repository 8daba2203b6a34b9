"""Accelerators as data: memory, bandwidth and peak rate, as their makers publish them."""

import dataclasses
from typing import Any

from kerasllm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator, or the processor of one machine.

    Attributes:
        name: As on the command line.
        memory: Bytes.
        bandwidth: Of its memory, in bytes per second; `None` where unknown.
        float32: Peak floating-point operations per second of float32 matrix products as TensorFlow runs them (TF32
            where the device has it); `None` where unknown.
        bfloat16: The same for bfloat16 without sparsity.
        float16: The same for float16.
        source: Where the numbers come from.
    """

    name: str
    memory: float
    bandwidth: float | None = None
    float32: float | None = None
    bfloat16: float | None = None
    float16: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for field in ("memory", "bandwidth", "float32", "bfloat16", "float16"):
            value = getattr(self, field)
            if (value is not None or field == "memory") and not _positive(value):
                raise InputError(f"device {self.name}: {field} must be a positive number, received {value!r}")

    def peak(self, compute_dtype: str) -> float | None:
        """Operations per second for a compute dtype; `None` where unknown.

        Args:
            compute_dtype: `"float32"`, `"bfloat16"` or `"float16"`.
        """
        value: float | None = getattr(self, compute_dtype)
        return value


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


_AMPERE = "NVIDIA A100 Tensor Core GPU data sheet, SXM (2021)"

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("a100-40", 40e9, 1555e9, 156e12, 312e12, 312e12, _AMPERE),
        Device("a100-80", 80e9, 2039e9, 156e12, 312e12, 312e12, _AMPERE),
        # The sheet gives rates with sparsity; these are half of them.
        Device("h100", 80e9, 3350e9, 494.5e12, 989e12, 989e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM (2023)"),
        # Turing has no bfloat16: such products run as float32.
        Device("t4", 16e9, 300e9, 8.1e12, 8.1e12, 65e12, "NVIDIA T4 Tensor Core GPU data sheet (2019)"),
        # With float32 accumulation.
        Device("rtx4090", 24e9, 1008e9, 82.6e12, 165.2e12, 165.2e12, "NVIDIA Ada GPU architecture, appendix A (2022)"),
    )
}


def find_device(
    name: str | None,
    memory: float | None = None,
    bandwidth: float | None = None,
    peak: float | None = None,
) -> Device | None:
    """A device of the table, one given by numbers, or one of the table with some numbers changed.

    Args:
        name: A key of `DEVICES`, or `"cpu"`, of which nothing is known but what the numbers say; `None` with `memory`
            is a device of those numbers.
        memory: Of one device, in GB (10^9 bytes).
        bandwidth: Of its memory, in GB/s.
        peak: Rate in the compute dtype, in TFLOP/s.

    Returns:
        The device; `None` where neither name nor numbers are given.

    Raises:
        InputError: The name is unknown, or a number lacks or is not positive.
    """
    for field, value in (("memory", memory), ("bandwidth", bandwidth), ("peak", peak)):
        if value is not None and not _positive(value):
            raise InputError(f"{field} must be a positive number, received {value!r}")
    given: dict[str, Any] = {} if memory is None else {"memory": memory * 1e9}
    given |= {} if bandwidth is None else {"bandwidth": bandwidth * 1e9}
    given |= {} if peak is None else dict.fromkeys(("float32", "bfloat16", "float16"), peak * 1e12)
    if name is None and not given:
        return None
    if name in DEVICES:
        return dataclasses.replace(DEVICES[name], **given, source=DEVICES[name].source + (", changed" if given else ""))
    if name not in (None, "cpu"):
        raise InputError(f"device {name!r} is unknown; choose one of {', '.join(DEVICES)}, cpu")
    if memory is None:
        raise InputError("a device that is not in the table needs its memory; give it in GB (--memory)")
    return Device(name or "given", source="given", **given)

"""What a model needs, by arithmetic on its config: parameters, memory, FLOPs, time, and whether it fits.

Nothing here allocates or computes a tensor; `docs/planning.md` has the formulas and where they come from.
"""

from kerasllm.plan.counts import (
    cache_values,
    forward_flops,
    parameter_count,
    parameter_table,
    projected_parameters,
    training_flops,
)
from kerasllm.plan.devices import DEVICES, Device, find_device
from kerasllm.plan.memory import DTYPES, Memory
from kerasllm.plan.planner import Plan, Scenario, plan, plan_model, read_config
from kerasllm.plan.sharding import FULLY_SHARDED, TENSOR_PARALLEL, layout_of

__all__ = [
    "DEVICES",
    "DTYPES",
    "FULLY_SHARDED",
    "TENSOR_PARALLEL",
    "Device",
    "Memory",
    "Plan",
    "Scenario",
    "cache_values",
    "find_device",
    "forward_flops",
    "layout_of",
    "parameter_count",
    "parameter_table",
    "plan",
    "plan_model",
    "projected_parameters",
    "read_config",
    "training_flops",
]

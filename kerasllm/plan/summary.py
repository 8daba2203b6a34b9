"""A plan as text for people: decimal units (1 GB is 10^9 bytes), as makers of devices count."""

from kerasllm.plan.planner import USABLE, Plan

_UNITS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_HOUR = 3600.0


def quantity(number: float, unit: str) -> str:
    """A number with three digits and a decimal prefix, such as `13.5 GB`.

    Args:
        number: Not negative.
        unit: `"B"`, `"FLOP"` ...
    """
    index = 0
    while number >= 999.5 and index < len(_UNITS) - 1:
        number, index = number / 1000, index + 1
    digits = 0 if index == 0 and number == int(number) else max(0, 2 - (number >= 9.995) - (number >= 99.95))
    return f"{number:.{digits}f} {_UNITS[index]}{unit}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves at least two of it.

    Args:
        seconds: Not negative.
    """
    for name, size in (("years", 365.25 * 24 * _HOUR), ("days", 24 * _HOUR), ("hours", _HOUR), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.1f} seconds"


def summarize(plan: Plan) -> str:
    """A plan as a table.

    Args:
        plan: What `kerasllm.plan.plan` made.
    """
    return "\n".join([*_head(plan), *_model(plan), "", *_layouts(plan), *_verdict(plan)])


def _row(label: str, value: str, note: str = "") -> str:
    return f"  {label:24}{value:>14}  {note}".rstrip()


def _head(plan: Plan) -> list[str]:
    device = "no device given" if plan.device is None else f"{plan.devices} x {plan.device.name}"
    return [f"{plan.name}: {plan.dtype}, batch {plan.batch_size}, length {plan.length}, {device}", ""]


def _model(plan: Plan) -> list[str]:
    budget = f"{quantity(plan.tokens, '')}tokens".replace("  ", " ")
    lines = [
        _row("parameters", f"{plan.parameters:,}"),
        *(_row(f"  {part}", f"{count:,}") for part, count in plan.table.items()),
        _row("weights", quantity(plan.weight_bytes, "B")),
        _row("gradients", quantity(plan.gradient_bytes, "B")),
        _row("optimizer", quantity(plan.optimizer_bytes, "B"), "AdamW, two moments"),
        _row("activations", quantity(plan.activation_bytes, "B"), "the whole batch, kept for the backward pass"),
        _row("  recomputed", quantity(plan.recomputed_activation_bytes, "B"), "only the inputs of layers kept"),
        _row("logits", quantity(plan.logits_bytes, "B"), "float32, the whole batch"),
        _row("decode state", quantity(plan.cache_bytes, "B"), f"{plan.cache_bytes_per_token:,} B for each token"),
        _row("forward", quantity(plan.forward_flops_per_token, "FLOP"), "for each token"),
        _row("training", quantity(plan.training_flops_per_token, "FLOP"), "for each token"),
    ]
    if plan.training_seconds is not None:
        hours = plan.devices * plan.training_seconds / _HOUR
        note = f"{budget} at {plan.utilization:.0%} of the peak rate; {hours:,.0f} device hours"
        lines.append(_row("training time", duration(plan.training_seconds), note))
    if plan.decode_tokens_per_second is not None:
        lines.append(_row("decoding, at most", quantity(plan.decode_tokens_per_second, "tok/s"), "on each device"))
    return lines


def _layouts(plan: Plan) -> list[str]:
    names = ("weights", "gradients", "optimizer", "copies", "activations", "logits", "cache", "total")
    lines = [f"{'bytes on each device':32}" + "".join(f"{name:>12}" for name in names) + "  fits"]
    for scenario in plan.scenarios:
        cells = "".join(f"{quantity(getattr(scenario.memory, name), 'B'):>12}" for name in names)
        lines.append(f"  {scenario.label:30}{cells}  {({None: '?', True: 'yes', False: 'no'})[scenario.fits]}")
    return lines


def _verdict(plan: Plan) -> list[str]:
    if plan.device is None:
        return ["", "Name a device to see times and whether it fits."]
    room = quantity(USABLE * plan.device.memory, "B")
    return ["", f"A device is planned with {room}, {USABLE:.0%} of its memory.", *plan.advice]

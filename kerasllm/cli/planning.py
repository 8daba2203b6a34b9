"""The command that needs no model but its config: plan."""

import json
from typing import Any

import click

from kerasllm.cli.group import COUNT, POSITIVE, Number, cli, examples, json_option
from kerasllm.plan.devices import DEVICES
from kerasllm.plan.memory import DTYPES


@cli.command(
    epilog=examples(
        "kerasllm plan llama_7b --dtype mixed_bfloat16 --batch 64 --length 2048 --devices 8 --device a100-80",
        "kerasllm plan smollm2_135m --device cpu --memory 24 --json",
    )
)
@click.argument("preset")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPES), help="Dtype policy.")
@click.option(
    "--batch",
    "batch_size",
    default=1,
    type=COUNT,
    show_default=True,
    help="Sequences in a step, on all devices together.",
)
@click.option("--length", type=COUNT, help="Tokens in a sequence; the model's context by default, at most 2048.")
@click.option("--devices", default=1, type=COUNT, show_default=True, help="Number of devices.")
@click.option("--device", type=click.Choice([*DEVICES, "cpu"]), help="What they are; cpu needs --memory.")
@click.option("--tokens", type=click.IntRange(min=1), help="Training budget; 20 for each parameter by default.")
@click.option(
    "--utilization",
    default=0.4,
    type=Number(min=0, max=1, min_open=True),
    show_default=True,
    help="Share of the peak rate that training reaches.",
)
@click.option("--accumulate", is_flag=True, help="The optimizer accumulates gradients.")
@click.option("--memory", type=POSITIVE, help="Of one device, in GB.")
@click.option("--bandwidth", type=POSITIVE, help="Of one device's memory, in GB/s.")
@click.option("--peak", type=POSITIVE, help="Of one device, in TFLOP/s.")
@click.option("--vocabulary-size", type=COUNT, help="Instead of the config's.")
@json_option
def plan(preset: str, as_json: bool, **options: Any) -> None:
    """What training and serving a model take: parameters, memory, FLOPs, time, and whether it fits.

    PRESET is a preset, or a JSON file with `class` and `config`. Nothing is allocated.
    """
    from kerasllm.plan import plan_model

    found = plan_model(preset, **options)
    click.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else found.summary())

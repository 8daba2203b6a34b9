"""The command group, and the kinds of values and options that its commands share."""

import math
from typing import Any

import click

from kerasllm import __version__

_EXAMPLES = """
\b
Examples:
  kerasllm quickstart
  kerasllm prepare enwiki-latest-pages-articles.xml.bz2 --out corpora/enwiki --vocabulary-size 16000
  kerasllm train corpora/enwiki --model transformer_quickstart --out runs/mine
  kerasllm evaluate runs/mine corpora/enwiki --split test
  kerasllm generate runs/mine --prompt "The history of" --temperature 0.8
  kerasllm export runs/mine --format tflite --out runs/mine/edge/model.tflite
"""


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kerasllm")
def cli() -> None:
    """From raw Wikipedia text to language models on GPU servers and phones, without leaving TensorFlow."""


class Number(click.FloatRange):
    """A range of real numbers, among which NaN and infinity are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


class Integer(click.IntRange):
    """A range of integers that numpy and TensorFlow can hold in 32 bits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The integer, or a usage error."""
        number = super().convert(value, param, ctx)
        if number >= 2**31:
            self.fail(f"{value} is more than {2**31 - 1}", param, ctx)
        return number


POSITIVE = Number(min=0, min_open=True)
SHARE = Number(min=0, max=1, max_open=True)
COUNT = Integer(min=1)
NATURAL = Integer(min=0)


def examples(*lines: str) -> str:
    """An epilog that click does not wrap."""
    return "\n  ".join(["\b\nExamples:", *lines])


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text for people.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")


def sampling_options(command: Any) -> Any:
    """The options by which a token is drawn."""
    options = [
        click.option("--temperature", default=0.0, type=Number(min=0), show_default=True, help="0 is greedy."),
        click.option(
            "--top-k", default=0, type=NATURAL, show_default=True, help="Keep the k most likely tokens; 0 keeps all."
        ),
        click.option(
            "--top-p",
            default=1.0,
            type=Number(min=0, min_open=True, max=1),
            show_default=True,
            help="Keep the most likely tokens with this share.",
        ),
        click.option(
            "--min-p",
            default=0.0,
            type=Number(min=0, max=1),
            show_default=True,
            help="Keep tokens at least so many times as likely as the first.",
        ),
        click.option("--seed", default=0, type=NATURAL, show_default=True, help="Of the random numbers."),
    ]
    for option in reversed(options):
        command = option(command)
    return command

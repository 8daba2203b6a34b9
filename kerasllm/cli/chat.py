"""The command that talks: chat."""

from typing import Any

import click

from kerasllm.cli.group import COUNT, cli, examples, sampling_options


@cli.command(
    epilog=examples(
        "kerasllm chat smollm2-135m-instruct",
        'kerasllm chat runs/mine --system "Answer briefly." --temperature 0.7 --top-p 0.9',
        "printf 'What is the capital of France?' | kerasllm chat smollm2-135m-instruct",
    )
)
@click.argument("model")
@click.option("--system", help="What the model is told before the conversation.")
@click.option(
    "--max-new-tokens", type=COUNT, help="Most tokens of an answer; 256, or half the context if that is less."
)
@sampling_options
def chat(model: str, **options: Any) -> None:
    """Talk with MODEL in the terminal, or with a pipe: then every line is a message.

    MODEL is what `kerasllm generate` takes, but for a SavedModel that kerasllm did not export. Ctrl-C ends an answer,
    Ctrl-D the chat; /help lists commands.
    """
    from kerasllm.chat import run_chat

    run_chat(model, **{name: value for name, value in options.items() if value is not None})

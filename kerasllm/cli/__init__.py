"""The command line: parse, import one thing, call it."""

from kerasllm.cli import chat, corpora, models, planning
from kerasllm.cli.group import cli
from kerasllm.cli.run import main

__all__ = ["chat", "cli", "corpora", "main", "models", "planning"]

"""`python -m kerasllm.cli`."""

from kerasllm.cli import main

main()

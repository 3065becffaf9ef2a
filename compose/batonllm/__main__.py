"""`python -m batonllm …`: the command `baton`."""

from baton.cli import main

main("python -m batonllm")

"""`python -m baton …`: the command `baton`."""

from baton.cli import main

main("python -m baton")

"""`python -m attnc`: the same as the command `attnc`."""

from attnc.cli import main

main()

"""`python -m dumap.cli` is the command `dumap`."""

from dumap.cli import main

main()

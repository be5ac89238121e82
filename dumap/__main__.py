"""`python -m dumap` is the command `dumap`."""

from dumap.cli import main

main()

"""The command line: it translates words and exit codes, and decides nothing.

`commands.py` has a command a function, `submitted.py` those of runs that a cluster drives by itself, `group.py` what
they share, `logs.py` what is said on standard error, `progress.py` shows a person how a run goes on. Nothing imports
from here.
"""

from dumap.cli import submitted as submitted
from dumap.cli.commands import cli, main

__all__ = ["cli", "main"]

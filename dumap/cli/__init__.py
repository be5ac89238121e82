"""The command line: it translates arguments to calls of `dumap.api`, and errors to exit codes.

- `commands.py`: most commands, one function each; `submitted.py`: the commands for runs that a cluster drives.
- `group.py`: options, signals and errors of all commands; `logs.py`: output on standard error.
- `progress.py`: the progress bar; `records.py` and `prometheus.py`: the summary and the metrics of `dumap run`.

No other folder imports this one.
"""

from dumap.cli import submitted as submitted
from dumap.cli.commands import cli, main

__all__ = ["cli", "main"]

"""The command line: it translates words and exit codes, and decides nothing.

`commands.py` has a command a function, `progress.py` shows a person how a run goes on. Nothing imports from here.
"""


def main() -> None:
    """Run the command line."""
    from dumap.cli.commands import main

    main()

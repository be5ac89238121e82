"""Where peers are installed: in the running interpreter's environment, or each in one of its own below a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from measuring.contenders import PEERS

EXTRA_PACKAGES = ("zarr>=3.1,<4",)
"""What a peer's environment holds beside the peer."""


class PeerNotInstalled(Exception):
    """A peer cannot be had; the message is why."""


def default_folder() -> Path:
    """Return where environments of peers are kept."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "dumap-benchmark"


def interpreter_of(name: str, folder: Path | None) -> str:
    """Return an interpreter that has a peer.

    Parameters
    ----------
    name : str
    folder : Path, optional
        Where environments are made, each by `python -m venv` and pip; None: only what the running one has is used.

    Raises
    ------
    NotInstalled
    """
    peer = PEERS[name]
    if folder is None:
        if find_spec(peer.module) is None:
            raise PeerNotInstalled(f"{peer.package} is not installed in the environment of {sys.executable}")
        return sys.executable
    environment = folder / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    interpreter, installed_marker = environment / "bin" / "python", environment / "installed"
    if not installed_marker.exists():
        print(f"{name}: installing {peer.package} into {environment}", flush=True)
        run_install_step([sys.executable, "-m", "venv", "--clear", str(environment)], name)
        run_install_step([str(interpreter), "-m", "pip", "install", "--quiet", peer.package, *EXTRA_PACKAGES], name)
        installed_marker.touch()
    return str(interpreter)


def run_install_step(command: list[str], name: str) -> None:
    """Run a step of an installation.

    Raises
    ------
    NotInstalled
        With its last words.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PeerNotInstalled(f"{name} cannot be installed: {error}") from error
    if result.returncode:
        lines = [line for line in (result.stderr or result.stdout).strip().splitlines() if "WARNING" not in line]
        raise PeerNotInstalled(
            f"{name} cannot be installed: {' '.join(lines[-3:]) or f'exit code {result.returncode}'}"
        )

"""Which tests may be skipped, and why; `pytest --strict-skips` fails on any other skip."""

from __future__ import annotations

import os

MOUNTING = "mounting a file system is not permitted here"
ALLOWED = {
    "the digests are of": "bytes are those of the libraries' versions",
    "this system promises no more memory than it has": "a setting of the kernel",
    "azurite is not installed": "it comes from npm, not from PyPI",
    "no systemd-analyze here": "units are checked where systemd is",
    "this processor has no": "an instruction of another processor cannot run here; its assembly is checked",
    "root reads everything": "nothing is hidden from root",
    "only root can give a folder away": "a folder of another user takes root",
    "SCIPY_ARRAY_API is not set": "scikit-learn's check of arrays of other libraries, which are not taken",
    "xarray is not installed": "it is no dependency, and read with where it is there",
    "other systems promise memory in other ways": "none but Linux does what is tested",
}
"""How the reason of a skip begins, and why it is one."""
if os.geteuid() != 0:
    ALLOWED[MOUNTING] = "it takes root"


def is_allowed(reason: str) -> bool:
    """Tell whether a test may be skipped for a reason."""
    return reason.removeprefix("Skipped: ").startswith(tuple(ALLOWED))

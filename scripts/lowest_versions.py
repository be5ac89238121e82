"""Print the lowest versions that pyproject.toml claims, one requirement a line, as constraints for pip.

    python scripts/lowest_versions.py > lowest.txt
    PIP_CONSTRAINT=lowest.txt .ci/run

Tools of the tests alone are left out: nobody who installs dumap gets them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
TEST_EXTRA = "test"
"""The extra that is of the tests alone."""
REQUIREMENT_PATTERN = re.compile(r"([\w.-]+)(\[[^]]*\])?\s*(.*)")


def lowest_versions(project: dict) -> list[str]:
    """Return 'name==version' for each requirement of a project, as in pyproject.toml, that has a lower bound."""
    extras = project.get("optional-dependencies", {})
    requirements = [
        *project["dependencies"],
        *(extra_requirement for extra in extras if extra != TEST_EXTRA for extra_requirement in extras[extra]),
    ]
    pins = set()
    for requirement in requirements:
        match = REQUIREMENT_PATTERN.match(requirement)
        assert match is not None
        name, _, bounds = match.groups()
        bounds, _, marker = bounds.partition(";")
        for bound in bounds.split(","):
            if bound.strip().startswith(">="):
                pins.add(f"{name}=={bound.strip()[2:].strip()}" + (f";{marker}" if marker else ""))
    return sorted(pins)


if __name__ == "__main__":
    print("\n".join(lowest_versions(tomllib.loads(PYPROJECT.read_text())["project"])))

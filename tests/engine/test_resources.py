"""What a process may use of its machine, in containers and batch jobs of all kinds."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dumap.engine import resources

GIB = 2**30
CPUS, MEMORY = 16, 8 * GIB
"""What the pretended machine has."""
NONE = 9223372036854771712
"""What version 1 says where there is no limit."""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretend a machine, and control groups that hold these files and this process."""

    def pretend(own_group: str, files: dict[str, object]) -> tuple[int, int]:
        for name, value in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        (tmp_path / "own").write_text(own_group)
        monkeypatch.setattr(resources, "CGROUP_ROOT", tmp_path / "cgroup")
        monkeypatch.setattr(resources, "PROCESS_CGROUPS", tmp_path / "own")
        return resources.cpu_count(), resources.free_memory()

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CPUS)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MEMORY))
    return pretend


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    ("own_group", "files", "cpus", "memory"),
    [
        pytest.param("0::/\n", {}, CPUS, MEMORY, id="none"),
        pytest.param("", {}, CPUS, MEMORY, id="no groups"),
        pytest.param("0::/\n", {"cpu.max": "100000 100000", "memory.max": 3 * GIB}, 1, 3 * GIB, id="version 2"),
        pytest.param("0::/a/b\n", {"a/memory.max": 2 * GIB, "a/b/memory.max": "max"}, CPUS, 2 * GIB, id="of a parent"),
        pytest.param("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4, MEMORY, id="quota"),
        pytest.param("0::/a\n", {"a/memory.max": 4 * GIB, "b/memory.max": GIB}, CPUS, 4 * GIB, id="not a sister's"),
        pytest.param("0::/a\n", {"a/memory.high": GIB, "a/memory.max": 4 * GIB}, CPUS, GIB, id="high"),
        pytest.param("0::/a\n", {"a/memory.max": 64 * GIB, "a/cpu.max": "6400000 100000"}, CPUS, MEMORY, id="larger"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000"}, 1, MEMORY, id="1.5 processors"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000"}, 1, MEMORY, id="half a processor"),
        pytest.param("0::/\n", {"cpu.max": "250000 50000"}, 5, MEMORY, id="another period"),
        pytest.param("0::/\n", {"memory.max": 3 * GIB, "memory.current": GIB}, CPUS, 2 * GIB, id="used"),
        pytest.param("0::/\n", {"memory.max": GIB, "memory.current": 2 * GIB}, CPUS, 0, id="used up"),
        pytest.param(
            "0::/\n",
            {"memory.max": 3 * GIB, "memory.current": 2 * GIB, "memory.stat": f"anon 5\ninactive_file {GIB}"},
            CPUS,
            2 * GIB,
            id="a cache is free",
        ),
        pytest.param(
            "4:memory:/job/7\n1:cpu,cpuacct:/job/7\n0::/\n",
            {
                "memory/job/7/memory.limit_in_bytes": 3 * GIB,
                "memory/job/7/memory.usage_in_bytes": 2 * GIB,
                "memory/job/7/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}",
                "memory/memory.limit_in_bytes": NONE,
                "cpu,cpuacct/job/cpu.cfs_quota_us": 200_000,
                "cpu,cpuacct/job/cpu.cfs_period_us": 100_000,
            },
            2,
            2 * GIB,
            id="version 1",
        ),
        pytest.param(
            "4:memory:/docker/7\n1:cpu:/docker/7\n",  # mounted so that its own group is the root
            {
                "memory/memory.limit_in_bytes": GIB,
                "cpu/cpu.cfs_quota_us": -1,
                "cpu/cpu.cfs_period_us": 100_000,
            },
            CPUS,
            GIB,
            id="version 1, its root",
        ),
        pytest.param("0::/../x\n", {"memory.max": GIB}, CPUS, GIB, id="beyond what it sees"),
    ],
)
def test_limits_of_containers(machine, own_group, files, cpus, memory):
    assert machine(own_group, files) == (cpus, memory)


def test_a_system_without_affinity_and_groups(machine, monkeypatch):
    machine("", {})
    monkeypatch.setattr(resources, "PROCESS_CGROUPS", Path("/no/such/file"))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert (resources.cpu_count(), resources.free_memory()) == (3, MEMORY)


def test_a_limit_of_each_process(monkeypatch):
    limits = {resource.RLIMIT_AS: 3 * GIB, resource.RLIMIT_DATA: 2 * GIB}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY), NONE))
    assert resources.process_memory_limit() == 2 * GIB
    limits.clear()
    assert resources.process_memory_limit() is None

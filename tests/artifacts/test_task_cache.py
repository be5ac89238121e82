"""What a process keeps between tasks: for several threads, within a budget, and freed on request."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from dumap.artifacts.task_cache import TaskCache

SECONDS = 30


@pytest.fixture
def kept():
    """Return an empty cache."""
    return TaskCache()


@pytest.fixture
def use(kept):
    """Use a value of 10 bytes where a task may keep 20; return it, and whether it was made."""

    def go(key: str, value_bytes: int = 10, task_bytes: int = 20) -> tuple[str, bool]:
        made = []
        with kept.use(key, task_bytes, value_bytes, lambda: made.append(key) or f"value of {key}") as value:
            return value, bool(made)

    return go


def test_a_value_is_made_once_and_kept(use):
    assert use("a") == ("value of a", True)
    assert use("a") == ("value of a", False)


def test_those_used_longest_ago_go_first(use, kept):
    for key in "aba":
        use(key)
    assert use("c") == ("value of c", True)  # in the place of b
    assert [use(key)[1] for key in "ac"] == [False, False]
    assert kept.total_bytes == 20
    assert use("b")[1]


def test_one_too_large_is_kept_alone(use, kept):
    use("a")
    assert use("large", value_bytes=50)[1]
    assert kept.total_bytes == 50
    assert not use("large", value_bytes=50)[1]
    use("a")
    assert kept.total_bytes == 10


def test_the_budget_is_that_of_as_many_tasks_as_ran_at_once(kept, use):
    with ExitStack() as tasks:
        for key in "abc":
            assert tasks.enter_context(kept.use(key, 20, 20, lambda key=key: key)) == key
        assert kept.total_bytes == 60
    assert not any(use(key, 20)[1] for key in "cab")
    use("d", 20)
    assert kept.total_bytes == 60


def test_a_value_in_use_is_not_freed_for_others(kept, use):
    with kept.use("a", 20, 20, object) as held:
        for key in "bcd":
            use(key, 20)
        with kept.use("a", 20, 20, object) as again:
            assert again is held


def test_a_value_that_cannot_be_made_is_not_cached(kept, use):
    def fail() -> None:
        raise OSError("not readable")

    with pytest.raises(OSError, match="not readable"), kept.use("a", 20, 10, fail):
        pass
    assert kept.total_bytes == 0
    assert use("a") == ("value of a", True)


def test_let_go_frees_all_and_disturbs_no_user(kept, use):
    use("b")
    with kept.use("a", 20, 10, lambda: "value") as value:
        kept.clear()
        assert value == "value"
        assert kept.total_bytes == 0
    assert use("b") == ("value of b", True)
    kept.clear()
    assert kept.total_bytes == 0


def test_threads_that_use_and_let_go_at_once_get_their_own_value(kept):
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait(SECONDS)
        for turn in range(2000):
            key = (number + turn) % 6
            with kept.use(key, 20, 10, lambda key=key: [key]) as value:
                assert value == [key]
            if turn % 97 == number:
                kept.clear()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert kept.total_bytes <= 4 * 20

"""One thread for libraries: counted over the threads of a process, whatever is loaded meanwhile."""

import contextlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sklearn.cluster  # noqa: F401  (brings an OpenMP)
from threadpoolctl import threadpool_info, threadpool_limits

from dumap.kernels.threads import SharedSetting, one_thread

SECONDS = 30


def threads(*kinds: str) -> set[int]:
    """Return the threads of what sums in an order that depends on them; numba has libraries of its own."""
    kinds = kinds or ("blas", "openmp")
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas" or "scikit_learn" in pool["filepath"]]
    assert len(pools) > 1
    return {pool["num_threads"] for pool in pools if pool["user_api"] in kinds}


def test_libraries_have_one_thread_within_and_as_many_as_before_after():
    with threadpool_limits(limits=2):
        np.ones((2, 2)) @ np.ones((2, 2))
        assert threads() == {2}
        with one_thread():
            assert threads() == {1}
            with one_thread():
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == {2}
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert threads() == {2}


class Stepping:
    """A thread that enters and leaves `one_thread` when told, and says what it sees."""

    def __init__(self) -> None:
        self.pool, self.held = ThreadPoolExecutor(1), contextlib.ExitStack()

    def call(self, action, *arguments):
        return self.pool.submit(action, *arguments).result(timeout=SECONDS)

    def enter(self) -> set[int]:
        self.call(lambda: self.held.enter_context(one_thread()))
        return self.call(threads)

    def leave(self) -> None:
        self.call(self.held.close)


@pytest.fixture
def two():
    """Return two of these threads, while BLAS has two threads."""
    with threadpool_limits(limits=2, user_api="blas"):
        both = Stepping(), Stepping()
        for one in both:
            one.call(lambda: threadpool_limits(limits=2, user_api="openmp"))  # OpenMP counts by thread
            assert one.call(threads) == {2}
        yield both
        for one in both:
            one.leave()
            one.pool.shutdown()


@pytest.mark.parametrize("first_out", [0, 1])
def test_the_first_thread_out_gives_nothing_back_and_the_last_one_all(two, first_out):
    first, last = two[first_out], two[1 - first_out]
    assert two[0].enter() == {1}
    assert two[1].enter() == {1}
    first.leave()
    assert last.call(threads) == {1}
    assert first.call(threads, "blas") == {1}
    last.leave()
    assert [one.call(threads) for one in two] == [{2}, {2}]


def test_many_threads_leave_things_as_they_were():
    numbers, together = [], threading.Barrier(4)

    def work(number: int) -> None:
        together.wait(SECONDS)
        for _ in range(10):
            with one_thread():
                numbers.append(frozenset(threads("blas")))
                if number % 2:
                    with one_thread():
                        numbers.append(frozenset(threads()))

    with threadpool_limits(limits=2, user_api="blas"), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
        assert set(numbers) == {frozenset({1})}
        assert threads("blas") == {2}


LATER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threadpoolctl import threadpool_info, threadpool_limits
from dumap.kernels.threads import one_thread

def of(kind):
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == kind}

with one_thread():  # before any library is there
    assert not of("blas"), of("blas")
    import numpy
    with one_thread():
        assert of("blas") == {1}, of("blas")
    assert of("blas") == {1}, of("blas")
    import sklearn.cluster
    with one_thread():
        assert of("openmp") == {1}, of("openmp")
assert of("blas") == {2} and of("openmp") == {2}, threadpool_info()
assert "numba" not in sys.modules
"""


@pytest.mark.slow
def test_libraries_that_are_loaded_later_are_seen():
    """In a process of its own, where none is loaded."""
    two = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", LATER], env=two, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_setting_is_made_once_and_undone_once():
    history = []

    @contextlib.contextmanager
    def setting():
        history.append("made")
        yield
        history.append("undone")

    counted = SharedSetting(setting)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(counted)
    second.enter_context(counted)
    first.close()
    assert history == ["made"]
    second.close()
    assert history == ["made", "undone"]
    with pytest.raises(KeyError), counted:
        raise KeyError
    assert history == ["made", "undone"] * 2

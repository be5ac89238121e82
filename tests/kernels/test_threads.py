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


def library_threads(*user_apis: str) -> set[int]:
    """Return the threads of what sums in an order that depends on them; numba has libraries of its own."""
    user_apis = user_apis or ("blas", "openmp")
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas" or "scikit_learn" in pool["filepath"]]
    assert len(pools) > 1
    return {pool["num_threads"] for pool in pools if pool["user_api"] in user_apis}


def test_libraries_have_one_thread_within_and_as_many_as_before_after():
    with threadpool_limits(limits=2):
        np.ones((2, 2)) @ np.ones((2, 2))
        assert library_threads() == {2}
        with one_thread():
            assert library_threads() == {1}
            with one_thread():
                assert library_threads() == {1}
            assert library_threads() == {1}
        assert library_threads() == {2}
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert library_threads() == {2}


class ThreadUnderTest:
    """A thread that enters and leaves `one_thread` when told, and says what it sees."""

    def __init__(self) -> None:
        self.pool, self.held = ThreadPoolExecutor(1), contextlib.ExitStack()

    def call(self, action, *arguments):
        return self.pool.submit(action, *arguments).result(timeout=SECONDS)

    def enter(self) -> set[int]:
        self.call(lambda: self.held.enter_context(one_thread()))
        return self.call(library_threads)

    def leave(self) -> None:
        self.call(self.held.close)


@pytest.fixture
def two_threads():
    """Return two of these threads, while BLAS has two threads."""
    with threadpool_limits(limits=2, user_api="blas"):
        both = ThreadUnderTest(), ThreadUnderTest()
        for one in both:
            one.call(lambda: threadpool_limits(limits=2, user_api="openmp"))  # OpenMP counts by thread
            assert one.call(library_threads) == {2}
        yield both
        for one in both:
            one.leave()
            one.pool.shutdown()


@pytest.mark.parametrize("first_out", [0, 1])
def test_the_first_thread_out_gives_nothing_back_and_the_last_one_all(two_threads, first_out):
    first, last = two_threads[first_out], two_threads[1 - first_out]
    assert two_threads[0].enter() == {1}
    assert two_threads[1].enter() == {1}
    first.leave()
    assert last.call(library_threads) == {1}
    assert first.call(library_threads, "blas") == {1}
    last.leave()
    assert [one.call(library_threads) for one in two_threads] == [{2}, {2}]


def test_many_threads_leave_things_as_they_were():
    thread_counts, barrier = [], threading.Barrier(4)

    def enter_and_leave(number: int) -> None:
        barrier.wait(SECONDS)
        for _ in range(10):
            with one_thread():
                thread_counts.append(frozenset(library_threads("blas")))
                if number % 2:
                    with one_thread():
                        thread_counts.append(frozenset(library_threads()))

    with threadpool_limits(limits=2, user_api="blas"), ThreadPoolExecutor(4) as pool:
        list(pool.map(enter_and_leave, range(4)))
        assert set(thread_counts) == {frozenset({1})}
        assert library_threads("blas") == {2}


LOAD_LATER_SCRIPT = """
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
    two_threads = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_LATER_SCRIPT], env=two_threads, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_setting_is_made_once_and_undone_once():
    history = []

    @contextlib.contextmanager
    def make_setting():
        history.append("made")
        yield
        history.append("undone")

    shared = SharedSetting(make_setting)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(shared)
    second.enter_context(shared)
    first.close()
    assert history == ["made"]
    second.close()
    assert history == ["made", "undone"]
    with pytest.raises(KeyError), shared:
        raise KeyError
    assert history == ["made", "undone"] * 2

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dumap.kernels.threads import one_thread


def threads() -> set[int]:
    """Return the threads of what sums in an order that depends on them; numba has libraries of its own."""
    ours = [pool for pool in threadpool_info() if pool["user_api"] == "blas" or "scikit_learn" in pool["filepath"]]
    assert len(ours) > 1
    return {pool["num_threads"] for pool in ours}


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

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dumap.kernels.threads import one_thread


def threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info()}


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

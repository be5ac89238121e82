"""The pool: its order along the curve."""

import numpy as np
import pytest

from dumap.kernels import pool as kernel

SEED = 42


def test_the_pool_is_drawn_anew_each_epoch_from_all_rows():
    pools = [kernel.draw_pool_rows(SEED, epoch, 50) for epoch in range(3)]
    assert all(np.bincount(pool, minlength=50).min() > 40 for pool in pools)
    assert len({pool.tobytes() for pool in pools}) == 3
    assert (kernel.draw_pool_rows(SEED, 0, 1) == 0).all()


@pytest.mark.parametrize("n_components", [1, 2, 3, 70])
def test_the_pool_lies_along_a_curve_through_the_map(n_components):
    rng = np.random.default_rng(1)
    pool = rng.normal(0, 1, (kernel.POOL_ROWS, n_components)).astype(np.float32)
    laid = kernel.sort_pool(pool)
    assert laid.shape == (n_components, kernel.POOL_ROWS)
    assert sorted(map(tuple, laid.T.tolist())) == sorted(map(tuple, pool.tolist()))
    if n_components < 4:
        apart = [np.linalg.norm(np.diff(rows, axis=0), axis=1).mean() for rows in (laid.T, pool)]
        assert apart[0] < apart[1] / 4
    assert kernel.sort_pool(np.zeros_like(pool)).tobytes() == bytes(pool.nbytes), "rows that are all in one place"

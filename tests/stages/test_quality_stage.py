"""Which queries of the audit the map is judged by, and that its figures are those of all rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from dumap.recipe.stage_names import QUALITY
from dumap.stages.quality import TRUST_QUERIES, evenly_spaced_numbers
from dumap.store import Run


@pytest.mark.parametrize(("count", "most", "chosen"), [(6, 3, [0, 2, 4]), (3, 9, [0, 1, 2]), (4, 0, []), (0, 5, [])])
def test_numbers_are_evenly_spread(count, most, chosen):
    assert evenly_spaced_numbers(count, most).tolist() == chosen


def test_trustworthiness_is_that_of_rows_from_the_first_to_the_last(embed):
    """The second half's map has nothing to do with its vectors: the first queries alone would not show it."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1200, 12)).astype(np.float32)
    x[:600, 2:] *= 0.01
    x[:600, 0] += 100
    done = embed(x, {"audit.queries": 1200, "layout.n_epochs": 100})
    halves = [trustworthiness(x[half], done.y[half], n_neighbors=15) for half in (slice(0, 600), slice(600, None))]
    assert halves[0] - halves[1] > 0.1
    assert done.facts("quality")["queries"] == 1200 > 2 * TRUST_QUERIES
    trust = done.facts("quality")["trustworthiness"]
    assert trust == pytest.approx(trustworthiness(x, done.y, n_neighbors=15), abs=0.02)
    assert trust < halves[0] - 0.03


def test_the_map_is_judged_by_some_of_the_audits_queries(embed, digits):
    x = digits[0][:300]
    everything = embed(x, {"audit.queries": 300})
    fewer = embed(x, {"audit.queries": 300, "quality.queries": 50})
    assert np.array_equal(fewer.y, everything.y)
    assert fewer.facts("audit") == everything.facts("audit")
    rows, preserved = (
        [Run(done.output, read_only=True).read(QUALITY, "report", name) for done in (fewer, everything)]
        for name in ("rows", "preserved")
    )
    assert rows[0].tolist() == list(range(0, 300, 6))
    np.testing.assert_array_equal(preserved[0], preserved[1][rows[0]])
    assert embed(x, {"audit.queries": 300, "quality.queries": 0}).facts("quality") == {"queries": 0}

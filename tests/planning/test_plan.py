"""Plans: sizes of blocks, cells and shards, projections, and refusals that say what would do."""

import itertools
import re
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dumap.config import Config, build_config, parse_bytes
from dumap.errors import BudgetError, ConfigError, InputError
from dumap.planning.audits import max_audits, max_repair_rows, queries_at_once, repair_bytes, repair_row_bytes
from dumap.planning.budget import check_task, interpreter_bytes, tally_buckets, tally_row_bytes
from dumap.planning.geometry import (
    EDGE_BYTES,
    GUEST_BYTES,
    MAX_EDGES_PER_NEIGHBOR,
    Geometry,
    cell_row_bytes,
    make_geometry,
    max_shard_rows,
)
from dumap.planning.plan import Plan, format_plan, format_seconds
from dumap.recipe.recipes import SEARCH_RECIPE, make_plan
from dumap.recipe.stage_names import STAGES

MIB = 2**20
rows = st.integers(1000, 300_000_000)
dims = st.integers(1, 4096)
itemsizes = st.sampled_from([1, 2, 4, 8])
chunks = st.integers(1, 100_000)
memories = st.integers(16 * MIB, 8 * 2**30)


def config(task_memory: int = 512 * MIB, **sections) -> Config:
    """Build a configuration with that memory for a task."""
    return build_config({"input": {"path": "in.zarr"}, "output": "out.zarr", "task_memory": task_memory, **sections})


def geometry_or_skip(memory: int, *shape: int) -> Geometry:
    """Return the geometry of a shape; drop the example where it is refused."""
    try:
        return make_geometry(config(memory), *shape)
    except InputError:
        assume(False)
        raise


def make_small_plan(settings: Config, n_rows: int, n_columns: int, worker_memory: int = 0) -> Plan:
    """Project a run of so many rows and columns."""
    return make_plan(settings, make_geometry(settings, n_rows, n_columns, 4, 1000), worker_memory)


# the cut ---------------------------------------------------------------------------------------


@given(memories, rows, dims, itemsizes, chunks)
def test_blocks_cover_all_rows_once(memory, n_rows, n_columns, itemsize, chunk):
    geometry = geometry_or_skip(memory, n_rows, n_columns, itemsize, chunk)
    assert geometry.rows_of_block(0)[0] == 0
    assert geometry.rows_of_block(geometry.blocks - 1)[1] == n_rows
    for number in {0, geometry.blocks // 2, geometry.blocks - 1}:
        start, stop = geometry.rows_of_block(number)
        assert 0 < stop - start <= geometry.block_rows
        assert number == 0 or geometry.rows_of_block(number - 1)[1] == start


@given(memories, rows, dims, itemsizes, chunks)
def test_blocks_are_whole_chunks_where_chunks_fit(memory, n_rows, n_columns, itemsize, chunk):
    geometry = geometry_or_skip(memory, n_rows, n_columns, itemsize, chunk)
    assert geometry.block_rows * n_columns * 4 <= memory // 4 or geometry.block_rows == 1
    if chunk * n_columns * 4 <= memory // 8 and chunk <= 65_536:
        assert geometry.block_rows % chunk == 0 or geometry.blocks == 1


@given(memories, rows, dims, itemsizes, st.sampled_from(["euclidean", "cosine"]), st.integers(1, 100))
def test_cells_fit_the_memory_of_a_task(memory, n_rows, n_columns, itemsize, metric, k):
    settings = config(memory, neighbors={"metric": metric, "n_neighbors": k + 1})
    geometry = make_geometry(settings, n_rows, n_columns, itemsize, 1)
    min_rows = 4 * (k + 2)
    assert geometry.cell_rows * cell_row_bytes(n_columns, k, metric) <= memory or geometry.cell_rows == min_rows
    assert geometry.cell_rows >= min_rows
    cells_a_row = 4 if geometry.cells >= 32 else 1.6 if geometry.cells > 1 else 0.75
    share = (
        0.75 if n_rows > geometry.cell_rows else 1
    )  # one cell would do, of which there are more for the sake of tasks
    assert share * geometry.cells * geometry.cell_rows >= n_rows * cells_a_row
    assert geometry.sample_rows <= n_rows


@given(memories, rows, dims, st.integers(1, 64), st.none() | st.integers(64, 10**5))
def test_a_cell_may_hold_twice_its_planned_home_rows(memory, n_rows, n_columns, cells_per_row, most):
    """Leaves are not cut to fill cells evenly."""
    geometry = make_geometry(
        config(memory, cells={"max_cells_per_row": cells_per_row, "max_rows": most}), n_rows, n_columns, 4, 1
    )
    assert min(n_rows, 2 * -(-n_rows // geometry.cells)) <= geometry.cell_rows


@given(memories, rows, dims)
def test_the_cut_into_cells_depends_on_neither_chunks_nor_dtype(memory, n_rows, n_columns):
    geometries = [
        geometry_or_skip(memory, n_rows, n_columns, itemsize, chunk) for itemsize, chunk in [(4, 1), (4, 100), (1, 1)]
    ]
    assert (
        len(
            {
                (geometry.cells, geometry.cell_rows, geometry.sample_rows, geometry.shards, geometry.n_epochs)
                for geometry in geometries
            }
        )
        == 1
    )


@given(rows)
def test_shards_and_outputs_cover_all_rows(n_rows):
    geometry = make_geometry(config(), n_rows, 10, 4, 100)
    for size, number in [(geometry.shard_rows, geometry.shards), (geometry.output_rows, geometry.outputs)]:
        assert (number - 1) * size < n_rows <= number * size


@pytest.mark.fault(35)
@pytest.mark.parametrize(("n_rows", "itemsize"), [(2**31 - 2, 4), (2**31 - 1, 8)])
def test_ids_are_as_wide_as_rows_are_many(n_rows, itemsize):
    assert make_geometry(config(), n_rows, 10, 4, 100).index_dtype.itemsize == itemsize


def test_max_rows_bounds_cells():
    few = make_geometry(config(cells={"max_rows": 500}), 100_000, 10, 4, 100)
    assert few.cell_rows == 500
    assert few.cells > 100_000 / 500


@pytest.mark.fault(28)
def test_too_few_rows_are_refused_with_what_would_do():
    with pytest.raises(
        InputError, match=r"15 rows are too few .* give at least 16 rows, or set n_neighbors to at most 14"
    ):
        make_geometry(config(), 15, 4, 4, 15)
    make_geometry(config(), 16, 4, 4, 16)
    make_geometry(config(neighbors={"n_neighbors": 14}), 15, 4, 4, 15)


@pytest.mark.fault(32)
@given(memories, dims, itemsizes, st.integers(1, 10**8))
def test_a_chunk_too_large_is_refused_with_what_would_do(memory, n_columns, itemsize, chunk):
    assume(n_columns * itemsize * 4 <= memory)
    try:
        make_geometry(config(memory), 10**8, n_columns, itemsize, chunk)
    except InputError as error:
        advice = re.search(
            r"rechunk the array to at most (\d+) rows a chunk, or set task_memory to (.*) or", str(error)
        )
        make_geometry(config(memory), 10**8, n_columns, itemsize, int(advice[1]))
        make_geometry(config(parse_bytes(advice[2])), 10**8, n_columns, itemsize, chunk)
    else:
        assert chunk * n_columns * itemsize <= memory // 4


# shards ----------------------------------------------------------------------------------------


@given(memories, st.integers(2, 512), st.integers(1, 64))
def test_shards_fit_the_memory_of_a_task_however_many_neighbors(memory, k, n_components):
    settings = config(memory, neighbors={"n_neighbors": k}, layout={"n_components": n_components})
    shard_rows = max_shard_rows(settings)
    assert shard_rows % 4096 == 0
    assert 4096 <= shard_rows <= 65_536
    assert make_geometry(settings, 10**7, 10, 4, 100).shard_rows == shard_rows
    others = settings.neighbors.graph_k
    row_bytes = max(
        others * MAX_EDGES_PER_NEIGHBOR * EDGE_BYTES, others * MAX_EDGES_PER_NEIGHBOR * 64 + 32 + 72 * n_components
    )
    assert shard_rows * row_bytes <= 0.75 * memory or shard_rows == 4096
    assert (shard_rows + 4096) * row_bytes > 0.75 * memory or shard_rows == 65_536
    named = config(memory, neighbors={"n_neighbors": k}, graph={"shard_rows": 8192})
    assert max_shard_rows(named) <= 8192


@pytest.mark.parametrize("k", [15, 100, 512])
def test_many_neighbors_take_no_more_than_a_task_may(k):
    plan = make_small_plan(config(neighbors={"n_neighbors": k}), 10**6, 64)
    for stage in ("graph", "start", "layout"):
        assert plan.stage(stage).peak_bytes - interpreter_bytes(stage) <= 512 * MIB, stage
    assert plan.geometry.shard_rows == {15: 65_536, 100: 16_384, 512: 4096}[k]


# few rows, very wide ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1200, 50_000, 2, 50), (300, 200_000, 4, 10), (5000, 20_000, 4, 100)])
@pytest.mark.parametrize("init", ["spectral", "pca"])
def test_few_rows_of_many_dims_fit_the_memory_of_a_task(shape, init):
    settings = config(start={"init": init})
    geometry = make_geometry(settings, *shape)
    most = 512 * MIB * 1.01  # the codes of one leaf's rows may come on top
    for stage in make_plan(settings, geometry).stages:
        assert stage.peak_bytes - interpreter_bytes(stage.name) <= most, stage.name


@given(memories, st.integers(1, 500_000))
def test_queries_are_compared_a_few_at_a_time_where_they_are_wide(memory, n_columns):
    at_once = queries_at_once(config(memory), n_columns)
    assert at_once == 16 or at_once * n_columns * 16 <= memory // 8
    assert queries_at_once(config(), 784) >= 1000, "the default's queries go together"


# the budget ------------------------------------------------------------------------------------


@pytest.mark.fault(20)
@given(memories, rows, st.integers(1, 1000), st.integers(MIB, 64 * 2**30))
def test_a_refusal_names_the_memory_that_would_do(memory, n_rows, n_columns, worker_memory):
    settings = config(memory)
    plan = make_small_plan(settings, n_rows, n_columns, worker_memory)
    try:
        plan.check(worker_memory, None)
    except BudgetError as error:
        stage = re.match(r"stage (\w+) is projected to peak", str(error))[1]
        assert plan.stage(stage).peak_bytes == plan.peak_bytes
        enough = parse_bytes(re.search(r"--memory-limit (\w+)", str(error))[1])
        assert enough > worker_memory
        make_small_plan(settings, n_rows, n_columns, enough).check(enough, None)
    else:
        assert plan.peak_bytes <= worker_memory


@pytest.mark.parametrize(("n_rows", "n_columns"), [(300_000, 1000), (10**6, 784), (1200, 50_000), (10**7, 64)])
def test_a_smaller_task_memory_fits_a_smaller_worker(n_rows, n_columns):
    peaks = [
        make_plan(c, make_geometry(c, n_rows, n_columns, 4, 10)).peak_bytes
        for c in map(config, (256 * MIB, 512 * MIB, 2**30))
    ]
    assert peaks[0] < peaks[1] < peaks[2]


def test_a_task_that_turned_out_too_large_is_refused_with_the_memory_that_would_do():
    facts = "graph", 700 * MIB
    with pytest.raises(BudgetError, match=r"stage graph: the fullest shard .* or set a smaller k") as refused:
        check_task(*facts, 1000 * MIB, "the fullest shard has 9 edges", "a smaller k")
    enough = parse_bytes(re.search(r"--memory-limit (\w+)", str(refused.value))[1])
    check_task(*facts, enough, "", "")
    check_task(*facts, 0, "", "")
    with pytest.raises(BudgetError):
        check_task(*facts, enough - MIB, "", "")


def test_cells_are_projected_as_they_turned_out_to_be():
    settings = config()
    geometry = make_geometry(settings, 300_000, 400, 4, 1000)
    planned = make_plan(settings, geometry)
    small, crowded = (
        make_plan(settings, geometry.with_cells({"largest_home": home, "largest": home + guests, "stored_rows": 0}))
        for home, guests in (
            (geometry.cell_rows // 4, geometry.cell_rows // 4),
            (geometry.cell_rows // 4, 3 * geometry.cell_rows),
        )
    )
    row = cell_row_bytes(geometry.dims, settings.neighbors.search_k, settings.neighbors.metric)
    peak = small.stage("neighbors").peak_bytes
    assert planned.stage("neighbors").peak_bytes - peak > 0.45 * geometry.cell_rows * row
    assert peak - small.stage("neighbors").held_bytes > 0.5 * geometry.cell_rows * row
    more = crowded.stage("neighbors").peak_bytes - planned.stage("neighbors").peak_bytes
    assert more > 2 * geometry.cell_rows * GUEST_BYTES, "guests searched at other times are held too"
    assert small.stage("audit").peak_bytes <= planned.stage("audit").peak_bytes


def test_threads_of_a_process_share_what_it_holds_without_tasks():
    for stage in make_plan(config(), make_geometry(config(), 300_000, 400, 4, 1000)).stages:
        one, two, three = map(stage.process_bytes, (1, 2, 3))
        assert one == stage.peak_bytes
        assert 2 * (two - one) == three - one == 2 * (stage.peak_bytes - stage.held_bytes) > 0, stage.name


def test_no_limit_is_no_refusal():
    make_small_plan(config(), 10**8, 100).check(0, None)


def test_a_disk_too_small_is_refused():
    plan = make_small_plan(config(), 10**6, 100)
    plan.check(0, plan.peak_disk_bytes)
    with pytest.raises(BudgetError, match=r"to take .* GiB on disk, but the output has .* free: make room, or name"):
        plan.check(0, plan.peak_disk_bytes - 1)


def test_a_run_that_goes_on_needs_room_for_the_rest_alone():
    plan = make_small_plan(config(), 10**6, 100)
    needed = [
        plan.disk_needed(done) for done in itertools.accumulate(STAGES, lambda done, name: [*done, name], initial=[])
    ]
    assert needed[0] == plan.peak_disk_bytes
    assert needed[-1] == 0
    cells = ["vectors", "cells"]
    assert plan.disk_needed(cells) < plan.peak_disk_bytes - 0.9 * plan.stage("cells").disk_bytes
    plan.check(0, plan.disk_needed(cells), done=cells)
    with pytest.raises(BudgetError, match=r"what is left of the run .* what is committed is kept"):
        plan.check(0, plan.disk_needed(cells) - 1, done=cells)
    plan.check(0, plan.disk_needed(cells) - 10**6, done=cells, written=10**6)


@given(
    st.integers(10**6, 10**9), st.integers(64, 4096), st.sampled_from([1, 2, 4]), st.integers(10, 100), st.booleans()
)
def test_a_finished_run_takes_no_more_than_is_promised(n_rows, n_columns, itemsize, k, unique):
    def plan_that_keeps(keep):
        settings = config(2**31, neighbors={"n_neighbors": k}, input={"path": "in.zarr", "unique": unique}, keep=keep)
        return make_plan(settings, make_geometry(settings, n_rows, n_columns, itemsize, 1))

    everything, model, results = map(plan_that_keeps, ("all", "model", "results"))
    assert everything.disk_bytes == everything.peak_disk_bytes == everything.final_disk_bytes == model.disk_bytes
    assert model.final_disk_bytes <= n_rows * (n_columns * itemsize + 100 + 25 * k + 8 * 2)
    assert results.final_disk_bytes == results.stage("embedding").disk_bytes < model.final_disk_bytes
    assert model.final_disk_bytes <= model.peak_disk_bytes <= everything.peak_disk_bytes
    assert results.peak_disk_bytes <= model.peak_disk_bytes


@given(memories, rows, st.booleans())
def test_buckets_of_hashes_fit_the_memory_of_a_task(memory, n_rows, unique):
    settings = config(memory, input={"path": "in.zarr", "unique": unique})
    row_bytes, buckets = tally_row_bytes(settings), tally_buckets(settings, n_rows)
    assert n_rows * row_bytes <= buckets * memory < n_rows * row_bytes + memory


def test_leaving_duplicates_out_reads_the_input_again_and_is_projected():
    plain, unique = (
        make_small_plan(config(input={"path": "in.zarr", "unique": unique}), 10**7, 100) for unique in (False, True)
    )
    for stage in ("vectors", "graph"):
        assert unique.stage(stage).tasks >= plain.stage(stage).tasks + plain.geometry.blocks
        assert unique.stage(stage).disk_bytes > plain.stage(stage).disk_bytes
    assert unique.geometry == plain.geometry
    assert unique.peak_bytes >= plain.peak_bytes


def test_the_components_of_any_number_of_rows_fit_a_task():
    peaks = [
        make_small_plan(config(), rows, 10).stage("graph").peak_bytes for rows in (30_000_000, 3 * 10**8, 3 * 10**9)
    ]
    assert peaks[0] < peaks[1]
    assert peaks[1] - interpreter_bytes("graph") < 2 * config().task_memory
    assert peaks[2] < 1.2 * peaks[1], "but for wider numbers of rows"


def test_the_disk_holds_at_least_the_vectors_and_the_lists():
    plan = make_small_plan(config(), 10**6, 100)
    assert plan.stage("cells").disk_bytes >= 10**6 * 100 * 4
    assert plan.stage("neighbors").disk_bytes >= 10**6 * 14 * 8
    assert plan.disk_bytes == sum(stage.disk_bytes for stage in plan.stages)


@given(memories, rows, st.integers(1, 1000), st.integers(1, 100))
def test_repairs_hold_no_more_than_a_task_may_or_a_cell_has(memory, n_rows, n_columns, k):
    """Beside what travels as objects, and the table of who asks whom."""
    settings = config(memory, neighbors={"n_neighbors": k + 1})
    geometry = make_geometry(settings, n_rows, n_columns, 4, 1)
    held = max_repair_rows(settings, geometry) * repair_row_bytes(n_columns, k, "euclidean")
    assert held <= memory
    assert repair_bytes(settings, geometry) >= min(geometry.cell_rows, n_rows) * repair_row_bytes(
        n_columns, k, "euclidean"
    )
    assert make_plan(settings, geometry).stage("audit").peak_bytes >= repair_bytes(settings, geometry)


@pytest.mark.parametrize(
    "section", [{"neighbors": {"recall_target": 0.0}}, {"neighbors": {"max_repairs": 0}}, {"audit": {"queries": 0}}]
)
def test_lists_that_are_never_repaired_are_projected_without_repairs(section):
    more, less = (make_small_plan(config(**settings), 10**6, 100).stage("audit") for settings in ({}, section))
    assert max_audits(config(**section)) == 1
    assert less.tasks < more.tasks
    assert less.disk_bytes < more.disk_bytes - 10**6 * 100 * 4
    assert less.peak_bytes < more.peak_bytes


@given(rows, dims)
def test_more_rows_never_take_less(n_rows, n_columns):
    less, more = (make_small_plan(config(), times * n_rows, n_columns) for times in (1, 2))
    assert more.disk_bytes > less.disk_bytes
    assert more.stage("start").peak_bytes >= less.stage("start").peak_bytes


def test_a_plan_is_plain_values():
    plan = make_small_plan(config(), 10**6, 100)
    values = plan.as_dict()
    assert values["rows"] == 10**6
    assert values["peak_bytes"] == max(stage["peak_bytes"] for stage in values["stages"])
    assert [stage["name"] for stage in values["stages"]] == [stage.name for stage in plan.stages]


# the curve -------------------------------------------------------------------------------------


def geometry_with_layout(**layout) -> Geometry:
    """Return the geometry of 1000 rows with settings of the layout."""
    return make_geometry(config(layout=layout), 1000, 10, 4, 100)


@pytest.mark.parametrize(
    ("spread", "min_dist"), [(1e30, 0.1), (1e300, 1.0), (1e-30, 0.0), (1e-300, 1e-300), (5e-324, 0.0), (1.7e308, 1e308)]
)
def test_a_spread_whose_curve_float32_does_not_hold_is_refused(spread, min_dist):
    with pytest.raises(ConfigError, match="as float32 holds them") as error:
        geometry_with_layout(spread=spread, min_dist=min_dist)
    message = str(error.value)
    assert f"layout.spread = {spread} and layout.min_dist = {min_dist}: " in message
    instead = dict(re.findall(r"(spread|min_dist)=(\S+)", message))
    geometry_with_layout(**{name: float(value) for name, value in instead.items()})


@pytest.mark.parametrize(
    ("a", "b"), [(1e39, 1.0), (1.0, 1e39), (1e-39, 1.0), (1.0, 5e-324), (2e38, 1.0), (1e-20, 1e-20)]
)
def test_a_curve_that_float32_does_not_hold_is_refused(a, b):
    with pytest.raises(ConfigError, match="set both to null") as error:
        geometry_with_layout(a=a, b=b)
    assert f"layout.a = {a} and layout.b = {b}: " in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"spread": 1e6}, {"spread": 1e-6, "min_dist": 0.0}, {"a": 1e30, "b": 1.0, "spread": 1e30}]
)
def test_a_curve_of_any_usual_scale_is_taken(settings):
    assert geometry_with_layout(**settings) == geometry_with_layout()


# neighbours that are given -----------------------------------------------------------------------


def geometry_of_given_lists(
    settings: Config, n_rows: int, n_columns: int, columns: int, chunk_rows: int = 1000
) -> Geometry:
    """Return the geometry of a run on given lists of so many columns."""
    given = SimpleNamespace(path="knn", columns=columns, chunk_rows=chunk_rows, chunk_bytes=chunk_rows * columns * 8)
    return make_geometry(settings, n_rows, n_columns, 4, 1000, given)


@given(st.integers(2**16, 2**30), rows, st.integers(1, 511), st.integers(0, 500), st.sampled_from([1, 77, 65_536]))
def test_ranges_of_given_neighbors_cover_all_rows_once(memory, n_rows, k, more, input_chunk):
    settings = config(memory, neighbors={"n_neighbors": k + 1, "precomputed": "knn"})
    geometry = geometry_of_given_lists(settings, n_rows, 1, k + more, 1)
    assert (geometry.cells - 1) * geometry.cell_rows < n_rows <= geometry.cells * geometry.cell_rows
    for cell in {0, geometry.cells // 2, geometry.cells - 1}:
        spans = geometry.list_ranges(cell)
        assert spans[0][0] == cell * geometry.cell_rows
        assert spans[-1][1] == min(n_rows, (cell + 1) * geometry.cell_rows)
        assert all(0 < stop - start <= geometry.list_rows for start, stop in spans)
        assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(spans))


def test_ranges_depend_on_neither_the_chunks_nor_the_columns_given():
    settings = config(neighbors={"precomputed": "knn"})
    geometries = [
        geometry_of_given_lists(settings, 10**6, 10, columns, chunk)
        for columns, chunk in [(14, 1000), (14, 77), (90, 9)]
    ]
    assert len({(geometry.cells, geometry.cell_rows, geometry.n_epochs) for geometry in geometries}) == 1


@given(memories, st.integers(1, 511), st.integers(0, 500))
def test_given_neighbors_are_read_in_the_memory_of_a_task(memory, k, more):
    settings = config(memory, neighbors={"n_neighbors": k + 1, "precomputed": "knn"})
    geometry = geometry_of_given_lists(settings, 10**8, 2, k + more, 1)
    taken = make_plan(settings, geometry).stage("neighbors").peak_bytes - interpreter_bytes("neighbors")
    assert taken <= memory + (geometry.blocks * geometry.cells * 2 + geometry.cells**2) * 8 + (k + more) * 96


def test_less_is_done_where_neighbors_are_given():
    settings = config(neighbors={"precomputed": "knn"})
    less = make_plan(settings, geometry_of_given_lists(settings, 10**7, 100, 20))
    more = make_plan(settings, make_geometry(config(), 10**7, 100, 4, 1000), recipe=SEARCH_RECIPE)
    for stage in ("cells", "neighbors"):
        for what in ("tasks", "shuffled_bytes", "disk_bytes"):
            assert getattr(less.stage(stage), what) < getattr(more.stage(stage), what), (stage, what)
    assert less.stage("neighbors").disk_bytes >= 10**7 * 14 * 8
    for stage in ("graph", "start", "layout"):
        for what in ("tasks", "writes", "disk_bytes", "peak_bytes"):
            assert getattr(less.stage(stage), what) == getattr(more.stage(stage), what), (stage, what)


def test_a_plan_tells_between_what_times_a_run_will_take():
    few, many = (make_plan(config(), make_geometry(config(), n_rows, 64, 4, 1000)) for n_rows in (10**5, 10**7))
    low, high = few.seconds(1)
    assert 0 < low < few.core_seconds < high
    assert few.seconds(4) == (low / 4, high / 4)
    assert many.seconds(1)[0] > 50 * low
    assert str(many) == format_plan(many, 1)
    assert format_plan(many, 4).splitlines()[-1].startswith(f"time {format_seconds(many.seconds(4)[0])} to ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.44, "2.4 s"),
        (89.9, "90 s"),
        (90, "1.5 min"),
        (754, "13 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (1e6, "278 h"),
    ],
)
def test_durations_are_written_to_two_digits(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("n_rows", "n_columns", "chunk", "most_disk"), [(100_000_000, 768, 1024, 4), (1_000_000_000, 64, 16_384, 6)]
)
def test_large_data_fits_small_workers_and_disks(n_rows, n_columns, chunk, most_disk):
    """In workers of 2 GiB, and with a few times the input on disk at once."""
    settings = config()
    planned = make_plan(settings, make_geometry(settings, n_rows, n_columns, 4, chunk), 2 * 2**30)
    planned.check(2 * 2**30, most_disk * n_rows * n_columns * 4)
    assert max(stage.tasks for stage in planned.stages) < n_rows / 1000


def test_tasks_and_disk_grow_as_rows_do():
    settings = config()
    small, large = (make_small_plan(settings, n_rows, 64, 2 * 2**30) for n_rows in (30_000_000, 300_000_000))
    assert large.peak_disk_bytes < 12 * small.peak_disk_bytes
    for before, after in zip(small.stages, large.stages, strict=True):
        assert after.tasks <= 13 * before.tasks, after.name
        assert after.disk_bytes <= 13 * before.disk_bytes, after.name
        assert after.peak_bytes <= 1.6 * before.peak_bytes, after.name

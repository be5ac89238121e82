"""AnnData: what dumap writes into it, and what scanpy does with that."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sparse
import zarr
from sklearn.metrics import adjusted_rand_score
from umap_learn import umap_in_python

import dumap
from dumap.errors import DataError, InputError, ParameterError
from dumap.store import annotated, backends, objects
from dumap.store.objects import Objects

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    import scanpy

K = 10
QUICK = {"n_neighbors": K, "maxiter": 20}
LEIDEN = {"flavor": "igraph", "n_iterations": 2, "directed": False, "resolution": 0.5}


@pytest.fixture(scope="module", autouse=True)
def temporary(new_path):
    """Let the folders of temporary runs be in memory."""
    before, tempfile.tempdir = tempfile.tempdir, new_path("tmp")
    Path(tempfile.tempdir).mkdir()
    yield
    tempfile.tempdir = before


def cells() -> anndata.AnnData:
    """Return 180 cells of three kinds, by 30 genes, with 10 principal components."""
    rng, kinds = np.random.default_rng(0), np.repeat([0, 1, 2], 60)
    x = (rng.normal(size=(180, 30)) + 6 * rng.normal(size=(3, 30))[kinds]).astype(np.float32)
    adata = anndata.AnnData(x)
    adata.obs_names = [f"cell-{number}" for number in range(180)]
    adata.obs["kind"] = [f"k{kind}" for kind in kinds]
    adata.obs["kind"] = adata.obs["kind"].astype("category")
    centred = x - x.mean(axis=0)
    adata.obsm["X_pca"] = (centred @ np.linalg.svd(centred, full_matrices=False)[2][:10].T).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def by_scanpy() -> anndata.AnnData:
    """Return what scanpy makes of the cells."""
    adata = cells()
    with umap_in_python():
        scanpy.pp.neighbors(adata, n_neighbors=K, use_rep="X_pca")
    connectivities = adata.obsp["connectivities"].copy()
    scanpy.tl.umap(adata, maxiter=20)
    adata.obsp["connectivities"] = connectivities  # of which it takes weak edges
    return adata


@pytest.fixture(scope="module")
def mapped() -> anndata.AnnData:
    """Return cells of which a map was made."""
    adata = cells()
    assert dumap.umap(adata, **QUICK) is None
    return adata


FORMATS = {"v2": (2, True), "v3": (3, True), "v3_not_consolidated": (3, False)}
ONLY_V3 = pytest.mark.parametrize("stored", [FORMATS["v3"]], ids=["v3"], indirect=True)


@pytest.fixture(scope="module", params=FORMATS.values(), ids=FORMATS)
def stored(request, new_path):
    """Return the path of a store on disk, before and after, and whether it was consolidated."""
    path, (zarr_format, consolidated) = new_path("cells.zarr"), request.param
    write(cells(), path, zarr_format)
    if not consolidated:
        annotated._delete_consolidated(annotated.Objects(path), zarr_format)
    assert dumap.umap(path, **QUICK) is None
    return path, consolidated


def write(adata, path, zarr_format=3):
    """Write annotated cells as a Zarr group."""
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format):
        warnings.simplefilter("ignore")  # of formats to come
        adata.write_zarr(path)


def read(path) -> anndata.AnnData:
    """Read annotated cells from a Zarr group."""
    return anndata.read_zarr(path)


def listed(adata) -> list[set[int]]:
    """Return the neighbours of each row, as sets, from obsp['distances']."""
    distances = adata.obsp["distances"]
    return [set(row) for row in np.split(distances.indices, distances.indptr[1:-1])]


# objects in memory ---------------------------------------------------------------------------------


def test_slots_are_scanpys(by_scanpy, mapped):
    for slot in ("obsm", "obsp", "uns"):
        assert set(getattr(mapped, slot)) == set(getattr(by_scanpy, slot))
    for key in ("distances", "connectivities"):
        matrix, expected = mapped.obsp[key], by_scanpy.obsp[key]
        assert (type(matrix), matrix.dtype, matrix.shape) == (type(expected), expected.dtype, expected.shape)
        assert matrix.indices.dtype == expected.indices.dtype
    assert mapped.obsp["distances"].nnz == 180 * (K - 1) == by_scanpy.obsp["distances"].nnz
    matrix, expected = mapped.obsm["X_umap"], by_scanpy.obsm["X_umap"]
    assert (type(matrix), matrix.dtype, matrix.shape) == (type(expected), expected.dtype, expected.shape)
    assert mapped.uns["neighbors"] == by_scanpy.uns["neighbors"]
    assert mapped.uns["umap"]["params"] == pytest.approx(by_scanpy.uns["umap"]["params"], abs=1e-6)


def test_neighbours_and_graph_are_scanpys(by_scanpy, mapped):
    assert np.mean([len(a & b) / (K - 1) for a, b in zip(listed(by_scanpy), listed(mapped), strict=True)]) > 0.995
    assert abs(by_scanpy.obsp["connectivities"] - mapped.obsp["connectivities"]).max() < 1e-3
    assert (np.diff(mapped.obsp["distances"].data.reshape(180, K - 1)) >= 0).all()


def test_scanpy_goes_on_from_there(by_scanpy, mapped):
    mapped = mapped.copy()
    for adata in (by_scanpy, mapped):
        scanpy.tl.leiden(adata, **LEIDEN)
        adata.obs["half"] = np.resize(["even", "odd"], 180)
        scanpy.tl.paga(adata, groups="half")
    assert adjusted_rand_score(by_scanpy.obs["leiden"], mapped.obs["leiden"]) == 1
    assert adjusted_rand_score(by_scanpy.obs["kind"], mapped.obs["leiden"]) == 1
    expected, connectivities = (adata.uns["paga"]["connectivities"].toarray() for adata in (by_scanpy, mapped))
    assert np.allclose(expected, connectivities, atol=1e-3)
    scanpy.tl.umap(mapped, maxiter=5)
    assert mapped.obsm["X_umap"].shape == (180, 2)


def test_kinds_are_apart_in_the_map(mapped):
    y, kinds = mapped.obsm["X_umap"], mapped.obs["kind"].cat.codes.to_numpy()
    centres = np.stack([y[kinds == kind].mean(axis=0) for kind in range(3)])
    nearest = np.linalg.norm(y[:, None] - centres, axis=2).argmin(axis=1)
    assert np.array_equal(nearest, kinds)


def test_neighbours_that_scanpy_searched_are_taken(by_scanpy):
    adata = by_scanpy.copy()
    before = adata.obsp["distances"].copy()
    copied = dumap.umap(adata, neighbors_key="neighbors", maxiter=20, n_components=3, copy=True, random_state=7)
    assert adata.obsm["X_umap"].shape == (180, 2)
    assert copied.obsm["X_umap"].shape == (180, 3)
    assert abs(copied.obsp["distances"] - before).max() == 0
    assert copied.uns["neighbors"] == by_scanpy.uns["neighbors"]
    assert copied.uns["umap"]["params"]["random_state"] == 7


def test_a_key_serves_maps_and_neighbours(mapped):
    adata = cells()
    dumap.umap(adata, key_added="dumap", use_rep="X", metric="cosine", **QUICK)
    assert set(adata.obsp) == {"dumap_distances", "dumap_connectivities"}
    assert (set(adata.obsm), set(adata.uns)) == ({"X_pca", "dumap"}, {"dumap"})
    params = adata.uns["dumap"]["params"]
    assert (params["metric"], params["use_rep"], params["n_neighbors"]) == ("cosine", "X", K)
    assert params["a"] == pytest.approx(mapped.uns["umap"]["params"]["a"])
    scanpy.tl.leiden(adata, neighbors_key="dumap", **LEIDEN)
    assert adjusted_rand_score(adata.obs["kind"], adata.obs["leiden"]) == 1
    assert dumap.umap(adata, neighbors_key="dumap", key_added="again", maxiter=5) is None
    assert set(adata.uns["again"]["params"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbors_key": "none"}, "there is no uns.'none'."),
        ({"use_rep": "X_lsi"}, "there is no obsm.'X_lsi'.; there are X_pca"),
        ({"init_pos": "paga"}, "give the positions themselves"),
        ({"init_pos": "X_tsne"}, "allowed are spectral, pca, random"),
        ({"min_dist": 3}, "must not exceed spread"),
    ],
)
def test_what_is_wrong_is_a_value_error(settings, message):
    with pytest.raises(ValueError, match=message):
        dumap.umap(cells(), **QUICK | settings)


def test_first_positions_are_of_obsm_or_an_array():
    adata = cells()
    adata.obsm["X_two"] = adata.obsm["X_pca"][:, :2].copy()
    one = dumap.umap(adata, init_pos="X_two", copy=True, **QUICK)
    other = dumap.umap(adata, init_pos=adata.obsm["X_two"], copy=True, **QUICK)
    assert np.array_equal(one.obsm["X_umap"], other.obsm["X_umap"])


# stores on disk ------------------------------------------------------------------------------------


def test_a_store_holds_what_an_object_does(stored, mapped):
    path, consolidated = stored
    written = read(path)
    assert np.array_equal(written.obsm["X_umap"], mapped.obsm["X_umap"])
    for key in ("distances", "connectivities"):
        assert written.obsp[key].dtype == mapped.obsp[key].dtype
        assert abs(written.obsp[key] - mapped.obsp[key]).max() == 0
    assert np.array_equal(written.obsp["distances"].indices, mapped.obsp["distances"].indices)
    assert written.uns == mapped.uns
    assert np.array_equal(written.X, mapped.X)
    assert written.obs_names.tolist() == mapped.obs_names.tolist()
    assert (zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None) == consolidated
    assert [p.name for p in Path(path).parent.iterdir()] == ["cells.zarr"]


@ONLY_V3
def test_scanpy_goes_on_from_a_store(stored):
    adata = read(stored[0])
    scanpy.tl.leiden(adata, **LEIDEN)
    assert adjusted_rand_score(adata.obs["kind"], adata.obs["leiden"]) == 1


@ONLY_V3
def test_neighbours_of_a_store_are_taken_block_by_block(stored, mapped, monkeypatch, new_path):
    monkeypatch.setattr("dumap.single_cell.BLOCK_BYTES", 50 * 3 * K * 12)
    path, run = stored[0], new_path("run.zarr")
    dumap.umap(path, neighbors_key="neighbors", key_added="again", maxiter=20, store=run)
    assert dumap.open_run(run)["parameters"]["neighbors"]["precomputed"] is True
    written = read(path)
    memory = dumap.umap(mapped, neighbors_key="neighbors", key_added="again", maxiter=20, copy=True)
    assert np.array_equal(written.obsm["again"], memory.obsm["again"])
    assert written.uns["again"] == memory.uns["again"]
    assert np.array_equal(written.obsm["X_umap"], mapped.obsm["X_umap"])


def test_a_map_takes_the_place_of_another(new_path, monkeypatch):
    """Block by block, of other numbers of components and neighbours, with first positions given."""
    monkeypatch.setattr("dumap.single_cell.BLOCK_BYTES", 50 * 3 * K * 12)
    path, adata = new_path("cells.zarr"), cells()
    write(adata, path)
    dumap.umap(path, **QUICK)
    init = adata.obsm["X_pca"][:, :3]
    dumap.umap(path, n_neighbors=5, maxiter=5, n_components=3, init_pos=init, random_state=3)
    dumap.umap(adata, n_neighbors=5, maxiter=5, n_components=3, init_pos=init, random_state=3)
    written = read(path)
    assert np.array_equal(written.obsm["X_umap"], adata.obsm["X_umap"])
    assert written.obsp["distances"].nnz == 180 * 4
    assert abs(written.obsp["connectivities"] - adata.obsp["connectivities"]).max() == 0
    assert written.uns["umap"]["params"]["random_state"] == written.uns["neighbors"]["params"]["random_state"] == 3


class Interrupted(BaseException):
    """An end that nothing of dumap's handles."""


def test_an_interrupted_write_leaves_the_store_readable(new_path, monkeypatch):
    """However many slots were in place by then, each is the old one or the new one; the same call goes on."""
    path, rename = new_path("cells.zarr"), annotated._rename_slot
    write(cells(), path)
    dumap.umap(path, **QUICK)
    before = read(path)
    for moved in range(5):
        calls = []

        def move(source, target, key, moved=moved, calls=calls):
            if len(calls) == moved:
                raise Interrupted
            calls.append(key)
            rename(source, target, key)

        monkeypatch.setattr(annotated, "_rename_slot", move)
        with pytest.raises(Interrupted):
            dumap.umap(path, random_state=3, **QUICK)
        written = read(path)
        assert np.array_equal(written.obsm["X_umap"], before.obsm["X_umap"]) == ("obsm/X_umap" not in calls)
        assert (written.uns["umap"] == before.uns["umap"]) == ("uns/umap" not in calls)
        assert len(calls) == moved
    monkeypatch.undo()
    dumap.umap(path, random_state=3, **QUICK)
    assert read(path).uns["umap"]["params"]["random_state"] == 3
    assert [p.name for p in Path(path).parent.iterdir()] == ["cells.zarr"]


@ONLY_V3
def test_a_store_in_a_bucket_is_as_one_on_disk(stored, monkeypatch, new_path, mapped):
    """Its objects are those of the store on disk, the new slots' too."""
    obstore = pytest.importorskip("obstore.store", reason="buckets need the extra 'cloud'")
    path, url, root = new_path("cells.zarr"), "memory://bucket/cells.zarr", new_path("root")
    write(cells(), path)

    def open_bucket(location):
        return obstore.LocalStore(Path(root, location.partition("://")[2]), mkdir=True)

    for module in (backends, objects):
        monkeypatch.setattr(module, "open_bucket", open_bucket)
    bucket = Objects(url)
    for key in sorted(Objects(path).keys()):
        bucket.put(key, Objects(path).get(key))
    dumap.umap(url, **QUICK)
    dumap.umap(url, store=new_path("run.zarr"), key_added="again", neighbors_key="neighbors", maxiter=5)
    for key in sorted(bucket.keys()):
        target = Path(path, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bucket.get(key))
    written = read(path)
    assert np.array_equal(written.obsm["X_umap"], mapped.obsm["X_umap"])
    assert written.obsm["again"].shape == (180, 2)
    assert abs(written.obsp["connectivities"] - mapped.obsp["connectivities"]).max() == 0
    assert not Objects("memory://bucket/cells.zarr.dumap-new").keys()
    assert not Objects("memory://bucket/cells.zarr.dumap-run").keys()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is no AnnData store in Zarr"),
        (lambda path: zarr.create_group(path), "not one that AnnData wrote"),
        (lambda path: zarr.create_array(path, shape=(3, 3), dtype="f4"), "is no AnnData store in Zarr"),
    ],
)
def test_other_places_are_refused(new_path, make, message):
    path = new_path("other.zarr")
    make(path)
    with pytest.raises(InputError, match=message):
        dumap.umap(path, **QUICK)


def test_what_is_not_in_a_store_is_told(new_path):
    path = new_path("cells.zarr")
    write(cells(), path)
    with pytest.raises(ParameterError, match=r"there is no uns\['neighbors'\]"):
        dumap.umap(path, neighbors_key="neighbors")
    with pytest.raises(DataError, match="X_lsi"):
        dumap.umap(path, use_rep="X_lsi")
    with pytest.raises(ParameterError, match="copy=True is of an object in memory"):
        dumap.umap(path, copy=True)
    assert [p.name for p in Path(path).parent.iterdir()] == ["cells.zarr"]


# neighbours for scanpy -----------------------------------------------------------------------------


def test_scanpy_takes_the_transformer(by_scanpy):
    adata = cells()
    transformer = dumap.KNeighborsTransformer(n_neighbors=K)
    with umap_in_python():
        scanpy.pp.neighbors(adata, transformer=transformer, use_rep="X_pca")
    assert adata.uns["neighbors"]["params"]["n_neighbors"] == K
    assert abs(adata.obsp["connectivities"] - by_scanpy.obsp["connectivities"]).max() < 1e-3
    distances = adata.obsp["distances"]
    assert distances.nnz == 180 * K
    assert np.array_equal(distances.indices.reshape(180, K)[:, 0], np.arange(180))
    assert (distances.data.reshape(180, K)[:, 0] == 0).all()
    assert (np.diff(distances.data.reshape(180, K)) >= 0).all()
    assert distances.indices.dtype == np.int32
    assert sparse.isspmatrix_csr(distances)


def test_the_transformer_makes_neighbors_alone_and_a_run_goes_on_from_them(new_path):
    x, output = cells().obsm["X_pca"], new_path("run.zarr")
    settings = {"n_neighbors": K, "metric": "euclidean", "metric_kwds": {}}
    for _ in range(2):
        fitted = dumap.KNeighborsTransformer(n_neighbors=K, store=output).fit(x)
        states = {stage["name"]: stage["state"] for stage in fitted.run_["stages"]}
        assert [name for name, state in states.items() if state == "done"][-2:] == ["neighbors", "audit"]
        assert {states[name] for name in ("graph", "coarsen", "start", "layout", "embedding", "quality")} == {"pending"}
    distances = fitted.transform(x)
    result = dumap.run(x, output=output, **settings)
    assert result["state"] == "done"
    assert np.array_equal(result.embedding[:], dumap.run(x, output=new_path("run.zarr"), **settings).embedding[:])
    searched = result.neighbors[:][0]
    assert np.array_equal(distances.indices.reshape(len(x), K)[:, 1:], searched)


def test_the_transformer_knows_the_rows_that_it_was_fitted_to_alone():
    x = cells().obsm["X_pca"]
    fitted = dumap.KNeighborsTransformer(5).set_params(metric="cosine").fit(x)
    assert fitted.get_params()["n_neighbors"] == 5
    assert fitted.transform(x).nnz == 900
    with pytest.raises(DataError, match="rows that were not fitted"):
        fitted.transform(x[:10])


# sparse rows -------------------------------------------------------------------------------------


def counted_cells() -> anndata.AnnData:
    """Return cells whose X is a sparse matrix, and a layer of it."""
    adata = cells()
    x = np.maximum(adata.X - 4, 0)
    assert 0.1 < (x > 0).mean() < 0.5
    adata.X, adata.layers["dense"] = sparse.csr_matrix(x), x
    return adata


def test_sparse_x_is_mapped_in_memory_and_on_disk(new_path):
    adata = counted_cells()
    write(adata, path := new_path("cells.zarr"))
    for data in (adata, path):
        dumap.umap(data, use_rep="X", metric="cosine", **QUICK)
    stored, dense = read(path), counted_cells()
    assert np.array_equal(stored.obsm["X_umap"], adata.obsm["X_umap"])
    assert (stored.X != counted_cells().X).nnz == 0, "X is as it was"
    dense.X = dense.layers["dense"]
    dumap.umap(dense, use_rep="X", metric="cosine", **QUICK)
    both = zip(listed(adata), listed(dense), strict=True)
    assert np.mean([len(a & b) / (K - 1) for a, b in both]) > 0.99


def test_scanpy_searches_sparse_neighbours_by_the_transformer():
    adata = counted_cells()
    transformer = dumap.KNeighborsTransformer(K, metric="euclidean")
    scanpy.pp.neighbors(adata, use_rep="X", transformer=transformer, n_neighbors=K)
    recomputed = counted_cells()
    scanpy.pp.neighbors(recomputed, use_rep="X", n_neighbors=K)
    assert np.mean([len(a & b) / len(b) for a, b in zip(listed(adata), listed(recomputed), strict=True)]) > 0.98

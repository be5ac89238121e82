"""The estimator: scikit-learn's rules, umap-learn's names, and where its run lies."""

from __future__ import annotations

import gc
import inspect
import pickle
import shutil
import tempfile
from pathlib import Path

import dask.array
import numpy as np
import pytest
import scipy.sparse as sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import kneighbors_graph
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted
from umap_learn import default_values, umap_in_python

import dumap
from dumap.config import UNSUPPORTED_PARAMETERS
from dumap.errors import ConfigError, DataError, ParameterError, RunMismatchError

K = 10
UMAP_LEARN = default_values()


@pytest.fixture(scope="module", autouse=True)
def temporary(new_path):
    """Let the temporary folders of estimators be in memory."""
    before, tempfile.tempdir = tempfile.tempdir, new_path("tmp")
    Path(tempfile.tempdir).mkdir()
    yield Path(tempfile.tempdir)
    tempfile.tempdir = before


def quick(**parameters) -> dumap.UMAP:
    """Return an estimator of few epochs."""
    return dumap.UMAP(**{"n_neighbors": K, "n_epochs": 5, **parameters})


@pytest.fixture(scope="module")
def fitted(digits_300) -> dumap.UMAP:
    """Return such an estimator, fitted to 300 digits."""
    return quick().fit(digits_300)


@pytest.fixture(scope="module")
def exact(digits_300) -> sparse.csr_matrix:
    """Return the K - 1 others nearest to each row."""
    return kneighbors_graph(digits_300, K - 1, mode="distance")


# scikit-learn's rules ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:y is not used:UserWarning", "ignore:n_neighbors=:UserWarning")
@parametrize_with_checks([dumap.UMAP(n_neighbors=5, n_epochs=2)])
def test_scikit_learns_checks_hold_without_exception(estimator, check):
    check(estimator)


def test_arrays_in_arrays_out_as_a_run_has_them(digits_300, fitted, new_path):
    result = dumap.run(digits_300, output=new_path("run.zarr"), n_neighbors=K, n_epochs=5)
    assert isinstance(fitted.embedding_, np.ndarray)
    assert fitted.embedding_.dtype == np.float32
    assert np.array_equal(fitted.embedding_, result.embedding[:])
    assert np.array_equal(quick().fit_transform(digits_300), fitted.embedding_)
    assert (fitted.n_features_in_, fitted.run_["state"]) == (64, "done")


def test_names_come_in_and_go_out(digits_300):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(digits_300[:50], index=[f"r{n}" for n in range(50)], columns=[f"c{n}" for n in range(64)])
    reducer = quick(n_components=3).set_output(transform="pandas")
    embedded = reducer.fit_transform(frame)
    assert embedded.columns.tolist() == ["umap0", "umap1", "umap2"] == reducer.get_feature_names_out().tolist()
    assert embedded.index.tolist() == frame.index.tolist()
    assert reducer.feature_names_in_.tolist() == frame.columns.tolist()


def test_an_estimator_that_is_not_fitted_says_so():
    with pytest.raises(NotFittedError):
        check_is_fitted(quick())
    with pytest.raises(AttributeError, match="embedding_: this UMAP is not fitted yet"):
        quick().embedding_  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'embeding_'"):
        quick().embeding_  # noqa: B018


@pytest.mark.parametrize(
    ("method", "instead"),
    [("transform", "fit them together"), ("inverse_transform", "use umap-learn"), ("update", "append the rows")],
)
def test_methods_that_are_not_here_say_what_to_do(fitted, method, instead):
    assert not hasattr(fitted, method)
    with pytest.raises(AttributeError, match=f"UMAP has no {method}: .*{instead}"):
        getattr(fitted, method)


def test_it_ends_a_pipeline(digits_300):
    scaled = StandardScaler().fit_transform(digits_300)
    embedded = make_pipeline(StandardScaler(), quick()).fit_transform(digits_300)
    assert np.array_equal(embedded, quick().fit_transform(scaled))


class Uncopied:
    """Something that cannot be copied, as a client."""

    def __deepcopy__(self, memo):
        raise TypeError("not to be copied")


def test_a_clone_has_the_same_client():
    client = Uncopied()
    copied = clone(quick(client=client).set_output(transform="pandas"))
    assert copied.client is client
    assert (copied.n_neighbors, copied._sklearn_output_config) == (K, {"transform": "pandas"})


# umap-learn's names --------------------------------------------------------------------------------


def test_parameters_and_defaults_are_umap_learns():
    parameters = inspect.signature(dumap.UMAP).parameters
    assert {name: p.default for name, p in parameters.items()} == {**UMAP_LEARN, "client": None, "store": None}
    assert list(parameters)[: len(UMAP_LEARN)] == list(UMAP_LEARN)


@pytest.mark.parametrize("name", UNSUPPORTED_PARAMETERS)
def test_parameters_that_dumap_has_not_pass_at_their_default_only(name, digits_300):
    other = not UMAP_LEARN[name] if isinstance(UMAP_LEARN[name], bool) else "another"
    with pytest.raises(ParameterError, match=f"^{name}=.*: dumap has no such parameter .*{UMAP_LEARN[name]!r}.*only: "):
        quick(**{name: other}).fit(digits_300)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"metric": lambda a, b: 0.0}, "give the name of a metric, not a function"),
        ({"metric": "precomputed"}, "give the nearest neighbours of each row instead"),
        ({"metric": "euclidian"}, "did you mean euclidean"),
        ({"init": "tswspectral"}, "allowed are spectral, pca, random"),
        ({"min_dist": 2.0}, "min_dist .* must not exceed spread"),
        ({"a": 1.0}, "give both a and b, or neither"),
        ({"random_state": "now"}, "cannot be used to seed"),
        ({"random_state": -1}, "seed"),
        ({"n_neighbors": 1}, "n_neighbors"),
        ({"precomputed_knn": (np.zeros((300, K), int), np.zeros((300, 5)))}, "they must be the same"),
        ({"precomputed_knn": "lists.npz"}, "give two arrays"),
    ],
)
def test_values_that_are_not_allowed_are_value_errors(digits_300, temporary, parameters, message):
    with pytest.raises(ValueError, match=message):
        quick(**parameters).fit(digits_300)


def test_attributes_are_umap_learns(digits_300, fitted):
    indices, distances = fitted._knn_indices, fitted._knn_dists
    assert np.array_equal(indices[:, 0], np.arange(300))
    assert indices.shape == distances.shape == (300, K)
    true = np.linalg.norm(digits_300[:, None] - digits_300[indices], axis=2)
    assert np.allclose(distances, true, atol=1e-3)
    with umap_in_python() as umap_:
        assert (fitted._a, fitted._b) == pytest.approx(umap_.find_ab_params(1.0, 0.1), abs=1e-6)
        sigmas, rhos = umap_.smooth_knn_dist(distances, K)
        umap_graph, *_ = umap_.fuzzy_simplicial_set(
            digits_300, K, None, "euclidean", knn_indices=indices, knn_dists=distances
        )
    assert np.allclose(fitted._sigmas, sigmas, rtol=1e-4)
    assert np.allclose(fitted._rhos, rhos)
    assert sparse.isspmatrix_csr(fitted.graph_)
    assert abs(fitted.graph_ - umap_graph).max() < 1e-5
    assert fitted._raw_data is digits_300


def test_random_states_seed(digits_300):
    assert np.array_equal(quick(random_state=42).fit_transform(digits_300[:50]), quick().fit_transform(digits_300[:50]))
    drawn = [quick(random_state=np.random.RandomState(seed)).fit_transform(digits_300[:50]) for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_too_many_neighbours_are_lowered(digits_300):
    with pytest.warns(UserWarning, match="n_neighbors=10 is lowered to 7: X has 8 rows") as caught:
        reducer = quick().fit(digits_300[:8])
    assert reducer.run_["parameters"]["neighbors"]["n_neighbors"] == 7
    assert Path(caught[0].filename) == Path(__file__)
    assert reducer.n_neighbors == 10


def test_labels_are_told_of_once(digits_300):
    reducer = quick().fit(digits_300[:20], np.full(20, -1)).fit(digits_300[:20], None)
    with pytest.warns(UserWarning, match="y is not used") as caught:
        reducer.fit(digits_300[:20], ["a"] * 20).fit(digits_300[:20], np.arange(20))
    assert len(caught) == 1


def test_first_coordinates_may_be_an_array(digits_300, new_path):
    init = np.random.default_rng(0).normal(size=(300, 2))
    path = new_path("init.npy")
    np.save(path, init.astype(np.float32))
    assert np.array_equal(quick(init=init).fit_transform(digits_300), quick(init=path).fit_transform(digits_300))


def test_bertopic_calls_it(digits_300):
    """As BERTopic 0.17 does, with its default model's parameters, once fitting and once supervised by y of -1."""
    reducer = quick(n_components=5, min_dist=0.0, metric="cosine")
    y = np.array([-1] * len(digits_300))
    embedded = np.nan_to_num(reducer.fit_transform(digits_300, y=y))
    assert embedded.shape == (300, 5)
    assert np.isfinite(embedded).all()
    assert embedded.std(axis=0).min() > 0
    assert np.array_equal(reducer.fit(digits_300, y=y).embedding_, embedded)


# given neighbours ----------------------------------------------------------------------------------


def test_neighbours_may_be_a_sparse_matrix(digits_300, fitted, exact):
    """Of small data, dumap's own are exact, but for ties."""
    from_matrix = quick().fit(digits_300, knn_graph=exact)
    assert np.allclose(from_matrix._knn_dists, fitted._knn_dists, atol=1e-3)
    for row in (0, 150, 299):
        assert set(from_matrix._knn_indices[row, 1:]) == set(exact[row].indices)
    assert from_matrix.embedding_.shape == (300, 2)


def test_a_matrix_may_hold_more_and_the_row_itself_and_zeros(digits_300, exact):
    wide = kneighbors_graph(digits_300, K + 5, mode="distance", include_self=True)
    assert wide.nnz == 300 * (K + 5)
    assert np.allclose(
        quick().fit(digits_300, knn_graph=wide)._knn_dists, quick().fit(digits_300, knn_graph=exact)._knn_dists
    )
    twice = np.repeat(digits_300[:40], 2, axis=0)
    matrix = kneighbors_graph(twice, 4, mode="distance").tocoo()
    reducer = quick(n_neighbors=5).fit(twice, knn_graph=matrix)
    assert (reducer._knn_dists[:, 1] == 0).all()
    assert np.array_equal(reducer._knn_indices[:, 1], np.arange(80) ^ 1)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(300), "knn_graph is a ndarray: give a sparse matrix"),
        (sparse.eye(299, format="csr"), "knn_graph has shape .299, 299.; X has 300 rows"),
        (sparse.eye(300, k=1, format="csr"), "at most 1 others of a row.* at most 2"),
        (sparse.random(300, 300, 0.1, rng=0) * -1, "allowed are numbers from 0"),
    ],
)
def test_other_matrices_are_refused(digits_300, matrix, message):
    with pytest.raises(DataError, match=message):
        quick().fit(digits_300, knn_graph=matrix)


def test_neighbours_may_be_umap_learns(digits_300, fitted):
    lists = fitted._knn_indices, fitted._knn_dists
    assert np.array_equal(quick(precomputed_knn=(*lists, None)).fit(digits_300)._knn_indices, lists[0])
    narrow = quick(precomputed_knn=lists, n_neighbors=5).fit(digits_300)
    assert np.array_equal(narrow._knn_indices, lists[0][:, :5])


def test_lists_that_do_not_fit_are_left_out_with_a_warning(digits_300, fitted):
    lists = fitted._knn_indices[:100], fitted._knn_dists[:100]
    with pytest.warns(UserWarning, match="100 rows x 10 neighbours, where 300 rows x 10 .* are needed"):
        assert np.array_equal(quick(precomputed_knn=lists).fit_transform(digits_300), fitted.embedding_)


def test_equal_rows_once_do_not_go_with_given_neighbours(digits_300, exact):
    with pytest.raises(ParameterError, match=r"input\.unique = true does not go with neighbors\.precomputed"):
        quick(unique=True).fit(digits_300, knn_graph=exact)


# Dask's arrays --------------------------------------------------------------------------------------


def test_dask_arrays_come_back_in_the_same_chunks_of_rows(digits_300, fitted):
    """The map outlives the estimator whose temporary run it is read from."""
    array = dask.array.from_array(digits_300, chunks=((100, 7, 193), (40, 24)))
    embedded = quick().fit_transform(array)
    gc.collect()
    assert embedded.chunks == ((100, 7, 193), (2,))
    assert embedded.dtype == np.float32
    assert np.array_equal(embedded.compute(scheduler="synchronous"), fitted.embedding_)


@pytest.mark.slow
def test_a_client_does_the_work(digits_300, fitted, client):
    array = dask.array.from_array(digits_300, chunks=(100, 64))
    reducer = quick(client=client)
    embedded = reducer.fit_transform(array)
    assert reducer.run_["stages"][-1]["engine"] == "dask"
    assert np.array_equal(client.compute(embedded).result(), fitted.embedding_)
    pickled = pickle.loads(pickle.dumps(reducer))
    assert pickled.client is None
    assert np.array_equal(pickled.embedding_, fitted.embedding_)
    shutil.rmtree(Path(pickled.run_.path).parent)


def test_rows_of_dask_have_to_be_known(digits_300):
    array = dask.array.from_array(digits_300, chunks=(100, 64))
    with pytest.raises(DataError, match=r"compute_chunk_sizes"):
        quick().fit(array[array[:, 2] > 0])


# where the run lies --------------------------------------------------------------------------------


def test_a_temporary_run_goes_with_the_estimator(digits_300, temporary):
    gc.collect()
    before = set(temporary.iterdir())
    reducer = quick().fit(digits_300[:20])
    first = reducer.run_.path
    reducer.fit(digits_300[:30])
    gc.collect()
    assert not Path(first).exists()
    assert len(set(temporary.iterdir()) - before) == 1
    del reducer
    gc.collect()
    assert set(temporary.iterdir()) == before


def test_a_pickle_is_a_path_which_stays(digits_300, temporary):
    reducer = quick().fit(digits_300)
    embedding, graph, path = reducer.embedding_, reducer.graph_, reducer.run_.path
    pickled = pickle.dumps(reducer)
    assert len(pickled) < 8000 < digits_300.nbytes
    del reducer
    gc.collect()
    other = pickle.loads(pickled)
    assert np.array_equal(other.embedding_, embedding)
    assert abs(other.graph_ - graph).max() == 0
    assert (other.run_.path, other.n_neighbors) == (path, K)
    shutil.rmtree(Path(path).parent)


def test_a_named_store_is_gone_on_with(digits_300, new_path):
    store = Path(new_path("run.zarr"))
    reducer = quick(store=store).fit(digits_300[:50])
    made = reducer.run_["stages"][-1]["seconds"]
    assert reducer.run_.path == str(store)
    assert quick(store=store).fit(digits_300[:50]).run_["stages"][-1]["seconds"] == made
    with pytest.raises(RunMismatchError, match="other data"):
        quick(store=store).fit(digits_300[50:100])
    with pytest.raises(RunMismatchError, match="min_dist"):
        quick(store=store, min_dist=0.3).fit(digits_300[:50])
    del reducer
    gc.collect()
    assert dumap.open_run(store)["state"] == "done"


def test_a_failed_fit_leaves_nothing_behind(digits_300, temporary, monkeypatch):
    before = set(temporary.iterdir())
    with pytest.raises(ConfigError):
        quick(n_components=1000).fit(digits_300)
    assert set(temporary.iterdir()) == before


def test_a_path_is_embedded_as_its_array(digits_300, save, fitted):
    reducer = quick().fit(save(digits_300))
    assert np.array_equal(reducer.embedding_, fitted.embedding_)
    assert reducer.n_features_in_ == 64


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_rows_stay_sparse(digits_300, fitted, kind):
    reducer = quick().fit(kind(digits_300))
    assert reducer.run_["stages"][0]["name"] == "spool"
    assert reducer.run_["input"]["path"].startswith("spool://scipy.csr_")
    assert (reducer.n_features_in_, reducer.embedding_.shape) == (64, (300, 2))
    listed = zip(reducer._knn_indices, fitted._knn_indices, strict=True)
    assert np.mean([len({*a} & {*b}) / K for a, b in listed]) > 0.99


def test_sparse_rows_have_some_metrics(digits_300):
    with pytest.raises(ValueError, match="metric = manhattan is not computed of sparse rows; allowed are correlation"):
        quick(metric="manhattan").fit(sparse.csr_matrix(digits_300))

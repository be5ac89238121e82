"""k-means: the centres it finds, on any number of threads."""

import numpy as np
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from dumap.kernels.kmeans import kmeans, move_centroids_to_means


def test_kmeans_gives_one_answer_on_any_number_of_threads():
    x = np.random.default_rng(3).normal(size=(3000, 12)).astype(np.float32)
    answers = []
    for threads in (1, 2, 2):
        with threadpool_limits(limits=threads):
            answers.append(kmeans(x, 9, 42).tobytes())
    assert len(set(answers)) == 1
    assert kmeans(x, 9, 43).tobytes() != answers[0]


def test_kmeans_finds_what_is_apart_and_no_more_than_is_distinct():
    middles = np.random.default_rng(1).integers(-6, 7, (6, 4)).astype(np.float32) * 100
    x = np.repeat(middles, 50, axis=0) + np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    centres = kmeans(x, 6, 0)
    assert centres.dtype == np.float32
    assert (cdist(middles, centres).min(axis=1) < 1).all()
    assert np.array_equal(kmeans(np.repeat(middles, 5, axis=0), 20, 0), np.unique(middles, axis=0))


def test_centroids_move_to_the_means_of_their_rows_and_stay_where_they_have_none():
    x = np.array([[0, 2], [4, 0], [2, 1]], np.float32)
    centroids = np.array([[9, 9], [7, 7]], np.float32)
    move_centroids_to_means(x, np.zeros(3, np.int64), centroids)
    assert centroids.tolist() == [[2, 1], [7, 7]]

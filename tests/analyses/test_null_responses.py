import numpy as np

from dnnbrain_app.analyses.null_responses import Exchange, permute_responses, prepare_responses


def test_permutations_keep_each_voxel_and_draw_the_same_in_any_chunk(rng):
    Y = rng.standard_normal((10, 100)).astype(np.float32)
    null = permute_responses(100, 300, rng, Exchange(10))
    assert len(null) == 320
    rows = np.arange(10)
    drawn = null.draw(Y, slice(0, 320))(rows)
    assert np.array_equal(drawn[3:7, 128:256], null.draw(Y, slice(128, 256))(rows[3:7]))
    sources = {tuple(np.sort(column)): np.argsort(column) for column in Y.T}
    orders = {tuple(sources[tuple(np.sort(column))][np.argsort(np.argsort(column))]) for column in drawn.T}
    assert len(orders) == 5


def test_permutations_stay_in_their_blocks(rng):
    blocks = rng.integers(3, size=20)
    order = Exchange(20, blocks).draw(7)
    assert np.array_equal(blocks[order], blocks)
    assert np.array_equal(np.sort(order), np.arange(20))
    assert not np.array_equal(order, np.arange(20))


def test_every_response_has_one_place(rng):
    Y = rng.standard_normal((12, 150)).astype(np.float32)
    Y[:, 9] = 2
    responses = prepare_responses(Y, 200, 3, rng, Exchange(12))
    chunks = responses.list_chunks(100)
    assert [c.place.start for c in chunks[1:]] == [c.place.stop for c in chunks[:-1]]
    assert (chunks[0].place.start, chunks[-1].place.stop) == (0, len(responses))
    rows = np.arange(12)
    flat = np.concatenate([responses.draw(c)(rows) for c in chunks], axis=1)
    np.testing.assert_array_equal(flat[:, :150], Y)
    n_null = len(responses.null)
    for whole in np.split(flat[:, 150 + n_null :], 3, axis=1):
        order = [np.flatnonzero((row == Y).all(1))[0] for row in whole]
        np.testing.assert_array_equal(whole, Y[order])  # all voxels alike
        assert order != sorted(order)
    scores = np.arange(len(responses), dtype=float)
    scores[150 + n_null + 9] = 1e9  # a silent voxel
    pooled, highest = responses.split(scores)
    np.testing.assert_array_equal(pooled, scores[150 : 150 + n_null])
    np.testing.assert_array_equal(highest, 150 + n_null + np.array([149, 299, 449]))
    assert responses.find_silent().tolist() == [v == 9 for v in range(150)]

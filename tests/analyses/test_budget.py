import numpy as np
import pytest

from dnnbrain_app.analyses.budget import LARGEST_CHUNK, Budget, divide_work, fits_kernel
from dnnbrain_app.errors import UsageError
from dnnbrain_app.records import Gram

GB = 10**9


def _gram(n, k, *, kernel=True, features=True) -> Gram:
    """A layer that takes no memory: zeros that are never looked at."""
    K = np.broadcast_to(0.0, (n, n)) if kernel else None
    return Gram("conv1", (k,), 0, K, np.broadcast_to(0.0, n), np.broadcast_to(0.0, (n, k)) if features else None)


@pytest.mark.parametrize(
    ("gram", "from_moments"),
    [
        (_gram(1000, 4096, features=False), False),
        (_gram(1000, 850, features=False), False),
        (_gram(1000, 790), True),
        (_gram(1000, 810), False),  # as many features as training rows: the Gram is the smaller problem
        (_gram(1000, 1000, kernel=False), True),
        (_gram(60_000, 512, kernel=False), True),
    ],
)
def test_the_smaller_problem_is_solved(gram, from_moments):
    budget = divide_work(gram, 5, 8 * GB, 4)
    assert budget == Budget(from_moments, 5 if from_moments else 1, 4, LARGEST_CHUNK)


def test_less_memory_means_fewer_folds_threads_and_voxels():
    gram = _gram(50_000, 2000, kernel=False)
    sizes = [divide_work(gram, 10, memory, 4) for memory in (4 * GB, GB, GB * 6 // 10, GB * 3 // 10)]
    assert sizes[0] == Budget(from_moments=True, n_folds=10, n_workers=4, width=LARGEST_CHUNK)
    assert sizes[0].width > sizes[1].width
    assert sizes[1].n_workers > sizes[2].n_workers
    assert sizes[2].n_folds > sizes[3].n_folds
    gram = _gram(3000, 9000, features=False)
    sizes = [divide_work(gram, 10, memory, 4) for memory in (4 * GB, GB, GB * 35 // 100)]
    assert [size.n_workers for size in sizes] == [4, 2, 1]


@pytest.mark.parametrize(
    ("gram", "words"),
    [
        (
            _gram(30_000, 9000, features=False),
            r"30000 stimuli and 9000 features takes 32.58 GB, of which 2.00 GB are there",
        ),
        (_gram(90_000, 8000, kernel=False), r"90000 stimuli and 8000 features takes 3.58 GB.*fewer dimensions"),
    ],
)
def test_what_fits_in_no_form_is_refused(gram, words):
    with pytest.raises(UsageError, match=words):
        divide_work(gram, 10, 2 * GB, 4)


def test_the_largest_gram_for_a_memory_is_known():
    assert fits_kernel(10_000, 4 * GB)
    assert not fits_kernel(11_000, 4 * GB)

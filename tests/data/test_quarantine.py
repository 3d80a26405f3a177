import pytest
import torch.multiprocessing as mp

from scaleearth_pl.core.errors import ConfigError, QuarantineLimitError, SampleError
from scaleearth_pl.data.quarantine import Quarantine

ERROR = SampleError("broken")


def test_a_tolerated_share_is_counted_then_fatal():
    books = Quarantine(n_rows=300, n_images=200, max_bad_share=0.01)
    books.bad(3, "a#3", ERROR)
    books.good()
    books.bad(3, "a#3", ERROR)
    books.bad(4, "a#4", ERROR)
    assert books.n_bad == 2
    with pytest.raises(QuarantineLimitError, match=r"3 of 200 .* a#5"):
        books.bad(5, "a#5", ERROR)


def test_a_row_of_failures_is_fatal_and_a_success_ends_it():
    books = Quarantine(n_rows=1000, n_images=1000, max_bad_share=1.0, max_in_a_row=100)
    for row in range(99):
        books.bad(row, "x", ERROR)
    books.good()
    for row in range(99):
        books.bad(row, "x", ERROR)
    with pytest.raises(QuarantineLimitError, match="in a row"):
        books.bad(0, "x", ERROR)


def test_samples_found_bad_while_measuring_count():
    known = [(0, "why"), (1, "why")]
    assert Quarantine(n_rows=10, n_images=10, max_bad_share=0.2, known_bad=known).n_bad == 2
    with pytest.raises(QuarantineLimitError, match="why"):
        Quarantine(n_rows=10, n_images=10, max_bad_share=0.1, known_bad=known)


def mark(books, row):
    books.bad(row, "x", ERROR)


def test_workers_share_the_books():
    books = Quarantine(n_rows=10, n_images=10, max_bad_share=1.0)
    context = mp.get_context("fork")
    workers = [context.Process(target=mark, args=(books, row)) for row in (2, 7)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert books.n_bad == 2


def test_a_share_is_a_share():
    with pytest.raises(ConfigError, match="max_bad_share"):
        Quarantine(n_rows=1, n_images=1, max_bad_share=1.5)

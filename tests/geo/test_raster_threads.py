"""Files are opened in threads (the server's, the viewer's): nobody's warning filters are lost, and none is heard."""

import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from geo_fakes import write_raster
from rasterio.errors import NotGeoreferencedWarning

from scaleearth_pl.geo.raster import read_rgb
from scaleearth_pl.geo.rasterfile import open_raster, read_header

N_THREADS = 4


@pytest.fixture
def bare(tmp_path):
    """A raster without georeference, of which rasterio would warn."""
    return write_raster(tmp_path / "bare.tif")


@pytest.fixture
def often():
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@contextmanager
def held_open(path):
    """Another thread has `path` open for as long as this block, or until `leave()`."""
    inside, go = threading.Event(), threading.Event()

    def hold():
        with open_raster(path):
            inside.set()
            assert go.wait(30)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(hold)
        assert inside.wait(30)

        def leave():
            go.set()
            reader.result()

        try:
            yield leave
        finally:
            leave()


def test_a_filter_added_while_another_thread_reads_is_kept(bare):
    with held_open(bare):
        warnings.filterwarnings("ignore", message="somebody's own")
    warnings.warn("somebody's own", UserWarning, stacklevel=1)  # an error under this suite's filters


def test_readers_that_overlap_leave_the_filters_as_they_were(bare):
    read_header(bare)
    before = list(warnings.filters)
    with held_open(bare) as leave_first, held_open(bare):
        leave_first()
        assert read_header(bare).transform is None
    assert warnings.filters == before


@pytest.mark.parametrize(
    "foreign", [{"message": "somebody's own"}, {"module": "somebody"}, {"category": FutureWarning}]
)
def test_a_filter_that_cannot_let_the_warning_through_leaves_ours_where_it_is(bare, foreign):
    """Ours would be taken out and put in again, and a thread that opens a file in between would be warned."""
    read_header(bare)
    warnings.filterwarnings("error", **foreign)
    before = list(warnings.filters)
    read_header(bare)
    assert warnings.filters == before


def test_threads_read_in_silence_beside_others_that_warn(bare, often):
    """Readers, and threads that add filters and warn on their own account; every warning is an error here."""
    warnings.simplefilter("error")
    stop = threading.Event()

    def other(number):
        heard = 0
        while not stop.is_set() or heard == 0:
            text = f"other {number} {heard}"
            warnings.filterwarnings("ignore", message=f"{text}$")
            warnings.warn(text, UserWarning, stacklevel=1)
            with pytest.raises(RuntimeWarning):
                warnings.warn("not ours", RuntimeWarning, stacklevel=1)
            heard += 1
            stop.wait(0.002)
        return heard

    with ThreadPoolExecutor(2 * N_THREADS) as pool:
        others = [pool.submit(other, number) for number in range(N_THREADS)]
        try:
            sizes = list(pool.map(lambda _: read_rgb(bare).size, range(120)))
        finally:
            stop.set()
        added = sum(future.result() for future in others)
    assert set(sizes) == {(16, 12)}
    texts = [f[1].pattern for f in warnings.filters if f[1] is not None and f[1].pattern.startswith("other ")]
    assert len(texts) == added


def test_one_filter_is_added_once_and_outlives_a_lost_one(bare):
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        for _ in range(5):
            read_header(bare)
        mine = [f for f in warnings.filters if f[2] is NotGeoreferencedWarning]
        assert len(mine) == 1 and len(warnings.filters) == 2
        warnings.simplefilter("error", UserWarning)  # goes before it, and would catch it
        assert read_header(bare).gcps == 0
        with pytest.raises(UserWarning, match="ours too"), open_raster(bare):
            warnings.warn("ours too", UserWarning, stacklevel=1)


def test_filters_as_the_interpreter_makes_them():
    """They name a module as a plain string, where `filterwarnings` puts a pattern; pytest's own filters hide them."""
    code = "import warnings, scaleearth_pl.geo.rasterfile; print([f[2].__name__ for f in warnings.filters][0])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == NotGeoreferencedWarning.__name__

"""What large images cost a loader: prints, as JSON, the error and the growth of peak memory in MB for each."""

import io
import json
import sys
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from fakes.corpus import make_fake_corpus  # noqa: E402, F401 (the same imports as a loader's)

from scaleearth_pl.core.errors import SampleError  # noqa: E402
from scaleearth_pl.data.images import decode_rgb  # noqa: E402
from scaleearth_pl.data.processor import Processor  # noqa: E402


def png(width: int, height: int) -> bytes:
    """A grey PNG of one value, written without ever holding its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packed, stream = zlib.compressobj(1), io.BytesIO()
    row = bytes(width + 1)
    for _ in range(height):
        stream.write(packed.compress(row))
    stream.write(packed.flush())
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", stream.getvalue()) + chunk(b"IEND", b"")


def peak_mb() -> float:
    """Highest resident memory since `forget_peak` in MB; not `ru_maxrss`, which begins with that of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    found = {}
    sizes = {"1 x N": (1, 30_000), "100 MP": (10_000, 10_000), "200 MP": (20_000, 10_000), "49 MP": (7_000, 7_000)}
    for name, size in sizes.items():
        data, error = png(*size), ""
        forget_peak()
        before = peak_mb()
        try:
            decode_rgb(data, "png", size=size, where="big")
            Processor.seen_size(_Sizes(), *size)  # type: ignore[arg-type]
        except SampleError as caught:
            error = str(caught)
        found[name] = {"error": error, "grown_mb": peak_mb() - before}
    print(json.dumps(found))


class _Sizes:
    """The sizes of a processor, without its tokenizer."""

    min_pixels, max_pixels, factor = 1024, 16384, 32

    def _down(self, side: float) -> int:
        return max(self.factor, int(side // self.factor) * self.factor)

    _up = _down


main()

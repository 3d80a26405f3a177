"""Load test of `scaleearth serve`: latency and questions per second, batched against one by one, and overload.

    python -m bench.serve_load --model runs/stage2-tiny-world/latest --corpus data_shards/world --out load.json

Two real servers (processes, real sockets) hold the same model and differ in one option, `--max-batch 32` or 1. Clients
are threads that ask the next question when the last is answered (closed loop), each about another image of another GSD.
The two take turns within a round and the order is reversed every second round, because a shared machine slows both by a
factor that changes over minutes: ratios hold where absolute figures do not. All traffic stays on this machine.

"lost" counts requests that got neither an answer nor a refusal; it must be 0. The last part sends more at once than
`--max-queue` takes, and counts 200s and 429s.
"""

import argparse
import base64
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaleearth_pl.data.shards import ShardIndex, ShardReader

MODES = {"batched": 32, "one by one": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/stage2-tiny-world/latest")
    parser.add_argument("--corpus", type=Path, default=Path("data_shards/world"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=96, help="per round, mode and number of clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-queue", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bodies = requests_of(args.corpus, args.requests)
    with server(args.model, args.max_queue, MODES["batched"]) as one, server(args.model, args.max_queue, 1) as two:
        ports = dict(zip(MODES, (one, two), strict=True))
        rows = measure(ports, bodies, args.clients, args.rounds)
        overload = {mode: overloaded(port, bodies, 4 * args.max_queue) for mode, port in ports.items()}
    result = {"rows": rows, "overload": overload, "load_average": os.getloadavg(), "cores": os.cpu_count()}
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def requests_of(corpus: Path, count: int) -> list[bytes]:
    """One question about each of `count` images of the val split, of all tiers, with the GSD in the body."""
    index = ShardIndex.load(corpus)
    reader, rng = ShardReader(index), random.Random(0)
    rows = [row for shard in index.shards if shard.split == "val" for row in range(shard.start, shard.stop)]
    bodies = []
    for row in rng.choices(rows, k=count):
        sample, image = reader.read(row)
        kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
        url = f"data:image/{kind};base64," + base64.b64encode(image).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": rng.choice(sample.qas).question},
        ]
        body: dict[str, Any] = {"model": "scaleearth", "messages": [{"role": "user", "content": parts}]}
        bodies.append(json.dumps(body | ({"gsd_m": sample.gsd_m_native} if sample.gsd_m_native else {})).encode())
    reader.close()
    return bodies


@contextmanager
def server(model: str, max_queue: int, max_batch: int) -> Iterator[int]:
    """A server process on a free port; stopped by SIGTERM, which must end it with 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        "serve",
        "--model",
        model,
        "--port",
        str(port),
        "--max-batch",
        str(max_batch),
        "--max-queue",
        str(max_queue),
    ]
    process = subprocess.Popen([sys.executable, "-m", "scaleearth_pl", *words], stderr=subprocess.DEVNULL)
    try:
        while send(port, "GET", "/health")[0] != 200:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
            time.sleep(0.3)
        yield port
        process.terminate()
        if process.wait(60):
            raise RuntimeError(f"the server ended with {process.returncode}")
    finally:
        process.kill()


def send(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, float]:
    """Status (0: no reply) and seconds."""
    begin = time.perf_counter()
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        link.request(method, path, body=body)
        reply = link.getresponse()
        reply.read()
        return reply.status, time.perf_counter() - begin
    except OSError:
        return 0, time.perf_counter() - begin
    finally:
        link.close()


def ask_all(port: int, bodies: Sequence[bytes], clients: int) -> tuple[list[tuple[int, float]], float]:
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        replies = list(pool.map(lambda body: send(port, "POST", "/v1/chat/completions", body), bodies))
    return replies, time.perf_counter() - begin


def measure(
    ports: dict[str, int], bodies: Sequence[bytes], clients: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    for port in ports.values():
        ask_all(port, bodies[:16], 8)  # warm-up
    found: dict[tuple[int, str], list[Any]] = defaultdict(list)
    for number in range(rounds):
        for count in clients:
            modes = list(ports) if number % 2 == 0 else list(ports)[::-1]
            for mode in modes:
                found[count, mode].append(ask_all(ports[mode], bodies, count))
    return [summary(count, mode, runs) for (count, mode), runs in found.items()]


def summary(clients: int, mode: str, runs: Sequence[tuple[list[tuple[int, float]], float]]) -> dict[str, Any]:
    replies = [reply for run, _ in runs for reply in run]
    seconds = sorted(s for status, s in replies if status == 200)
    return {
        "clients": clients,
        "mode": mode,
        "p50_ms": 1000 * seconds[len(seconds) // 2],
        "p95_ms": 1000 * seconds[int(0.95 * len(seconds))],
        "qas_per_second": statistics.median(len(run) / wall for run, wall in runs),
        "statuses": dict(Counter(status for status, _ in replies)),
        "lost": sum(status == 0 for status, _ in replies),
    }


def overloaded(port: int, bodies: Sequence[bytes], at_once: int) -> dict[str, Any]:
    """Everybody at once: so many clients, each with one request."""
    many = [bodies[i % len(bodies)] for i in range(at_once)]
    replies, wall = ask_all(port, many, at_once)
    counts = Counter(status for status, _ in replies)
    refused = [seconds for status, seconds in replies if status == 429]
    slowest = 1000 * max(refused, default=0.0)
    return {
        "at_once": at_once,
        "answered": counts[200],
        "refused_429": counts[429],
        "lost": counts[0],
        "slowest_429_ms": slowest,
        "seconds": wall,
    }


def show(result: dict[str, Any]) -> None:
    table = Table("clients", "mode", "p50 ms", "p95 ms", "QAs/s", "lost")
    for row in result["rows"]:
        figures = [f"{row[name]:.0f}" for name in ("p50_ms", "p95_ms")] + [f"{row['qas_per_second']:.1f}"]
        table.add_row(str(row["clients"]), row["mode"], *figures, str(row["lost"]))
    screen = Console()
    screen.print(table)
    screen.print(result["overload"])
    screen.print(f"load average {result['load_average']}, {result['cores']} cores")


if __name__ == "__main__":
    sys.exit(main())

"""A server under load: requests from many clients at once, the rate, the latency, and the memory of the server.

    python benchmarks/serving.py --model MODEL --requests 2000 --clients 16

starts ``moelora-ad serve`` on a free port of this machine, sends the quickstart's sounds to it in rounds, and prints
after each round how many requests were scored, refused and lost, requests a second, the median and 95th percentile of
the time of an answer, and the resident memory of the server. With ``--hostile`` every fifth request is a damaged or
huge upload, which has to be refused.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

SOUNDS = Path(__file__).parents[1] / "experiments" / "quickstart" / "corpus"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--backbone")
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--hostile", action="store_true")
    arguments = parser.parse_args()
    sounds = [path.read_bytes() for path in sorted(SOUNDS.rglob("*.flac"))[:64]]
    hostile = [b"", b"no sound", sounds[0][:2_000], bytes(9 * 2**20), b"PK\3\4" + bytes(5_000)]
    options = ["--port", "0", "--max-size", "8", "--queue", str(2 * arguments.clients)]
    options += ["--backbone", arguments.backbone] if arguments.backbone else []
    command = [sys.executable, "-m", "moelora_ad", "serve", "--model", arguments.model, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        address = server.stderr.readline().split()[2]
        while "startup complete" not in server.stderr.readline():
            pass
        ThreadPoolExecutor(1).submit(server.stderr.read)  # otherwise the server would wait for room in the pipe
        try:
            print(" requests  scored  refused  lost  a second   median     95 %    memory")
            for number in range(1, arguments.rounds + 1):
                _round(number, address, server.pid, sounds, hostile if arguments.hostile else [], arguments)
        finally:
            server.send_signal(signal.SIGTERM)


def _round(number: int, address: str, process: int, sounds: list[bytes], hostile: list[bytes], arguments) -> None:
    count = arguments.requests // arguments.rounds
    seconds: list[float] = []
    statuses: Counter[str] = Counter()

    def client(first: int) -> None:
        with httpx.Client(base_url=address, timeout=300) as one:
            for request in range(first, count, arguments.clients):
                bad = hostile and request % 5 == 0
                content = hostile[request // 5 % len(hostile)] if bad else sounds[request % len(sounds)]
                begin = time.perf_counter()
                status = one.post("/score", content=content).status_code
                seconds.append(time.perf_counter() - begin)
                wanted = status in (413, 422) if bad else status == 200
                statuses["lost" if not wanted else "refused" if bad else "scored"] += 1

    begin = time.perf_counter()
    with ThreadPoolExecutor(arguments.clients) as pool:
        list(pool.map(client, range(arguments.clients)))
    rate = count / (time.perf_counter() - begin)
    median, slow = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    scored, refused, lost = (statuses[name] for name in ("scored", "refused", "lost"))
    print(
        f"{number * count:>9,} {scored:>7} {refused:>8} {lost:>5} {rate:>9.1f} {median:>6.2f} s {slow:>6.2f} s "
        f"{_resident(process) / 2**20:>5.0f} MiB",
        flush=True,
    )


def _resident(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()

"""Benchmark cold and cached calls against other ways to get the files, using a sample archive of the published size.

Usage: ``python tools/benchmark.py [--pairs 9] [--json FILE]``, in the environment that ``bash tests/run.sh`` creates.
Prints a Markdown table. With ``--json``, also writes the figures that ``tools/draw.py`` plots. Requires Linux, wget,
curl and tar.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import sample_archive
from cm_home import ROOT, TAGS, CmHome

SLOW = 100e6 / 8  # bytes per second at 100 Mbit/s
WGET_TAGS = "bench,wget-then-tar"
NOOP_TAGS = "bench,no-op"
WGET = "wget, then tar, in a CM script"
CURL = "curl piped to tar, no engine"

Run = Callable[[], float]


class Row(NamedTuple):
    """The result of one comparison.

    Attributes
    ----------
    call : str
        Description of this script's call.
    seconds : float
        Median time of the call.
    peer : str
        Description of the alternative.
    peer_seconds : float
        Median time of the alternative.
    ratio : float
        Median of the pairwise ratios ``seconds / peer_seconds``.
    low, high : float
        First and third quartiles of these ratios.
    """

    call: str
    seconds: float
    peer: str
    peer_seconds: float
    ratio: float
    low: float
    high: float


def start_server(path: Path, rate: float) -> str:
    """Serve a file from another process, at *rate* bytes per second (0 for no limit), and return its URL."""
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    multiprocessing.Process(target=_serve, args=(path, rate, port), daemon=True).start()
    return f"http://127.0.0.1:{port.get()}/caffe_ilsvrc12.tar.gz"


def _serve(path: Path, rate: float, port: multiprocessing.Queue[int]) -> None:
    body = path.read_bytes()
    listener = socket.create_server(("127.0.0.1", 0))
    port.put(listener.getsockname()[1])
    while True:
        threading.Thread(target=_respond, args=(listener.accept()[0], body, rate), daemon=True).start()


def _respond(connection: socket.socket, body: bytes, rate: float) -> None:
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        if request.startswith(b"HEAD"):
            return
        started, chunk = time.monotonic(), 1 << 14 if rate else len(body)
        for position in range(0, len(body), chunk):
            if rate:
                time.sleep(max(0.0, started + position / rate - time.monotonic()))
            connection.sendall(body[position : position + chunk])


class Bench:
    """A factory for benchmark functions, which run in temporary CM homes.

    Parameters
    ----------
    folder : Path
        An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        (folder / "template").mkdir()
        self._template = CmHome(folder / "template")
        self._add_script(WGET_TAGS, 'wget -q "$CM_WGET_URL" && mkdir data && tar -C data -xzf *.tar.gz && rm *.tar.gz')
        self._add_script(NOOP_TAGS, "true")
        stub = folder / "stub" / "isal"
        stub.mkdir(parents=True)
        (stub / "__init__.py").write_text("raise ImportError('hidden by the benchmark')\n")
        self._without_isal = {"PYTHONPATH": str(stub.parent)}

    def _add_script(self, tags: str, command: str) -> None:
        meta = {
            "alias": tags.replace(",", "-"),
            "uid": hashlib.md5(tags.encode()).hexdigest()[:16],
            "automation_alias": "script",
            "automation_uid": "5b4e0237da074764",
            "cache": True,
            "tags": tags.split(","),
            "input_mapping": {"url": "CM_WGET_URL"},
        }
        (self._template.add_script(meta) / "run.sh").write_text(command + "\n")

    def new_home(self) -> CmHome:
        """Create a home with an empty cache."""
        self._count += 1
        path = self.folder / f"home{self._count}"
        path.mkdir()
        return CmHome(path, self._template.path)

    def cold(self, tags: str, *inputs: str, isal: bool = False) -> Run:
        """Return a function that times the first call of a script in a new home."""
        env = {} if isal else self._without_isal

        def run() -> float:
            home = self.new_home()
            seconds = timed(home, "cm", "run", "script", f"--tags={tags}", *inputs, **env)
            shutil.rmtree(home.path)
            return seconds

        return run

    def cached(self, tags: str, *inputs: str) -> Run:
        """Return a function that times a cached call of a script."""
        home = self.new_home()
        timed(home, "cm", "run", "script", f"--tags={tags}", *inputs)
        return lambda: timed(home, "cm", "run", "script", f"--tags={tags}")

    def shell(self, command: str, **env: str) -> Run:
        """Return a function that times a shell command in an empty folder."""

        def run() -> float:
            home = self.new_home()
            seconds = timed(home, "bash", "-c", command, **env)
            shutil.rmtree(home.path)
            return seconds

        return run

    def upstream(self, url: str, archive: Path) -> Run:
        """Return a function that times cmx4mlops' own script for the same tags."""
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        inputs = [f"--tags={TAGS}", f"--const.CM_PACKAGE_URL={url}", f"--const.CM_DOWNLOAD_CHECKSUM={md5}", "--quiet"]

        def run() -> float:
            home = self.new_home()
            shutil.rmtree(home.script)
            home.run_command("cm", "reindex", "repo", check=True)
            seconds = timed(home, "cm", "run", "script", *inputs)
            shutil.rmtree(home.path)
            return seconds

        return run


def timed(home: CmHome, *command: str, **env: str) -> float:
    """Run a command and return its duration in seconds; raise an exception if it fails."""
    started = time.monotonic()
    home.run_command(*command, check=True, **env)
    return time.monotonic() - started


def compare(call: str, run: Run, peer: str, run_peer: Run, pairs: int) -> Row:
    """Time *run* and *run_peer* alternately, after one warm-up run of each."""
    run(), run_peer()
    times = [(run(), run_peer()) for _ in range(pairs)]
    ratios = [seconds / peer_seconds for seconds, peer_seconds in times]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    median, peer_median = (statistics.median(column) for column in zip(*times))
    return Row(call, median, peer, peer_median, statistics.median(ratios), low, high)


def measure_peak_memory(home: CmHome, *args: str) -> float:
    """Run the fetcher and return its peak resident memory in MiB."""
    program = (
        "import re, sys; from imagenet_aux.cli import main; main(sys.argv[1:]);"
        "print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    result = home.run_command(sys.executable, "-c", program, *args, check=True, PYTHONPATH=str(ROOT))
    return int(result.stdout.split("peak ")[1]) / 1024


def measure_steps(bench: Bench, archive: Path, url: str, pairs: int) -> dict[str, float]:
    """Time each step of a cold call separately; return the seconds per step."""

    def seconds(run: Run) -> float:
        return statistics.median(run() for _ in range(pairs))

    def python(program: str) -> float:
        return seconds(bench.shell(f'{sys.executable} -c "{program}"', PYTHONPATH=str(ROOT)))

    packed, empty = f"open('{archive}', 'rb').read()", python("pass")
    unpacked = archive.with_name("unpacked")
    unpacked.write_bytes(b"".join(sample_archive.make_files().values()))
    read_packed, read_unpacked = python(packed), python(f"open('{unpacked}', 'rb').read()")
    return {
        "engine": seconds(bench.cold(NOOP_TAGS)),
        "start Python": empty,
        "import requests and the package": python("import imagenet_aux.cli, imagenet_aux.download") - empty,
        "transfer": seconds(bench.shell(f"curl -s -o /dev/null {url}")),
        "decompress": python(f"import zlib; zlib.decompressobj(31).decompress({packed})") - read_packed,
        "hash": python(f"import hashlib; hashlib.sha256(open('{unpacked}', 'rb').read())") - read_unpacked,
        "write": max(0.0, python(f"open('out', 'wb').write(open('{unpacked}', 'rb').read())") - read_unpacked),
        "wget": seconds(bench.shell(f"wget -q {url}")),
        "tar": seconds(bench.shell(f"tar -xzf {archive}")),
    }


def measure(folder: Path, pairs: int) -> dict[str, Any]:
    """Run all benchmarks and return their figures."""
    archive = folder / "caffe_ilsvrc12.tar.gz"
    archive.write_bytes(sample_archive.pack_files(sample_archive.make_files()))
    checksum = f"--checksum={hashlib.sha256(archive.read_bytes()).hexdigest()}"
    fast, slow = start_server(archive, 0), start_server(archive, SLOW)
    bench = Bench(folder)

    def cold(url: str, *inputs: str, isal: bool = False) -> Run:
        return bench.cold(TAGS, f"--url={url}", *inputs, isal=isal)

    wget, wget_slow = bench.cold(WGET_TAGS, f"--url={fast}"), bench.cold(WGET_TAGS, f"--url={slow}")
    pipe = "mkdir data && curl -s {} | tar -C data -xz"
    cached, noop = bench.cached(TAGS, f"--url={fast}"), bench.cached(NOOP_TAGS)
    rows = [
        compare("loopback", cold(fast, checksum), WGET, wget, pairs),
        compare("loopback, with isal", cold(fast, checksum, isal=True), WGET, wget, pairs),
        compare("loopback, verified file by file", cold(fast), WGET, wget, pairs),
        compare("100 Mbit/s", cold(slow, checksum), WGET, wget_slow, pairs),
        compare("loopback", cold(fast, checksum), CURL, bench.shell(pipe.format(fast)), pairs),
        compare("100 Mbit/s", cold(slow, checksum), CURL, bench.shell(pipe.format(slow)), pairs),
        compare("loopback", cold(fast, checksum), "the script of cmx4mlops", bench.upstream(fast, archive), pairs),
        compare("cached", cached, "a cached no-op", noop, 4 * pairs),
    ]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "pairs": pairs,
        "rows": [row._asdict() for row in rows],
        "steps": measure_steps(bench, archive, fast, pairs),
        "peak_memory_mib": round(measure_peak_memory(bench.new_home(), "fetch", fast, checksum)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the comparisons as a Markdown table."""
    lines = ["| call | s | compared with | s | ratio | middle half |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {call} | {seconds:.2f} | {peer} | {peer_seconds:.2f} | {ratio:.2f} | {low:.2f} to {high:.2f} |"
        for call, seconds, peer, peer_seconds, ratio, low, high in (row.values() for row in rows)
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmarks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="number of runs per comparison (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), args.pairs)
    print(table(figures["rows"]), end="")
    print(f"\nPeak memory of the fetcher: {figures['peak_memory_mib']} MiB.")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Measures what a cold and a cached call cost, side by side and pair by pair, on a stand-in archive of the real size.

``python tools/benchmark.py [--pairs 9] [--picture FILE]``, in the environment that ``bash tests/run.sh`` makes. It
prints a table in Markdown. The picture, of where the time goes, wants matplotlib. Linux, with wget, curl and tar.
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
from typing import Callable, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import sample_archive
from cm_home import ROOT, TAGS, CmHome

LINE = 100e6 / 8  # bytes per second of a line of 100 Mbit/s
PEER_TAGS = "bench,wget-then-tar"
NOOP_TAGS = "bench,no-op"

Run = Callable[[], float]


class Row(NamedTuple):
    """One comparison: medians in seconds, and the median of the ratios of the pairs."""

    what: str
    ours: float
    against: str
    theirs: float
    ratio: float


# The server


def serve(path: Path, rate: float, port: multiprocessing.Queue[int]) -> None:
    """Answer every request with a file, at so many bytes per second (0: as fast as can be)."""
    body = path.read_bytes()
    listener = socket.create_server(("127.0.0.1", 0))
    port.put(listener.getsockname()[1])
    while True:
        threading.Thread(target=_answer, args=(listener.accept()[0], body, rate), daemon=True).start()


def _answer(connection: socket.socket, body: bytes, rate: float) -> None:
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        if head.startswith(b"HEAD"):
            return
        began, piece = time.monotonic(), 1 << 14 if rate else len(body)
        for at in range(0, len(body), piece):
            if rate:
                time.sleep(max(0.0, began + at / rate - time.monotonic()))
            connection.sendall(body[at : at + piece])


def started_server(path: Path, rate: float) -> str:
    """The URL of the file on a server of its own process."""
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    multiprocessing.Process(target=serve, args=(path, rate, port), daemon=True).start()
    return f"http://127.0.0.1:{port.get()}/caffe_ilsvrc12.tar.gz"


# What is timed


class Bench:
    """Throw-away homes, cold for each call, in which commands are timed.

    Parameters
    ----------
    folder : Path
        An empty folder for all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        (folder / "template").mkdir()
        self._template = CmHome(folder / "template")
        self._add_script(PEER_TAGS, 'wget -q "$CM_WGET_URL" && mkdir data && tar -C data -xzf *.tar.gz && rm *.tar.gz')
        self._add_script(NOOP_TAGS, "true")
        self._template.run_command("cm", "reindex", "repo", check=True)
        without_isal = folder / "without" / "isal"
        without_isal.mkdir(parents=True)
        (without_isal / "__init__.py").write_text("raise ImportError('as if it were not installed')\n")
        self.default = {"PYTHONPATH": str(without_isal.parent)}

    def _add_script(self, tags: str, command: str) -> None:
        folder = self._template.script.parent / tags.replace(",", "-")
        folder.mkdir()
        meta = {
            "alias": folder.name,
            "uid": hashlib.md5(tags.encode()).hexdigest()[:16],
            "automation_alias": "script",
            "automation_uid": "5b4e0237da074764",
            "cache": True,
            "tags": tags.split(","),
            "input_mapping": {"url": "CM_WGET_URL"},
        }
        (folder / "_cm.json").write_text(json.dumps(meta))
        (folder / "run.sh").write_text(command + "\n")

    def home(self) -> CmHome:
        """A cold home."""
        self._count += 1
        path = self.folder / f"home{self._count}"
        path.mkdir()
        return CmHome(path, self._template)

    def cold(self, tags: str, *words: str, isal: bool = False) -> Run:
        """The first call of a script in a home of its own."""
        env = {} if isal else self.default

        def run() -> float:
            home = self.home()
            seconds = timed(home, "cm", "run", "script", f"--tags={tags}", *words, **env)
            shutil.rmtree(home.path)
            return seconds

        return run

    def cached(self, tags: str, *words: str) -> Run:
        """A later call of a script."""
        home = self.home()
        timed(home, "cm", "run", "script", f"--tags={tags}", *words)
        return lambda: timed(home, "cm", "run", "script", f"--tags={tags}")

    def command(self, command: str, **env: str) -> Run:
        """A shell command in an empty folder."""

        def run() -> float:
            home = self.home()
            seconds = timed(home, "bash", "-c", command, **env)
            shutil.rmtree(home.path)
            return seconds

        return run

    def upstream(self, url: str, archive: Path) -> float | None:
        """Seconds of the chain that the engine's own repository has for the same tags; None where it fails."""
        home = self.home()
        shutil.rmtree(home.script)
        home.run_command("cm", "reindex", "repo", check=True)
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        words = [f"--tags={TAGS}", f"--const.CM_PACKAGE_URL={url}", f"--const.CM_DOWNLOAD_CHECKSUM={md5}", "--quiet"]
        began = time.monotonic()
        done = home.run_command("cm", "run", "script", *words)
        return time.monotonic() - began if done.returncode == 0 else None


def timed(home: CmHome, *words: str, **env: str) -> float:
    """Seconds of a command, which must succeed."""
    began = time.monotonic()
    home.run_command(*words, check=True, **env)
    return time.monotonic() - began


def compare(what: str, ours: Run, against: str, theirs: Run, pairs: int) -> Row:
    """Time the two in turn, after one of each that does not count."""
    ours(), theirs()
    times = [(ours(), theirs()) for _ in range(pairs)]
    return Row(
        what,
        statistics.median(a for a, _ in times),
        against,
        statistics.median(b for _, b in times),
        statistics.median(a / b for a, b in times),
    )


def peak_memory(home: CmHome, *words: str) -> float:
    """Peak resident memory of the fetcher, in MiB."""
    program = (
        "import re, sys; from imagenet_aux.__main__ import main; main(sys.argv[1:]);"
        "print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    result = home.run_command(sys.executable, "-c", program, *words, check=True, PYTHONPATH=str(ROOT))
    return int(result.stdout.split("peak ")[1]) / 1024


# Where the time goes


def parts(bench: Bench, archive: Path, url: str) -> dict[str, float]:
    """Seconds of each thing that a cold call does, done alone."""
    unpack = f"import zlib; d = zlib.decompressobj(31); d.decompress(open({str(archive)!r}, 'rb').read())"
    python = median(bench.command(f"{sys.executable} -c pass"))
    read = median(bench.command(f"{sys.executable} -c \"open({str(archive)!r}, 'rb').read()\""))
    return {
        "the engine": median(bench.cold(NOOP_TAGS)),
        "interpreter": python,
        "import requests": median(bench.command(f"{sys.executable} -c 'import requests'")) - python,
        "transfer": median(bench.command(f"curl -s -o /dev/null {url}")),
        "inflate": median(bench.command(f'{sys.executable} -c "{unpack}"')) - read,
        "hash (SHA-256)": median(bench.command(f"sha256sum {archive}")),
    }


def median(run: Run, times: int = 5) -> float:
    """The median of a few runs, in seconds."""
    return statistics.median(run() for _ in range(times))


def draw(spent: dict[str, float], rows: list[Row], picture: Path) -> None:
    """Bars: each part alone, and the whole calls beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5))
    left.barh(list(spent)[::-1], list(spent.values())[::-1])
    left.set(xlabel="s, each alone", title="Where the time of a cold call goes")
    names = [f"{row.what}\n/ {row.against}" for row in rows][::-1]
    right.barh(names, [row.ratio for row in rows][::-1])
    right.axvline(1, color="black", linewidth=0.8)
    right.set(xlabel="ratio to the peer (less is faster)", title="Whole calls")
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


# The table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--picture", type=Path)
    orders = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), orders.pairs, orders.picture)


def measure(folder: Path, pairs: int, picture: Path | None) -> None:
    """Make what is needed, time it, and print the table."""
    archive = folder / "caffe_ilsvrc12.tar.gz"
    archive.write_bytes(sample_archive.pack_files(sample_archive.make_files()))
    known = f"--checksum={hashlib.sha256(archive.read_bytes()).hexdigest()}"
    fast, slow = started_server(archive, 0), started_server(archive, LINE)
    bench = Bench(folder)

    def cold(url: str, *words: str, isal: bool = False) -> Run:
        return bench.cold(TAGS, f"--url={url}", *words, isal=isal)

    wget, curl = "wget, then tar, in a CM script", "curl to tar, no engine"
    peer, peer_slow = bench.cold(PEER_TAGS, f"--url={fast}"), bench.cold(PEER_TAGS, f"--url={slow}")
    pipe = "mkdir data && curl -s {} | tar -C data -xz"
    rows = [
        compare("loopback", cold(fast, known), wget, peer, pairs),
        compare("loopback, isal installed", cold(fast, known, isal=True), wget, peer, pairs),
        compare("loopback, vouched for by its files", cold(fast), wget, peer, pairs),
        compare("100 Mbit/s", cold(slow, known), wget, peer_slow, pairs),
        compare("loopback", cold(fast, known), curl, bench.command(pipe.format(fast)), pairs),
        compare("100 Mbit/s", cold(slow, known), curl, bench.command(pipe.format(slow)), pairs),
        compare("cached", bench.cached(TAGS, f"--url={fast}"), "a cached no-op", bench.cached(NOOP_TAGS), 4 * pairs),
    ]
    print(f"| call | s | against | s | ratio |\n|---|---|---|---|---|\n{''.join(map(line, rows))}", end="")
    upstream = bench.upstream(fast, archive)
    if upstream:
        once = cold(fast, known)()
        print(f"| loopback, once | {once:.2f} | the chain that cmx4mlops has for the same tags | {upstream:.2f} | |")
    memory = peak_memory(bench.home(), "fetch", fast, known)
    print(f"\nPeak memory of the fetcher: {memory:.0f} MiB.")
    if picture:
        draw(parts(bench, archive, fast), rows, picture)


def line(row: Row) -> str:
    """A row of the table."""
    return f"| {row.what} | {row.ours:.2f} | {row.against} | {row.theirs:.2f} | {row.ratio:.2f} |\n"


if __name__ == "__main__":
    main()

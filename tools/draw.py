"""Draw the SVG figures in docs/: the data flow, and the time breakdown of a cold call.

``python tools/generate.py`` writes the files. The times are from docs/benchmark.json, which ``python
tools/benchmark.py --json docs/benchmark.json`` writes.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
from html import escape
from pathlib import Path
from typing import Iterable

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from imagenet_aux.manifest import MANIFEST  # noqa: E402

_WIDTH = 960
# The figures have their own background, so that they are legible when the page's theme differs from the system's.
_STYLE = """
  .background { fill: #ffffff; stroke: #d0d7de; }
  .box { fill: #f0f6ff; stroke: #4493f8; }
  .line { stroke: #59636e; fill: none; }
  .head { fill: #59636e; }
  text { fill: #1f2328; font: 12px -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; }
  .title { font-weight: 600; font-size: 14px; }
  .code { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 11px; }
  .small { font-size: 11px; }
  .muted { fill: #59636e; }
  .end { text-anchor: end; }
  .engine { fill: #8c959f; }
  .start { fill: #bf8700; }
  .work { fill: #0969da; }
  .other { fill: #8250df; }
  @media (prefers-color-scheme: dark) {
    .background { fill: #0d1117; stroke: #3d444d; }
    .box { fill: #121d2f; stroke: #4493f8; }
    .line { stroke: #9198a1; }
    .head { fill: #9198a1; }
    text { fill: #f0f6fc; }
    .muted { fill: #9198a1; }
    .engine { fill: #656c76; }
    .start { fill: #d29922; }
    .work { fill: #4493f8; }
    .other { fill: #ab7df8; }
  }
"""

_HOSTS = [str(urllib.parse.urlsplit(mirror.address).hostname) for mirror in MANIFEST.mirrors]
# Each stage's title, modules and description.
_STAGES = [
    ("sources", "sources.py", ["--url, or in turn:", *(host.replace("www.", "") for host in _HOSTS)]),
    ("bytes", "download.py streams.py", ["resume after faults,", "restart, or give up;", "reject HTML"]),
    ("entries", "gunzip.py archive.py", ["unpack in a thread;", "reject links, unsafe", "paths, huge files"]),
    ("staged files", "staging.py verify.py", ["in data/; digests", "computed on the", "way, then compared"]),
    ("data/", "staging.py", ["all files or none,", "one rename each;", "the old ones are", "restored on failure"]),
    ("keys", "customize.py", ["CM_DATASET_AUX_", "  PATH", "  VAL_PATH, ...", "  SOURCE", "  VERIFIED"]),
]  # fmt: skip


def flow() -> str:
    """Draw the data flow from the sources to the exported keys."""
    gap, top = 20, 44
    height = max(50 + 14 * len(modules.split()) + 15 * len(lines) for _, modules, lines in _STAGES)
    first_width = 192  # the host names are long
    other_width = (_WIDTH - 32 - first_width - gap * (len(_STAGES) - 1)) / (len(_STAGES) - 1)
    parts = [_text(16, 28, "From the sources to the exported keys", "title")]
    left = 16.0
    for position, (title, modules, lines) in enumerate(_STAGES):
        width = other_width if position else first_width
        parts.append(f'<rect class="box" x="{left:.0f}" y="{top}" width="{width:.0f}" height="{height}" rx="6"/>')
        parts.append(_text(left + 10, top + 22, title, "title"))
        parts += [_text(left + 10, top + 42 + 14 * n, name, "code muted") for n, name in enumerate(modules.split())]
        kind = "code" if modules in ("sources.py", "customize.py") else "small"
        first = top + 48 + 14 * len(modules.split())
        parts += [_text(left + 10, first + 15 * n, line, kind) for n, line in enumerate(lines)]
        if position:
            parts.append(_arrow(left - gap + 3, left - 3, top + height / 2))
        left += width + gap
    return _svg(top + height + 16, "Data flow from the sources to the exported keys", parts)


def time_spent() -> str:
    """Draw the time breakdown of a cold call, from docs/benchmark.json."""
    figures = json.loads((ROOT / "docs" / "benchmark.json").read_text(encoding="utf-8"))
    steps, rows = figures["steps"], figures["rows"]
    engine, start = steps["engine"], steps["start Python"] + steps["import requests and the package"]
    this = rows[0]
    upstream = next(row for row in rows if "cmx4mlops" in row["peer"])
    fetch = this["seconds"] - engine - start
    wget = steps["wget"]
    bars = [
        ("this script", [("engine", engine), ("start", start), ("work", fetch)]),
        ("wget, then tar", [("engine", engine), ("other", this["peer_seconds"] - engine)]),
        ("script of cmx4mlops", [("engine", engine), ("other", upstream["peer_seconds"] - engine)]),
    ]
    alone = [(name, steps[name]) for name in ("transfer", "decompress", "hash", "write")]
    left, scale = 170, (_WIDTH - 240) / max(sum(seconds for _, seconds in parts) for _, parts in bars)
    parts = [
        _text(16, 28, "Where a cold call spends its time (seconds, loopback)", "title"),
        *_legend(),
    ]
    y = 76
    for name, segments in bars:
        parts.append(_text(left - 10, y + 15, name, "end"))
        x = float(left)
        for kind, seconds in segments:
            parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{seconds * scale:.1f}" height="22"/>')
            x += seconds * scale
        parts.append(_text(x + 8, y + 15, f"{sum(seconds for _, seconds in segments):.2f}"))
        y += 32
    parts.append(_text(16, y + 20, "The steps of the fetch, timed separately. In this script they overlap:", "muted"))
    y += 32
    for name, seconds in [*alone, ("wget alone", wget), ("tar alone", steps["tar"])]:
        kind = "other" if "alone" in name else "work"
        parts.append(_text(left - 10, y + 11, name, "end"))
        parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{seconds * scale:.1f}" height="14"/>')
        parts.append(_text(left + seconds * scale + 8, y + 11, f"{seconds:.2f}"))
        y += 20
    return _svg(y + 12, "Where a cold call spends its time", parts)


def _legend() -> Iterable[str]:
    entries = [
        ("engine", "CM itself"),
        ("start", "start Python, import requests"),
        ("work", "fetch: transfer, decompress, hash, write"),
        ("other", "other scripts: download, then unpack"),
    ]
    x = 16
    for kind, text in entries:
        yield f'<rect class="{kind}" x="{x}" y="44" width="12" height="12"/>'
        yield _text(x + 18, 54, text)
        x += 50 + 6 * len(text)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    shown = escape(text).replace("  ", "&#160;&#160;")
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{shown}</text>'


def _arrow(start: float, end: float, y: float) -> str:
    return (
        f'<path class="line" d="M{start:.0f} {y:.0f}H{end - 5:.0f}"/>'
        f'<path class="head" d="M{end:.0f} {y:.0f}l-7 -4v8z"/>'
    )


def _svg(height: float, title: str, parts: Iterable[str]) -> str:
    """Return an SVG document with a title and a background."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n"
        f'<rect class="background" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>\n'
        f"{body}\n</svg>\n"
    )

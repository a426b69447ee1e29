"""A stand-in for the real archive: eight files of its shape and scale, and the AppleDouble entries beside them.

``python standin.py FILE`` writes the archive at full scale.
"""

from __future__ import annotations

import gzip
import io
import random
import sys
import tarfile
from typing import Iterable

NAMES = (
    "det_synset_words.txt",
    "imagenet.bet.pickle",
    "imagenet_mean.binaryproto",
    "synset_words.txt",
    "synsets.txt",
    "test.txt",
    "train.txt",
    "val.txt",
)


def files(scale: float = 1.0) -> dict[str, bytes]:
    """The eight files, the same ones at every call; at a *scale* below 1, with fewer lines and bytes."""
    dice = random.Random(2012)

    def count(real: int) -> int:
        return max(1, round(real * scale))

    ids = sorted(f"n{dice.randrange(10**8):08d}" for _ in range(count(1000)))
    words = [f"{synset} " + " ".join(_word(dice) for _ in range(3)) for synset in ids]
    train = (
        f"{ids[label]}/{ids[label]}_{dice.randrange(40000)}.JPEG {label}" for label in _labels(count(1281167), ids)
    )
    val = (f"ILSVRC2012_val_{n:08d}.JPEG {dice.randrange(len(ids))}" for n in range(1, count(50000) + 1))
    return {
        "det_synset_words.txt": _lines(words[: count(200)]),
        "imagenet.bet.pickle": _half_random(dice, count(14_900_000)),
        "imagenet_mean.binaryproto": _half_random(dice, count(786_446)),
        "synset_words.txt": _lines(words),
        "synsets.txt": _lines(ids),
        "test.txt": _lines(f"ILSVRC2012_test_{n:08d}.JPEG 0" for n in range(1, count(100000) + 1)),
        "train.txt": _lines(train),
        "val.txt": _lines(val),
    }


def members(content: dict[str, bytes]) -> Iterable[tuple[tarfile.TarInfo, bytes]]:
    """Tar entries for these files, each behind its AppleDouble entry, as macOS packs them."""
    for name, data in content.items():
        yield entry("._" + name, size=187), b"\0\5\x16\7" + bytes(183)
        yield entry(name, size=len(data)), data


def entry(name: str, **fields: object) -> tarfile.TarInfo:
    """A tar header with these fields."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def pack(entries: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT, level: int = 6) -> bytes:
    """A tar.gz of these entries."""
    return gzip.compress(pack_tar(entries, form), level)


def pack_tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of these entries."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _lines(lines: Iterable[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _labels(count: int, ids: list[str]) -> Iterable[int]:
    return (n * len(ids) // count for n in range(count))


def _word(dice: random.Random) -> str:
    return "".join(dice.choice("aeioudlmnprst") for _ in range(6))


def _half_random(dice: random.Random, size: int) -> bytes:
    """Bytes that gzip packs to about five sixths: the whole then packs to the 17.9 MB of the real archive."""
    return bytes(dice.choices(range(99), k=size)) if size < 1 << 20 else _half_random(dice, 1 << 19) * (size >> 19)


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        file.write(pack(members(files())))

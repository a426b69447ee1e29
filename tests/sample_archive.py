"""Generate a sample archive of eight files shaped like the published ones.

Like Berkeley's archive, it contains AppleDouble entries. ``python sample_archive.py FILE`` writes it at full size.
"""

from __future__ import annotations

import gzip
import io
import random
import sys
import tarfile
from typing import Iterable


def make_files(scale: float = 1.0) -> dict[str, bytes]:
    """Make the eight files, deterministically; a *scale* below 1 reduces the number of lines and bytes."""
    rng = random.Random(2012)

    def scaled(published: int) -> int:
        return max(1, round(published * scale))

    ids = sorted(f"n{rng.randrange(10**8):08d}" for _ in range(scaled(1000)))
    words = [f"{synset} " + " ".join(_random_word(rng) for _ in range(3)) for synset in ids]
    train_count = scaled(1281167)
    labels = (n * len(ids) // train_count for n in range(train_count))
    train = (f"{ids[label]}/{ids[label]}_{rng.randrange(40000)}.JPEG {label}" for label in labels)
    val = (f"ILSVRC2012_val_{n:08d}.JPEG {rng.randrange(len(ids))}" for n in range(1, scaled(50000) + 1))
    return {
        "det_synset_words.txt": _join_lines(words[: scaled(200)]),
        "imagenet.bet.pickle": _random_bytes(rng, scaled(14_900_000)),
        "imagenet_mean.binaryproto": _random_bytes(rng, scaled(786_446)),
        "synset_words.txt": _join_lines(words),
        "synsets.txt": _join_lines(ids),
        "test.txt": make_test_txt(scaled(100000)),
        "train.txt": _join_lines(train),
        "val.txt": _join_lines(val),
    }


def make_test_txt(lines: int = 100000) -> bytes:
    """Make test.txt; with 100,000 lines it equals the published file."""
    return _join_lines(f"ILSVRC2012_test_{n:08d}.JPEG 0" for n in range(1, lines + 1))


def pack_files(files: dict[str, bytes], level: int = 6) -> bytes:
    """Pack these files, with AppleDouble entries, into a tar.gz."""
    return pack(tar_entries(files), level=level)


def tar_entries(files: dict[str, bytes]) -> Iterable[tuple[tarfile.TarInfo, bytes]]:
    """Yield a tar entry for each file, after its AppleDouble entry, as macOS packs them."""
    for name, data in files.items():
        yield tar_info("._" + name, size=187), b"\0\5\x16\7" + bytes(183)
        yield tar_info(name, size=len(data)), data


def tar_info(name: str, **fields: object) -> tarfile.TarInfo:
    """Make a TarInfo with these fields."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def pack(entries: Iterable[tuple[tarfile.TarInfo, bytes]], level: int = 6) -> bytes:
    """Pack these entries into a tar.gz."""
    return gzip.compress(pack_tar(entries), level)


def pack_tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Pack these entries into a tar."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _join_lines(lines: Iterable[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _random_word(rng: random.Random) -> str:
    return "".join(rng.choice("aeioudlmnprst") for _ in range(6))


def _random_bytes(rng: random.Random, size: int) -> bytes:
    """Make bytes that gzip compresses to five sixths of their size, so that the archive has the published size."""
    return bytes(rng.choices(range(99), k=size)) if size < 1 << 20 else _random_bytes(rng, 1 << 19) * (size >> 19)


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        file.write(pack_files(make_files()))

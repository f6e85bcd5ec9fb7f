"""Files that are no package, or only a part of one, or one that was damaged by chance, as tables: a name and the bytes."""

import gzip
import io
import json
import pickle
import random
import struct
import zipfile

import numpy as np
from hostile_packages import BODY, GOOD, HEADER, MILLIONS, Table, header, manifest, raw, refused


def zipped(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def strangers() -> Table:
    noise = np.random.default_rng(0).bytes(4096)
    return {
        "zip": zipped("adapter.safetensors", GOOD),
        "zip bomb": zipped("../../etc/passwd", bytes(MILLIONS)),
        "gzip": gzip.compress(GOOD),
        "gzip bomb": gzip.compress(bytes(MILLIONS)),
        "pickle": pickle.dumps({"weights": [1.0] * 100}),
        "pickle that calls": b"cos\nsystem\n(S'touch /tmp/hacked'\ntR.",
        "html": b"<!doctype html><html><body>404</body></html>",
        "json": json.dumps(manifest()).encode(),
        "text": b"spam",
        "one byte": b"\0",
        "seven bytes": bytes(7),
        "zeros": bytes(1 << 20),
        "ones": b"\xff" * (1 << 20),
        "noise": noise,
        "png": b"\x89PNG\r\n\x1a\n" + noise,
        "elf": b"\x7fELF" + noise,
        "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n",
        "a mebibyte of zeros behind a header": raw(json.dumps(header()), bytes(1 << 20)),
        "twice": GOOD + GOOD,
        "backwards": GOOD[::-1],
    }


def cut() -> Table:
    """The file truncated all along, and with more behind it."""
    lengths = [*range(8, HEADER, 40), *range(HEADER, len(GOOD), 160), len(GOOD) - 1]
    appended = {f"{len(more)} more bytes": GOOD + more for more in (b"\0", b"\0\0\0\0", b" " * 8, GOOD[:100], bytes(1 << 16))}
    return {f"cut to {length} bytes": GOOD[:length] for length in lengths} | appended


def lengths() -> Table:
    """Headers that lie about their length."""
    size = HEADER - 8
    lies = (
        0,
        1,
        2,
        size - 1,
        size + 1,
        len(GOOD) - 9,
        len(GOOD) - 8,
        len(GOOD),
        1 << 24,
        (1 << 24) + 1,
        1 << 32,
        (1 << 63) - 1,
        1 << 63,
        (1 << 64) - 1,
    )
    return {f"a header of {lie} bytes": struct.pack("<Q", lie) + GOOD[8:] for lie in lies}


# By chance, the same each time


def flipped() -> Table:
    """One to eight bytes of the header at random: those files of 200 that are broken by it."""
    table: Table = {}
    for seed in range(200):
        chance = random.Random(seed)
        data = bytearray(GOOD)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(HEADER)] = chance.randrange(256)
        if refused(bytes(data)):
            table[f"flipped {seed}"] = bytes(data)
    return table


def spliced() -> Table:
    """Pieces of the header taken out, doubled or moved, its length told rightly: those of 100 that are broken by it."""
    table: Table = {}
    for seed in range(100):
        chance = random.Random(1000 + seed)
        text = GOOD[8:HEADER]
        start = chance.randrange(len(text))
        piece = text[start : start + chance.randint(1, 200)]
        rest = text[:start] + text[start + len(piece) :]
        place = chance.randrange(len(rest))
        changed = chance.choice([rest, text[:start] + piece + text[start:], rest[:place] + piece + rest[place:]])
        if refused(raw(changed, BODY)):
            table[f"spliced {seed}"] = raw(changed, BODY)
    return table


TABLES = {table.__name__: table for table in (strangers, cut, lengths, flipped, spliced)}

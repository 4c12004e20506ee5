"""Mutated files into the safetensors header reader, in bounded memory: python -m tests.header_inputs --inputs 1000000.

Each is read or refused in one sentence and nothing else, and what is read is what the reference reader reads of it.
"""

import argparse
import io
import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import safetensors

from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.header import ITEM_SIZES, Header, read_header
from tests.registry.attacks.safetensors_files import ATTACKS, EIGHT, file

MIB = 1024**2
LIMIT_MIB = 256  # what a million inputs may add to the process, the largest of them a header of 8 MiB
SMALL = 200_000  # larger attacks are tried once each, not mutated


@dataclass
class Counts:
    """What became of the inputs, and what they cost."""

    read: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    grown_mib: float = 0.0


def try_inputs(count: int, seed: int) -> Counts:
    """Tries every attack as it is, then mutations of the small ones, `count` inputs in all."""
    chance, counts, start = random.Random(seed), Counts(), peak_mib()
    seeds = [_valid(1), _valid(7), *(content for content, _ in ATTACKS.values())]
    for content in seeds[:count]:
        _try(content, counts)
    small = [content for content in seeds if len(content) < SMALL]
    for _ in range(count - len(seeds)):
        content = drawn(chance) if chance.random() < 0.5 else chance.choice(small)
        _try(content if chance.random() < 0.2 else mutated(content, chance), counts)
    counts.grown_mib = peak_mib() - start
    return counts


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One to four changes of a file, half of the time with a length that fits its header again."""
    for _ in range(chance.randint(1, 4)):
        content = chance.choice(MUTATIONS)(content, chance)
    if chance.random() < 0.5 and len(content) > 8:
        end = content.rfind(b"}") + 1
        content = max(end - 8, 0).to_bytes(8, "little") + content[8:]
    return content


def _flip(content: bytes, chance: random.Random) -> bytes:
    if not content:
        return content
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _splice(content: bytes, chance: random.Random) -> bytes:
    token = chance.choice(TOKENS)
    first, last = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + token + content[last if chance.random() < 0.3 else first :]


def _double(content: bytes, chance: random.Random) -> bytes:
    first, last = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:last] + content[first:last] + content[last:]


def _grow(content: bytes, chance: random.Random) -> bytes:
    return content + bytes(chance.randrange(64))


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _cut, _splice, _splice, _double, _grow)
TOKENS = (
    *(str(number).encode() for number in (0, -1, 1, 8, 2**31, 2**53, 2**63, 2**64, 10**400)),
    *(
        b'"F32"',
        b'"BF16"',
        b'"shape"',
        b'"data_offsets"',
        b'"dtype"',
        b'"__metadata__"',
        b'"a"',
        b"[",
        b"]",
        b"{",
        b"}",
    ),
    *(b"[2]", b"[0,8]", b",", b":", b"null", b"true", b"1e9", b"0.5", b"NaN", b"\\u0000", b'"\\ud800"', b"\xff", b" "),
)


def drawn(chance: random.Random) -> bytes:
    """A file of random tensors, most of them as they should be."""
    entries, end = {}, 0
    for number in range(chance.randint(1, 6)):
        dtype, shape = chance.choice(tuple(ITEM_SIZES)), [chance.randint(1, 4) for _ in range(chance.randrange(4))]
        start, end = end, end + math.prod(shape) * ITEM_SIZES[dtype]
        entries[f"layers.{number}.lora_A"] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return file(entries, bytes(end))


def _valid(tensors: int) -> bytes:
    entries = {
        f"base_model.model.layers.{i}.lora_A.weight": {
            "dtype": "F32",
            "shape": [2, 1],
            "data_offsets": [8 * i, 8 * i + 8],
        }
        for i in range(tensors)
    }
    return file(entries | {"__metadata__": {"format": "pt"}}, EIGHT * tensors)


def _try(content: bytes, counts: Counts) -> None:
    started = time.perf_counter()
    try:
        header = read_header(io.BytesIO(content), len(content))
    except Invalid as error:
        counts.refused += 1
        _check_sentence(str(error))
    else:
        counts.read += 1
        _compare(header, content)
    counts.slowest_s = max(counts.slowest_s, time.perf_counter() - started)


def _check_sentence(text: str) -> None:
    assert "\n" not in text, repr(text)
    assert len(text) < 20_000, len(text)


def _compare(header: Header, content: bytes) -> None:
    reference = {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in safetensors.deserialize(content)}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in header.tensors.items()} == reference


def peak_mib() -> float:
    """The most memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints what became of the inputs; exits with 1 where they took more memory than the limit."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", action="store_true", help="print JSON")
    given = options.parse_args()
    counts = try_inputs(given.inputs, given.seed)
    if given.json:
        print(json.dumps(counts.__dict__))
    else:
        print(
            f"{given.inputs:,} headers: {counts.read:,} read as the reference reads them, {counts.refused:,} refused; "
            f"the slowest took {counts.slowest_s:.2f} s, memory grew by {counts.grown_mib:.0f} of {LIMIT_MIB} MiB"
        )
    if counts.grown_mib > LIMIT_MIB:
        sys.exit(1)


if __name__ == "__main__":
    main()

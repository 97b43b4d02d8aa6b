#!/usr/bin/env python3
"""The texts of `examples/minilm`, in the same order, without Rust.

    minilm_texts.py FILE        prints all texts, shuffled

`examples/minilm/src/texts.rs` shuffles by `StdRng` of the crate rand 0.9: ChaCha with 12 rounds, seeded by PCG, and a
Fisher-Yates shuffle that takes several indices from one random number.
"""

import pathlib
import sys

WORD = 0xFFFFFFFF


def seeded(state):
    """The 8 words of a key from a seed of 64 bits, as `SeedableRng::seed_from_u64` makes them."""
    for _ in range(8):
        state = (state * 6364136223846793005 + 11634580027462260723) & (1 << 64) - 1
        shifted, turn = (state >> 18 ^ state) >> 27 & WORD, state >> 59
        yield (shifted >> turn | shifted << 32 - turn) & WORD


def chacha12(key):
    """The random numbers of 32 bits that ChaCha with 12 rounds makes of a key."""
    block = 0
    while True:
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *key, block & WORD, block >> 32, 0, 0]
        state = start.copy()

        def mix(a, b, c, d):
            for target, other, changed, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                state[target] = state[target] + state[other] & WORD
                word = state[changed] ^ state[target]
                state[changed] = (word << turn | word >> 32 - turn) & WORD

        for _ in range(6):
            for column in range(4):
                mix(column, 4 + column, 8 + column, 12 + column)
            for column in range(4):
                mix(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
        yield from (one + other & WORD for one, other in zip(start, state))
        block += 1


def below(bound, numbers):
    """A random number from 0 to below `bound`, as `Rng::random_range` of rand 0.9 draws it."""
    result, rest = divmod(next(numbers) * bound, 1 << 32)
    if rest > (1 << 32) - bound:
        result += rest + (next(numbers) * bound >> 32) > WORD
    return result


def shuffle(items, seed):
    """Shuffles a list as `items.shuffle(&mut StdRng::seed_from_u64(seed))` of rand 0.9 does."""
    numbers = chacha12(list(seeded(seed)))
    chunk = remaining = 0
    for place in range(len(items)):
        if not remaining:
            bound, end = place + 1, place + 2
            while bound * end <= WORD:
                bound, end = bound * end, end + 1
            chunk, remaining = below(bound, numbers), end - place - 1
        remaining -= 1
        chunk, index = divmod(chunk, place + 1) if remaining else (0, chunk)
        items[place], items[index] = items[index], items[place]


def read(path, seed=1):
    """The texts of a file, one a line, or the definitions of WordNet's `data.noun`, shuffled."""
    lines = [line for line in path.read_bytes().decode().split("\n") if not line.startswith("  ")]
    texts = [line.split("| ", 1)[-1].strip() for line in lines]
    texts = [text for text in texts if text]
    shuffle(texts, seed)
    return texts


def split(texts, calibration, held_out, draw):
    """Texts for calibration and others, which are the same in all draws (from 1)."""
    begin = 0 if draw == 1 else (draw - 1) * calibration + held_out
    parts = texts[begin : begin + calibration], texts[calibration : calibration + held_out]
    if tuple(map(len, parts)) != (calibration, held_out):
        raise ValueError(f"expected {calibration} texts for calibration in draw {draw} and {held_out} others, got {len(texts)} in all")
    return parts


def by_length(texts):
    """The texts by their length in bytes, so that batches have little padding."""
    return sorted(texts, key=lambda text: len(text.encode()))


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    print("\n".join(read(pathlib.Path(sys.argv[1]))))

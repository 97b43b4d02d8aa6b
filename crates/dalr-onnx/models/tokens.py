"""Tokenizes the texts of examples/minilm for the exported all-MiniLM-L6-v2.

usage: tokens.py MODEL_FOLDER data.noun OUT

Writes folders `calibration` (600 definitions) and `test` (1000 others) of .npz files, one for each
number of tokens: texts of one length run together without padding. Needs numpy and tokenizers.
"""

import pathlib
import sys

import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dalr-cli" / "python"))
import minilm_texts

TOKENS = 128


def main(folder, nouns, out):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    for part, texts in zip(["calibration", "test"], minilm_texts.split(minilm_texts.read(nouns), 600, 1000, 1)):
        lengths = {}
        for text in texts:
            ids = tokenizer.encode(text).ids
            lengths.setdefault(len(ids), []).append(ids)
        (out / part).mkdir(parents=True, exist_ok=True)
        for length, rows in lengths.items():
            ids = np.array(rows, np.int64)
            np.savez(
                out / part / f"{length:03}.npz",
                input_ids=ids,
                attention_mask=np.ones_like(ids),
                token_type_ids=np.zeros_like(ids),
            )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(pathlib.Path, sys.argv[1:]))

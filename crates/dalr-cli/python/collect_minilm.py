#!/usr/bin/env python3
"""Collects what the linear layers of all-MiniLM-L6-v2 read on WordNet glosses, for `dalr compress`.

    collect_minilm.py MODEL_FOLDER data.noun OUTPUT_FOLDER [--glosses 600]

Writes `activations.safetensors` (one tensor for each of the 24 distinct inputs of the 36 layers, tokens x inputs, f16) and `inputs.json`, which
says which layer reads which. The glosses are a random choice; `evaluate_minilm.py` judges on others.
"""

import argparse
import json
import pathlib
import random

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

HEADS = 12
EPSILON = 1e-12
TOKENS = 128
# The layers that read each of the four inputs of a block, in the order of execution.
READERS = {
    "attention": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "context": ["attention.output.dense"],
    "residual": ["intermediate.dense"],
    "hidden": ["output.dense"],
}


class Model:
    """The network on top of a dictionary of tensors, original or as `dalr compress` writes them."""

    def __init__(self, tensors, tokenizer):
        self.tensors = tensors
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(TOKENS)
        self.blocks = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer."))

    def linear(self, name, inputs):
        tensors = self.tensors
        if f"{name}.0.weight" in tensors:
            return functional.linear(functional.linear(inputs, tensors[f"{name}.0.weight"]), tensors[f"{name}.1.weight"], tensors[f"{name}.1.bias"])
        return functional.linear(inputs, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def normalised(self, name, inputs):
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(inputs, weight.shape, weight, bias, EPSILON)

    def start(self, texts):
        """What the first block reads on texts, and which of its tokens are not padding."""
        encoded = [self.tokenizer.encode(text).ids for text in texts]
        longest = max(map(len, encoded))
        ids = torch.tensor([one + [0] * (longest - len(one)) for one in encoded])
        mask = torch.arange(longest)[None, :] < torch.tensor([len(one) for one in encoded])[:, None]
        tables = {name: self.tensors[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
        state = tables["word"][ids] + tables["position"][:longest] + tables["token_type"][0]
        return self.normalised("embeddings.LayerNorm", state), mask

    def block(self, block, state, mask):
        """Runs a block step by step: yields each place with what its layers are about to read, and in the end the outputs."""
        name = f"encoder.layer.{block}"
        yield "attention", state
        heads = (self.linear(f"{name}.attention.self.{part}", state).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in ("query", "key", "value"))
        context = functional.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None, :])
        context = context.transpose(1, 2).flatten(2)
        yield "context", context
        state = self.normalised(f"{name}.attention.output.LayerNorm", state + self.linear(f"{name}.attention.output.dense", context))
        yield "residual", state
        hidden = functional.gelu(self.linear(f"{name}.intermediate.dense", state))
        yield "hidden", hidden
        yield "outputs", self.normalised(f"{name}.output.LayerNorm", state + self.linear(f"{name}.output.dense", hidden))

    def run(self, texts, read=None):
        """Embeddings of texts, of unit length. `read(block, place, inputs)` sees what the layers read, padding left out."""
        state, mask = self.start(texts)
        for block in range(self.blocks):
            for place, inputs in self.block(block, state, mask):
                if read and place in READERS:
                    read(block, place, inputs[mask])
            state = inputs
        mean = (state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1)

    def embed(self, texts, read=None, batch=64):
        return torch.cat([self.run(texts[start : start + batch], read) for start in range(0, len(texts), batch)])


def glosses(path, seed=1):
    """The glosses of WordNet's nouns, shuffled in the same way every time."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("  ")]
    texts = [line.split("| ", 1)[1].strip() for line in lines]
    random.Random(seed).shuffle(texts)
    return texts


@torch.no_grad()
def main():
    arguments = argparse.ArgumentParser()
    for name in ("model", "wordnet", "output"):
        arguments.add_argument(name, type=pathlib.Path)
    arguments.add_argument("--glosses", type=int, default=600)
    options = arguments.parse_args()
    model = Model(load_file(options.model / "model.safetensors"), options.model / "tokenizer.json")
    seen = {}
    model.embed(glosses(options.wordnet)[: options.glosses], lambda block, place, inputs: seen.setdefault((block, place), []).append(inputs.half()))
    options.output.mkdir(parents=True, exist_ok=True)
    save_file({f"encoder.layer.{block}.{place}": torch.cat(parts) for (block, place), parts in seen.items()}, options.output / "activations.safetensors")
    layers = {f"encoder.layer.{block}.{reader}": f"encoder.layer.{block}.{place}" for block, place in seen for reader in READERS[place]}
    (options.output / "inputs.json").write_text(json.dumps(layers, indent=1) + "\n")
    print(f"{options.glosses} glosses, {sum(map(len, seen[0, 'hidden']))} tokens, {len(layers)} layers")


if __name__ == "__main__":
    main()

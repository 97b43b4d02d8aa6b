"""Loads a model that `dalr compress` wrote into the PyTorch module that it was made from.

    from load_compressed import load_compressed
    model = load_compressed(build_model(), "compressed.safetensors")

Replaces every `nn.Linear` that the file holds as `NAME.0.weight` and `NAME.1.weight` by two smaller ones, with the file's dtype and on the
device of the original layer. Loads the rest of the file as it is.
"""

import json

from safetensors import safe_open
from torch import nn


def load_compressed(module, path, prefix="", strict=True):
    """`prefix` is what the module's names have before those of the file (`encoder.`, say)."""
    with safe_open(path, "pt") as file:
        ranks = json.loads(file.metadata()["dalr.ranks"])
        tensors = {prefix + name: file.get_tensor(name) for name in file.keys()}
    for name, rank in ranks.items():
        parent, _, child = (prefix + name).rpartition(".")
        parent = module.get_submodule(parent)
        original = getattr(parent, child)
        if not isinstance(original, nn.Linear):
            raise TypeError(f"{name}: expected nn.Linear, got {type(original).__name__}")
        weight = tensors[f"{prefix}{name}.0.weight"]
        options = {"device": original.weight.device, "dtype": weight.dtype}
        thin = nn.Linear(original.in_features, rank, bias=False, **options)
        wide = nn.Linear(rank, original.out_features, bias=f"{prefix}{name}.1.bias" in tensors, **options)
        setattr(parent, child, nn.Sequential(thin, wide).train(original.training))
    module.load_state_dict(tensors, strict=strict)
    return module

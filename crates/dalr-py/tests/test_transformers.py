"""Hugging Face models, built from configurations: compress, save, load into a fresh model, and agree."""

import copy

import dalr
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

SIZES = {"vocab_size": 120}
BERT = transformers.BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, **SIZES)
GPT2 = transformers.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0, **SIZES)
LLAMA = transformers.LlamaConfig(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, tie_word_embeddings=True, **SIZES
)
MODELS = {
    "bert": lambda: transformers.BertModel(BERT),
    "gpt2": lambda: transformers.GPT2LMHeadModel(GPT2),
    "llama": lambda: transformers.LlamaForCausalLM(LLAMA),
}
UNITS = {
    "bert": ("encoder.layer.*.intermediate.dense", "encoder.layer.*.output.dense"),
    "gpt2": ("*.mlp.c_fc", "*.mlp.c_proj"),
    "llama": ("*.gate_proj", "*.up_proj", "*.down_proj"),
}
# Layers that are called, and different inputs of these.
COUNTS = {"bert": (13, 9), "gpt2": (8, 8), "llama": (14, 8)}


def batches(count=4):
    """Texts of different lengths; the tokens of a domain are few, so that there is something to adapt to."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        mask = (torch.arange(20) < torch.randint(8, 21, (16, 1), generator=generator)).long()
        mask[0] = 1
        yield {"input_ids": torch.randint(0, 25, (16, 20), generator=generator), "attention_mask": mask}


def outputs(model, batch):
    with torch.no_grad():
        output = model(**batch)
    output = output.logits if "logits" in output else output.last_hidden_state
    return output[batch["attention_mask"].bool()].float()


def error(model, original):
    pairs = [(outputs(original, batch), outputs(model, batch)) for batch in batches()]
    expected, found = (torch.cat(part) for part in zip(*pairs))
    return ((expected - found).norm() / (expected - expected.mean(0)).norm()).item()


def calibrated(model, **options):
    with dalr.calibrate(model, **options) as calibration:
        for batch in batches():
            if options.get("gradients"):
                output = model(**batch)
                calibration.backward(output.logits if "logits" in output else output.last_hidden_state)
            else:
                with torch.no_grad():
                    model(**batch)
    return calibration


@pytest.fixture(params=MODELS)
def kind(request):
    torch.manual_seed(2)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compress_save_load(kind, dtype, tmp_path):
    model = MODELS[kind]().eval().to(dtype)
    original = copy.deepcopy(model)
    calibration = calibrated(model)
    layers, inputs = COUNTS[kind]
    assert f"{layers} of {layers} layers called, {inputs} different inputs" in repr(calibration)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches())
    names = [name for name in calibration._records if "pooler" not in name]
    assert all(calibration.stats(name)[0].samples == tokens for name in names)
    result = dalr.compress(model, calibration, keep=0.7)
    assert len(result.plan.layers) == layers
    assert set(result.skipped) == ({"lm_head"} if kind != "bert" else set())
    saved = sum(parameter.numel() for parameter in original.parameters()) - sum(parameter.numel() for parameter in model.parameters())
    assert saved == result.plan.parameters_before - result.plan.parameters_after > 0
    svd = copy.deepcopy(original)
    dalr.compress(svd, keep=0.7, method=dalr.TruncatedSvd())
    assert error(model, original) < error(svd, original) < 1.5
    result.save(tmp_path / "model.safetensors")
    fresh = dalr.load(MODELS[kind]().eval().to(dtype), tmp_path / "model.safetensors")
    for batch in batches(1):
        assert outputs(fresh, batch).equal(outputs(model, batch))
    if kind != "bert":
        assert fresh.lm_head.weight is fresh.get_input_embeddings().weight
        assert fresh.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, pad_token_id=0).shape == (1, 8)


def test_hidden_units(kind, tmp_path):
    model = MODELS[kind]().eval()
    original = copy.deepcopy(model)
    result = dalr.compress(
        model, calibrated(model), keep=0.7, hidden_units=[UNITS[kind]], sensitivity=lambda smaller: error(smaller, original) ** 2
    )
    assert result.plan.hidden_units and result.plan.parameters_after <= 0.7 * result.plan.parameters_before
    svd = copy.deepcopy(original)
    dalr.compress(svd, keep=0.7, method=dalr.TruncatedSvd())
    assert error(model, original) < 0.9 * error(svd, original)
    result.save(tmp_path / "model.safetensors")
    fresh = dalr.load(MODELS[kind]().eval(), tmp_path / "model.safetensors")
    for batch in batches(1):
        assert outputs(fresh, batch).equal(outputs(model, batch))


def test_gradients_and_sequential(kind):
    model = MODELS[kind]().eval()
    original = copy.deepcopy(model)
    plain = copy.deepcopy(original)
    # The pooler follows the output that gradients are taken of.
    options = {"keep": 0.6, "untouched": "pooler.*"} if kind == "bert" else {"keep": 0.6}
    dalr.compress(plain, calibrated(plain), **options)
    gradients = copy.deepcopy(original)
    result = dalr.compress(gradients, calibrated(gradients, gradients=True), **options)
    assert all(reports[0].metric_error is not None for reports in result.reports.values())
    assert "sensitivity" in str(result) and error(gradients, original) < 1.02 * error(plain, original)
    sequential = copy.deepcopy(original)
    dalr.compress(sequential, calibrated(sequential), sequential=list(batches()), **options)
    assert error(sequential, original) < 1.02 * error(plain, original)


def test_adapters_of_conv1d(tmp_path):
    torch.manual_seed(2)
    base = MODELS["gpt2"]().eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for block in tuned.transformer.h:
            block.attn.c_attn.weight += torch.randn(48, 2) @ torch.randn(2, 144) * 0.05
    adapter = dalr.lora_extract(base, tuned, 2, calibrated(base))
    assert set(adapter.layers) == {"transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"} and not adapter.skipped
    merged = copy.deepcopy(base)
    adapter.add_to(merged)
    assert error(merged, tuned) < 1e-2
    adapter.save(tmp_path)
    peft = pytest.importorskip("peft")
    assert error(peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path), tuned) < 1e-2

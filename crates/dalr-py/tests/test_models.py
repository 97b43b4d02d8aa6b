"""PyTorch models: calibration, compression in place, files, and everything that a model may do to hooks."""

import copy
import math
import pickle
import sys

import dalr
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402


# Small layers are no faster with more threads, and much slower if other programs run.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def mlp(bias=True):
    return nn.Sequential(nn.Linear(24, 32, bias=bias), nn.GELU(), nn.Linear(32, 32, bias=bias), nn.GELU(), nn.Linear(32, 10, bias=bias))


def batches(count=6, size=50, features=24):
    mixing = torch.randn(features, features) * 0.7 ** torch.arange(features)
    return [torch.randn(size, features) @ mixing.T for _ in range(count)]


def calibrated(model, data, **options):
    with torch.no_grad(), dalr.calibrate(model, **options) as calibration:
        for batch in data:
            model(batch)
    return calibration


def error(model, original, data):
    with torch.no_grad():
        expected, found = original(data), model(data)
    return ((expected - found).float().norm() / (expected - expected.mean(0)).float().norm()).item()


def test_statistics_are_those_of_the_inputs():
    model, data = mlp(), batches()
    calibration = calibrated(model, data)
    inputs = torch.cat(data)
    with torch.no_grad():
        for index, layer in enumerate(model):
            if isinstance(layer, nn.Linear):
                stats = calibration.stats(str(index))[0]
                assert stats.samples == 300 and stats.dtype == "float32"
                np.testing.assert_allclose(stats.covariance(), np.cov(inputs.numpy().T.astype(float), bias=True), atol=1e-6)
            inputs = layer(inputs)
    # Hooks are gone.
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())


def test_compression_in_place():
    model, data = mlp(), batches()
    original = copy.deepcopy(model)
    before = sum(parameter.numel() for parameter in model.parameters())
    result = dalr.compress(model, calibrated(model, data), keep=0.6)
    after = sum(parameter.numel() for parameter in model.parameters())
    assert after == result.plan.parameters_after <= 0.6 * before == 0.6 * result.plan.parameters_before
    # Better than the same ranks by SVD, and each layer is that of the arrays.
    svd = copy.deepcopy(original)
    dalr.compress(svd, keep=0.6, method=dalr.TruncatedSvd())
    assert error(model, original, torch.cat(data)) < 0.7 * error(svd, original, torch.cat(data))
    stats = dalr.ActivationStats(24)
    stats.update(torch.cat(data).numpy())
    alone = dalr.Dalr().compress(dalr.Linear(original[0].weight.detach(), original[0].bias.detach()), stats, result.plan.ranks["0"])
    torch.testing.assert_close(model[0].weight, torch.from_numpy(alone.layer.to_linear().weight), rtol=1e-3, atol=1e-3)
    assert model[0].in_features == 24 and model[0].bias.shape == (32,)
    assert "0" in str(result) and result.reports["0"][0].rank == result.plan.ranks["0"]


@pytest.mark.parametrize("bias", [True, False])
def test_save_and_load(tmp_path, bias):
    model, data = mlp(bias), batches()
    result = dalr.compress(model, calibrated(model, data), keep=0.6)
    path = tmp_path / "model.safetensors"
    result.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    fresh = mlp(bias)
    assert dalr.load(fresh, path) is fresh
    assert fresh(data[0]).equal(model(data[0]))
    # The program's loader reads it, too.
    from dalr.load_compressed import load_compressed

    assert load_compressed(mlp(bias), path)(data[0]).equal(model(data[0]))


def test_files_that_do_not_fit(tmp_path):
    model, data = mlp(), batches()
    path = tmp_path / "model.safetensors"
    dalr.compress(model, calibrated(model, data), keep=0.6).save(path)
    others = {
        "other names": nn.ModuleDict({"fc": nn.Linear(24, 32)}),
        "other shapes": nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 11)),
        "more layers": nn.Sequential(*mlp(), nn.Linear(10, 3)),
        "fewer layers": mlp()[:3],
    }
    for name, other in others.items():
        before = state(other)
        with pytest.raises(ValueError, match="does not fit the model"):
            dalr.load(other, path)
        assert unchanged(other, before), name
    import safetensors.torch

    safetensors.torch.save_file(mlp().state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="not a compressed model"):
        dalr.load(mlp(), tmp_path / "plain.safetensors")


def test_pivoted_files(tmp_path):
    import safetensors.torch

    model, data = mlp(), batches()
    dalr.compress(model, calibrated(model, data), keep=0.6)
    tensors, ranks = model.state_dict(), {}
    for name, layer in model.named_children():
        if not isinstance(layer, nn.GELU):
            factors = dalr.LowRankLinear(layer[0].weight.detach(), layer[1].weight.detach(), layer[1].bias.detach())
            pivoted, ranks[name] = factors.to_pivoted(), factors.rank
            tensors[f"{name}.0.weight"] = torch.from_numpy(pivoted.pivot_rows)
            tensors[f"{name}.1.weight"] = torch.from_numpy(pivoted.coefficients)
            tensors[f"{name}.pivots"] = torch.tensor(pivoted.pivots)
    safetensors.torch.save_file(tensors, tmp_path / "pivoted.safetensors", {"dalr.ranks": str(ranks).replace("'", '"')})
    loaded = dalr.load(mlp(), tmp_path / "pivoted.safetensors")
    torch.testing.assert_close(loaded(data[0]), model(data[0]), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters()) - sum(rank**2 for rank in ranks.values())


@pytest.mark.parametrize("sequential", [False, True])
def test_pivoted_storage(tmp_path, sequential):
    model, data = mlp(), batches()
    original, factors = copy.deepcopy(model), copy.deepcopy(model)
    calibration = calibrated(model, data)
    options = {"sequential": data} if sequential else {}
    dalr.compress(factors, calibration, keep=0.6, **options)
    result = dalr.compress(model, calibration, keep=0.6, storage="pivoted", **options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == result.plan.parameters_after <= 0.6 * result.plan.parameters_before
    assert error(model, original, torch.cat(data)) < 0.9 * error(factors, original, torch.cat(data))
    assert result.reports["0"][0].parameters_after == sum(parameter.numel() for parameter in model[0].parameters())
    torch.testing.assert_close(functional.linear(data[0], model[0].weight, model[0].bias), model[0](data[0]), rtol=1e-4, atol=1e-4)
    result.save(tmp_path / "model.safetensors")
    assert dalr.load(mlp(), tmp_path / "model.safetensors")(data[0]).equal(model(data[0]))


@pytest.mark.parametrize("sequential", [False, True])
def test_hidden_units(tmp_path, sequential):
    model, data = mlp(), batches()
    with torch.no_grad():
        # Half of the units are constant.
        model[0].weight[16:] = 0
    original = copy.deepcopy(model)
    calibration = calibrated(model, data)
    options = {"keep": 0.6, "untouched": "4", "sequential": data if sequential else None}
    result = dalr.compress(model, calibration, hidden_units=[("0", "2")], **options)
    kept = result.plan.hidden_units[0]
    assert kept >= 16 and model[0].weight.shape == (kept, 24) and model[2].weight.shape == (32, kept)
    parameters = sum(parameter.numel() for layer in (model[0], model[2]) for parameter in layer.parameters())
    assert parameters == result.plan.parameters_after <= 0.6 * result.plan.parameters_before
    factors = copy.deepcopy(original)
    dalr.compress(factors, calibration, **options)
    assert error(model, original, torch.cat(data)) < 0.1 * error(factors, original, torch.cat(data))
    result.save(tmp_path / "model.safetensors")
    assert dalr.load(mlp(), tmp_path / "model.safetensors")(data[0]).equal(model(data[0]))


def test_hidden_units_that_cannot_be():
    model, data = mlp(), batches()
    calibration, before = calibrated(model, data), state(model)
    attention, inputs = Attention(), [torch.randn(8, 5, 24)]
    shared = calibrated(attention, inputs)
    for declared, message in (
        ([("0",)], "names of two layers"),
        (["0"], "names of two layers"),
        ([("fc*", "2")], "no layer matches"),
        ([("0", "3")], "`3` is not a linear layer"),
        ([("*", "2")], "as many"),
        ([("4", "2")], "hidden units before `2`: .*expected 32 .*got 10"),
    ):
        with pytest.raises(ValueError, match=message):
            dalr.compress(model, calibration, keep=0.5, hidden_units=declared)
        assert unchanged(model, before)
    with pytest.raises(ValueError, match="needs a calibration"):
        dalr.compress(model, keep=0.5, method=dalr.TruncatedSvd(), hidden_units=[("0", "2")])
    with pytest.raises(ValueError, match="reads the units before"):
        dalr.compress(attention, shared, keep=0.5, hidden_units=[("twice", "query")])


class Convolutions(nn.Module):
    def __init__(self, mode="zeros"):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, padding_mode=mode)
        self.grouped = nn.Conv2d(16, 24, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24)
        self.pointwise = nn.Conv2d(24, 16, 1, bias=False)
        self.line = nn.Conv1d(16, 20, 5, padding="same")
        self.head = nn.Linear(20, 7)

    def forward(self, images):
        images = functional.relu(self.first(images), inplace=True)
        images = functional.relu(self.pointwise(self.depthwise(functional.relu(self.grouped(images)))))
        return self.head(functional.relu(self.line(images.flatten(2))).mean(-1))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_convolutions(mode, tmp_path):
    model = Convolutions(mode).eval()
    images = torch.randn(40, 3, 10, 12)
    images = images + functional.avg_pool2d(images, 3, 1, 1) * 3
    original = copy.deepcopy(model)
    calibration = calibrated(model, [images], positions=1.0)
    # The patches, by PyTorch's own unfolding.
    padded = functional.pad(images, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    patches = functional.unfold(padded, 3).movedim(1, -1).reshape(-1, 27)
    np.testing.assert_allclose(calibration.stats("first")[0].covariance(), np.cov(patches.numpy().T.astype(float), bias=True), atol=1e-6)
    with torch.no_grad():
        inputs = functional.pad(functional.relu(original.first(images)), (0, 0, 1, 1))
        for group in range(2):
            patches = functional.unfold(inputs[:, 8 * group : 8 * group + 8], (3, 2), dilation=(1, 2), stride=(2, 1))
            patches = patches.movedim(1, -1).reshape(-1, 48).numpy().astype(float)
            np.testing.assert_allclose(calibration.stats("grouped")[group].covariance(), np.cov(patches.T, bias=True), atol=1e-5)
    assert calibration.stats("line")[0].samples == 40 * 3 * 8
    result = dalr.compress(model, calibration, keep=0.6)
    assert result.skipped == {"depthwise": "a depthwise convolution has no smaller factors"}
    before, after = (sum(p.numel() for name, p in m.named_parameters() if "depthwise" not in name) for m in (original, model))
    assert after == result.plan.parameters_after <= 0.6 * before
    # The predicted error is that of the outputs at all positions.
    with torch.no_grad():
        expected, found = (m.first(images).movedim(1, -1).reshape(-1, 16) for m in (original, model))
    measured = ((expected - found).norm() / (expected - expected.mean(0)).norm()).item()
    assert measured == pytest.approx(result.reports["first"][0].relative_error, rel=1e-3)
    svd = copy.deepcopy(original)
    dalr.compress(svd, keep=0.6, method=dalr.TruncatedSvd())
    assert error(model, original, images) < 0.9 * error(svd, original, images)
    result.save(tmp_path / "model.safetensors")
    fresh = dalr.load(Convolutions(mode).eval(), tmp_path / "model.safetensors")
    assert fresh(images).equal(model(images))
    # All positions at full rank: the product is the original.
    torch.testing.assert_close(model.grouped.weight.shape, original.grouped.weight.shape)
    assert model.grouped.groups == 2 and model.grouped.kernel_size == (3, 2)


def test_multiply_adds_count_positions():
    model = Convolutions().eval()
    result = dalr.compress(model, calibrated(model, [torch.randn(20, 3, 10, 12)]), keep_multiply_adds=0.6)
    layers = {layer.name: layer for layer in result.plan.layers}
    assert layers["first"].multiply_adds_before == 27 * 16 * 10 * 12
    assert layers["line"].multiply_adds_before == 80 * 20 * 24
    assert layers["head"].multiply_adds_before == 140
    assert result.plan.multiply_adds_after <= 0.6 * result.plan.multiply_adds_before


def test_positions_are_a_fraction():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    images = torch.randn(30, 3, 12, 12)
    assert calibrated(model, [images], positions=0.25).stats("0")[0].samples == 30 * 25
    one, two = (calibrated(model, [images]).stats("0")[0].covariance() for _ in range(2))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="positions"):
        dalr.calibrate(model, positions=0)


class Attention(nn.Module):
    """Three layers with one input, a layer that runs twice, and one that two names share."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(24, 24) for _ in range(3))
        self.twice = nn.Linear(24, 24)
        self.blocks = nn.ModuleList([nn.Linear(24, 24), nn.Linear(24, 24)])
        self.blocks.append(self.blocks[0])

    def forward(self, x, attention_mask=None):
        scores = self.query(x) @ self.key(x).mT / 5
        x = x + scores.softmax(-1) @ self.value(x)
        x = self.twice(torch.tanh(self.twice(x)))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x


def test_shared_inputs_and_modules(tmp_path):
    model, data = Attention(), [torch.randn(8, 5, 24) for _ in range(10)]
    original = copy.deepcopy(model)
    calibration = calibrated(model, data)
    assert calibration.stats("query") is calibration.stats("key") is calibration.stats("value")
    assert calibration.stats("query")[0].samples == 400
    assert calibration.stats("twice")[0].samples == calibration.stats("blocks.0")[0].samples == 800
    apart = calibrated(model, data, share_inputs=False)
    assert apart.stats("query") is not apart.stats("key")
    np.testing.assert_array_equal(apart.stats("key")[0].covariance(), calibration.stats("key")[0].covariance())
    assert "7 layers" not in repr(calibration) and "of 6 layers called, 4 different inputs, 10 runs" in repr(calibration)
    result = dalr.compress(model, calibration, keep=0.7, untouched="twice")
    assert result.skipped == {"twice": "untouched"} and isinstance(model.twice, nn.Linear)
    assert model.blocks[0] is model.blocks[2] and not isinstance(model.blocks[0], nn.Linear)
    assert error(model, original, data[0]) < 0.7
    result.save(tmp_path / "model.safetensors")
    assert dalr.load(Attention(), tmp_path / "model.safetensors")(data[0]).equal(model(data[0]))


class Switching(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.apart = False

    def forward(self, x):
        return self.one(input=x) + self.other(x + 1 if self.apart else x)


def test_inputs_that_are_shared_no_longer():
    model = Switching()
    with torch.no_grad(), dalr.calibrate(model) as calibration:
        model(torch.randn(20, 8))
        model.apart = True
        with pytest.raises(RuntimeError, match="share_inputs=False"):
            model(torch.randn(20, 8))
    with pytest.raises(ValueError, match="less often"):
        dalr.compress(model, calibration, keep=0.8)
    with torch.no_grad(), dalr.calibrate(model, share_inputs=False) as calibration:
        model(torch.randn(20, 8))
    assert calibration.stats("other")[0].mean.mean() > calibration.stats("one")[0].mean.mean() + 0.9


def test_inputs_that_are_shared_with_others_later():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(8, 8) for _ in range(3))
            self.runs = 0

        def forward(self, x):
            self.runs += 1
            other = x + 1
            # The second layer shares its input with the first one, then with the third one.
            return self.one(x) + self.three(other) + self.two(x if self.runs == 1 else other)

    data = [torch.randn(20, 8) for _ in range(3)]
    with pytest.raises(RuntimeError, match="layer `two` .* share_inputs=False"):
        calibrated(Model(), data)
    calibration = calibrated(Model(), data, share_inputs=False)
    expected = torch.cat([data[0], data[1] + 1, data[2] + 1]).numpy().T.astype(float)
    np.testing.assert_allclose(calibration.stats("two")[0].covariance(), np.cov(expected, bias=True), atol=1e-6)


def test_masks():
    model, tokens = Attention(), torch.randn(4, 6, 24)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0], [1] * 6])
    with torch.no_grad(), dalr.calibrate(model) as calibration:
        model(tokens, attention_mask=mask)
        assert calibration.stats("query")[0].samples == 17
        calibration.mask = mask[:, :6].bool()
        model(tokens)
        assert calibration.stats("query")[0].samples == 34
        calibration.mask = None
        model(tokens)
        assert calibration.stats("query")[0].samples == 34 + 24
    kept = tokens[mask.bool()]
    again = calibrated(nn.Sequential(nn.Linear(24, 5)), [kept, kept, tokens])
    np.testing.assert_allclose(calibration.stats("query")[0].covariance(), again.stats("0")[0].covariance(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype, tmp_path):
    model, data = mlp().to(dtype), [batch.to(dtype) for batch in batches()]
    original = copy.deepcopy(model)
    calibration = calibrated(model, data)
    assert calibration.stats("0")[0].dtype == ("float64" if dtype == torch.float64 else "float32")
    result = dalr.compress(model, calibration, keep=0.7)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert error(model, original, data[0]) < 0.4
    result.save(tmp_path / "model.safetensors")
    assert dalr.load(mlp().to(dtype), tmp_path / "model.safetensors")(data[0]).equal(model(data[0]))


def test_modes_and_parameters_stay():
    model, data = nn.Sequential(nn.Linear(24, 32), nn.Dropout(), nn.Linear(32, 10)), batches()
    model[0].requires_grad_(False)
    model.train()
    rng = torch.get_rng_state()
    dalr.compress(model, calibrated(nn.Sequential(*model).eval(), data), keep=0.6)
    assert torch.get_rng_state().equal(rng)
    assert not any(parameter.requires_grad for parameter in model[0].parameters())
    assert all(parameter.requires_grad for parameter in model[2].parameters())
    model.train()
    assert all(module.training for module in model.modules())
    # It can be trained on.
    model(data[0]).square().sum().backward()
    assert model[2][0].weight.grad is not None


@pytest.mark.parametrize("wrap", ["torch.compile", "model.compile"])
def test_compiled_models(wrap):
    plain, data = mlp(), batches()
    original = copy.deepcopy(plain)
    if wrap == "torch.compile":
        model = torch.compile(plain, backend="eager")
    else:
        model = plain
        model.compile(backend="eager")
    with torch.no_grad():
        model(data[0])
    calibration = calibrated(model, data)
    assert calibration.stats("0")[0].samples == 300
    result = dalr.compress(model, calibration, keep=0.6)
    assert set(result.plan.ranks) <= {"0", "2", "4"} and "0.1.weight" in plain.state_dict()
    with torch.no_grad():
        torch.testing.assert_close(model(data[0]), nn.Sequential(*plain)(data[0]))
    assert 0 < error(model, original, data[0]) < 0.5


def test_gradients():
    model, data = mlp(), batches()
    original = copy.deepcopy(model)
    weight = torch.zeros(10)
    weight[0] = 1.0
    with dalr.calibrate(model, gradients=True) as calibration:
        for batch in data:
            calibration.backward(model(batch) @ torch.diag(weight + 1e-3), probes=4)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    gradients = calibration.gradient_stats("4")[0]
    assert gradients.samples == 4 * 300 and gradients.features == 10
    # The probes have identity covariance.
    second = gradients.covariance() + np.outer(gradients.mean, gradients.mean)
    np.testing.assert_allclose(second, np.diag((weight + 1e-3).numpy() ** 2), atol=0.1)
    plain = copy.deepcopy(original)
    dalr.compress(plain, calibrated(plain, data), keep=0.4)
    result = dalr.compress(model, calibration, keep=0.4)
    assert result.plan.ranks["4"] and result.reports["0"][0].metric_error is not None
    errors = [error(lambda x, m=m: m(x)[:, :1], lambda x: original(x)[:, :1], torch.cat(data)) for m in (model, plain)]
    assert errors[0] < 0.7 * errors[1], errors


def test_gradients_agree_with_autograd():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)), torch.randn(50, 6)
    with dalr.calibrate(model, gradients=True) as calibration:
        calibration.backward((model(x) ** 3).sum())
    hidden = model[0](x)
    hidden.retain_grad()
    (model[2](torch.relu(hidden)) ** 3).sum().backward()
    expected = hidden.grad.double()
    stats = calibration.gradient_stats("0")[0]
    np.testing.assert_allclose(stats.mean, expected.mean(0), atol=1e-4)
    np.testing.assert_allclose(stats.covariance(), np.cov(expected.numpy().T, bias=True), rtol=1e-3, atol=1e-3)


def test_gradients_of_convolutions():
    model, images = Convolutions().eval(), torch.randn(20, 3, 10, 12)
    original = copy.deepcopy(model)
    with dalr.calibrate(model, gradients=True, positions=0.5) as calibration:
        calibration.backward(model(images), probes=2)
    assert [group.features for group in calibration.gradient_stats("grouped")] == [12, 12]
    dalr.compress(model, calibration, keep=0.7)
    assert error(model, original, images) < 0.5


def test_backward_says_what_it_needs():
    model, x = mlp(), torch.randn(50, 24)
    with dalr.calibrate(model) as calibration, pytest.raises(RuntimeError, match="gradients=True"):
        calibration.backward(model(x))
    with dalr.calibrate(model, gradients=True) as calibration:
        with torch.no_grad(), pytest.raises(RuntimeError, match="torch.no_grad"):
            calibration.backward(model(x))
        with pytest.raises(TypeError, match="logits"):
            calibration.backward({"logits": model(x)})
    with pytest.raises(ValueError, match="no gradient has reached layer `0`"):
        dalr.compress(model, calibration, keep=0.5)


def test_sensitivities():
    model, data = mlp(), batches()
    original = copy.deepcopy(model)
    seen = []

    def loss(candidate):
        seen.append(sum(parameter.numel() for parameter in candidate.parameters()))
        return error(candidate, original, data[0]) ** 2

    before = sum(parameter.numel() for parameter in model.parameters())
    result = dalr.compress(model, calibrated(model, data), keep=0.6, sensitivity=loss)
    assert seen[0] == before and all(count < before for count in seen[1:]) and len(seen) == 4
    assert "sensitivity" in str(result)
    given = copy.deepcopy(original)
    ranks = dalr.compress(given, calibrated(given, data), keep=0.6, sensitivity={"0": 100.0, "2": 1e-3, "4": 100.0}).plan.ranks
    assert ranks["2"] < min(ranks.get("0", 99), 8)


def test_failures_leave_the_model():
    model, data = mlp(), batches()
    calibration = calibrated(model, data)
    before = state(model)

    def fail(candidate):
        raise ZeroDivisionError("mine")

    failures = [
        (ZeroDivisionError, "mine", {"keep": 0.5, "sensitivity": fail}),
        (ValueError, "smallest feasible", {"keep": 0.001}),
        (ValueError, "one budget", {}),
        (ValueError, "no layer matches 'lm_head'", {"keep": 0.5, "untouched": ["lm_head"]}),
        (TypeError, "got an iterator", {"keep": 0.5, "sequential": iter(data)}),
        (ZeroDivisionError, "batch", {"keep": 0.5, "sequential": Failing(data)}),
        (TypeError, "unexpected keyword", {"kep": 0.5}),
        (KeyboardInterrupt, None, {"keep": 0.5, "sensitivity": interrupt}),
    ]
    for kind, message, options in failures:
        with pytest.raises(kind, match=message):
            dalr.compress(model, calibration, **options)
        assert unchanged(model, before) and all(not module._forward_pre_hooks for module in model.modules()), message
    with pytest.raises(RuntimeError, match="still running"), calibration:
        dalr.compress(model, calibration, keep=0.5)


class Failing:
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        yield from self.data[:2]
        raise ZeroDivisionError("batch")


def interrupt(candidate):
    raise KeyboardInterrupt


def test_sequential():
    torch.manual_seed(3)
    layers = [layer for _ in range(4) for layer in (nn.Linear(24, 24), nn.Tanh())]
    model, data = nn.Sequential(nn.Dropout(0.1), *layers, nn.Linear(24, 10)).train(), batches(8, 120)
    original = copy.deepcopy(model).eval()
    calibration = calibrated(copy.deepcopy(original), data)
    plain = copy.deepcopy(original)
    dalr.compress(plain, calibration, keep=0.5)
    result = dalr.compress(model, calibration, keep=0.5, sequential=data)
    assert model.training and all(module.training for module in model.modules())
    assert all(report[0].samples == 960 for report in result.reports.values())
    model.eval()
    assert error(model, original, torch.cat(data)) < error(plain, original, torch.cat(data))


def test_sequential_calls_and_shared_inputs():
    model, data = Attention(), [torch.randn(8, 5, 24) for _ in range(10)]
    original = copy.deepcopy(model)
    seen = []
    hook = model.register_forward_pre_hook(lambda module, arguments: seen.append(1))
    calibration = calibrated(model, data)
    seen.clear()
    result = dalr.compress(model, calibration, keep=0.7, sequential=[(batch,) for batch in data])
    # Two runs for each batch and each of four inputs: query, key and value share theirs.
    assert len(seen) == 2 * 10 * 4
    hook.remove()
    assert result.reports["twice"][0].samples == 800 and result.reports["query"][0].samples == 400
    assert error(model, original, data[0]) < 0.7


def test_bad_models():
    with pytest.raises(ValueError, match="the model has no nn.Linear"):
        dalr.calibrate(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="wrap it in nn.Sequential"):
        dalr.calibrate(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="torch.nn.Module"):
        dalr.calibrate([1])
    with pytest.raises(ValueError, match="meta device"):
        dalr.calibrate(mlp().to("meta"))


def test_layers_that_never_run():
    model = nn.ModuleDict({"used": nn.Linear(24, 24), "other": nn.Linear(24, 24)})
    model.forward = lambda x: model["used"](x)
    before = state(model)
    calibration = calibrated(model, batches())
    with pytest.raises(ValueError, match="did not run `other`"):
        dalr.compress(model, calibration, keep=0.5)
    assert unchanged(model, before)
    assert set(dalr.compress(model, calibration, keep=0.5, untouched="other").plan.ranks) == {"used"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite(value):
    model, data = mlp(), batches()
    data[1][3, 4] = value
    before = state(model)
    with pytest.raises(ValueError, match="layer `0`: ActivationStats::update: expected finite numbers .* at row 3, column 4"):
        calibrated(model, data)
    assert unchanged(model, before) and all(not module._forward_pre_hooks for module in model.modules())


def test_models_that_changed():
    model, data = mlp(), batches()
    calibration = calibrated(model, data)
    other = nn.Sequential(nn.Linear(24, 10))
    with pytest.raises(ValueError, match="another model"):
        dalr.compress(other, calibration, keep=0.5)
    again = copy.deepcopy(model)
    # The same numbers elsewhere are the same model.
    assert dalr.compress(again, pickle.loads(pickle.dumps(calibration)), keep=0.5).plan.ranks
    with torch.no_grad():
        model[2].weight[3, 4] += 1e-3
    with pytest.raises(ValueError, match="layer `2` has changed"):
        dalr.compress(model, calibration, keep=0.5)
    with pytest.raises(ValueError, match="another model"):
        dalr.compress(again, calibration, keep=0.5)


def test_layers_that_are_not_supported():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, dropout=0.0)
            self.transposed = nn.ConvTranspose1d(24, 24, 1)
            self.embedding = nn.Embedding(7, 24)
            self.tied = nn.Linear(24, 7, bias=False)
            self.tied.weight = self.embedding.weight

        def forward(self, x):
            return self.tied(self.transposed(self.attention(x).mT).mT)

    model = Model().eval()
    original, data = copy.deepcopy(model), [torch.randn(20, 5, 24)]
    result = dalr.compress(model, calibrated(model, data), keep=0.7)
    assert result.skipped == {
        "attention.self_attn": "MultiheadAttention is not supported",
        "attention.self_attn.out_proj": "NonDynamicallyQuantizableLinear is not supported",
        "transposed": "ConvTranspose1d is not supported",
        "tied": "its weight is also that of `embedding`",
    }
    assert set(result.plan.ranks) == {"attention.linear1", "attention.linear2"}
    # The layer reads the weights of its parts if it may use its fast path.
    assert 0 < error(model, original, data[0]) < 0.5
    assert "not considered" in str(result)


def test_overflow_of_half_precision():
    model = nn.Sequential(nn.Linear(24, 24, bias=False)).half()
    with torch.no_grad():
        model[0].weight *= 0
        model[0].weight += 3e4
    before = state(model)
    with pytest.raises(OverflowError, match="bfloat16"):
        dalr.compress(model, keep=0.5, method=dalr.TruncatedSvd())
    assert unchanged(model, before)


def test_nothing_is_kept():
    import gc
    import weakref

    model, kept = mlp(), []
    with torch.no_grad(), dalr.calibrate(model):
        for batch in batches(3):
            kept.append(weakref.ref(batch))
            model(batch)
        del batch
        gc.collect()
        assert not any(reference() is not None for reference in kept)


def test_progress(capsys):
    pytest.importorskip("tqdm")
    model, data = mlp(), batches()
    calibration = calibrated(model, data)
    dalr.compress(copy.deepcopy(model), calibration, keep=0.6)
    assert capsys.readouterr() == ("", "")
    dalr.compress(model, calibration, keep=0.6, sequential=data, progress=True)
    assert "decompose" in (shown := capsys.readouterr().err) and "sequential" in shown


def test_lora(tmp_path):
    base, data = mlp(), batches()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight += torch.randn(32, 2) @ torch.randn(2, 24)
        tuned[2].weight += torch.randn(32, 3) @ torch.randn(3, 32)
        tuned[4].bias += 1
    for calibration in (None, calibrated(base, data)):
        adapter = dalr.lora_extract(base, tuned, dalr.Rank.Energy(0.9999999), calibration)
        assert {name: len(down) for name, (down, _) in adapter.layers.items()} == {"0": 2, "2": 3}
        assert adapter.skipped == {"4.bias": "not a linear weight"}
        merged = copy.deepcopy(base)
        adapter.add_to(merged)
        torch.testing.assert_close(merged[2].weight, tuned[2].weight, rtol=1e-3, atol=1e-3)
    # At a lower rank, the outputs on the data are closer with data.
    errors = []
    for calibration in (None, calibrated(base, data)):
        merged = copy.deepcopy(base)
        dalr.lora_extract(base, tuned, 1, calibration).add_to(merged)
        errors.append(error(merged[0], tuned[0], torch.cat(data)))
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match="no linear layer differs"):
        dalr.lora_extract(base, base, 2)
    with pytest.raises(ValueError, match="has no `0.weight` of shape"):
        dalr.lora_extract(base, nn.Sequential(nn.Linear(3, 3)), 2)


def test_adapters_load_into_peft(tmp_path):
    peft = pytest.importorskip("peft")
    base = mlp()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight += torch.randn(32, 2) @ torch.randn(2, 24)
        tuned[2].weight += torch.randn(32, 3) @ torch.randn(3, 32)
    dalr.lora_extract(base, tuned, dalr.Rank.Energy(0.9999999)).save(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    x = torch.randn(5, 24)
    torch.testing.assert_close(loaded(x), tuned(x), rtol=1e-3, atol=1e-3)



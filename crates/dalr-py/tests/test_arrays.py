"""NumPy arrays: results agree with NumPy, dtypes and layouts, errors, pickles, threads."""

import copy
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import dalr
import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def layer_and_inputs(rng, dtype=np.float64, samples=400):
    mixing = rng.standard_normal((12, 12)) * 0.6 ** np.arange(12)
    inputs = (rng.standard_normal((samples, 12)) @ mixing.T + 1).astype(dtype)
    return dalr.Linear(rng.standard_normal((9, 12)).astype(dtype), rng.standard_normal(9).astype(dtype)), inputs


def stats_of(inputs):
    stats = dalr.ActivationStats(inputs.shape[-1])
    stats.update(inputs)
    return stats


def relative_error(original, compressed):
    return math.sqrt(((original - compressed) ** 2).sum() / ((original - original.mean(0)) ** 2).sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_agree_with_numpy(rng, dtype):
    inputs = rng.standard_normal((300, 7)).astype(dtype)
    weights = rng.random(300)
    stats = dalr.ActivationStats(7)
    for part, weight in zip(np.split(inputs, 3), np.split(weights, 3)):
        stats.update(part, weight)
    exact = inputs.astype(float)
    assert (stats.samples, stats.features, stats.dtype) == (300, 7, np.dtype(dtype).name)
    assert stats.effective_samples == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    np.testing.assert_allclose(stats.mean, np.average(exact, axis=0, weights=weights), atol=1e-12)
    np.testing.assert_allclose(stats.covariance(), np.cov(exact.T, aweights=weights, bias=True), atol=1e-12)
    np.testing.assert_array_equal(stats.maximum, exact.max(0))
    np.testing.assert_array_equal(stats.minimum, exact.min(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compression_without_ridge_is_optimal(rng, dtype):
    layer, inputs = layer_and_inputs(rng, dtype)
    stats = stats_of(inputs)
    outputs = inputs.astype(float) @ layer.weight.T.astype(float) + layer.bias
    # The best approximation of the centred outputs.
    centred = outputs - outputs.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    decomposition = dalr.Dalr(ridge="none").decompose(layer, stats)
    for rank in (1, 3, 8):
        compressed = decomposition.truncate(rank)
        optimum = math.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        found = relative_error(outputs, compressed.layer.forward(inputs).astype(float))
        assert found == pytest.approx(optimum, rel=1e-4, abs=1e-5)
        assert compressed.report.relative_error == pytest.approx(optimum, rel=1e-4, abs=1e-5)
        assert (compressed.report.rank, compressed.layer.rank, compressed.layer.dtype) == (rank, rank, np.dtype(dtype).name)
        assert compressed.evaluate(layer, stats) == pytest.approx(found, rel=1e-3, abs=1e-5)


def test_truncated_svd_needs_no_samples(rng):
    layer, _ = layer_and_inputs(rng)
    left, values, right = np.linalg.svd(layer.weight)
    compressed = dalr.TruncatedSvd().compress(layer, None, dalr.Rank.Fixed(4))
    product = compressed.layer.up @ compressed.layer.down
    np.testing.assert_allclose(product, (left[:, :4] * values[:4]) @ right[:4], atol=1e-12)
    assert compressed.report.relative_error is None
    pivoted = compressed.to_pivoted()
    np.testing.assert_allclose(pivoted.to_linear().weight, product, atol=1e-12)
    assert pivoted.parameters < compressed.layer.parameters


def test_ranks(rng):
    layer, inputs = layer_and_inputs(rng)
    decomposition = dalr.Dalr().decompose(layer, stats_of(inputs))
    assert decomposition.rank_for(3) == 3 and decomposition.rank_for(dalr.Rank.Fixed(3)) == 3
    # 0.6 of 9 * 12 parameters, in factors of 21 for each rank.
    assert decomposition.rank_for(dalr.Rank.ParameterRatio(0.6)) == 3
    rank = decomposition.rank_for(dalr.Rank.RelativeError(0.2))
    assert decomposition.relative_error(rank) <= 0.2 < decomposition.relative_error(rank - 1)
    assert dalr.Rank("ratio:0.5") == dalr.Rank.ParameterRatio(0.5) != dalr.Rank("error:0.5")
    assert dalr.Rank.break_even(10, 10) == 5


def test_output_metric_moves_the_error(rng):
    layer, inputs = layer_and_inputs(rng)
    stats, outputs = stats_of(inputs), layer.forward(inputs)
    gradients = dalr.ActivationStats(9)
    gradients.update(rng.standard_normal((500, 9)) * np.array([100.0] + [0.1] * 8))
    error = {}
    for metric in (None, dalr.OutputMetric.from_gradients(gradients)):
        compressed = dalr.Dalr(ridge="none").compress(layer, stats, 2, output_metric=metric)
        error[metric is None] = ((outputs - compressed.layer.forward(inputs))[:, 0] ** 2).mean()
    assert error[False] < 0.05 * error[True]


def test_output_metric_of_the_next_layer(rng):
    layer, inputs = layer_and_inputs(rng)
    outputs = layer.forward(inputs)
    following = dalr.Linear(rng.standard_normal((4, 9)) * 3.0 ** -np.arange(9))
    slopes = dalr.ActivationStats(9)
    slopes.update((outputs > 0).astype(float))
    metric = dalr.OutputMetric.from_next_layer(following, slopes)
    found = dalr.Dalr(ridge="none").compress(layer, stats_of(inputs), 4, output_metric=metric).layer.forward(inputs)
    # By its definition: (W^T W) * E[d d^T], with the default floor.
    active = (outputs > 0).astype(float)
    matrix = (following.weight.T @ following.weight) * (active.T @ active / len(active))
    given = dalr.OutputMetric(matrix)
    expected = dalr.Dalr(ridge="none").compress(layer, stats_of(inputs), 4, output_metric=given).layer.forward(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_paired_statistics(rng):
    layer, original = layer_and_inputs(rng, samples=2000)
    noisy = original + 0.5 * rng.standard_normal(original.shape)
    stats = dalr.PairedStats(12)
    stats.update(original[:1000], noisy[:1000])
    stats.update(original[1000:], noisy[1000:])
    joint = np.cov(original.T, noisy.T, bias=True)
    np.testing.assert_allclose(stats.cross_covariance(), joint[:12, 12:], atol=1e-10)
    np.testing.assert_allclose(stats.covariance(), joint[12:, 12:], atol=1e-10)
    np.testing.assert_allclose(stats.original_mean, original.mean(0), atol=1e-12)
    # At full rank with hardly any regularization this is linear regression.
    compressed = dalr.Dalr(ridge=dalr.Ridge.Relative(1e-9)).compress(layer, stats, 9)
    outputs = layer.forward(original)
    design = np.c_[noisy, np.ones(2000)]
    regression = design @ np.linalg.lstsq(design, outputs, rcond=None)[0]
    np.testing.assert_allclose(compressed.layer.forward(noisy), regression, atol=1e-6)


def test_hidden_units(rng):
    first, inputs = layer_and_inputs(rng)
    hidden = np.maximum(first.forward(inputs), 0)
    hidden[:, 4] = hidden[:, 2]
    second = dalr.Linear(rng.standard_normal((5, 9)), rng.standard_normal(5))
    units = dalr.HiddenUnits(first, second, stats_of(hidden), ridge="none")
    selected = units.select(6)
    assert len(selected.kept) == 6 and not {2, 4} <= set(selected.kept)
    np.testing.assert_array_equal(selected.first.weight, first.weight[selected.kept])
    outputs = second.forward(hidden)
    found = relative_error(outputs, selected.second.forward(hidden[:, selected.kept]))
    assert found == pytest.approx(selected.relative_error, rel=1e-6) == pytest.approx(units.relative_error(6), rel=1e-6)
    assert selected.gate is None
    gated = dalr.HiddenUnits(first, second, stats_of(hidden), gate=first).select(6)
    np.testing.assert_array_equal(gated.gate.weight, gated.first.weight)


def test_allocation(rng):
    profiles = []
    for name, decay in (("flat", 1.0), ("steep", 0.3)):
        inputs = rng.standard_normal((500, 16)) * decay ** np.arange(16)
        layer = dalr.Linear(np.linalg.qr(rng.standard_normal((16, 16)))[0])
        profiles.append(dalr.LayerProfile(name, dalr.Dalr(ridge="none").decompose(layer, stats_of(inputs), 7)))
    plan = dalr.allocate(profiles, keep=0.7, strategy={"flat": 1.0, "steep": 1.0})
    assert plan.parameters_before == 512 and plan.parameters_after <= 0.7 * 512
    # All choices, by brute force: rank 0 is the original layer.
    costs = [256, *(32 * rank for rank in range(1, 8))]
    losses = [[0.0, *(profile.loss(rank) for rank in range(1, 8))] for profile in profiles]
    best = min(losses[0][i] + losses[1][j] for i in range(8) for j in range(8) if costs[i] + costs[j] <= 0.7 * 512)
    assert plan.objective == pytest.approx(best) and plan.gap < best
    assert [layer.name for layer in plan.layers] == ["flat", "steep"] and "flat" in str(plan)
    assert dalr.Plan.of_ranks(profiles, {"steep": 2}).ranks == {"steep": 2}
    calls = []

    def loss(ranks):
        calls.append(ranks)
        return 1.0 + 3.0 * ("flat" in ranks) + 0.5 * ("steep" in ranks)

    measured = dalr.measure_sensitivities(profiles, plan, loss)
    assert calls[0] == {} and sorted(len(ranks) for ranks in calls) == [0, 1, 1]
    assert set(measured) == {"flat", "steep"}
    with pytest.raises(ZeroDivisionError, match="mine"):
        dalr.measure_sensitivities(profiles, plan, lambda ranks: (_ for _ in ()).throw(ZeroDivisionError("mine")))


def test_storage_decides_what_a_rank_costs(rng):
    layer, inputs = layer_and_inputs(rng)
    stats, ratio = stats_of(inputs), dalr.Rank.ParameterRatio(0.6)
    factors, pivoted = (dalr.Dalr().compress(layer, stats, ratio, storage=storage) for storage in ("factors", "pivoted"))
    # 0.6 of 9 * 12 = 64.8: 3 (9 + 12) = 63, and 3 (9 + 12 - 3) = 54 or 4 (9 + 12 - 4) = 68.
    assert (factors.layer.rank, pivoted.layer.rank) == (3, 3)
    assert (factors.report.parameters_after, pivoted.report.parameters_after) == (63 + 9, 54 + 9)
    assert pivoted.to_pivoted().parameters == 54 + 9
    profile = dalr.LayerProfile("fc", dalr.Dalr().decompose(layer, stats, 8, storage="pivoted"))
    # No rank of two factors would fit between 0.6 and 0.7.
    assert dalr.allocate([profile], keep=0.7).ranks == {"fc": 4}
    with pytest.raises(ValueError, match="factors"):
        dalr.Dalr().decompose(layer, stats, storage="pivot")


def test_joint_allocation(rng):
    """Against all choices by brute force: the rank of each layer, or fewer units between them."""
    first, second = (dalr.Linear(rng.standard_normal((12, 12)), rng.standard_normal(12)) for _ in range(2))
    inputs = rng.standard_normal((400, 12)) * 0.8 ** np.arange(12)
    hidden = np.maximum(first.forward(inputs), 0)
    # Five units matter.
    hidden[:, 5:] *= 0.01
    decompositions = {"first": dalr.Dalr().decompose(first, stats_of(inputs), 5), "second": dalr.Dalr().decompose(second, stats_of(hidden), 5)}
    profiles = [dalr.LayerProfile(name, one) for name, one in decompositions.items()]
    pair = dalr.UnitProfile("first", "second", dalr.HiddenUnits(first, second, stats_of(hidden)))
    assert pair.units == 12 and pair.relative_error(5) < pair.relative_error(3)
    weights = {"first": 0.7, "second": 1.0}
    options = [(312, 0.0, None)]
    costs, losses = [156, *(24 * rank + 12 for rank in range(1, 6))], {}
    for profile in profiles:
        losses[profile.name] = [0.0, *(weights[profile.name] * profile.loss(rank) for rank in range(1, 6))]
    options += [(costs[i] + costs[j], losses["first"][i] + losses["second"][j], None) for i in range(6) for j in range(6)]
    options += [(kept * 13 + kept * 12 + 12, pair.loss(kept), kept) for kept in range(1, 12)]
    chosen = set()
    for keep in (0.9, 0.6, 0.5, 0.3):
        plan = dalr.allocate(profiles, hidden_units=[pair], keep=keep, strategy=weights)
        _, best, kept = min((loss, loss, kept) for cost, loss, kept in options if cost <= keep * 312)
        assert plan.objective == pytest.approx(best)
        assert plan.hidden_units == ({} if kept is None else {0: kept}) and plan.layers[0].hidden_units == kept
        chosen.add(kept)
    assert len(chosen) > 1

    def loss(ranks, units):
        return 1.0 + 0.1 * len(ranks) + 2.0 * sum(pair.loss(kept) for kept in units.values())

    measured = dalr.measure_sensitivities(profiles, dalr.allocate(profiles, keep=0.6), loss, hidden_units=[pair])
    assert set(measured) == {"first", "second", "first + second"} and measured["first + second"] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="gate"):
        dalr.allocate(profiles, hidden_units=[dalr.UnitProfile("first", "second", dalr.HiddenUnits(first, second, stats_of(hidden)), gate="third")], keep=0.5)


def test_select_ridge(rng):
    layer, inputs = layer_and_inputs(rng, samples=40)
    held_out = layer_and_inputs(np.random.default_rng(1), samples=400)[1]
    best = dalr.select_ridge(layer, stats_of(inputs), stats_of(held_out), 3, ["none", dalr.Ridge.Relative(0.1), "relative:1000000"])
    assert best != dalr.Ridge("relative:1000000")


# Layouts and dtypes


def views(inputs):
    """The same numbers in other layouts, none of which has to be copied."""
    rows, columns = inputs.shape
    wide = np.zeros((rows, 3 * columns), inputs.dtype)
    wide[:, ::3] = inputs
    yield "rows", inputs
    yield "columns", np.asfortranarray(inputs)
    yield "steps", wide[:, ::3]
    yield "reversed", inputs[::-1, ::-1].copy()[::-1, ::-1]
    yield "three axes", inputs.reshape(4, -1, columns)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts_agree(rng, dtype):
    inputs = rng.standard_normal((40, 6)).astype(dtype)
    expected = stats_of(inputs).covariance()
    for name, view in views(inputs):
        np.testing.assert_allclose(stats_of(view).covariance(), expected, atol=1e-13, err_msg=name)
    # These are copied: another byte order, memory that is not aligned, a field of a record.
    swapped = inputs.astype(inputs.dtype.newbyteorder())
    unaligned = np.frombuffer(b"x" + inputs.tobytes(), np.uint8)[1:].view(dtype).reshape(inputs.shape)
    records = np.zeros(inputs.shape, [("flag", np.uint8), ("value", dtype)])
    records["value"] = inputs
    for other in (swapped, unaligned, records["value"], inputs.tolist()):
        np.testing.assert_allclose(stats_of(np.asarray(other)).covariance(), expected, atol=1e-13)


def test_dtypes(rng):
    halves = rng.standard_normal((50, 4)).astype(np.float16)
    assert stats_of(halves).dtype == "float32"
    integers = rng.integers(-5, 5, (50, 4))
    assert stats_of(integers).dtype == "float64"
    stats = stats_of(rng.standard_normal((50, 4)))
    stats.update(rng.standard_normal((50, 4)).astype(np.float32))
    assert (stats.dtype, stats.samples) == ("float64", 100)
    narrow = stats_of(rng.standard_normal((50, 4)).astype(np.float32))
    with pytest.raises(TypeError, match="expected dtype float32 in the batch, got float64"):
        narrow.update(rng.standard_normal((50, 4)))
    assert narrow.samples == 50
    with pytest.raises(TypeError, match="complex"):
        stats.update(np.ones((3, 4), complex))
    with pytest.raises(TypeError, match="expected dtype float32 in the statistics"):
        dalr.Dalr().compress(dalr.Linear(np.ones((3, 4), np.float32)), stats, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of Linux")
def test_arrays_are_not_copied():
    script = """
import resource, sys
import dalr, numpy as np
big = np.ones(50_000_000, np.float32)  # 200 MB
view = {"rows": big.reshape(-1, 8), "columns": big.reshape(8, -1).T, "steps": big.reshape(-1, 16)[:, ::2]}[sys.argv[1]]
stats = dalr.ActivationStats(8)
stats.update(view[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stats.update(view)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, view.nbytes)
"""
    for layout in ("rows", "columns", "steps"):
        output = subprocess.run([sys.executable, "-c", script, layout], capture_output=True, text=True, check=True).stdout
        grown, size = map(int, output.split())
        assert grown < 0.1 * size, (layout, grown, size)


# Objects


def test_pickles(rng):
    layer, inputs = layer_and_inputs(rng, np.float32)
    stats, paired = stats_of(inputs), dalr.PairedStats(12)
    paired.update(inputs, inputs)
    compressed = dalr.Dalr().compress(layer, stats, 3)
    profile = dalr.LayerProfile("fc", dalr.Dalr().decompose(layer, stats, 4))
    plan = dalr.allocate([profile], keep=0.7)
    for copied in (pickle.loads(pickle.dumps(stats)), copy.deepcopy(stats)):
        np.testing.assert_array_equal(copied.covariance(), stats.covariance())
        copied.update(inputs)
        assert (copied.samples, stats.samples) == (800, 400)
    wide = pickle.loads(pickle.dumps(stats_of(inputs.astype(float))))
    assert (wide.dtype, wide.samples) == ("float64", 400)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(paired)).cross_covariance(), paired.cross_covariance())
    units = dalr.HiddenUnits(dalr.Linear(np.eye(12, dtype=np.float32)), layer, stats)
    pair = dalr.UnitProfile("first", "fc", units)
    for one in (layer, compressed.layer, compressed.layer.to_pivoted(), profile, pair, plan, dalr.Rank("energy:0.5"), dalr.Ridge("exact:3")):
        again = pickle.loads(pickle.dumps(one))
        assert again == one and type(again) is type(one)
    for one in (compressed.report, plan.layers[0], units.select(5), compressed):
        again = pickle.loads(pickle.dumps(one))
        names = [name for name in dir(one) if not name.startswith("_") and not callable(getattr(one, name))]
        assert names and all(repr(getattr(again, name)) == repr(getattr(one, name)) for name in names)


def test_pickled_decompositions_and_metrics_work_as_before(rng):
    layer, inputs = layer_and_inputs(rng, np.float32)
    stats, full = stats_of(inputs), np.cov(rng.standard_normal((9, 30)))
    for metric in (dalr.OutputMetric(full).with_floor(0.1), dalr.OutputMetric.diagonal(list(range(9)))):
        for method in (dalr.Dalr(ridge="relative:0.2", rank_multiple=2), dalr.TruncatedSvd(bias_correction=True)):
            compressed = [
                pickle.loads(pickle.dumps(one.decompose(layer, stats, 5, output_metric=weight, storage="pivoted"))).truncate(4)
                for one, weight in ((method, metric), (pickle.loads(pickle.dumps(method)), pickle.loads(pickle.dumps(metric))))
            ]
            assert compressed[0].layer == compressed[1].layer
            assert repr(compressed[0].report) == repr(compressed[1].report) and "pivoted" in repr(compressed[0].report)
    # A layer whose outputs do not vary has an infinite error.
    constant = dalr.Dalr().decompose(layer, stats_of(np.ones((50, 12), np.float32)), 3)
    assert pickle.loads(pickle.dumps(constant)).relative_error(2) == constant.relative_error(2)
    profile = dalr.LayerProfile("fc", constant)
    assert pickle.loads(pickle.dumps(profile)) == profile
    with pytest.raises(ValueError, match="damaged pickle"):
        dalr.Dalr._from_bytes(b"nothing")


def test_files(rng, tmp_path):
    layer, inputs = layer_and_inputs(rng, np.float32)
    stats = stats_of(inputs)
    stats.save(tmp_path / "stats.safetensors")
    loaded = dalr.ActivationStats.load(tmp_path / "stats.safetensors")
    assert loaded.dtype == "float32" and loaded.samples == 400
    np.testing.assert_array_equal(loaded.covariance(), stats.covariance())
    factors = dalr.Dalr().compress(layer, stats, 3).layer
    factors.save(str(tmp_path / "fc.safetensors"), "fc")
    assert dalr.LowRankLinear.load(tmp_path / "fc.safetensors", "fc") == factors
    assert dalr.LowRankLinear.load(tmp_path / "fc.safetensors", "fc", "float64").dtype == "float64"
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        dalr.ActivationStats.load(tmp_path / "nothing.safetensors")
    (tmp_path / "bad").write_bytes(b"not a file")
    with pytest.raises(ValueError, match="ActivationStats::load"):
        dalr.ActivationStats.load(tmp_path / "bad")


def test_merge(rng):
    inputs = rng.standard_normal((100, 5)).astype(np.float32)
    whole, one, other = stats_of(inputs), stats_of(inputs[:30]), stats_of(inputs[30:])
    one.merge(other)
    np.testing.assert_allclose(one.covariance(), whole.covariance(), atol=1e-12)
    empty = dalr.ActivationStats(5)
    empty.merge(one)
    one.merge(dalr.ActivationStats(5))
    assert (empty.samples, empty.dtype, one.samples) == (100, "float32", 100)
    with pytest.raises(TypeError, match="float32"):
        one.merge(stats_of(inputs.astype(float)))
    with pytest.raises(ValueError, match="expected 5"):
        one.merge(dalr.ActivationStats(4))


# Errors


def test_errors(rng):
    layer, inputs = layer_and_inputs(rng)
    stats = stats_of(inputs)
    with pytest.raises(ValueError, match=r"ActivationStats::update: expected 12 columns in the batch \(one per input\), got 11"):
        stats.update(inputs[:, :11])
    with pytest.raises(ValueError, match="got NaN at row 1, column 2"):
        stats.update(np.where(np.arange(24).reshape(2, 12) == 14, np.nan, 0.0))
    assert stats.samples == 400
    with pytest.raises(ValueError, match="expected a rank from 1 to 9"):
        dalr.Dalr().compress(layer, stats, 10)
    with pytest.raises(ValueError, match="at least one sample"):
        dalr.Dalr().compress(layer, dalr.ActivationStats(12), 3)
    with pytest.raises(ValueError, match="expected 2 axes in the weight"):
        dalr.Linear(np.ones(3))
    with pytest.raises(ValueError, match="smallest feasible"):
        dalr.allocate([dalr.LayerProfile("fc", dalr.Dalr().decompose(layer, stats))], keep=0.01)
    with pytest.raises(ValueError, match="expected one budget"):
        dalr.allocate([], keep=0.5, rank=3)
    with pytest.raises(ValueError, match="none, shrinkage"):
        dalr.Dalr(ridge="some")
    with pytest.raises(MemoryError, match="bytes"):
        dalr.ActivationStats(5000, memory_limit=1000).update(np.ones((2, 5000)))
    with pytest.raises(OverflowError):
        dalr.Linear(np.full((2, 2), 3e38, np.float32)).forward(np.full((1, 2), 3e38, np.float32))
    with pytest.raises((TypeError, OverflowError)):
        dalr.ActivationStats(-1)


# Threads and signals


def heavy():
    rng = np.random.default_rng(0)
    stats = dalr.ActivationStats(1200)
    stats.update(rng.standard_normal((3000, 1200)))
    return dalr.Linear(rng.standard_normal((1200, 1200))), stats


def test_other_threads_run_meanwhile():
    layer, stats = heavy()
    ticks, stop = [], threading.Event()

    def count():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    begin = time.perf_counter()
    dalr.Dalr().decompose(layer, stats)
    end = time.perf_counter()
    stop.set()
    thread.join()
    during = [tick for tick in ticks if begin < tick < end]
    gaps = np.diff([begin, *during, end])
    # With the lock held, one gap would be the whole time.
    assert gaps.max() < 0.5 * (end - begin), (gaps.max(), end - begin)


def test_statistics_refuse_two_threads(rng):
    stats, inputs = dalr.ActivationStats(300), rng.standard_normal((20000, 300))
    failed = []

    def update():
        for _ in range(3):
            try:
                stats.update(inputs)
            except RuntimeError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=update) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert stats.samples == 20000 * (12 - len(failed)) and all("borrowed" in error for error in failed)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupt():
    script = """
import dalr, numpy as np, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
rng = np.random.default_rng(0)
stats = dalr.ActivationStats(600)
stats.update(rng.standard_normal((2000, 600)))
layer = dalr.Linear(rng.standard_normal((600, 600)))
print("ready", flush=True)
try:
    for _ in range(10_000):
        dalr.Dalr().decompose(layer, stats)
except KeyboardInterrupt:
    sys.exit(7)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 7


def test_package():
    assert dalr.__version__.count(".") == 2
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, dalr; dalr.Linear([[1.0]]); print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "False\n"
    for name in dalr.__all__:
        if name not in ("Adapter", "Calibration", "Result", "calibrate", "compress", "load", "lora_extract", "__version__"):
            assert getattr(dalr, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        dalr.nothing

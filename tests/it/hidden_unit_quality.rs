//! How good the selected hidden units are: against exhaustive search, and against ridge leverage
//! scores on real layers.

use dalr::compress::{HiddenUnitSelection, HiddenUnits, SelectedUnits};
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank, Ridge, relative_output_error};
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use crate::common::cast;
use crate::hidden_units::{Hidden, centred};
use crate::lenet_network::{Layer, accuracy, activations};
use crate::small_samples::trial::Site;
use crate::small_samples::{lenet, minilm, stats};

fn with_ridge(ridge: Ridge) -> HiddenUnitSelection {
    HiddenUnitSelection::new().with_ridge(ridge)
}

/// The covariance of units, plus `ratio` times its mean variance on the diagonal.
fn moment(units: &Mat<f64>, ratio: f64) -> Mat<f64> {
    let centred = centred(units);
    let mut moment = centred.transpose() * &centred * faer::Scale(1.0 / units.nrows() as f64);
    let lambda = ratio * moment.diagonal().column_vector().sum() / units.ncols() as f64;
    moment.as_mut().diagonal_mut().column_vector_mut().iter_mut().for_each(|x| *x += lambda);
    moment
}

/// The refitted weight for the kept units, `W M_{:P} M_PP⁻¹`.
fn refitted(weight: &Mat<f64>, moment: &Mat<f64>, kept: &[usize]) -> Mat<f64> {
    let outputs = weight * Mat::from_fn(moment.nrows(), kept.len(), |i, j| moment[(i, kept[j])]);
    let among = Mat::from_fn(kept.len(), kept.len(), |i, j| moment[(kept[i], kept[j])]);
    among.llt(Side::Lower).unwrap().solve(outputs.transpose()).transpose().to_owned()
}

/// The least regularized squared error that a refit for these units can have.
fn least(weight: &Mat<f64>, moment: &Mat<f64>, kept: &[usize]) -> f64 {
    let new = refitted(weight, moment, kept);
    let mut residual = weight.to_owned();
    for (place, &unit) in kept.iter().enumerate() {
        let mut column = residual.col_mut(unit);
        column -= new.col(place);
    }
    (&residual * moment).as_ref().col_iter().zip(residual.col_iter()).map(|(a, b)| a.transpose() * b).sum()
}

/// All sets of this many units.
fn sets(size: usize, count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let more = |set: Vec<usize>| {
        let first = set.last().map_or(0, |last| last + 1);
        (first..size).map(move |unit| set.iter().copied().chain([unit]).collect())
    };
    sets(size, count - 1).into_iter().flat_map(more).collect()
}

fn exhaustive(weight: &Mat<f64>, moment: &Mat<f64>, count: usize) -> f64 {
    sets(moment.nrows(), count).iter().map(|set| least(weight, moment, set)).fold(f64::INFINITY, f64::min)
}

#[test]
fn one_unit_is_the_best_one() {
    for seed in 0..20 {
        let case = Hidden::random(seed, (14, 5, 90));
        let weight = case.second.weight().to_owned();
        for ratio in [0.0, 1e-3, 0.1, 10.0] {
            let moment = moment(&case.units, ratio);
            let units = with_ridge(Ridge::Relative(ratio)).solve(&case.first, &case.second, &case.stats()).unwrap();
            let found = least(&weight, &moment, &units.select(1).unwrap().kept);
            let best = exhaustive(&weight, &moment, 1);
            assert!(found <= best * (1.0 + 1e-10), "{seed}, {ratio}: {found} {best}");
        }
    }
}

#[test]
fn a_few_units_are_nearly_the_best_ones() {
    for count in [2, 3] {
        let mut ratios: Vec<f64> = Vec::new();
        for seed in 0..120 {
            let case = Hidden::random(seed, (10 + seed as usize % 3, 6, 200));
            let weight = case.second.weight().to_owned();
            let moment = moment(&case.units, 0.0);
            let units = with_ridge(Ridge::None).solve(&case.first, &case.second, &case.stats()).unwrap();
            let found = least(&weight, &moment, &units.select(count).unwrap().kept);
            ratios.push(found / exhaustive(&weight, &moment, count));
        }
        ratios.sort_by(f64::total_cmp);
        let at = |fraction: f64| ratios[(fraction * ratios.len() as f64) as usize];
        println!("{count} units: median {:.4}, 95 % {:.4}, worst {:.4}", at(0.5), at(0.95), ratios[ratios.len() - 1]);
        assert!(at(0.5) <= 1.05 && at(0.95) <= 1.2 && ratios[0] > 1.0 - 1e-9);
    }
}

/// The layer of the original shape that ignores the dropped units.
fn spread(layer: &Linear<f32>, smaller: &SelectedUnits<f32>) -> Linear<f32> {
    let mut weight = Mat::zeros(layer.out_features(), layer.in_features());
    for (column, &unit) in smaller.second.weight().col_iter().zip(&smaller.kept) {
        weight.as_mut().col_mut(unit).copy_from(column);
    }
    Linear::new(weight, smaller.second.bias().map(|bias| bias.to_owned())).unwrap()
}

/// The units with the largest diagonal of `S (S + λI)⁻¹`, for `λ` the mean variance.
fn by_leverage(units: &Mat<f64>) -> Vec<usize> {
    let (plain, shifted) = (moment(units, 0.0), moment(units, 1.0));
    let scores = shifted.llt(Side::Lower).unwrap().solve(plain);
    let mut order: Vec<usize> = (0..units.ncols()).collect();
    order.sort_by(|&a, &b| scores[(b, b)].total_cmp(&scores[(a, a)]));
    order
}

/// The layers of the LeNet and of MiniLM in this repository, with a first layer of any kind.
fn real_layers() -> Vec<Site> {
    lenet().into_iter().chain([minilm()]).collect()
}

fn first_of(layer: &Linear<f32>) -> Linear<f32> {
    Linear::new(Mat::ones(layer.in_features(), 1), None).unwrap()
}

#[test]
fn real_layers_lose_less_than_by_leverage() {
    let mut logs = Vec::new();
    for site in real_layers() {
        let (name, layer) = &site.layers[0];
        let calibration = stats(&site.calibration);
        let inputs = cast_up(&site.calibration);
        let weight = cast_up(&layer.weight().to_owned());
        // Both refits have the default's ridge, ρ / (1 − ρ) in units of the mean variance.
        let rho = Dalr::new().compress(layer, &calibration, Rank::Fixed(1)).unwrap().report().shrinkage.unwrap();
        let (moment, order) = (moment(&inputs, rho / (1.0 - rho)), by_leverage(&inputs));
        let units = HiddenUnits::new(&first_of(layer), layer, &calibration).unwrap();
        for percent in [5, 10, 20, 30, 50, 70] {
            let k = layer.in_features() * percent / 100;
            let smaller = units.select(k).unwrap();
            let mut kept = order[..k].to_vec();
            kept.sort_unstable();
            let mut other = smaller.clone();
            other.second = Linear::new(cast::<f32>(refitted(&weight, &moment, &kept).as_ref()), None).unwrap();
            other.kept = kept;
            // The bias that keeps the mean output.
            let mean = calibration.mean().unwrap();
            let residual = weight.clone() - cast_up(&spread(layer, &other).weight().to_owned());
            let shift = residual * mean.as_mat();
            let bias = (0..layer.out_features()).map(|i| (f64::from(layer.bias().unwrap()[i]) + shift[(i, 0)]) as f32);
            other.second = Linear::new(other.second.weight().to_owned(), Some(bias.collect())).unwrap();
            let error = |smaller: &SelectedUnits<f32>, data: &ActivationStats<f32>| {
                relative_output_error(layer, &spread(layer, smaller), data).unwrap()
            };
            let [seen, held_out] =
                [&calibration, &site.held_out].map(|data| (error(&smaller, data), error(&other, data)));
            println!("{name}, {k}: {:.4} / {:.4}, held out {:.4} / {:.4}", seen.0, seen.1, held_out.0, held_out.1);
            // Both are rounding if all units that vary are kept.
            let ratios = [seen, held_out].map(|(greedy, leverage)| (greedy + 1e-5) / (leverage + 1e-5));
            assert!(ratios.iter().all(|&ratio| ratio <= 1.01), "{name}, {k}: {ratios:?}");
            logs.push(ratios.map(f64::ln));
        }
    }
    for data in 0..2 {
        let mean = logs.iter().map(|logs| logs[data]).sum::<f64>() / logs.len() as f64;
        println!("mean ratio {:.4}", mean.exp());
        assert!(mean < -0.02, "{mean}");
    }
}

/// With few samples, the default is better than the mean output on other data; without
/// regularization, layers are useless.
#[test]
fn few_samples_do_no_harm() {
    let mut useless = 0;
    for site in real_layers() {
        let (name, layer) = &site.layers[0];
        for samples in [20, 50, 100] {
            let calibration = stats(&site.calibration.subrows(0, samples).to_owned());
            for percent in [5, 15, 30, 60] {
                let k = layer.in_features() * percent / 100;
                let [none, default] = [Ridge::None, Ridge::Shrinkage].map(|ridge| {
                    let options = with_ridge(ridge).with_max_units(k);
                    let smaller = options.solve(&first_of(layer), layer, &calibration).unwrap().select(k).unwrap();
                    relative_output_error(layer, &spread(layer, &smaller), &site.held_out).unwrap()
                });
                println!("{name}, {samples} samples, {k} units: held out {none:.4}, by default {default:.4}");
                assert!(default < 1.0, "{name}, {samples} samples, {k} units: {default}");
                useless += usize::from(none > 1.0);
            }
        }
    }
    assert!(useless >= 12, "{useless}");
}

fn cast_up(matrix: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]))
}

/// The network with 20 of the 120 units between fc1 and fc2.
#[test]
fn a_sixth_of_the_hidden_units_keeps_the_accuracy() {
    let data = crate::lenet::data();
    let features = |digits: &Mat<f32>| data.target.features(digits.as_ref()).unwrap();
    let calibration = activations(&data.target.layers(), features(&data.train.images).as_ref()).unwrap();
    let [fc1, fc2, fc3] = &data.target.linear;
    let units = HiddenUnits::new(fc1, fc2, &stats(&calibration[1])).unwrap();
    // 31 of the units are always zero.
    assert!(units.order().len() <= 120 - 31, "{}", units.order().len());
    let smaller = units.select(20).unwrap();
    let layers = [smaller.first, smaller.second, fc3.clone()].map(Layer::Original);
    let outputs = activations(&layers, features(&data.test.images).as_ref()).unwrap();
    let found = accuracy(outputs[3].as_ref(), &data.test.labels);
    println!("accuracy {found:.4}, predicted error {:?}", smaller.relative_error);
    assert!(found >= 0.945, "{found}");
}

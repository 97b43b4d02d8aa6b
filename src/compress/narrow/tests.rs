//! Small problems solved in the precision of the data, where it is told to, against the same in plain numbers.

use super::super::weighted::Problem;
use super::*;
use crate::ActivationStats;
use crate::linalg::even_exponent;
use faer::Mat;

struct Given<T> {
    weight: Mat<T>,
    stats: ActivationStats<T>,
    objective: Objective,
    solver: Solver,
    keep: f64,
    ridge: f64,
}

impl<T: Scalar> Given<T> {
    /// `W` and samples, one per row, repeated so often; block Lanczos, the only one that is used on problems of any size.
    fn new(weight: Mat<f64>, samples: &Mat<f64>, times: usize) -> Self {
        let narrow =
            |matrix: &Mat<f64>| Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| T::from_f64(matrix[(i, j)]));
        let mut stats = ActivationStats::new(samples.ncols());
        (0..times).for_each(|_| stats.update(narrow(samples).as_ref()).unwrap());
        let objective = Objective::Anchored(0.0);
        Self { weight: narrow(&weight), stats, objective, solver: Solver::BlockLanczos, keep: 1.0, ridge: 0.0 }
    }

    fn with_task<R>(&self, run: impl FnOnce(&Task<'_, T>) -> R) -> R {
        let &Self { objective, solver, keep, ridge, .. } = self;
        let problem = Problem { operation: "test", method: "test", objective, corrected: false, solver, threads: 1 };
        let data = Moment::of(&self.stats, false).unwrap();
        let identity = Moment::identity(self.stats.features());
        let moment = if matches!(objective, Objective::Weight) { &identity } else { &data };
        let weight = self.weight.as_ref();
        let weight_exponent = even_exponent(linalg::max_abs(weight));
        run(&Task { problem: &problem, weight, weight_exponent, moment, data: Some(&data), keep, ridge })
    }

    fn solve(&self, rank: usize) -> Option<Solution<T>> {
        self.with_task(|task| solve(task, rank).unwrap())
    }

    fn scaled_weight(&self) -> Mat<f64> {
        self.with_task(|task| linalg::widened(task.weight, task.scale()).unwrap())
    }

    /// `W S Wᵀ` of the scaled weight and the scaled `S`.
    fn energy(&self) -> Mat<f64> {
        let weight = self.scaled_weight();
        let data = self.with_task(|task| task.data.unwrap().scaled(1).unwrap());
        &weight * data * weight.transpose()
    }

    /// `W Wᵀ` of the scaled weight.
    fn gram(&self) -> Mat<f64> {
        let weight = self.scaled_weight();
        &weight * weight.transpose()
    }

    /// The ridge beside which the data have this share of `tr(κ S + λ I)`.
    fn ridge_for(&self, share: f64) -> f64 {
        self.with_task(|task| self.keep * task.moment.trace() * (1.0 / share - 1.0) / task.moment.features() as f64)
    }
}

fn trace(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum()
}

fn entry(i: usize, j: usize) -> f64 {
    ((i * 29 + j * 53 + i * j * 7) % 31) as f64 / 31.0 - 0.4
}

const FEATURES: usize = 24;

/// `size · (diag(weights) | 0)` and samples that make `S` proportional to `diag(variances, 0)`.
fn diagonal<T: Scalar>(size: f64, weights: &[f64], variances: &[f64], times: usize) -> Given<T> {
    let of = |numbers: &[f64], f: fn(f64) -> f64| {
        Mat::from_fn(numbers.len(), FEATURES, |i, j| if i == j { f(numbers[i]) } else { 0.0 })
    };
    Given::new(of(weights, |x| x) * faer::Scale(size), &of(variances, f64::sqrt), times)
}

/// Once the samples are kept, and repeated they are collapsed into a scatter.
const FORMS: [usize; 2] = [1, 40];

const SIZES: [f64; 4] = [1.0, 1024.0, 1.0 / 1024.0, 64.0];

/// `keep · Z Zᵀ + ridge · W Wᵀ` is what it stands for, for weights of any size.
fn check_factors<T: Scalar>(tolerance: f64) {
    for size in SIZES {
        for (times, source) in [(1, Source::Samples), (1, Source::Root), (40, Source::Root)] {
            let weight = Mat::from_fn(7, FEATURES, |i, j| size * entry(i, j));
            let mut given = Given::<T>::new(weight, &Mat::from_fn(9, FEATURES, entry), times);
            given.keep = 0.7;
            given.ridge = given.ridge_for(0.3);
            given.with_task(|task| {
                let norms = linalg::squared_column_norms(task.weight);
                let (keep, ridge) = (task.keep, task.ridge);
                let factor = Factor::new(task, source, task.moment, (keep, ridge), &norms).unwrap().unwrap();
                let [outputs, weight] =
                    [factor.outputs.as_ref(), task.weight].map(|matrix| linalg::widened(matrix, 1.0).unwrap());
                let ours = &outputs * outputs.transpose() * faer::Scale(factor.keep)
                    + &weight * weight.transpose() * faer::Scale(factor.ridge);
                let theirs = given.energy() * faer::Scale(keep) + given.gram() * faer::Scale(ridge);
                assert!((&ours - &theirs).norm_max() < tolerance * theirs.norm_max(), "{size}, {times}");
                let energy = trace(&given.energy());
                assert!((factor.energy - energy).abs() < 10.0 * tolerance * energy, "{size}, {times}");
            });
        }
    }
}

#[test]
fn factors_are_what_they_stand_for() {
    check_factors::<f64>(1e-12);
    check_factors::<f32>(2e-6);
}

#[test]
fn a_root_is_of_use_where_the_data_are_a_hundredth_of_it() {
    for (share, usable) in [(0.008, false), (0.012, true)] {
        let mut given = diagonal::<f64>(64.0, &[1.0; 8], &[1.0; 8], 40);
        // All columns of the weight are seen alike.
        given.weight = Mat::from_fn(8, FEATURES, |i, j| if i == j % 8 { 64.0 } else { 0.0 });
        given.ridge = given.ridge_for(share);
        given.with_task(|task| {
            let norms = linalg::squared_column_norms(task.weight);
            let factor = Factor::new(task, Source::Root, task.moment, (1.0, task.ridge), &norms).unwrap();
            assert_eq!(factor.is_some(), usable, "{share}");
        });
    }
}

#[test]
fn pairs_of_one_side_are_those_of_the_other() {
    let wide = Mat::from_fn(40, 12, |i, j| entry(i, j) + f64::from(i == j));
    let pairs = from_inputs(wide.as_ref(), 0.5, 0.0, 4, 1).unwrap().unwrap();
    let gram = &wide * wide.transpose() * faer::Scale(0.5);
    for (value, vector) in pairs.values().iter().zip(pairs.vectors().col_iter()) {
        assert!((&gram * vector - vector * faer::Scale(*value)).norm_l2() < 1e-12 * pairs.values()[0]);
    }
    let orthonormal = pairs.vectors().transpose() * pairs.vectors() - Mat::<f64>::identity(4, 4);
    assert!(orthonormal.norm_max() < 1e-14);
}

/// What is solved is the problem in plain numbers, whatever the size of the weight and the form of the statistics.
fn check_solutions<T: Scalar>(tolerance: f64) {
    let rank = 3;
    for times in FORMS {
        for objective in [Objective::Weight, Objective::Anchored(0.0), Objective::Anchored(0.4)] {
            let mut before: Option<Vec<f64>> = None;
            for size in SIZES {
                // A mean that all inputs share, and weights that cancel it: the energy is far smaller than its terms.
                let mean = |i: usize| (0..FEATURES).map(|j| entry(i, j)).sum::<f64>() / FEATURES as f64;
                let weight = Mat::from_fn(7, FEATURES, |i, j| size * (entry(i, j) - mean(i)));
                let inputs = Mat::from_fn(9, FEATURES, |i, j| entry(i, j) + 1.0);
                let mut given = Given::<T>::new(weight, &inputs, times);
                given.objective = objective;
                let name = format!("{size}, {times}");
                let minimised = match objective {
                    Objective::Anchored(ratio) => {
                        given.ridge = ratio * given.with_task(|task| task.moment.trace()) / FEATURES as f64;
                        given.energy() + given.gram() * faer::Scale(given.ridge)
                    }
                    _ => given.gram(),
                };
                let solution = given.solve(rank).expect(&name);
                let values = minimised.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
                for (index, value) in solution.pairs.values().iter().enumerate() {
                    assert!((value - values[6 - index]).abs() < tolerance * values[6], "{name}");
                }
                assert!((solution.total_energy - trace(&minimised)).abs() < tolerance * solution.total_energy);
                // Only the powers of two differ.
                let bits = solution.pairs.values().to_vec();
                assert_eq!(before.get_or_insert_with(|| bits.clone()), &bits, "{name}");

                let up = linalg::widened(solution.up.as_ref(), 1.0).unwrap();
                let energy = given.energy();
                let mut left = trace(&energy);
                for (index, error) in solution.relative_errors.as_ref().unwrap().iter().enumerate() {
                    let column = up.col(index);
                    left -= column.transpose() * (&energy * column);
                    let expected = (left / trace(&energy)).sqrt();
                    assert!((error - expected).abs() < 10.0 * tolerance, "{name}: {error} {expected}");
                }
                let down = linalg::widened(solution.down.as_ref(), 1.0 / size).unwrap();
                let weight = linalg::widened(given.weight.as_ref(), 1.0 / size).unwrap();
                assert!((down - up.transpose() * weight).norm_max() < 10.0 * tolerance);
                assert_eq!(solution.determined, rank);

                // Rounding of four units in each term, of the energy of the data.
                let (terms, epsilon) = given.with_task(|task| {
                    let norms = linalg::squared_column_norms(task.weight);
                    let diagonal = task.data.unwrap().diagonal();
                    let terms: f64 = norms.iter().zip(diagonal).map(|(norm, variance)| norm * variance).sum();
                    (terms * task.scale() * task.scale(), T::EPSILON)
                });
                let expected = (4.0 * epsilon * (terms / trace(&energy)).max(1.0)).sqrt();
                assert!(terms > 3.0 * trace(&energy), "{name}: nothing cancels");
                assert!((solution.resolution / expected - 1.0).abs() < 10.0 * tolerance, "{name}");
            }
        }
    }
}

#[test]
fn solutions_are_those_of_the_problem_in_plain_numbers() {
    check_solutions::<f64>(1e-11);
    check_solutions::<f32>(3e-5);
}

#[test]
fn eigenvalues_count_above_rounding() {
    // Four units of rounding in a total of 3, for pairs of any size.
    let noise = 4.0 * f64::EPSILON * 3.0;
    for size in SIZES {
        for (least, counts) in [(1.5 * noise, true), (0.4 * noise, false)] {
            // The fourth output is all but zero in relation to the others; the fifth is zero, so that four pairs are not all there are.
            let given = diagonal::<f64>(size, &[1.0, 1.0, 1.0, least.sqrt(), 0.0], &[1.0; 4], 1);
            assert!(given.solve(3).is_some());
            assert_eq!(given.solve(4).is_some(), counts, "{size}, {least:e}");
        }
    }
}

#[test]
fn what_is_left_out_decides_whether_single_precision_will_do() {
    // Of a total of 1 + left, all but `left` is kept.
    for (left, enough) in [(0.004, false), (0.006, true)] {
        for size in SIZES {
            let given = diagonal::<f32>(size, &[1.0, f64::sqrt(left / (1.0 - left))], &[1.0; 2], 1);
            assert_eq!(given.solve(1).is_some(), enough, "{size}, {left}");
            let given = diagonal::<f64>(size, &[1.0, f64::sqrt(left / (1.0 - left))], &[1.0; 2], 1);
            assert!(given.solve(1).is_some(), "{size}, {left}");
        }
    }
    // The data leave out enough, and the weight alone does not: of three outputs alike and one that is small.
    for (small, enough) in [(0.004, false), (0.006, true)] {
        let small: f64 = 3.0 * small / (1.0 - small);
        let mut given = diagonal::<f32>(64.0, &[1.0, 1.0, 1.0, small.sqrt()], &[1.0, 1.0, 1.0, 4.0], 1);
        given.objective = Objective::Weight;
        assert_eq!(given.solve(3).is_some(), enough, "{small}");
    }
    // The weight alone leaves out enough, and what it leaves out hardly matters on the data.
    for times in FORMS {
        for (left, enough) in [(0.004, false), (0.006, true)] {
            let variance = left / (1.0 - left) / 0.04;
            let mut given = diagonal::<f32>(64.0, &[1.0, 0.2], &[1.0, variance], times);
            given.objective = Objective::Weight;
            assert_eq!(given.solve(1).is_some(), enough, "{times}, {left}");
            let mut given = diagonal::<f64>(64.0, &[1.0, 0.2], &[1.0, variance], times);
            given.objective = Objective::Weight;
            assert!(given.solve(1).is_some(), "{times}, {left}");
        }
    }
}

#[test]
fn single_precision_sees_a_hundredth_beside_a_ridge() {
    for (share, seen) in [(0.008, false), (0.012, true)] {
        for keep in [1.0, 0.5] {
            let weight = Mat::from_fn(5, FEATURES, entry);
            let mut given = Given::<f32>::new(weight.clone(), &Mat::from_fn(6, FEATURES, entry), 1);
            given.keep = keep;
            given.ridge = given.ridge_for(share);
            assert_eq!(given.solve(2).is_some(), seen, "{share}, {keep}");
            let mut given = Given::<f64>::new(weight, &Mat::from_fn(6, FEATURES, entry), 1);
            given.keep = keep;
            given.ridge = given.ridge_for(share);
            assert!(given.solve(2).is_some(), "{share}, {keep}");
        }
    }
}

#[test]
fn some_problems_are_for_double_precision_alone() {
    let given = |size: f64| {
        Given::<f32>::new(Mat::from_fn(5, FEATURES, |i, j| size * entry(i, j)), &Mat::from_fn(6, FEATURES, entry), 1)
    };
    assert!(given(1.0).solve(2).is_some());
    // Entries of about one half, whose even exponent is −2.
    for (exponent, solved) in [(26, true), (28, false), (-22, true), (-24, false)] {
        assert_eq!(given(2_f64.powi(exponent)).solve(2).is_some(), solved, "{exponent}");
    }
    for (objective, solver) in [
        (Objective::Paper(0.0), Solver::BlockLanczos),
        (Objective::Exact(0.0), Solver::BlockLanczos),
        (Objective::Anchored(0.0), Solver::DenseEigen),
        // So small that `f64` is cheaper.
        (Objective::Anchored(0.0), Solver::Auto),
    ] {
        assert!(Given { objective, solver, ..given(1.0) }.solve(2).is_none());
    }
    // Nothing varies.
    let mut still = given(1.0);
    still.stats = ActivationStats::new(FEATURES);
    still.stats.update(Mat::<f32>::zeros(6, FEATURES).as_ref()).unwrap();
    assert!(still.solve(2).is_none());
}

/// Outputs, inputs and samples kept (0 for a scatter); what is minimised and in which precision; and from which rank on a problem is solved by the
/// outputs of the samples, the weight or a root (`Z`, `W`, `R`), with block Lanczos or a dense solve of the outputs' or the inputs' side (`l`, `o`,
/// `i`), or in `f64` (`-`). On such shapes the choice is measured to be within a third of the best one, by `cargo bench --bench cost -- grid`:
/// other prices are to be measured as well.
const CHOICES: [(usize, usize, usize, &str, &str); 49] = [
    (4096, 4096, 2000, "data f64", "1:Zl 727:-"),
    (4096, 4096, 2000, "data f32", "1:Zl 264:Zi 1201:-"),
    (4096, 4096, 2000, "ridge f64", "1:Zl 650:-"),
    (4096, 4096, 2000, "ridge f32", "1:Zl 673:Zo 801:-"),
    (4096, 4096, 2000, "weight f64", "1:Wl 376:Zl 716:-"),
    (4096, 4096, 2000, "weight f32", "1:Wl 281:Zi 2000:-"),
    (4096, 4096, 0, "data f64", "1:- 397:Rl 675:-"),
    (4096, 4096, 0, "data f32", "1:Rl 699:Ro 1639:-"),
    (4096, 4096, 0, "weight f64", "1:Wl 699:-"),
    (4096, 4096, 0, "weight f32", "1:Wl 699:Wo 1639:-"),
    (768, 768, 600, "data f64", "1:Zl 102:-"),
    (768, 768, 600, "data f64 forced", "1:Zl 600:Rl 768:-"),
    (768, 768, 600, "data f32", "1:Zl 69:Zi 241:-"),
    (768, 768, 600, "ridge f64", "1:Zl 28:Rl 36:Zl 56:Rl 68:Zl 74:Rl 92:-"),
    (768, 768, 600, "ridge f64 forced", "1:Zl 28:Rl 36:Zl 56:Rl 68:Zl 74:Rl 203:Zl 600:Rl 768:-"),
    (768, 768, 600, "ridge f32", "1:Zl 28:Rl 36:Zl 56:Rl 68:Zl 74:Rl 95:Zo 241:-"),
    (768, 768, 600, "weight f64", "1:Wl 100:-"),
    (768, 768, 600, "weight f64 forced", "1:Wl 768:-"),
    (768, 768, 600, "weight f32", "1:Wl 72:Zi 308:-"),
    (3072, 768, 0, "data f64", "1:Rl 23:- 36:Rl 38:-"),
    (3072, 768, 0, "data f32", "1:Rl 35:Ri 36:Rl 51:Ri 308:-"),
    (3072, 768, 0, "weight f64", "1:Wl 28:- 36:Wl 46:-"),
    (3072, 768, 0, "weight f32", "1:Wl 35:Wi 36:Wl 51:Wi 308:-"),
    (768, 3072, 2000, "data f32", "1:Zl 86:Zo 308:-"),
    (768, 3072, 2000, "ridge f32", "1:Zl 30:Zo 36:Zl 49:Zo 308:-"),
    (768, 3072, 2000, "weight f32", "1:Wl 67:Wo 68:Wl 74:Wo 308:-"),
    (3072, 768, 500, "data f64", "1:Zl 60:- 68:Zl 69:-"),
    (3072, 768, 500, "data f64 forced", "1:Zl 500:Rl 768:-"),
    (3072, 768, 500, "data f32", "1:Zl 11:Zi 301:-"),
    (3072, 768, 500, "ridge f64", "1:Rl 18:-"),
    (3072, 768, 500, "ridge f64 forced", "1:Rl 768:-"),
    (3072, 768, 500, "ridge f32", "1:Rl 35:Ri 36:Rl 51:Ri 201:-"),
    (3072, 768, 500, "weight f64", "1:Wl 27:Zl 29:- 36:Wl 46:-"),
    (3072, 768, 500, "weight f64 forced", "1:Wl 27:Zl 36:Wl 53:Zl 68:Wl 71:Zl 500:Wl 768:-"),
    (3072, 768, 500, "weight f32", "1:Wl 14:Zi 461:-"),
    (1000, 4096, 3000, "data f32", "1:Zl 116:Zo 401:-"),
    (1000, 4096, 3000, "ridge f32", "1:Zl 64:Zo 68:Zl 76:Zo 401:-"),
    (1000, 4096, 3000, "weight f32", "1:Wl 106:Wo 401:-"),
    (4096, 11008, 0, "data f64", "1:-"),
    (4096, 11008, 0, "data f32", "1:- 294:Rl 604:-"),
    (4096, 11008, 0, "weight f64", "1:Wl 616:-"),
    (4096, 11008, 0, "weight f32", "1:Wl 616:Wo 1639:-"),
    (1536, 384, 0, "data f64", "1:-"),
    (1536, 384, 0, "data f32", "1:Rl 13:Ri 154:-"),
    (1536, 384, 0, "weight f64", "1:Wl 4:-"),
    (1536, 384, 0, "weight f32", "1:Wl 13:Wi 154:-"),
    (3000, 300, 290, "data f32", "1:Ri 117:-"),
    (3000, 300, 290, "ridge f32", "1:Ri 117:-"),
    (3000, 300, 290, "weight f32", "1:Wi 121:-"),
];

#[test]
fn ways_take_turns_where_their_prices_cross() {
    for (outputs, inputs, kept, what, expected) in CHOICES {
        let samples = (kept > 0).then_some(kept);
        let by_weight = what.starts_with("weight");
        let applying = match samples {
            _ if by_weight => 0.0,
            Some(samples) => 2.0 * inputs as f64 * samples as f64,
            None => inputs as f64 * inputs as f64,
        };
        let (anchored, forced) = (what.starts_with("ridge"), what.ends_with("forced"));
        let shape = Shape { outputs, inputs, samples, by_weight, anchored, applying, forced };
        let (mut turns, mut before) = (Vec::new(), None);
        for rank in 1..=outputs.min(inputs) {
            let choice = choose(&shape, rank, what.contains("f32"));
            if before != Some(choice) {
                let name = choice.map_or("-".to_string(), |(source, way)| {
                    let source = match source {
                        Source::Samples => 'Z',
                        Source::Weight => 'W',
                        Source::Root => 'R',
                    };
                    let way = match way {
                        Way::Lanczos => 'l',
                        Way::Outputs => 'o',
                        Way::Inputs => 'i',
                    };
                    format!("{source}{way}")
                });
                turns.push(format!("{rank}:{name}"));
                before = Some(choice);
            }
        }
        assert_eq!(turns.join(" "), expected, "{outputs} × {inputs}, {kept}, {what}");
    }
}

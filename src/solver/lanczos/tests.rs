//! Tests of the error bounds and of the directions that enter the basis, with numbers computed by
//! hand.

use faer::Mat;

use super::super::tests::Diagonal;
use super::krylov_basis::Residual;
use super::ritz_pairs::Ritz;
use super::*;

#[test]
fn the_energy_still_to_gain_is_that_of_a_geometric_series() {
    let remaining = |captured: &[f64]| {
        let mut history = EnergyHistory::new();
        captured.iter().for_each(|&captured| history.add(captured));
        history.remaining()
    };
    // Gains of 8 and 2 continue as 1/2 + 1/8 + … = 2/3.
    assert!((remaining(&[5.0, 1.0, 9.0, 11.0]) - 2.0 / 3.0).abs() < 1e-15);
    assert_eq!(remaining(&[1.0, 3.0, 3.0]), 0.0);
    for undecided in [&[][..], &[7.0], &[7.0, 7.0], &[0.0, 1.0, 2.0], &[0.0, 1.0, 3.0]] {
        assert_eq!(remaining(undecided), f64::INFINITY, "{undecided:?}");
    }
}

#[test]
fn the_explained_energy_is_that_of_the_leading_positive_values() {
    assert_eq!([0, 1, 3, 4].map(|count| explained(&[6.0, 3.0, 1.0, -0.5], count)), [0.0, 6.0, 10.0, 10.0]);
}

#[test]
fn negative_values_are_refused_from_rounding_and_noise_on() {
    let refused = |values: &[f64], noise: f64| {
        let magnitude = Magnitude { exponent: 4, trace: 1.0, noise };
        match require_positive(values, 1e-6, &magnitude) {
            Ok(()) => None,
            Err(Error::InvalidOperator { found, .. }) => Some(found),
            Err(other) => panic!("{other}"),
        }
    };
    // The bound is 100 times the rounding of the largest value, 2: 2 · 10⁻⁴. The noise is added.
    assert_eq!(refused(&[2.0, -1.9e-4], 0.0), None);
    assert_eq!(refused(&[2.0, -2.1e-4], 0.0).as_deref(), Some("a negative eigenvalue, -3.36e-3"));
    assert_eq!(refused(&[2.0, -2.1e-4], 2e-5), None);
    assert!(refused(&[2.0, -2.3e-4], 2e-5).is_some());
    // The eigenvalue with the largest magnitude can be negative.
    assert!(refused(&[1e-9, -1.0], 0.0).is_some());
    assert_eq!(refused(&[0.0, 0.0], 0.0), None);
    assert_eq!(refused(&[], 0.0), None);
}

#[test]
fn residuals_are_those_of_the_directions_left_outside() -> Result<()> {
    let size = Magnitude { exponent: 0, trace: 10.0, noise: 0.0 };
    let mut space = Space::<f64>::new(6, 4, size, Par::Seq)?;
    space.size = 2;
    // Orthogonal directions of lengths 2 and 3, each coupled to one vector of the basis; one of
    // length 4 is deferred.
    let directions = Mat::from_fn(6, 2, |i, j| if i == j + 2 { 2.0 + j as f64 } else { 0.0 });
    space.residual = Some(Residual { directions, coupling: Mat::identity(2, 2) });
    let (c, s) = (0.8, 0.6);
    let vectors = Mat::from_fn(2, 2, |i, j| {
        if i == j {
            c
        } else if i > j {
            s
        } else {
            -s
        }
    });
    let ritz = Ritz { values: vec![5.0, 1.0], vectors };
    let norms = space.residual_norms(&ritz, 2)?;
    let expected = [f64::hypot(2.0 * c, 3.0 * s), f64::hypot(2.0 * s, 3.0 * c)];
    assert!(norms.iter().zip(expected).all(|(norm, expected)| (norm - expected).abs() < 1e-14), "{norms:?}");
    // Deferred directions add to the bound.
    space.deferred = Some(Residual {
        directions: Mat::from_fn(6, 1, |i, _| f64::from(i == 5) * 4.0),
        coupling: Mat::identity(1, 1),
    });
    let norms = space.residual_norms(&ritz, 2)?;
    let expected = [expected[0] + 4.0 * c, expected[1] + 4.0 * s];
    assert!(norms.iter().zip(expected).all(|(norm, expected)| (norm - expected).abs() < 1e-14), "{norms:?}");
    assert_eq!(space.pending(), 3);

    // After they are restored, they form one residual with the same coupling.
    space.restore_deferred()?;
    let residual = space.residual.as_ref().expect("what was taken back");
    assert_eq!((residual.directions.shape(), residual.coupling.shape()), ((6, 3), (3, 2)));
    assert_eq!(
        [(0, 0), (1, 0), (2, 1), (0, 1), (1, 1), (2, 0)].map(|at| residual.coupling[at]),
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    );
    assert!(space.deferred.is_none());
    Ok(())
}

#[test]
fn a_residual_of_almost_zero_is_orthogonal_when_it_enters_the_basis() -> Result<()> {
    let mut space = Space::<f64>::new(40, 10, Magnitude { exponent: 0, trace: 1.0, noise: 0.0 }, Par::Seq)?;
    let start = space.random_block(3)?;
    space.basis.as_mut().subcols_mut(0, 2).copy_from(start.as_ref().subcols(0, 2));
    space.size = 2;
    for scale in [1e-6, 1.0, 1e6] {
        space.projected[(0, 0)] = scale;
        // All but a fraction of 10⁻⁶ of this direction lies in the basis.
        let [inside, outside] = [start.col(0), start.col(2)];
        let residual = Mat::from_fn(40, 1, |i, _| 1e-5 * scale * (inside[i] + 1e-6 * outside[i]));
        let block = space.orthonormal(residual, 1)?;
        let inside_part = (space.basis().transpose() * &block).norm_l2();
        assert!(inside_part < 4.0 * f64::EPSILON, "{scale:e}: {inside_part:e}");
        assert!((block.col(0).transpose() * outside).abs() > 1.0 - 1e-9);
    }
    Ok(())
}

#[test]
fn a_trace_is_doubted_by_a_thousand_times_what_the_products_suggest() -> Result<()> {
    // The products covered two of five dimensions, with a sum of 2, and suggest a trace of 5.
    let doubted = |trace: f64, noise: f64| -> Result<bool> {
        let mut space = Space::<f64>::new(5, 5, Magnitude { exponent: 0, trace, noise }, Par::Seq)?;
        space.size = 2;
        (space.projected[(0, 0)], space.projected[(1, 1)]) = (1.5, 0.5);
        Ok(space.require_trace().is_err())
    };
    assert!(!doubted(4999.0, 0.0)? && doubted(5001.0, 0.0)?);
    // The noise of all dimensions may add up.
    assert!(!doubted(5009.0, 2.0)? && doubted(5011.0, 2.0)?);
    Ok(())
}

#[test]
fn products_may_be_as_unsymmetric_as_rounding_and_noise_allow() -> Result<()> {
    let refused = |difference: f64, noise: f64| -> Result<bool> {
        let mut space = Space::<f64>::new(5, 5, Magnitude { exponent: 0, trace: 1.0, noise }, Par::Seq)?;
        space.size = 1;
        space.projected[(0, 0)] = 4.0;
        let square = faer::mat![[1.0, 0.5 + difference], [0.5, 2.0]];
        Ok(space.require_symmetric(square.as_ref()).is_err())
    };
    // The bound is 100 · 5 · 4 times the `ε` of `f64`.
    let bound = 2000.0 * f64::EPSILON;
    assert!(!refused(0.9 * bound, 0.0)? && refused(1.1 * bound, 0.0)?);
    assert!(!refused(1e-3, 1.01e-3)? && refused(1e-3, 0.99e-3)?);
    Ok(())
}

#[test]
fn directions_that_do_not_fit_end_the_iteration() -> Result<()> {
    // The basis has room for two of three directions; for three of three; or it fills the space, so
    // that surplus directions are dropped.
    for (capacity, dimension, width) in [(4, 6, 0), (5, 6, 3), (4, 4, 2)] {
        let mut space =
            Space::<f64>::new(dimension, capacity, Magnitude { exponent: 0, trace: 1.0, noise: 0.0 }, Par::Seq)?;
        let start = space.random_block(2)?;
        space.basis.as_mut().subcols_mut(0, 2).copy_from(&start);
        space.size = 2;
        let directions = Mat::from_fn(dimension, 3, |i, j| ((i * 3 + j * 5 + i * j) % 7) as f64 - 2.5);
        space.residual = Some(Residual { directions, coupling: Mat::zeros(3, 2) });
        assert_eq!(space.next_block(2)?.ncols(), width, "{capacity}, {dimension}");
    }
    Ok(())
}

#[test]
fn a_trace_may_be_negative_by_the_noise_of_every_entry() {
    let solve = |entry: f64| {
        top_eigenpairs(&Diagonal::<f64>::new(&[entry; 6]).with_noise(1e-3), 1, Widths::new(6, 1), Par::Seq)
    };
    let pairs = solve(-0.9e-3).unwrap().expect("noise");
    assert_eq!((pairs.values, pairs.residual), (vec![0.0], 0.0));
    let error = solve(-1.1e-3).unwrap_err().to_string();
    assert!(error.contains("got a trace of -0.0066"), "{error}");
}

#[test]
fn directions_found_by_the_verification_continue_the_iteration() {
    // Each of three eigenvalues has more copies than a block finds at a time. The iteration finds
    // 176 copies of the first one, and then products add no directions. The verification block adds
    // 16. The caller requests 200.
    let copies = [(260, 1.0), (300, 0.9), (700, 0.1)];
    let values: Vec<f64> = copies.iter().flat_map(|&(count, value)| vec![value; count]).collect();
    let widths = Widths { block: 16, basis: 1112 };
    let pairs = top_eigenpairs(&Diagonal::<f64>::new(&values), 200, widths, Par::Seq).unwrap().expect("settles");
    assert!((pairs.values.iter().sum::<f64>() - 200.0).abs() < 1e-9);
}

fn decaying<T: Scalar>(decay: impl Fn(f64) -> f64, count: usize, widths: Widths) -> Option<Eigenpairs> {
    let values: Vec<f64> = (0..600).map(|i| decay(f64::from(i))).collect();
    top_eigenpairs(&Diagonal::<T>::new(&values), count, widths, Par::Seq).unwrap()
}

#[test]
fn a_basis_keeps_room_for_the_verification() {
    let pairs = decaying::<f64>(|i| 0.5_f64.powf(i), 40, Widths { block: 8, basis: 150 });
    assert!(pairs.is_some());
}

#[test]
fn operators_whose_squares_are_out_of_range_are_solved() {
    let solve = |size: f64| {
        let values: Vec<f64> = (0..300).map(|i| size * 0.5_f64.powi(i)).collect();
        let widths = Widths { block: 8, basis: 200 };
        let pairs = top_eigenpairs(&Diagonal::<f64>::new(&values), 10, widths, Par::Seq).unwrap();
        pairs.expect("settles").values.iter().map(|value| value / size).collect::<Vec<f64>>()
    };
    for size in [1e250, 1e-250] {
        for (index, value) in solve(size).into_iter().enumerate() {
            assert!((value - 0.5_f64.powi(index as i32)).abs() < 1e-9, "{size:e}");
        }
    }
}

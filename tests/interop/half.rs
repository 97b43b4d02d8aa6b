//! `f16` and `bf16`.

use dalr::interop::half::{Half, round, round_column, widen, widen_column};
use dalr::{ActivationStats, Dalr, Error, Linear, LowRankCompressor, Rank};
use faer::{Col, ColRef, Mat, MatRef};
use half::{bf16, f16};

fn all<H: Half>() -> impl Iterator<Item = H> {
    (0..=u16::MAX).map(|bits| H::from_le_bytes(bits.to_le_bytes()))
}

#[test]
fn every_number_is_read_exactly_and_comes_back() {
    fn check<H: Half>(oracle: fn(H) -> f64) {
        for number in all::<H>() {
            let (single, double): (f32, f64) = (number.widen(), number.widen());
            if oracle(number).is_nan() {
                assert!(single.is_nan() && double.is_nan());
                assert!(H::round(single).widen::<f64>().is_nan() && H::round(double).widen::<f64>().is_nan());
                continue;
            }
            assert_eq!(
                (f64::from(single).to_bits(), double.to_bits()),
                (oracle(number).to_bits(), oracle(number).to_bits())
            );
            for back in [H::round(single), H::round(double)] {
                assert_eq!(back.to_le_bytes(), number.to_le_bytes(), "{number}");
            }
        }
    }
    // This follows the definition of the formats: sign, exponent, fraction.
    fn decode(bits: u16, exponent_bits: u32) -> f64 {
        let fraction_bits = 15 - exponent_bits;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let exponent = i32::from(bits >> fraction_bits & ((1 << exponent_bits) - 1));
        let fraction = f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
        let size = match exponent {
            0 => fraction * 2_f64.powi(1 - bias),
            e if e == (1 << exponent_bits) - 1 => {
                return if fraction == 0.0 { signed(bits, f64::INFINITY) } else { f64::NAN };
            }
            e => (1.0 + fraction) * 2_f64.powi(e - bias),
        };
        signed(bits, size)
    }
    fn signed(bits: u16, size: f64) -> f64 {
        if bits >> 15 == 1 { -size } else { size }
    }
    check::<f16>(|number| decode(number.to_bits(), 5));
    check::<bf16>(|number| decode(number.to_bits(), 8));
}

#[test]
fn rounding_is_to_the_nearest_once() {
    fn check<H: Half>() {
        let mut numbers: Vec<H> = all().filter(|number: &H| number.widen::<f64>().is_finite()).collect();
        numbers.sort_by(|a, b| a.widen::<f64>().total_cmp(&b.widen()));
        for pair in numbers.windows(2) {
            let [low, high] = [pair[0], pair[1]].map(Half::widen::<f64>);
            // Exact: an `f64` holds the sum of two neighbouring 16-bit numbers.
            let middle = low / 2.0 + high / 2.0;
            let tie = if pair[0].to_le_bytes()[0].is_multiple_of(2) { low } else { high };
            assert_eq!(H::round(middle).widen::<f64>(), tie, "{middle:e}");
            // The distance to the middle is below the rounding of `f32`. Rounding twice would treat
            // this as a tie.
            if middle != 0.0 {
                assert_eq!(H::round(middle.next_up()).widen::<f64>(), high, "{middle:e}");
                assert_eq!(H::round(middle.next_down()).widen::<f64>(), low, "{middle:e}");
            }
            assert_eq!(H::round(low.next_up()).widen::<f64>(), low);
            assert_eq!(H::round(high.next_down()).widen::<f64>(), high);
        }
        let (most, step) = (numbers[numbers.len() - 1].widen::<f64>(), numbers[numbers.len() - 2].widen::<f64>());
        let edge = most + (most - step) / 2.0;
        assert_eq!(H::round(edge.next_down()).widen::<f64>(), most);
        for beyond in [edge, 1e300, f64::INFINITY] {
            assert_eq!(H::round(beyond).widen::<f64>(), f64::INFINITY);
            assert_eq!(H::round(-beyond).widen::<f64>(), f64::NEG_INFINITY);
        }
        assert_eq!(H::round(-1e-300).widen::<f64>().to_bits(), (-0.0_f64).to_bits());
    }
    check::<f16>();
    check::<bf16>();
}

#[test]
fn layers_and_batches_are_what_they_are_in_f32() {
    fn check<H: Half>() {
        let entry = |i: usize, j: usize| ((i * 11 + j * j * 7 + i * j) % 13) as f32 - 4.0;
        let buffer = |rows: usize| -> Vec<H> { (0..rows * 6).map(|k| H::round(entry(k / 6, k % 6))).collect() };
        let (weight, batch) = (buffer(9), buffer(40));
        let bias = vec![H::round(0.5); 9];
        let wide: Mat<f32> = widen(MatRef::from_row_major_slice(&weight, 9, 6)).unwrap();
        let layer = Linear::new(wide, Some(widen_column(ColRef::from_slice(&bias)))).unwrap();
        assert_eq!(layer, Linear::new(Mat::from_fn(9, 6, entry), Some(Col::full(9, 0.5))).unwrap());
        let mut stats = ActivationStats::<f32>::new(6);
        stats.update(widen(MatRef::from_row_major_slice(&batch, 40, 6)).unwrap().as_ref()).unwrap();
        let mut columns = ActivationStats::<f32>::new(6);
        let transposed: Vec<H> = (0..240).map(|k| batch[k % 40 * 6 + k / 40]).collect();
        let reversed = MatRef::from_column_major_slice(&transposed, 40, 6).reverse_rows();
        columns.update(widen(reversed.reverse_rows()).unwrap().as_ref()).unwrap();
        let [here, there] = [&stats, &columns].map(|s| Dalr::new().compress(&layer, s, Rank::Fixed(3)).unwrap());
        assert_eq!(here.layer(), there.layer());

        let rounded = round::<H, _>(here.layer().down()).unwrap();
        let epsilon = H::round(1.0).to_le_bytes();
        let next = H::from_le_bytes([epsilon[0] + 1, epsilon[1]]).widen::<f32>() - 1.0;
        for (i, j) in (0..3).flat_map(|i| (0..6).map(move |j| (i, j))) {
            let exact = here.layer().down()[(i, j)];
            assert!((rounded[(i, j)].widen::<f32>() - exact).abs() <= next / 2.0 * exact.abs() + f32::MIN_POSITIVE);
        }
        let back = here.layer().bias().map(|bias| round_column::<H, _>(bias).unwrap()).unwrap();
        assert_eq!(back.nrows(), 9);
    }
    check::<f16>();
    check::<bf16>();
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut stats = ActivationStats::<f32>::new(2);
    let mut update = |batch: &[f16], columns: usize| {
        let batch = MatRef::from_row_major_slice(batch, batch.len() / columns, columns);
        stats.update(widen(batch).unwrap().as_ref())
    };
    assert!(matches!(update(&[f16::ONE; 3], 3), Err(Error::Shape { expected: 2, found: 3, .. })));
    assert!(matches!(update(&[], 2), Err(Error::Empty { .. })));
    let broken = [f16::ONE, f16::ONE, f16::ONE, f16::NEG_INFINITY];
    assert!(matches!(update(&broken, 2), Err(Error::NonFinite { row: 1, column: 1, .. })));
    assert!(matches!(update(&[f16::NAN, f16::ONE], 2), Err(Error::NonFinite { row: 0, column: 0, .. })));
    assert_eq!(stats.samples(), 0);
    let wide = Mat::from_fn(2, 2, |i, j| if (i, j) == (1, 0) { -7e4_f64 } else { 1.0 });
    assert!(matches!(round::<f16, _>(wide.as_ref()), Err(Error::Overflow { .. })));
    assert!(matches!(round_column::<f16, _>(wide.col(0)), Err(Error::Overflow { .. })));
    assert!(round::<bf16, _>(wide.as_ref()).is_ok());
    assert_eq!(round::<bf16, f64>(Mat::zeros(0, 3).as_ref()).unwrap().shape(), (0, 3));
    assert_eq!(widen::<f64, f16>(MatRef::from_row_major_slice(&[], 3, 0)).unwrap().shape(), (3, 0));
}

//! Conversions from and to other libraries' types and formats, one module per optional feature.

#[cfg(feature = "approx")]
#[cfg_attr(docsrs, doc(cfg(feature = "approx")))]
pub mod approx;
#[cfg(feature = "candle")]
#[cfg_attr(docsrs, doc(cfg(feature = "candle")))]
pub mod candle;
#[cfg(feature = "half")]
#[cfg_attr(docsrs, doc(cfg(feature = "half")))]
pub mod half;
#[cfg(feature = "nalgebra")]
#[cfg_attr(docsrs, doc(cfg(feature = "nalgebra")))]
pub mod nalgebra;
#[cfg(feature = "ndarray")]
#[cfg_attr(docsrs, doc(cfg(feature = "ndarray")))]
pub mod ndarray;
#[cfg(feature = "safetensors")]
#[cfg_attr(docsrs, doc(cfg(feature = "safetensors")))]
pub mod safetensors;

/// The numbers of samples and inputs of a batch whose last axis is the inputs.
#[cfg(any(feature = "candle", feature = "ndarray"))]
fn samples_and_inputs(axes: &[usize]) -> crate::Result<(usize, usize)> {
    let Some((&inputs, leading)) = axes.split_last() else {
        let what = "axis or more in the batch, the last of them the inputs";
        return Err(crate::Error::shape(what, 1, 0));
    };
    let count = leading.iter().try_fold(1_usize, |count, &axis| count.checked_mul(axis));
    Ok((count.ok_or(crate::Error::overflow("the number of samples"))?, inputs))
}

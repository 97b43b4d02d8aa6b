//! Conversions from and to the types and formats of other libraries, one module per optional
//! feature.
//!
//! | feature | provides |
//! |---|---|
//! | `rayon` (default) | parallel kernels, on rayon's global pool |
//! | `nalgebra`, `ndarray` | views and copies of their matrices; batches with any number of axes |
//! | `candle` | tensors, layers, a recorder of layer inputs, compressed layers as modules |
//! | `half` | `f16` and `bf16` batches, weights and factors |
//! | `safetensors` | statistics, compressed layers and model files on disk, written atomically |
//! | `serde` | configuration, reports, layers and network plans as data |
//! | `approx` | comparison of layers up to a tolerance |

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

#[cfg(feature = "serde")]
mod serde;

/// Returns the numbers of samples and inputs of a batch whose last axis is the inputs.
#[cfg(any(feature = "candle", feature = "ndarray"))]
fn samples_and_inputs(axes: &[usize]) -> crate::Result<(usize, usize)> {
    let Some((&inputs, leading)) = axes.split_last() else {
        let what = "axis or more in the batch, the last of them the inputs";
        return Err(crate::Error::shape(what, 1, 0));
    };
    let count = leading.iter().try_fold(1_usize, |count, &axis| count.checked_mul(axis));
    Ok((count.ok_or(crate::Error::overflow("the number of samples"))?, inputs))
}

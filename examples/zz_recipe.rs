use dalr::interop::safetensors::{Dtype, ModelWriter};
use dalr::{ActivationStats, Dalr, Linear, LowRankCompressor, Rank};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layer =
        Linear::new(faer::Mat::from_fn(30, 20, |i, j| ((i * 5 + j * j * 3) % 17) as f32), Some(faer::Col::zeros(30)))?;
    let mut stats = ActivationStats::new(20);
    stats.update(faer::Mat::from_fn(50, 20, |i, j| ((i * 11 + j * 7) % 13) as f32).as_ref())?;
    let file = std::env::temp_dir().join(format!("dalr-recipe-{}.safetensors", std::process::id()));
    let compressed = Dalr::new().compress(&layer, &stats, Rank::Fixed(4))?;
    let (low, rank) = (compressed.layer(), compressed.layer().rank());

    // `load_compressed.py` reads the ranks here; `load_state_dict` needs the names only.
    let metadata = [("dalr.ranks".to_owned(), format!(r#"{{"fc1": {rank}}}"#))].into();
    let mut writer = ModelWriter::new().with_metadata(metadata);
    writer.add("fc1.0.weight", Dtype::F32, &[rank, low.in_features()], low.down())?;
    writer.add("fc1.1.weight", Dtype::F32, &[low.out_features(), rank], low.up())?;
    if let Some(bias) = low.bias() {
        writer.add("fc1.1.bias", Dtype::F32, &[low.out_features()], bias.as_mat())?;
    }
    writer.write(&file, |matrix, out| out.matrix(*matrix))?;
    let bytes = std::fs::read(&file)?;
    std::fs::remove_file(&file)?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?;
    assert_eq!(tensors.tensor("fc1.1.weight")?.shape(), [30, 4]);
    let second = f32::from_le_bytes(tensors.tensor("fc1.1.weight")?.data()[4..8].try_into()?);
    assert_eq!(second, low.up()[(0, 1)]);
    assert_eq!(tensors.tensor("fc1.1.bias")?.shape(), [30]);
    Ok(())
}

//! Reads models, and turns texts into batches of tokens.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{Device, Tensor};
use tokenizers::{Tokenizer, TruncationParams};

use crate::bert::{Bert, Config};

/// Texts are cut to this many tokens, as in sentence transformers.
const TOKENS: usize = 128;

/// Converts texts to token ids.
pub struct Encoder(Tokenizer);

/// Token ids and their mask, texts × tokens each.
pub struct Batch {
    /// Token ids, 0 for padding.
    pub ids: Tensor,
    /// 1 for a token, 0 for padding.
    pub mask: Tensor,
}

impl Encoder {
    /// Reads `tokenizer.json` in a model's folder.
    pub fn load(folder: &Path, config: &Config) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        let max_length = TOKENS.min(config.max_position_embeddings);
        let cut = TruncationParams { max_length, ..Default::default() };
        tokenizer.with_padding(None).with_truncation(Some(cut)).map_err(|error| anyhow!("{error}"))?;
        Ok(Self(tokenizer))
    }

    /// Returns batches of at most `size` texts, each padded to its longest text.
    pub fn batches(&self, texts: &[String], size: usize) -> Result<Vec<Batch>> {
        ensure!(size > 0, "expected a batch size of at least 1, got 0");
        texts.chunks(size).map(|texts| self.batch(texts)).collect()
    }

    fn batch(&self, texts: &[String]) -> Result<Batch> {
        let texts = texts.iter().map(String::as_str).collect();
        let encoded = self.0.encode_batch(texts, true).map_err(|error| anyhow!("{error}"))?;
        let longest = encoded.iter().map(|one| one.get_ids().len()).max().unwrap_or(0);
        ensure!(longest > 0, "texts without a token cannot be embedded");
        let padded = |one: u32, pad: usize| std::iter::repeat_n(one, pad);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for one in &encoded {
            let own = one.get_ids();
            ids.extend(own.iter().copied().chain(padded(0, longest - own.len())));
            mask.extend(padded(1, own.len()).chain(padded(0, longest - own.len())));
        }
        let shape = (encoded.len(), longest);
        let tensor = |numbers| Tensor::from_vec(numbers, shape, &Device::Cpu);
        Ok(Batch { ids: tensor(ids)?, mask: tensor(mask)? })
    }
}

impl Batch {
    /// Returns embeddings of unit length, texts × width.
    pub fn embed(&self, model: &Bert) -> candle_core::Result<Tensor> {
        model.forward(&self.ids, &self.mask)
    }

    /// Returns the number of texts, and of tokens in the longest.
    pub fn shape(&self) -> (usize, usize) {
        self.ids.dims2().unwrap_or_default()
    }
}

/// Reads `config.json` and `model.safetensors` in a model's folder.
pub fn load(folder: &Path) -> Result<(Config, crate::bert::Tensors)> {
    let path = folder.join("config.json");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not the configuration of a BERT", path.display()))?;
    let path = folder.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu);
    Ok((config, tensors.with_context(|| format!("cannot read {}", path.display()))?))
}

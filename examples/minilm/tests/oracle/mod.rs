//! The same network for one text at a time, in loops over `f64`.

use dalr_minilm::bert::Tensors;

type Rows = Vec<Vec<f64>>;

fn table(tensors: &Tensors, name: &str) -> Rows {
    let rows = tensors[name].to_vec2::<f32>().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect()
}

fn vector(tensors: &Tensors, name: &str) -> Vec<f64> {
    tensors[name].to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn linear(tensors: &Tensors, name: &str, inputs: &Rows) -> Rows {
    let (weight, bias) = (table(tensors, &format!("{name}.weight")), vector(tensors, &format!("{name}.bias")));
    inputs.iter().map(|input| weight.iter().zip(&bias).map(|(row, b)| dot(row, input) + b).collect()).collect()
}

fn normalised(tensors: &Tensors, name: &str, inputs: Rows) -> Rows {
    let (weight, bias) = (vector(tensors, &format!("{name}.weight")), vector(tensors, &format!("{name}.bias")));
    let row = |row: Vec<f64>| {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
        let scaled = row.iter().map(|x| (x - mean) / (variance + 1e-12).sqrt());
        scaled.zip(weight.iter().zip(&bias)).map(|(x, (w, b))| x * w + b).collect()
    };
    inputs.into_iter().map(row).collect()
}

fn sum(a: Rows, b: &Rows) -> Rows {
    a.into_iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

/// Returns the error function by its series, for small arguments.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut total, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * total.abs() {
        n += 1.0;
        term *= -x * x / n;
        total += term / (2.0 * n + 1.0);
    }
    total * std::f64::consts::FRAC_2_SQRT_PI
}

/// Returns the embedding of one text.
pub fn embedding(tensors: &Tensors, blocks: usize, heads: usize, ids: &[usize]) -> Vec<f64> {
    let (words, positions, kinds) = (
        table(tensors, "embeddings.word_embeddings.weight"),
        table(tensors, "embeddings.position_embeddings.weight"),
        table(tensors, "embeddings.token_type_embeddings.weight"),
    );
    let token = |(place, &id): (usize, &usize)| -> Vec<f64> {
        (0..words[id].len()).map(|j| words[id][j] + positions[place][j] + kinds[0][j]).collect()
    };
    let mut state = normalised(tensors, "embeddings.LayerNorm", ids.iter().enumerate().map(token).collect());
    let width = state[0].len() / heads;
    for block in 0..blocks {
        let name = format!("encoder.layer.{block}");
        let [query, key, value] =
            ["query", "key", "value"].map(|part| linear(tensors, &format!("{name}.attention.self.{part}"), &state));
        let mut context: Rows = vec![Vec::new(); ids.len()];
        for own in (0..heads).map(|head| head * width..(head + 1) * width) {
            for (query, context) in query.iter().zip(&mut context) {
                let scores = key.iter().map(|key| dot(&query[own.clone()], &key[own.clone()]) / (width as f64).sqrt());
                let weights: Vec<f64> = scores.map(f64::exp).collect();
                let total: f64 = weights.iter().sum();
                context.extend(
                    own.clone().map(|j| {
                        weights.iter().zip(&value).map(|(weight, value)| weight / total * value[j]).sum::<f64>()
                    }),
                );
            }
        }
        let attended = sum(linear(tensors, &format!("{name}.attention.output.dense"), &context), &state);
        state = normalised(tensors, &format!("{name}.attention.output.LayerNorm"), attended);
        let mut hidden = linear(tensors, &format!("{name}.intermediate.dense"), &state);
        for x in hidden.iter_mut().flatten() {
            *x *= 0.5 * (1.0 + erf(*x / std::f64::consts::SQRT_2));
        }
        let output = sum(linear(tensors, &format!("{name}.output.dense"), &hidden), &state);
        state = normalised(tensors, &format!("{name}.output.LayerNorm"), output);
    }
    let mean: Vec<f64> = (0..state[0].len()).map(|j| state.iter().map(|row| row[j]).sum::<f64>()).collect();
    let norm = dot(&mean, &mean).sqrt();
    mean.into_iter().map(|x| x / norm).collect()
}

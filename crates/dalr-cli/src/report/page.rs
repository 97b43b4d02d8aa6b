//! A self-contained HTML page about a compression. It has no scripts, loads no files, and is light
//! or dark like the reader's system.

use dalr::network::Choice;

use super::spectrum;
use super::{Comparison, Outcome, kept, percent, rank};

/// Returns the whole page.
pub fn page(outcome: &Outcome<'_>) -> String {
    let plan = outcome.plan;
    let title = outcome.args.source.model.file_name().map_or("model".into(), |name| escape(&name.to_string_lossy()));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}, compressed</title>\n<style>{}</style></head><body>\n<h1>{title}, compressed</h1>\n",
        include_str!("page.css")
    );
    let method = escape(&outcome.args.method.name());
    page += &format!(
        "<p class=\"about\">Method {method}, {} ({} allocation), dalr {}.</p>\n",
        escape(&plan.budget),
        escape(&plan.strategy),
        env!("CARGO_PKG_VERSION")
    );
    page += &summary(outcome);
    page += &outcome.comparison.map(comparison).unwrap_or_default();
    page += &layers(outcome);
    page += &spectra(outcome);
    page += &passed(outcome);
    page + "</body></html>\n"
}

/// Returns the table of both models on held-out inputs.
fn comparison(comparison: &Comparison) -> String {
    let mut text = format!(
        "<h2>Original and compressed model</h2>\n<p>On {} held-out samples, run by {}.</p>\n<div class=\"wide\"><table>\
         <thead><tr><th>quantity</th><th>change</th></tr></thead><tbody>\n",
        comparison.samples,
        escape(&comparison.engine)
    );
    for (name, change) in comparison.rows() {
        text += &format!("<tr><td>{}</td><td>{}</td></tr>\n", breakable(&name), escape(&change));
    }
    text += "</tbody></table></div>\n";
    for note in &comparison.notes {
        text += &format!("<p class=\"warning\">{}</p>\n", escape(note));
    }
    text
}

fn summary(outcome: &Outcome<'_>) -> String {
    let plan = outcome.plan;
    let compressed = plan.layers.iter().filter(|layer| layer.choice != Choice::Original).count();
    let mut tiles = vec![
        ("parameters of the layers", kept(plan.parameters_after(), plan.parameters_before()), {
            format!("{} of {}", grouped(plan.parameters_after()), grouped(plan.parameters_before()))
        }),
        ("multiply–adds", kept(plan.multiply_adds_after(), plan.multiply_adds_before()), {
            format!("{} of {}", grouped(plan.multiply_adds_after()), grouped(plan.multiply_adds_before()))
        }),
        ("layers compressed", compressed.to_string(), format!("of {}", plan.layers.len())),
    ];
    if let Some(error) = outcome.output_error() {
        tiles.push(("predicted output error", percent(error), "root mean square over the layers".into()));
    }
    tiles.push(("objective", significant(plan.objective), format!("lower bound {}", significant(plan.lower_bound))));
    let mut text = String::from("<div class=\"tiles\">");
    for (name, value, detail) in tiles {
        text += &format!("<div><span>{name}</span><b>{value}</b><span>{detail}</span></div>");
    }
    text += "</div>\n";
    for warning in &plan.warnings {
        text += &format!("<p class=\"warning\">{}</p>\n", escape(&warning.to_string()));
    }
    for note in &outcome.selection.notes {
        text += &format!("<p class=\"warning\">{}</p>\n", escape(note));
    }
    text
}

/// Returns the rank and error by layer.
fn layers(outcome: &Outcome<'_>) -> String {
    let mut text = String::from(
        "<h2>Rank and error by layer</h2>\n<div class=\"wide\"><table><thead><tr><th>layer</th><th>out × in</th>\
         <th class=\"number\">rank</th><th>parameters kept</th><th>predicted output error</th><th>remarks</th></tr></thead><tbody>\n",
    );
    for layer in &outcome.plan.layers {
        let fraction = layer.parameters_after as f64 / layer.parameters_before as f64;
        text += &format!(
            "<tr><td>{}</td><td>{} × {}</td><td class=\"number\">{}</td><td>{}</td><td>{}</td><td class=\"remark\">{}</td></tr>\n",
            escape(&layer.name),
            layer.out_features,
            layer.in_features,
            rank(layer).map_or("–".into(), |rank| rank.to_string()),
            bar(fraction, &percent(fraction), "fraction"),
            layer.relative_error.map_or("unknown: no samples".into(), |error| bar(error, &percent(error), "error")),
            escape(&super::remarks(layer)),
        );
    }
    text + "</tbody></table></div>\n"
}

/// Returns a horizontal bar, full at 1, and its label.
fn bar(value: f64, label: &str, class: &str) -> String {
    let width = 100.0 * value.clamp(0.0, 1.0);
    format!(
        "<svg class=\"bar\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect class=\"rail\" width=\"100\" \
         height=\"10\"/><rect class=\"{class}\" width=\"{width:.1}\" height=\"10\"/></svg> {label}"
    )
}

fn spectra(outcome: &Outcome<'_>) -> String {
    let mut text = String::from(
        "<h2>Spectra</h2>\n<p>Energy of each dimension of a layer's outputs, relative to the largest. \
         <i class=\"key kept\"></i> kept, <i class=\"key cut\"></i> rank, <i class=\"key even\"></i> break-even: from this rank on \
         two factors have as many parameters as the weight. Dimensions past it were not computed.</p>\n<div class=\"spectra\">\n",
    );
    for (profile, layer) in outcome.profiles.iter().zip(&outcome.plan.layers) {
        let rank = rank(layer);
        let cut = rank.map_or("original".into(), |rank| format!("rank {rank}"));
        text += &format!(
            "<figure><figcaption>{}<span>{cut}</span></figcaption>{}</figure>\n",
            breakable(profile.name()),
            spectrum::svg(profile, rank.unwrap_or(0))
        );
    }
    text + "</div>\n"
}

/// Returns the tensors that are not layers, each with the reason.
fn passed(outcome: &Outcome<'_>) -> String {
    let mut text = format!("<h2>{}</h2>\n", escape(&capitalized(outcome.selection.others)));
    if outcome.selection.passed.is_empty() {
        return text + "<p>None.</p>\n";
    }
    text += "<div class=\"wide\"><table><thead><tr><th>name</th><th>kind</th><th>shape</th><th>reason</th></tr></thead><tbody>\n";
    for passed in &outcome.selection.passed {
        let shape: Vec<String> = passed.shape.iter().map(usize::to_string).collect();
        text += &format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"remark\">{}</td></tr>\n",
            escape(&passed.name),
            passed.dtype,
            shape.join(" × "),
            escape(&passed.reason)
        );
    }
    text + "</tbody></table></div>\n"
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

/// Escapes a text from a file, which may contain markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Returns a name that may be broken after its dots.
fn breakable(name: &str) -> String {
    escape(name).replace('.', ".<wbr>")
}

/// Returns a number with four digits, without an exponent if that is short.
fn significant(number: f64) -> String {
    if number == 0.0 || (1e-3..1e6).contains(&number.abs()) {
        let text = format!("{number:.4}");
        return text.trim_end_matches('0').trim_end_matches('.').into();
    }
    format!("{number:.3e}")
}

/// Returns an integer with groups of thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

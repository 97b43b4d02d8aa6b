//! Pictures of spectra: the explained energy of each dimension of a layer, and the rank.

use dalr::Rank;
use dalr::network::LayerProfile;

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 130.0;
/// Margins of the picture. Those with labels are wider.
const LEFT: f64 = 34.0;
const BOTTOM: f64 = 18.0;
const TOP: f64 = 14.0;
const RIGHT: f64 = 8.0;

/// Number of points of a line. More points could not be distinguished at this width.
const POINTS: usize = 150;

/// Number of decades on the axis. Smaller energies are drawn at the bottom.
const DECADES: f64 = 6.0;

/// Returns an SVG of the explained energies of a layer on a logarithmic scale, with its rank (0 for
/// the original layer) and its break-even rank.
pub fn svg(profile: &LayerProfile, rank: usize) -> String {
    let energies = profile.explained_energy();
    let full = profile.out_features().min(profile.in_features());
    let x = |dimension: f64| LEFT + (WIDTH - LEFT - RIGHT) * dimension / full as f64;
    let bottom = HEIGHT - BOTTOM;
    let largest = energies.first().copied().unwrap_or(0.0);
    let y = |energy: f64| {
        let decades = if energy > 0.0 && largest > 0.0 { (energy / largest).log10().max(-DECADES) } else { -DECADES };
        TOP - decades / DECADES * (bottom - TOP)
    };

    let mut picture = format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="spectrum">"#);
    for decade in [0.0, 2.0, 4.0, 6.0] {
        let height = TOP + decade / DECADES * (bottom - TOP);
        let label =
            if decade == 0.0 { "1".into() } else { format!("10<tspan dy=\"-3\" font-size=\"7\">−{decade}</tspan>") };
        picture += &format!(r#"<path class="grid" d="M{LEFT} {height:.1}H{:.1}"/>"#, WIDTH - RIGHT);
        picture += &format!(r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#, LEFT - 4.0, height + 3.0);
    }
    let indices = sampled(energies.len());
    let kept: Vec<usize> = indices.iter().copied().filter(|&index| index < rank).collect();
    if let (Some(&first), Some(&last)) = (kept.first(), kept.last()) {
        picture += &format!(r#"<path class="kept" d="M{LEFT} {bottom:.1}V{:.1}"#, y(energies[first]));
        for &index in &kept {
            picture += &format!("L{:.1} {:.1}", x(index as f64 + 0.5), y(energies[index]));
        }
        picture += &format!(r#"L{:.1} {:.1}V{bottom:.1}Z"/>"#, x(rank as f64), y(energies[last]));
    }
    if let [only] = indices[..] {
        picture += &format!(
            r#"<circle class="line" cx="{:.1}" cy="{:.1}" r="1.5"/>"#,
            x(only as f64 + 0.5),
            y(energies[only])
        );
    }
    picture += r#"<polyline class="line" points=""#;
    for &index in &indices {
        picture += &format!("{:.1},{:.1} ", x(index as f64 + 0.5), y(energies[index]));
    }
    picture += r#""/>"#;
    let break_even = Rank::break_even(profile.out_features(), profile.in_features());
    if break_even < full as f64 {
        picture += &format!(r#"<path class="even" d="M{:.1} {TOP}V{bottom:.1}"/>"#, x(break_even));
    }
    if rank > 0 {
        let at = x(rank as f64);
        picture += &format!(r#"<path class="cut" d="M{at:.1} {TOP}V{bottom:.1}"/>"#);
        let (anchor, shift) = if at > WIDTH * 0.7 { ("end", -3.0) } else { ("start", 3.0) };
        picture += &format!(
            r#"<text class="cut" x="{:.1}" y="{:.1}" text-anchor="{anchor}">{rank}</text>"#,
            at + shift,
            TOP + 8.0
        );
    }
    for (dimension, anchor) in [(0, "start"), (full, "end")] {
        let at = x(dimension as f64);
        picture += &format!(r#"<text x="{at:.1}" y="{:.1}" text-anchor="{anchor}">{dimension}</text>"#, HEIGHT - 5.0);
    }
    picture + "</svg>"
}

/// Returns at most `POINTS` indices below `count`, with the first and the last.
fn sampled(count: usize) -> Vec<usize> {
    if count <= POINTS {
        return (0..count).collect();
    }
    (0..POINTS).map(|point| point * (count - 1) / (POINTS - 1)).collect()
}

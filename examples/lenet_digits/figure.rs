//! Draws accuracy and error against the fraction of parameters.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::comparison::{Comparison, LAYERS, METHODS};

const SIZE: (u32, u32) = (1080, 800);
const FONT: &str = "sans-serif";

/// Grey for SVD, ochre for pruning, blue for DALR; the recommended method has the thickest line.
fn style(method: &str) -> (RGBColor, u32) {
    match method {
        "svd" => (RGBColor(150, 150, 150), 2),
        "svd+bc" => (RGBColor(90, 90, 90), 2),
        "pruning-mean" => (RGBColor(225, 175, 60), 2),
        "pruning-max" => (RGBColor(180, 110, 30), 2),
        "dalr-paper" => (RGBColor(110, 170, 230), 3),
        _ => (RGBColor(10, 70, 170), 4),
    }
}

pub fn draw(comparison: &Comparison, path: &Path) -> Result<(), Box<dyn Error>> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (panels, legend) = area.split_vertically(SIZE.1 - 50);
    for (index, panel) in panels.split_evenly((2, 2)).iter().enumerate() {
        draw_panel(comparison, panel, LAYERS[index / 2], index % 2 == 0)?;
    }
    draw_legend(&legend)?;
    area.present()?;
    Ok(())
}

fn draw_panel(
    comparison: &Comparison,
    panel: &DrawingArea<SVGBackend<'_>, Shift>,
    layer: &str,
    accuracy: bool,
) -> Result<(), Box<dyn Error>> {
    let quantity = if accuracy { "accuracy of the network" } else { "relative error of the layer's outputs" };
    let top = if accuracy { 1.0 } else { 1.8 };
    let mut chart = ChartBuilder::on(panel)
        .caption(format!("{layer}: {quantity}"), (FONT, 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d((0.008..0.8_f64).log_scale(), 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(228, 228, 228))
        .x_desc("parameters, fraction of the original layer")
        .x_label_formatter(&|fraction| format!("{:.0} %", 100.0 * fraction))
        .y_label_formatter(&|value| format!("{value:.1}"))
        .label_style((FONT, 18))
        .draw()?;
    if accuracy {
        let (original, dashes) = (comparison.original_accuracy, BLACK.stroke_width(1));
        chart.draw_series(DashedLineSeries::new([(0.008, original), (0.8, original)], 6, 5, dashes))?;
        chart.draw_series([Text::new("original", (0.0085, original - 0.02), (FONT, 18))])?;
    }
    if let (false, Some(index)) = (accuracy, LAYERS.iter().position(|&name| name == layer)) {
        let rows = comparison.rows.iter().filter(|row| (row.layer, row.method) == (layer, METHODS[0]));
        let optimum = rows.map(|row| comparison.fraction(row)).zip(comparison.optimum[index].iter().copied());
        chart.draw_series(DashedLineSeries::new(optimum, 3, 4, BLACK.stroke_width(1)))?;
    }
    for method in METHODS {
        let (colour, width) = style(method);
        let rows = comparison.rows.iter().filter(|row| (row.layer, row.method) == (layer, method));
        let points: Vec<(f64, f64)> = rows
            .map(|row| (comparison.fraction(row), if accuracy { row.accuracy } else { row.relative_error }))
            .collect();
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(width)))?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, width + 1, colour.filled())))?;
    }
    Ok(())
}

fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn Error>> {
    area.draw(&PathElement::new([(920, 20), (926, 20)], BLACK.stroke_width(1)))?;
    area.draw(&PathElement::new([(930, 20), (936, 20)], BLACK.stroke_width(1)))?;
    area.draw(&PathElement::new([(940, 20), (946, 20)], BLACK.stroke_width(1)))?;
    area.draw(&Text::new("optimum", (954, 11), (FONT, 17)))?;
    for (index, method) in METHODS.into_iter().enumerate() {
        let (colour, width) = style(method);
        let left = 60 + 142 * index as i32;
        area.draw(&PathElement::new([(left, 20), (left + 34, 20)], colour.stroke_width(width)))?;
        area.draw(&Circle::new((left + 17, 20), width + 1, colour.filled()))?;
        area.draw(&Text::new(method, (left + 42, 11), (FONT, 17)))?;
    }
    Ok(())
}

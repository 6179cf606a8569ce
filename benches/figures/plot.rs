//! Lines in a chart, as SVG.

use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 400);

/// What is drawn, and what its axes mean. Times are on a logarithmic axis.
pub struct Plot {
    pub title: String,
    pub across: &'static str,
    pub up: &'static str,
    pub lines: Vec<Line>,
}

/// The points of one way to do it, from left to right.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Plot {
    /// With a logarithmic axis from left to right too.
    pub fn draw_by_powers(&self, path: &Path) {
        let (from, to) = self.width();
        self.draw(path, (from / 1.2..to * 1.2).log_scale());
    }

    /// With an even axis from left to right.
    pub fn draw_evenly(&self, path: &Path) {
        let (from, to) = self.width();
        self.draw(path, from..to * 1.05);
    }

    fn draw<X>(&self, path: &Path, x: X)
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let times = || self.points().map(|(_, y)| y);
        let (low, high) = (
            times().fold(f64::MAX, f64::min),
            times().fold(0.0, f64::max),
        );
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE).unwrap();
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 16))
            .margin(12)
            .margin_right(24)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(x, (low / 1.5..high * 1.5).log_scale())
            .unwrap();
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(self.across)
            .y_desc(self.up)
            .draw()
            .unwrap();
        for (number, line) in self.lines.iter().enumerate() {
            // The third is too light.
            let color = Palette99::pick(number + usize::from(number > 1)).to_rgba();
            let points = LineSeries::new(line.points.iter().copied(), color.stroke_width(2));
            chart
                .draw_series(points.point_size(3))
                .unwrap()
                .label(&line.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()
            .unwrap();
        root.present().unwrap();
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.lines
            .iter()
            .flat_map(|line| line.points.iter().copied())
    }

    fn width(&self) -> (f64, f64) {
        let across = || self.points().map(|(x, _)| x);
        (
            across().fold(f64::MAX, f64::min),
            across().fold(0.0, f64::max),
        )
    }
}

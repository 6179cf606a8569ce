//! What is printed, which is the document that people read: the machine, the method, tables, plots, and the figures that are beyond
//! their limits.
//!
//! Tables are Markdown, padded so that they read well in a terminal too.

use std::path::PathBuf;
use std::time::Duration;

use crate::plot::Plot;

/// The report of one run.
pub struct Report {
    /// Small sizes, to see that it works.
    pub quick: bool,
    /// Where plots go.
    plots: PathBuf,
    section: &'static str,
    beyond: Vec<String>,
}

/// A table: its first column to the left, the others to the right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Report {
    /// Begins the document.
    pub fn begin(quick: bool, plots: PathBuf) -> Self {
        let size = if quick {
            " Small sizes, to see that it works."
        } else {
            ""
        };
        println!(
            "# Figures\n\nPrinted by `cargo bench`.{size} {}. Counts of requests, tokens and status writes \
             do not depend on the machine. Times do: compare them only within one run. A limit with (!) was missed. \
             Many requests at once, hostile namespaces and what tests measure: [capacity](capacity.md).\n",
            machine()
        );
        Self {
            quick,
            plots,
            section: "",
            beyond: Vec::new(),
        }
    }

    /// Begins a section.
    pub fn section(&mut self, section: &'static str, title: &str) {
        self.section = section;
        println!("## {title}\n\n`cargo bench -- {section}`. {}.\n", load());
    }

    /// A plot, which is drawn by `draw` to the file that it is given.
    pub fn plot(&self, name: &str, plot: &Plot, draw: impl FnOnce(&Plot, &std::path::Path)) {
        std::fs::create_dir_all(&self.plots).unwrap();
        let file = format!("{name}.svg");
        draw(plot, &self.plots.join(&file));
        println!("![{}](figures/{file})\n", plot.title);
    }

    /// A figure beside its limit: the limit as a cell, marked where the figure is beyond it.
    pub fn held(&mut self, figure: &str, within: bool, limit: &str) -> String {
        if within {
            return limit.to_owned();
        }
        self.beyond.push(format!("{}: {figure}", self.section));
        format!("{limit} (!)")
    }

    pub fn end(&self) {
        println!("## Limits\n");
        if self.beyond.is_empty() {
            println!("All figures are within their limits.");
            return;
        }
        println!(
            "Beyond their limits (times depend on what else the machine does; counts and sizes do not):\n"
        );
        for figure in &self.beyond {
            println!("- {figure}");
        }
    }
}

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        Self {
            rows: vec![columns.iter().map(|&column| column.to_owned()).collect()],
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn print(&self) {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
                .max(3)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = widths
                .iter()
                .enumerate()
                .map(|(column, &width)| {
                    let cell = row.get(column).map_or("", String::as_str);
                    if column == 0 {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                })
                .collect();
            println!("| {} |", cells.join(" | "));
            if number == 0 {
                let rules = widths.iter().enumerate().map(|(column, &width)| {
                    let rule = "-".repeat(width - 1);
                    if column == 0 {
                        format!("{rule}-")
                    } else {
                        format!("{rule}:")
                    }
                });
                println!("| {} |", rules.collect::<Vec<_>>().join(" | "));
            }
        }
        println!();
    }
}

/// Says how something is measured.
pub fn method(text: &str) {
    println!("{text}\n");
}

pub fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

#[allow(clippy::cast_precision_loss, reason = "a figure to be read")]
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// What this process holds of the machine's memory.
pub fn held_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// How busy the machine was.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split(' ').next().unwrap_or_default();
    format!("Load average before: {load}")
}

/// `2 cores, AMD EPYC 7763`
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("CPU unknown", |(_, model)| model.trim());
    format!(
        "Measured on {cores} cores, {model}, with registries, API server and what measures them on the same machine"
    )
}

//! Figures of a run: shown as they come, and kept for `benches/results.md` when `WASILET_BENCH_RESULTS` names a directory
//! (`make bench WRITE=1`).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A figure that has a target.
pub fn target(what: &str, target: &str, figure: &str, met: bool) {
    let verdict = if met { "met" } else { "not met" };
    println!("{what}: {figure} (target {target}: {verdict})");
    keep(&format!("| {what} | {target} | {figure} | {verdict} |"));
}

/// A figure that is worth knowing.
pub fn figure(what: &str, figure: &str) {
    println!("{what}: {figure}");
    keep(&format!("| {what} | | {figure} | |"));
}

/// The directory of what is kept.
pub fn directory() -> Option<PathBuf> {
    std::env::var_os("WASILET_BENCH_RESULTS").map(PathBuf::from)
}

fn keep(row: &str) {
    let Some(directory) = directory() else { return };
    let file = directory.join("rows");
    let opened = fs::File::options().create(true).append(true).open(&file);
    let written = opened.and_then(|mut file| writeln!(file, "{row}"));
    written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// A line of the plot.
pub struct Line<'a> {
    /// What it shows.
    pub name: &'a str,
    /// Of the number of pods.
    pub points: &'a [(f64, f64)],
}

/// Draws lines over the number of pods, which grows by tens; the other axis begins at nought.
pub fn plot(path: &Path, title: &str, unit: &str, lines: &[Line<'_>]) {
    const COLORS: [&str; 4] = ["#3b6fd4", "#d4713b", "#2f9e62", "#8b4fc2"];
    let (left, top, width, height) = (70.0, 40.0, 560.0, 300.0);
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let (first, last) = points().fold((f64::MAX, f64::MIN), |(low, high), (x, _)| (low.min(x), high.max(x)));
    let most = points().fold(1.0, |most: f64, (_, y)| most.max(y));
    // To the next round number, so that the grid has round labels.
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|digit| digit * 10f64.powf((most / 5.0).log10().floor()));
    let step = step.into_iter().find(|step| step * 5.0 >= most).unwrap_or(most / 5.0);
    let x_at = |x: f64| left + width * (x.log10() - first.log10()) / (last.log10() - first.log10()).max(f64::EPSILON);
    let y_at = |y: f64| top + height - height * y / (step * 5.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 660 {:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{left}\" y=\"22\" font-size=\"15\">{title}</text>\n",
        top + height + 60.0
    );
    for row in 0..=5 {
        let y = y_at(step * f64::from(row));
        svg += &format!(
            "<line x1=\"{left}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            left + width,
            left - 8.0,
            y + 4.0,
            step * f64::from(row)
        );
    }
    let bottom = top + height;
    for x in lines.first().map_or(&[][..], |line| line.points).iter().map(|point| point.0) {
        svg += &format!("<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{x}</text>\n", x_at(x), bottom + 18.0);
    }
    svg += &format!(
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">pods</text>\n",
        left + width / 2.0,
        bottom + 36.0
    );
    svg += &format!(
        "<text x=\"16\" y=\"{:.0}\" transform=\"rotate(-90 16 {:.0})\">{unit}</text>\n",
        top + height / 2.0,
        top + height / 2.0
    );
    for (index, (line, color)) in lines.iter().zip(COLORS.iter().cycle()).enumerate() {
        let path: Vec<String> = line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        svg +=
            &format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\n", path.join(" "));
        let y = top + 16.0 + 18.0 * index as f64;
        svg += &format!(
            "<text x=\"{:.0}\" y=\"{y:.0}\" text-anchor=\"end\" fill=\"{color}\">{}</text>\n",
            left + width,
            line.name
        );
    }
    svg += "</svg>\n";
    fs::write(path, svg).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// How much of a core a process takes, over this time; its directory below /proc.
pub fn cpu_share(process: &std::path::Path, over: std::time::Duration) -> f64 {
    let before = cpu_seconds(process);
    std::thread::sleep(over);
    (cpu_seconds(process) - before) / over.as_secs_f64()
}

/// What a process has used of the CPU, in seconds. Of all its threads, those that ended too: a
/// sum over the threads that live would shrink when one ends.
pub fn cpu_seconds(process: &std::path::Path) -> f64 {
    let text = std::fs::read_to_string(process.join("stat")).expect("it runs");
    // The name, in parentheses, may have blanks; user and system time are the 12th and 13th after it, in ticks.
    let fields = text.rsplit_once(')').expect("a name in parentheses").1.split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).map(|field| field.parse::<f64>().expect("a number")).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

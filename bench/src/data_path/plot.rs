//! The table as a picture: what each thing costs, in times of nginx.

use std::fmt::Write as _;

use super::axis::{self, Axis};
use super::proxy::Kind;
use super::report::Report;

const BARS: [(Kind, &str); 3] = [(Kind::Wspool, "#2b6cb0"), (Kind::HaProxy, "#dd9b3d"), (Kind::Nginx, "#a0aec0")];
/// Where the bars begin, and how many pixels stand for nginx's cost.
const LEFT: u32 = 360;
const SCALE: f64 = 260.0;
const TOP: u32 = 64;
const BAR: u32 = 9;
const GAP: u32 = 12;
/// Longer bars are cut: their number says how long they are.
const LONGEST: f64 = 1.6;
const WIDTH: u32 = 850;

/// As SVG.
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = TOP;
    // What traffic leaves behind is next to nothing with each of them: there is no sense in its ratio.
    let shown = axis::all().into_iter().filter(|axis| *axis != axis::AFTER);
    for axis in shown.filter(|axis| cost(report, Kind::Wspool, axis).is_some()) {
        body += &group(report, &axis, y);
        y += GAP + BAR * 3;
    }
    let mut legend = String::new();
    for ((kind, colour), x) in BARS.iter().zip((LEFT..).step_by(90)) {
        let (name, text) = (kind.name(), x + 17);
        write!(legend, "<rect x='{x}' y='36' width='12' height='12' fill='{colour}'/>").expect("memory");
        writeln!(legend, "<text x='{text}' y='46'>{name}</text>").expect("memory");
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{y}' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='12' y='22' font-size='15'>Cost in times of nginx's: shorter is better (of rates, the time for each)</text>\n\
         {legend}{body}</svg>\n"
    )
}

/// The bars of one axis, below each other.
fn group(report: &Report, axis: &Axis, top: u32) -> String {
    let (right, middle) = (LEFT - 10, top + BAR * 2);
    let mut group = format!("<text x='{right}' y='{middle}' text-anchor='end'>{}</text>\n", axis.name);
    for ((kind, colour), y) in BARS.iter().zip((top..).step_by(BAR as usize)) {
        let Some(cost) = cost(report, *kind, axis) else { continue };
        let length = cost.clamp(0.0, LONGEST) * SCALE;
        let (end, below, height) = (f64::from(LEFT) + length + 4.0, y + BAR - 1, BAR - 1);
        write!(group, "<rect x='{LEFT}' y='{y}' width='{length:.1}' height='{height}' fill='{colour}'/>")
            .expect("memory");
        writeln!(group, "<text x='{end:.1}' y='{below}' font-size='9'>{cost:.2}</text>").expect("memory");
    }
    group
}

/// In times of nginx's.
fn cost(report: &Report, kind: Kind, axis: &Axis) -> Option<f64> {
    let ratio = report.ratio(kind, Kind::Nginx, axis)?;
    Some(if axis.more_is_better() { 1.0 / ratio } else { ratio })
}

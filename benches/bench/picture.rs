//! The picture for the documents: one bar for each ratio that has a bound, and a mark where the bound is.

use std::fmt::Write as _;

use crate::judge::{Bound, Row};
use crate::report::{Report, bound};

const ROW: u32 = 22;
const TOP: u32 = 56;
const LABELS: u32 = 380;
const BAR: f64 = 360.0;
const WIDTH: u32 = 960;
/// Bars end at this multiple of their bound.
const LONGEST: f64 = 2.0;

/// The report as SVG text.
pub(crate) fn svg(report: &Report) -> String {
    let bars: Vec<(&str, &Row)> = report
        .scenarios
        .iter()
        .flat_map(|s| s.rows.iter().map(|row| (s.name, row)))
        .filter(|(_, r)| share(r).is_some())
        .collect();
    let height = TOP + ROW * u32::try_from(bars.len()).unwrap_or(0) + 20;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">Every bound of the issue, and how close it is</text>\n\
         <text x=\"12\" y=\"42\" fill=\"#666666\">{}</text>\n",
        escaped(&report.ground())
    );
    for (place, (name, row)) in (0..).zip(bars) {
        bar(&mut text, TOP + ROW * place, name, row);
    }
    text.push_str("</svg>\n");
    text
}

/// The figure as a share of its bound.
fn share(row: &Row) -> Option<f64> {
    match row.bound? {
        Bound::RatioAtLeast(bound) | Bound::RatioAtMost(bound) => Some(row.ratio? / bound),
        Bound::AtMost(bound) => Some(row.onceflow? / bound),
    }
}

fn bar(text: &mut String, y: u32, name: &str, row: &Row) {
    let (Some(share), Some(limit), Some(kept)) = (share(row), row.bound, row.is_kept()) else { return };
    let width = share.min(LONGEST) / LONGEST * BAR;
    let colour = if kept { "#3a8f5c" } else { "#c0392b" };
    let value = match limit {
        Bound::AtMost(_) => row.onceflow,
        _ => row.ratio,
    };
    let label = if row.of.is_empty() { row.measure.clone() } else { format!("{} ({})", row.measure, row.of) };
    let mark = f64::from(LABELS) + BAR / LONGEST;
    let result = write!(
        text,
        "<text x=\"12\" y=\"{base}\">{name}: {label}</text>\n\
         <rect x=\"{LABELS}\" y=\"{y}\" width=\"{width:.1}\" height=\"15\" fill=\"{colour}\"/>\n\
         <line x1=\"{mark:.1}\" x2=\"{mark:.1}\" y1=\"{y}\" y2=\"{end}\" stroke=\"#222222\"/>\n\
         <text x=\"{right}\" y=\"{base}\">{value:.2} ({limit}) {verdict}</text>\n",
        base = y + 12,
        end = y + 15,
        label = escaped(&label),
        right = LABELS + 372,
        value = value.unwrap_or(f64::NAN),
        limit = escaped(&bound(limit)),
        verdict = if kept { "ok" } else { "MISSED" },
    );
    result.expect("writing to a text can't fail");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

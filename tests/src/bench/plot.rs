//! Horizontal bars with whiskers, as SVG.

use std::fmt::Write as _;

use crate::bench::figures::Spread;

/// All lengths are in the SVG's own units.
const LABELS: f64 = 130.0;
const WIDTH: f64 = 560.0;
const NUMBERS: f64 = 90.0;
const ROW: f64 = 22.0;
const BAR: f64 = 14.0;

/// One value.
pub struct Bar {
    pub label: String,
    /// Drawn in the colour of the balancer.
    pub ours: bool,
    /// The median is the bar, the extremes are its whisker.
    pub spread: Spread,
    pub shown: String,
}

/// A drawing of bars from 0, the longest whisker as wide as the drawing.
pub fn bars(bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.spread.high).fold(0.0, f64::max);
    let length = |value: f64| if most > 0.0 { value / most * WIDTH } else { 0.0 };
    let (mut top, mut body) = (0.0, String::new());
    for bar in bars {
        let Spread { median, low, high } = bar.spread;
        let (middle, base) = (top + ROW / 2.0, top + ROW / 2.0 + 4.0);
        let class = if bar.ours { "ours" } else { "theirs" };
        let _ = writeln!(
            body,
            "<text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{LABELS:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR:.1}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
             <text x=\"{:.1}\" y=\"{base:.1}\">{}</text>",
            LABELS - 8.0,
            bar.label,
            middle - BAR / 2.0,
            length(median),
            LABELS + length(low),
            LABELS + length(high),
            LABELS + length(high) + 8.0,
            bar.shown,
        );
        top += ROW;
    }
    let width = LABELS + WIDTH + NUMBERS;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {top:.0}\" width=\"{width:.0}\" \
         role=\"img\">\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_shares_of_the_longest_whisker() {
        let bar = |median, high, ours| Bar {
            label: "way".to_owned(),
            ours,
            spread: Spread { median, low: median, high },
            shown: "5".to_owned(),
        };
        let drawn = bars(&[bar(50.0, 100.0, true), bar(25.0, 25.0, false)]);
        assert!(drawn.contains("class=\"ours\" x=\"130.0\" y=\"4.0\" width=\"280.0\""), "{drawn}");
        assert!(drawn.contains("class=\"theirs\" x=\"130.0\" y=\"26.0\" width=\"140.0\""), "{drawn}");
        assert!(drawn.contains("viewBox=\"0 0 780 44\""), "{drawn}");
        assert!(bars(&[bar(0.0, 0.0, true)]).contains("width=\"0.0\""), "no value is no division by zero");
    }
}

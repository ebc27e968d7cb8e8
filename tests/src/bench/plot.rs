//! Horizontal bars with whiskers.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::bench::figures::Spread;
use crate::support::drawing::{Canvas, Drawing};

const WIDTH: u32 = 780;
const EDGE: f64 = 8.0;
const TITLE: f64 = 34.0;
const ROW: f64 = 22.0;
const BAR: f64 = 14.0;
/// Between a bar and text.
const GAP: f64 = 8.0;
/// Heights of text.
const LARGE: u32 = 17;
const SMALL: u32 = 14;

pub const PAPER: RGBColor = WHITE;
pub const INK: RGBColor = RGBColor(0x1c, 0x23, 0x30);
pub const OURS: RGBColor = RGBColor(0x2f, 0x6f, 0xde);
pub const THEIRS: RGBColor = RGBColor(0x9a, 0xa6, 0xbd);

/// One value.
pub struct Bar {
    pub label: String,
    /// Drawn in the colour of the balancer.
    pub ours: bool,
    /// The median is the bar, the extremes are its whisker.
    pub spread: Spread,
    pub shown: String,
}

/// Bars from 0, below a title; the longest whisker is as wide as the labels and the numbers leave.
pub struct Bars<'a> {
    pub title: String,
    pub bars: &'a [Bar],
}

/// The share of the longest bar's length; nothing where a value is below 0, as a difference may be.
fn share(value: f64, most: f64) -> f64 {
    if most > 0.0 { (value / most).max(0.0) } else { 0.0 }
}

impl Drawing for Bars<'_> {
    fn size(&self) -> (u32, u32) {
        #[expect(clippy::cast_precision_loss, reason = "few bars")]
        let rows = self.bars.len() as f64;
        (WIDTH, (TITLE + rows * ROW + EDGE) as u32)
    }

    fn draw<B: DrawingBackend<ErrorType: 'static>>(&self, canvas: &Canvas<B>) -> Result<()> {
        let area = &canvas.area;
        let [edge, gap, row, bar_height] = [EDGE, GAP, ROW, BAR].map(|length| canvas.length(length));
        let title = canvas.font(LARGE).color(&INK);
        area.draw(&Text::new(&*self.title, (edge, edge), title))?;
        let small = canvas.font(SMALL);
        let widest = |text: fn(&Bar) -> &str| -> Result<i32> {
            let widths = self.bars.iter().map(|bar| small.box_size(text(bar)));
            Ok(widths
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .map(|(width, _)| width as i32)
                .max()
                .unwrap_or(0))
        };
        let left = edge + widest(|bar| &bar.label)? + gap;
        let length = canvas.length(WIDTH.into()) - edge - widest(|bar| &bar.shown)? - gap - left;
        let most = self.bars.iter().map(|bar| bar.spread.high).fold(0.0, f64::max);
        let at = |value: f64| left + (f64::from(length) * share(value, most)).round() as i32;
        let text = |place| small.color(&INK).pos(Pos::new(place, VPos::Center));
        let mut middle = canvas.length(TITLE) + row / 2;
        for Bar { label, ours, spread, shown } in self.bars {
            let (top, bottom) = (middle - bar_height / 2, middle + bar_height / 2);
            let colour = if *ours { OURS } else { THEIRS };
            area.draw(&Text::new(&**label, (left - gap, middle), text(HPos::Right)))?;
            area.draw(&Rectangle::new([(left, top), (at(spread.median), bottom)], colour.filled()))?;
            let whisker = vec![(at(spread.low), middle), (at(spread.high), middle)];
            area.draw(&PathElement::new(whisker, INK.stroke_width(canvas.stroke(1))))?;
            area.draw(&Text::new(&**shown, (at(spread.high) + gap, middle), text(HPos::Left)))?;
            middle += row;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::drawing::{colour, png, svg};

    fn bar(label: &str, median: f64, ours: bool) -> Bar {
        let spread = Spread { median, low: median, high: median };
        Bar { label: label.to_owned(), ours, spread, shown: "5".to_owned() }
    }

    /// The widths of all bars of a colour.
    fn widths(drawn: &str, colour_of: RGBColor) -> Vec<u32> {
        let fill = format!("fill=\"{}\"", colour(colour_of));
        let rows = drawn.lines().filter(|line| line.starts_with("<rect") && line.contains(&fill));
        let width = |line: &str| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok();
        rows.map(|line| width(line).expect("a width")).collect()
    }

    #[test]
    fn bars_have_the_room_that_labels_leave() {
        /// Label, value, and whether it is the balancer's.
        type Given = (&'static str, f64, bool);
        // The widths of the balancer's bars, and of the others: the longest ends before its number.
        let rows: [(&[Given], [&[u32]; 2]); 4] = [
            (&[("", 50.0, true), ("", 25.0, false)], [&[741], &[371]]),
            (&[("relayed", 50.0, true), ("nft", 25.0, false)], [&[697], &[349]]),
            (&[("200,000, 200,000 active", 50.0, true), ("nft", -25.0, true)], [&[594, 0], &[]]),
            (&[("nft", 0.0, false)], [&[], &[0]]),
        ];
        for (bars, expected) in rows {
            let bars: Vec<Bar> = bars.iter().map(|&(label, value, ours)| bar(label, value, ours)).collect();
            let drawn = svg(&Bars { title: "p99, µs".to_owned(), bars: &bars }).expect("it is drawn");
            assert_eq!([OURS, THEIRS].map(|colour| widths(&drawn, colour)), expected, "{drawn}");
        }
        assert!(png(&Bars { title: "nothing".to_owned(), bars: &[] }).is_ok());
    }

    #[test]
    fn lengths_are_shares_of_the_longest_whisker() {
        for (value, most, expected) in
            [(50.0, 100.0, 0.5), (100.0, 100.0, 1.0), (-5.0, 100.0, 0.0), (0.0, 0.0, 0.0), (-5.0, 0.0, 0.0)]
        {
            assert!((share(value, most) - expected).abs() < 1e-9, "{value} of {most}");
        }
    }
}

//! Drawings as SVG and as PNG, by the same code.

use anyhow::{Context as _, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontDesc, register_font};

/// The font of all text. A PNG has the embedded one: its text must not depend on the fonts of the machine.
const FONT: &str = "sans-serif";
/// Pixels of a PNG for each unit of a drawing: it stays sharp where it is shown larger, as on a fine screen.
const SCALE: u32 = 2;

/// Something to draw on a canvas of either kind.
pub trait Drawing {
    fn size(&self) -> (u32, u32);

    fn draw<B: DrawingBackend<ErrorType: 'static>>(&self, canvas: &Canvas<B>) -> Result<()>;
}

/// A white area for a drawing.
pub struct Canvas<B: DrawingBackend> {
    pub area: DrawingArea<B, Shift>,
    scale: u32,
}

impl<B: DrawingBackend<ErrorType: 'static>> Canvas<B> {
    /// Draws all of it.
    fn finish(backend: B, scale: u32, drawing: &impl Drawing) -> Result<()> {
        register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
            .map_err(|_error| anyhow!("the embedded font is broken"))?;
        let canvas = Self { area: backend.into_drawing_area(), scale };
        canvas.area.fill(&WHITE)?;
        drawing.draw(&canvas)?;
        canvas.area.present().context("failed to end the drawing")
    }

    /// A length of the drawing, on this canvas.
    pub fn length(&self, length: f64) -> i32 {
        (length * f64::from(self.scale)).round() as i32
    }

    /// The width of a line.
    pub fn stroke(&self, width: u32) -> u32 {
        width * self.scale
    }

    /// Text of this height.
    pub fn font(&self, height: u32) -> FontDesc<'static> {
        (FONT, height * self.scale).into_font()
    }
}

/// As it stands in an SVG.
pub fn colour(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// To both files of a drawing; `name` lacks the ending.
pub fn links(name: &str) -> String {
    format!("<a href=\"{name}.svg\">SVG</a> <a href=\"{name}.png\">PNG</a>")
}

pub fn svg(drawing: &impl Drawing) -> Result<String> {
    let mut text = String::new();
    Canvas::finish(SVGBackend::with_string(&mut text, drawing.size()), 1, drawing)?;
    Ok(text)
}

pub fn png(drawing: &impl Drawing) -> Result<Vec<u8>> {
    let (width, height) = drawing.size();
    let (width, height) = (width * SCALE, height * SCALE);
    let mut pixels = vec![0; (width * height * 3) as usize];
    Canvas::finish(BitMapBackend::with_buffer(&mut pixels, (width, height)), SCALE, drawing)?;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text in the left half, if there is any, and a square in the right one.
    struct Sign(&'static str);

    impl Drawing for Sign {
        fn size(&self) -> (u32, u32) {
            (200, 30)
        }

        fn draw<B: DrawingBackend<ErrorType: 'static>>(&self, canvas: &Canvas<B>) -> Result<()> {
            let at = |x, y| (canvas.length(x), canvas.length(y));
            canvas.area.draw(&Text::new(self.0, at(5.0, 5.0), canvas.font(15).color(&BLACK)))?;
            canvas.area.draw(&Rectangle::new([at(150.0, 5.0), at(170.0, 25.0)], BLUE.filled()))?;
            Ok(())
        }
    }

    /// The coloured pixels of each half.
    fn ink(file: &[u8]) -> [usize; 2] {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        let frame = reader.next_frame(&mut pixels).expect("a whole picture");
        assert_eq!((frame.width, frame.height, frame.color_type), (400, 60, png::ColorType::Rgb));
        let coloured = pixels.chunks(3).enumerate().filter(|(_, pixel)| **pixel != [255; 3]);
        let mut halves = [0; 2];
        for (index, _) in coloured {
            halves[index % 400 / 200] += 1;
        }
        halves
    }

    #[test]
    fn a_png_shows_what_the_svg_shows() {
        // Text, and at least how many of the pixels of its half it colours.
        let rows = [("", 0), ("p99, µs", 300), ("–±√·", 100), ("−", 10)];
        for (text, least) in rows {
            let file = png(&Sign(text)).expect("it is drawn");
            assert!(file.starts_with(b"\x89PNG\r\n\x1a\n"), "{text}");
            let [left, right] = ink(&file);
            assert!(left >= least && (left == 0) == text.is_empty(), "{text}: {left} pixels");
            assert!((1_600..1_700).contains(&right), "{right} pixels of the square");
            let drawn = svg(&Sign(text)).expect("it is drawn");
            assert!(drawn.starts_with("<svg width=\"200\" height=\"30\""), "{drawn}");
            assert!(drawn.contains(&format!("\n{text}\n</text>")), "{drawn}");
        }
        let [one, same, other] = ["p99", "p99", "p50"].map(|text| png(&Sign(text)).expect("it is drawn"));
        assert!(one == same && one != other, "the picture follows the text alone");
    }
}

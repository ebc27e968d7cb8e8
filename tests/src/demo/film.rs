//! A recording of a terminal, as an SVG picture that moves by style sheets alone.

use std::fmt::Write as _;
use std::time::Duration;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

/// Columns and rows of a cell.
const CELL: (usize, usize) = (8, 17);
const MARGIN: usize = 12;
/// Of a row's text, from its top.
const BASELINE: usize = 13;
/// Between two frames.
const GAP: Duration = Duration::from_millis(450);
/// The last frame stays so long.
const HOLD: Duration = Duration::from_secs(6);
/// The classes stand for colours that read well on the picture's own background, beside dark pages and light ones.
const STYLE: &str = "text,path{font:13.3px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;\
white-space:pre;fill:#c9d1d9}.g{fill:#3fb950}.y{fill:#d29922}.r{fill:#f85149}.c{fill:#39c5cf}.b{font-weight:bold}\
@media(prefers-reduced-motion:reduce){g{animation:none!important}}";

#[derive(Debug, Default)]
pub struct Film {
    frames: Vec<(Duration, Buffer)>,
}

impl Film {
    /// Takes in the screen of a moment, unless it is as before or the last one was just now.
    pub fn note(&mut self, at: Duration, screen: &Buffer) {
        let is_new = |(last, shown): &(Duration, Buffer)| shown != screen && at.saturating_sub(*last) >= GAP;
        if self.frames.last().is_none_or(is_new) {
            self.frames.push((at, screen.clone()));
        }
    }

    /// The recording in a loop. A reader without animation sees the last frame.
    pub fn svg(&self, title: &str) -> String {
        let [Some((start, first)), Some((end, _))] = [self.frames.first(), self.frames.last()] else {
            return String::new();
        };
        let since = |at: &Duration| at.saturating_sub(*start).as_secs_f64();
        let length = since(end) + HOLD.as_secs_f64();
        let (columns, rows) = (first.area.width, first.area.height);
        let (width, height) = (usize::from(columns) * CELL.0, usize::from(rows) * CELL.1);
        let (mut style, mut body) = (STYLE.to_owned(), String::new());
        for row in 0..rows {
            // A strip of the row's lines, one below the other, moves behind a window of one line.
            let (mut strip, mut steps) = (Vec::new(), Vec::new());
            for (at, screen) in &self.frames {
                let line = line(screen, row);
                let index = strip.iter().position(|one| *one == line).unwrap_or(strip.len());
                if index == strip.len() {
                    strip.push(line);
                }
                if steps.last().is_none_or(|(_, last)| *last != index) {
                    steps.push((since(at) / length * 100.0, index));
                }
            }
            let Some((_, last)) = steps.last().copied() else { continue };
            let top = MARGIN + usize::from(row) * CELL.1;
            let _ = writeln!(body, r#"<svg x="{MARGIN}" y="{top}" width="{width}" height="{}">"#, CELL.1);
            if strip.len() > 1 {
                let _ = write!(style, "@keyframes k{row}{{");
                for (percent, index) in steps {
                    let _ = write!(style, "{percent:.2}%{{transform:translateY(-{}px)}}", index * CELL.1);
                }
                let _ = write!(style, "}}#k{row}{{animation:k{row} {length:.1}s step-end infinite}}");
            }
            let _ = write!(body, r#"<g id="k{row}" transform="translate(0 -{})">"#, last * CELL.1);
            for (index, line) in strip.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
                let _ = write!(body, r#"<g transform="translate(0 {})">{line}</g>"#, index * CELL.1);
            }
            body.push_str("</g></svg>\n");
        }
        let (width, height) = (width + 2 * MARGIN, height + 2 * MARGIN);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\">\n<title>{}</title>\n<style>{style}</style>\n\
             <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#0d1117\" stroke=\"#30363d\"/>\n{body}</svg>\n",
            escaped(title)
        )
    }
}

/// A row of a screen: texts, and paths in place of block characters, which not every font has.
fn line(screen: &Buffer, row: u16) -> String {
    let mut line = String::new();
    let cells: Vec<&Cell> = (0..screen.area.width).map(|column| &screen[(column, row)]).collect();
    let mut from = 0;
    while let Some(first) = cells.get(from) {
        let alike = |at: usize| cells.get(at).is_some_and(|cell| class(cell) == class(first));
        let mut to = from + 1;
        if let Some(eighths) = eighths(first.symbol()) {
            while alike(to) && cells[to].symbol() == first.symbol() {
                to += 1;
            }
            let (x, width, height) = (from * CELL.0, (to - from) * CELL.0, 2 * eighths - 1);
            let y = CELL.1 - 1 - height;
            let _ = write!(line, r#"<path{} d="M{x} {y}h{width}v{height}H{x}z"/>"#, class(first));
        } else if first.symbol() != " " {
            // Up to a gap, so that columns stay in place with any font.
            let is_gap = |at: usize| cells[at..].iter().take(2).all(|cell| cell.symbol() == " ");
            while alike(to) && eighths(cells[to].symbol()).is_none() && !is_gap(to) {
                to += 1;
            }
            let text: String = cells[from..to].iter().map(|cell| cell.symbol()).collect();
            let (x, length) = (from * CELL.0, (to - from) * CELL.0);
            let text = escaped(&text);
            let class = class(first);
            let _ =
                write!(line, r#"<text{class} x="{x}" y="{BASELINE}" textLength="{length}">{text}</text>"#);
        }
        from = to;
    }
    line
}

/// The height of a block character in eighths of a row.
fn eighths(symbol: &str) -> Option<usize> {
    "▁▂▃▄▅▆▇█".chars().position(|block| symbol.chars().eq([block])).map(|index| index + 1)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most colours are not used")]
fn class(cell: &Cell) -> String {
    let colour = match cell.fg {
        Color::Green => "g",
        Color::Yellow => "y",
        Color::Red => "r",
        Color::Cyan => "c",
        _ => "",
    };
    match (colour, cell.modifier.contains(Modifier::BOLD)) {
        ("", false) => String::new(),
        (colour, false) => format!(r#" class="{colour}""#),
        (colour, true) => format!(r#" class="{colour} b""#),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use quick_xml::Reader;
    use quick_xml::events::Event;
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    use super::*;
    use crate::demo::figures::Scene;

    fn screen(lines: [&str; 2]) -> Buffer {
        let mut screen = Buffer::with_lines(lines);
        screen.set_style(Rect::new(0, 1, 2, 1), Style::new().fg(Color::Red).bold());
        screen
    }

    fn film() -> Film {
        let mut film = Film::default();
        for (at, lines) in [
            (0, ["a<b  c", "1 ██▂"]),
            (100, ["too   ", "early"]),
            (1_000, ["a<b  c", "1 ██▂"]),
            (4_000, ["a<b  c", "2 ██▂"]),
        ] {
            film.note(Duration::from_millis(at), &screen(lines));
        }
        film
    }

    /// The reasons why a picture is not to be shown.
    fn faults(svg: &str, words: &[&str]) -> Vec<String> {
        let mut faults = Vec::new();
        if svg.len() >= 200_000 {
            faults.push(format!("{} bytes", svg.len()));
        }
        let mut reader = Reader::from_str(svg);
        let (mut text, mut depth) = (String::new(), 0);
        loop {
            match reader.read_event() {
                Ok(Event::Start(tag)) if tag.name().as_ref() == "script" => faults.push("a script".into()),
                Ok(Event::Start(_)) => depth += 1,
                Ok(Event::End(_)) => depth -= 1,
                Ok(Event::Text(more)) => text.extend([&*more, "\n"]),
                Ok(Event::Eof) if depth == 0 && !text.is_empty() => break,
                Ok(Event::Eof) => break faults.push("it ends early".into()),
                Ok(_) => {}
                Err(error) => break faults.push(error.to_string()),
            }
        }
        let absent = words.iter().filter(|word| !text.contains(**word));
        faults.extend(absent.map(|word| format!("no {word:?}")));
        if !text.contains("@keyframes") {
            faults.push("it does not move".into());
        }
        faults
    }

    #[test]
    fn the_pictures_of_the_documents_are_whole_and_show_each_scene() {
        let read = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pictures").join(name);
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let scenes = Scene::ALL.map(Scene::title);
        assert_eq!(faults(&read("demo.svg"), &scenes), Vec::<String>::new());
        let words = ["CONTROLLER", "refused", "draining", "NO AGENT", "DEGRADED: "];
        assert_eq!(faults(&read("top.svg"), &words), Vec::<String>::new());
    }

    #[test]
    fn a_film_is_a_strip_of_lines_for_each_row() {
        let svg = film().svg("a & b");
        for part in [
            "<title>a &amp; b</title>",
            r#"<text x="0" y="13" textLength="24">a&lt;b</text><text x="40" y="13" textLength="8">c</text>"#,
            r#"<text class="r b" x="0" y="13" textLength="16">2 </text>"#,
            r#"<path d="M16 1h16v15H16z"/><path d="M32 13h8v3H32z"/>"#,
            "@keyframes k1{0.00%{transform:translateY(-0px)}40.00%{transform:translateY(-17px)}}",
            "#k1{animation:k1 10.0s step-end infinite}",
            r#"<g id="k1" transform="translate(0 -17)">"#,
        ] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert!(!svg.contains("too") && !svg.contains("@keyframes k0"), "{svg}");
    }

    #[test]
    fn a_bad_picture_is_found() {
        let svg = film().svg("title");
        for (bad, expected) in [
            (svg.replacen("</g>", "", 1), "expected"),
            (svg.replace("</svg>", ""), "it ends early"),
            (svg.replacen("<title>", "<script>x</script><title>", 1), "a script"),
            (svg.replace("keyframes", "frames"), "it does not move"),
            (svg.clone() + &" ".repeat(200_000), "bytes"),
            (String::new(), "it ends early"),
        ] {
            let found = faults(&bad, &[]);
            assert!(found.iter().any(|fault| fault.contains(expected)), "{expected}: {found:?}");
        }
        assert_eq!(faults(&svg, &["title"]), Vec::<String>::new());
    }
}

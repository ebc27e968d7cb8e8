//! Lines of the log as journald takes them: with their priority, and without the time, which journald notes itself.

use std::{fmt::Write as _, os::unix::fs::MetadataExt as _};

use log::Level;

/// Whether standard error is the journal's stream, as `JOURNAL_STREAM` tells (`systemd.exec(5)`).
pub fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| names(&named, stderr.dev(), stderr.ino()))
}

fn names(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

/// The `text` of a record, each line of it with its priority (`sd-daemon(3)`).
pub fn lines(level: Level, text: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let mut lines = String::new();
    for line in text.lines() {
        let _infallible = writeln!(lines, "<{priority}>{line}");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_a_priority() {
        let rows = [
            (Level::Error, "a", "<3>a\n"),
            (Level::Warn, "a\nb", "<4>a\n<4>b\n"),
            (Level::Info, "a", "<6>a\n"),
            (Level::Debug, "a", "<7>a\n"),
            (Level::Info, "", ""),
        ];
        for (level, text, expected) in rows {
            assert_eq!(lines(level, text), expected, "{level} {text:?}");
        }
    }

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        let rows =
            [("8:12", true), ("8:13", false), ("9:12", false), ("", false), ("8", false), ("a:b", false)];
        for (stream, expected) in rows {
            assert_eq!(names(stream, 8, 12), expected, "{stream}");
        }
    }
}

//! Seeds as files. `xtask/src/fuzz.rs` includes this file, so it uses the standard library only.

use std::path::Path;

/// The bytes of a seed's file: those that the digits of `NAME.hex` stand for, `#` beginning a comment; of others the
/// text itself.
pub fn seed(name: &str, text: &str) -> Result<Vec<u8>, String> {
    if Path::new(name).extension().is_none_or(|extension| extension != "hex") {
        return Ok(text.as_bytes().to_vec());
    }
    let words = text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let byte = |word: &str| match word.as_bytes() {
        [high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
            u8::from_str_radix(word, 16).map_err(|error| format!("{word:?}: {error}"))
        }
        _ => Err(format!("{word:?} is not two digits")),
    };
    words.map(byte).collect()
}

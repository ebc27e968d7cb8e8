//! Inputs as files: seeds decoded for libFuzzer, and findings encoded as seeds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

#[path = "../../../../tests/src/fuzz/seed.rs"]
mod seed;

/// Bytes in a line of a finding.
const LINE: usize = 32;
/// libFuzzer's limit for a word in its dictionary, in bytes.
const LONGEST_WORD: usize = 64;

/// The bytes that a file encodes.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.display().to_string();
    let bytes = fs::read(path).with_context(|| format!("failed to read {name}"))?;
    match String::from_utf8(bytes) {
        Ok(text) => seed::seed(&name, &text).map_err(anyhow::Error::msg).context(name),
        // A file that libFuzzer wrote holds the bytes themselves.
        Err(error) => Ok(error.into_bytes()),
    }
}

/// The files in a directory, sorted; none if there is no directory.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let listed = || -> std::io::Result<Vec<PathBuf>> {
        let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
        paths.filter(|path| path.as_ref().map_or(true, |path| path.is_file())).collect()
    };
    let mut files = listed().with_context(|| format!("failed to list {}", directory.display()))?;
    files.sort();
    Ok(files)
}

/// Makes an empty directory; an old one is removed.
pub fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("failed to remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("failed to make {}", directory.display()))
}

/// Decodes each seed into a file of its own in `directory`.
pub fn decode(seeds: &[PathBuf], directory: &Path) -> Result<()> {
    for (index, path) in seeds.iter().enumerate() {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let decoded = directory.join(format!("{index:03}-{stem}"));
        fs::write(&decoded, read(path)?).with_context(|| format!("failed to write {}", decoded.display()))?;
    }
    Ok(())
}

/// Encodes an input as a seed: its extension and its text. Plain text keeps its `extension`; other input becomes hexadecimal
/// digits below the comment `about`.
pub fn encode(input: &[u8], extension: &str, about: &str) -> (String, String) {
    let plain = |text: &str| text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t'));
    match std::str::from_utf8(input) {
        Ok(text) if extension != "hex" && plain(text) => (extension.to_owned(), text.to_owned()),
        _ => {
            let about = about.lines().next().unwrap_or_default();
            let line = |bytes: &[u8]| {
                bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ") + "\n"
            };
            let digits: String = input.chunks(LINE).map(line).collect();
            ("hex".to_owned(), format!("# {about}\n{digits}"))
        }
    }
}

/// libFuzzer's dictionary of the words in texts: it copies bytes, but does not know that they belong together.
pub fn dictionary<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut words = BTreeSet::new();
    for text in texts {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
        words.extend(text.split(|c| !is_part(c)).filter(|word| word.len() > 1 && word.len() <= LONGEST_WORD));
    }
    words.into_iter().flat_map(|word| ["\"", word, "\"\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_decoded_as_in_the_tests() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content, expected) in [
            ("a.hex", &b"# all\n00 ff  # some\n7F\n"[..], Some(&[0, 255, 127][..])),
            ("b.toml", b"00 ff", Some(b"00 ff")),
            ("crash-00", b"\xff\x00", Some(b"\xff\x00")),
            ("c.hex", b"", Some(b"")),
            ("d.hex", b"0", None),
            ("e.hex", b"+1", None),
            ("f.hex", b"zz", None),
        ] {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            assert_eq!(read(&path).ok().as_deref(), expected, "{name}");
        }
        assert!(read(&directory.path().join("none")).is_err());
    }

    #[test]
    fn encoded_inputs_are_decoded_again() {
        let directory = tempfile::tempdir().unwrap();
        let long: Vec<u8> = (0..=255).collect();
        for (input, extension, written) in [
            (&b"[api]\n\tport = 1\n"[..], "toml", "toml"),
            (b"# text", "hex", "hex"),
            (b"\x1b[31m", "toml", "hex"),
            (b"\xff", "txt", "hex"),
            (b"a\r\n", "txt", "hex"),
            (&long, "hex", "hex"),
            (b"", "json", "json"),
        ] {
            let (found, text) = encode(input, extension, "why\nnot");
            assert_eq!(found, written, "{input:?}");
            let path = directory.path().join(format!("x.{found}"));
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap(), input);
        }
        assert_eq!(encode(&[7, 8], "hex", "why\nnot").1, "# why\n07 08\n");
    }

    #[test]
    fn directories_are_listed_in_order_and_decoded() {
        let directory = tempfile::tempdir().unwrap();
        let (seeds, decoded) = (directory.path().join("seeds"), directory.path().join("decoded"));
        assert_eq!(files(&seeds).unwrap(), [] as [PathBuf; 0]);
        empty(&seeds).unwrap();
        for name in ["b.hex", "a.txt"] {
            fs::write(seeds.join(name), "41").unwrap();
        }
        let listed = files(&seeds).unwrap();
        assert_eq!(listed, ["a.txt", "b.hex"].map(|name| seeds.join(name)));
        for _ in 0..2 {
            empty(&decoded).unwrap();
            decode(&listed, &decoded).unwrap();
            let decoded: Vec<_> =
                files(&decoded).unwrap().iter().map(|path| fs::read(path).unwrap()).collect();
            assert_eq!(decoded, [b"41".to_vec(), b"A".to_vec()]);
        }
    }

    #[test]
    fn words_for_the_dictionary() {
        assert_eq!(dictionary(["a = \"bc\" # é", "bc\\ \"1.5\" {x"]), "\"1.5\"\n\"bc\"\n");
        assert_eq!(dictionary([]), "");
        assert_eq!(dictionary([&*"x".repeat(65)]), "");
    }
}

//! The hard limit where the configuration names none: the files that jujud may open. Memory has no part in it: the memory
//! guard looks at the memory that is really there.

/// jujud's limit on open files (`LimitNOFILE` of its unit in every known version), where its process is not found.
const OPEN_FILES: u64 = 64_000;
/// Files that jujud opens for everything but its API's connections; of a small limit an eighth.
const RESERVED: u64 = 4_000;
/// More connections than any controller has had; picks count no more than sixteen times this.
const MOST: u64 = 1_000_000;

/// The limit for a jujud that may have `open_files` files open, and the reason for it.
pub fn derive(open_files: Option<u64>) -> (u32, String) {
    let files = open_files.unwrap_or(OPEN_FILES);
    let reserved = RESERVED.min(files / 8);
    let limit = (files - reserved).clamp(1, MOST) as u32;
    let whose = match open_files {
        Some(_) => "jujud may open",
        None => "jujud is not found; as a rule it may open",
    };
    (
        limit,
        format!("{limit} client connections ({whose} {files} files, and {reserved} are for other purposes)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_files_of_jujud_decide() {
        let rows = [
            (None, 60_000),
            (Some(64_000), 60_000),
            (Some(524_288), 520_288),
            (Some(16_000), 14_000),
            (Some(1_024), 896),
            (Some(1 << 40), 1_000_000),
            (Some(0), 1),
        ];
        for (files, limit) in rows {
            assert_eq!(derive(files).0, limit, "{files:?}");
        }
        assert_eq!(
            derive(Some(1_024)).1,
            "896 client connections (jujud may open 1024 files, and 128 are for other purposes)"
        );
    }
}

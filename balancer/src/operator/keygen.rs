//! `balancer keygen` says if nothing uses the file that it has made.

use std::path::Path;

use crate::{
    config::{Config, KeySource},
    host::interfaces,
    operator::cli,
};

/// The sentence for the operator, if the configuration of this host takes its key from elsewhere than `file`.
pub fn unused(file: &Path) -> Option<String> {
    // Without a configuration nothing is known: it may be written next.
    let config = Config::load(Path::new(cli::CONFIG), &interfaces::addresses().ok()?).ok()?;
    sentence(&config.cluster.key, file)
}

fn sentence(key: &KeySource, file: &Path) -> Option<String> {
    let source = match key {
        KeySource::File(named) if named == file => return None,
        KeySource::File(named) => format!("cluster.key_file in {} names {}", cli::CONFIG, named.display()),
        KeySource::AgentConf { .. } => "the key comes from Juju's agent.conf, and needs no file".to_owned(),
    };
    Some(format!(
        "this file is not used yet: {source}; to use it, set on every controller\n  [cluster]\n  key_file = \"{}\"",
        file.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nothing_uses_is_told() {
        let key = |path: &str| KeySource::File(path.into());
        let rows = [
            (key("/k"), "/k", None),
            (
                key("/other"),
                "/k",
                Some("names /other; to use it, set on every controller\n  [cluster]\n  key_file = \"/k\""),
            ),
        ];
        for (source, file, expected) in rows {
            let said = sentence(&source, Path::new(file));
            match expected {
                None => assert_eq!(said, None, "{source:?}"),
                Some(words) => assert!(said.unwrap().ends_with(words), "{source:?}"),
            }
        }
    }
}

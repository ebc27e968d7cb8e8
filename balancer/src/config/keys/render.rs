//! The documents that are rendered from the table of keys.

use std::fmt::Write as _;

use super::{DefaultValue, KEYS, Key, Kind};

/// Longest line of the example, in characters.
const WIDTH: usize = 118;
const HEAD: &str = "\
# Copy this file to /etc/balancer/balancer.toml and change what you need: everything in it is optional, and the values
# shown are the defaults unless a comment says otherwise. A Juju controller needs no such file, because port, controllers
# and key come from Juju's agent.conf; the keys in this file come first. `balancer check` reports mistakes, and `systemctl
# reload balancer` makes the agent read the file again. docs/configuration.md lists types and ranges.
";

/// The table of `docs/configuration.md`.
pub fn markdown() -> String {
    let mut text = "| key | value | default | meaning |\n|---|---|---|---|\n".to_owned();
    for Key { name, kind, default, help } in KEYS {
        let default = match default {
            DefaultValue::Value(value) => format!("`{value}`"),
            DefaultValue::Or(words, value) => format!("{words}, or else `{value}`"),
            DefaultValue::Derived(words, _) => (*words).to_owned(),
            DefaultValue::Required(_) => "none: the key is required".to_owned(),
        };
        let _infallible = writeln!(text, "| `{name}` | {kind} | {default} | {help} |");
    }
    text
}

/// `balancer.toml.example`: every key, commented out.
pub fn example() -> String {
    let (mut text, mut section) = (HEAD.to_owned(), "");
    for Key { name, kind, default, help } in KEYS {
        let (table, key) = name.rsplit_once('.').unwrap_or(("", name));
        if table != section && !table.contains('.') {
            let _infallible = writeln!(text, "\n[{table}]");
            section = table;
        }
        text += &match default {
            DefaultValue::Value(_) | DefaultValue::Required(_) => comment(help),
            DefaultValue::Or(words, _) | DefaultValue::Derived(words, _) => {
                comment(&format!("{help} Default: {words}."))
            }
        };
        let _infallible = if matches!(kind, Kind::Tables) {
            writeln!(text, "# [[{name}]]")
        } else {
            writeln!(text, "# {key} = {}", default.value())
        };
    }
    text
}

/// `text` as lines of a comment.
fn comment(text: &str) -> String {
    let (mut lines, mut width) = ("#".to_owned(), 1);
    for word in text.split_whitespace() {
        if width + 1 + word.len() > WIDTH {
            (lines, width) = (lines + "\n#", 1);
        }
        lines = lines + " " + word;
        width += 1 + word.len();
    }
    lines + "\n"
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;
    use crate::config::{
        Config, Host, MAX_CONTROLLERS, cluster::SYNC_PORT, controllers::MAX_NAME, paths::MAX_SOCKET_PATH,
        relay_ports::MAX_RELAY_PORTS,
    };

    const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/balancer.toml.example");
    const MARKERS: [&str; 2] = ["<!-- keys -->\n", "<!-- /keys -->\n"];

    #[test]
    fn the_documents_are_rendered_from_the_table() {
        let document = fs::read_to_string(DOCUMENT).unwrap();
        let (head, rest) =
            document.split_once(MARKERS[0]).expect("a line <!-- keys --> in docs/configuration.md");
        let (_, tail) = rest.split_once(MARKERS[1]).expect("a line <!-- /keys --> in docs/configuration.md");
        let document = format!("{head}{}\n{}\n{}{tail}", MARKERS[0], markdown(), MARKERS[1]);
        for (path, expected) in [(DOCUMENT, document), (EXAMPLE, example())] {
            if env::var_os("BALANCER_BLESS").is_some() {
                fs::write(path, &expected).unwrap();
            }
            assert!(
                fs::read_to_string(Path::new(path)).unwrap() == expected,
                "{path} is not as the table of keys: run BALANCER_BLESS=1 cargo test -p balancer --lib config::keys"
            );
        }
    }

    #[test]
    fn the_example_can_be_uncommented() {
        let lines = example();
        let is_key = |line: &str| line.starts_with('[') || line.split(' ').nth(1) == Some("=");
        let lines =
            lines.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).filter(|line| is_key(line));
        // By itself, as steer = "refuse" is not the default.
        let text = lines.filter(|line| !line.starts_with("refuse_ratio")).collect::<Vec<_>>().join("\n");
        let host = Host { juju: "/var/lib/juju".into(), ..Host::default() };
        Config::parse(Path::new("example"), &text, &host).unwrap();
        assert_eq!(text.lines().filter(|line| !line.starts_with('[')).count() + 2, KEYS.len(), "{text}");
    }

    /// Words cannot be composed in the table, so the numbers in them are checked here.
    #[test]
    fn limits_in_words_are_the_constants() {
        let rows = [
            ("cluster.listen", format!("port {SYNC_PORT}")),
            ("cluster.relay_ports", format!("1 to {MAX_RELAY_PORTS} TCP ports")),
            ("cluster.controllers", format!("at most {MAX_CONTROLLERS},")),
            ("cluster.controllers.name", format!("1 to {MAX_NAME} letters")),
            ("paths.control", format!("at most {MAX_SOCKET_PATH} bytes")),
            ("paths.juju", format!("{:?}", crate::juju::agent_conf::JUJU)),
        ];
        for (name, words) in rows {
            assert!(
                format!("{:?}", Key::named(name)).replace("\\\"", "\"").contains(&words),
                "{name}: {words}"
            );
        }
    }
}

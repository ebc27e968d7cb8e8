//! Takes secrets and clients' addresses out of a text that leaves the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddrV4},
};

const REMOVED: &str = "[removed]";
/// A key that contains one of these words has a secret value.
const SECRET: [&str; 6] = ["secret", "password", "key", "cert", "token", "nonce"];
/// The shortest text that is taken for a secret wherever it stands: Juju's passwords have 24 characters.
const LEAST: usize = 16;

/// The secrets of the host, and the names that stand for addresses.
#[derive(Default)]
pub struct Redactor {
    /// The longest first: one may be a part of another.
    secrets: Vec<String>,
    /// Addresses that stay; `None`: all do.
    kept: Option<BTreeSet<IpAddr>>,
    names: BTreeMap<IpAddr, usize>,
}

impl Redactor {
    /// `files`: the texts of the files that hold secrets. `kept`: the addresses that stay; `None`: all.
    pub fn new<'a>(files: impl IntoIterator<Item = &'a str>, kept: Option<BTreeSet<IpAddr>>) -> Self {
        let secrets: BTreeSet<String> = files.into_iter().flat_map(secrets).collect();
        let mut secrets: Vec<String> = secrets.into_iter().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets, kept, names: BTreeMap::new() }
    }

    /// Redacts `text`. The same address gets the same name in every text.
    pub fn redact(&mut self, text: &str) -> String {
        let mut text = without_secret_lines(text);
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), REMOVED);
            }
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        let mut before = None;
        while let Some(first) = rest.chars().next() {
            let end = rest.find(|one: char| !is_part(one)).unwrap_or(rest.len());
            if end == 0 {
                out.push(first);
                before = Some(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let (run, after) = rest.split_at(end);
            let is_word = |one: Option<char>| one.is_some_and(|one| one.is_alphanumeric() || one == '_');
            if is_word(before) || is_word(after.chars().next()) {
                out.push_str(run);
            } else {
                out.push_str(&self.run(run));
            }
            before = run.chars().next_back();
            rest = after;
        }
        out
    }

    /// Redacts a run of hexadecimal digits, points and colons.
    fn run(&mut self, run: &str) -> String {
        let trimmed = run.trim_end_matches(['.', ':']);
        // An unspecified IPv6 address ends in colons.
        for (address, tail) in [(run, ""), (trimmed, &run[trimmed.len()..])] {
            if let Ok(ip) = address.parse::<IpAddr>() {
                return format!("{}{tail}", self.name(ip));
            }
            if let Ok(socket) = address.parse::<SocketAddrV4>() {
                return format!("{}:{}{tail}", self.name((*socket.ip()).into()), socket.port());
            }
        }
        run.to_owned()
    }

    fn name(&mut self, address: IpAddr) -> String {
        let known = address.to_canonical();
        let is_kept = |kept: &BTreeSet<IpAddr>| {
            kept.contains(&known) || known.is_loopback() || known.is_unspecified() || known.is_multicast()
        };
        if self.kept.as_ref().is_none_or(is_kept) {
            return address.to_string();
        }
        let next = self.names.len() + 1;
        format!("address-{}", self.names.entry(known).or_insert(next))
    }
}

fn is_part(one: char) -> bool {
    one.is_ascii_hexdigit() || matches!(one, '.' | ':')
}

/// The key and the value of a line of YAML, TOML or JSON, if the value is secret. A path is no secret.
fn secret_value(line: &str) -> Option<(&str, &str)> {
    let at = line.find(['=', ':'])?;
    let (key, value) = (&line[..at], line[at + 1..].trim());
    let word = key.to_lowercase();
    let is_path = value.trim_matches(['"', '\'', ',']).starts_with('/') && word.contains("file");
    (SECRET.iter().any(|secret| word.contains(secret)) && !is_path).then_some((key, value))
}

/// Whether a line belongs to the block of text that `begun` began: it is indented.
fn goes_on(line: &str) -> bool {
    line.starts_with([' ', '\t']) || line.is_empty()
}

/// The secrets in a file of keys and values, or in one that is a key.
fn secrets(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut in_block, mut in_pem) = (false, false);
    for line in text.lines() {
        in_pem |= line.contains("-----BEGIN");
        in_block &= goes_on(line);
        if in_pem || in_block {
            found.push(line.trim().to_owned());
        } else if let Some((_, value)) = secret_value(line) {
            in_block = value.is_empty() || value.starts_with(['|', '>']);
            found.push(value.trim_matches(['"', '\'', ',']).to_owned());
        }
        in_pem &= !line.contains("-----END");
        let is_base64 = |one: char| one.is_ascii_alphanumeric() || matches!(one, '+' | '/' | '=');
        let tokens = line.split(|one| !is_base64(one));
        found.extend(tokens.filter(|one| one.len() >= LEAST && !one.starts_with('/')).map(str::to_owned));
    }
    found.retain(|secret| secret.len() >= 6 && !secret.starts_with("-----"));
    found
}

/// `text` without the values of keys that look secret, and without what stands in PEM.
fn without_secret_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN");
        if in_pem || begins {
            if begins {
                out.push_str(REMOVED);
                out.push('\n');
            }
            in_pem = !line.contains("-----END");
            continue;
        }
        match secret_value(line) {
            // A sentence has spaces in the place of a key.
            Some((key, value)) if !key.trim().contains(' ') && value.len() >= LEAST => {
                out.push_str(key);
                out.push_str(": ");
                out.push_str(REMOVED);
                out.push('\n');
            }
            _ => out.push_str(line),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT_CONF: &str = "tag: machine-0\nstatepassword: hunter2hunter2\napiaddresses:\n- 10.0.0.1:17070\n\
        sharedsecret: |\n  c2hhcmVkc2VjcmV0c2hhcmVk\n  /bGluZTJsaW5lMmxpbmUybGlu\nnonce: machine:nonce-1\n\
        controllerkey: |\n  -----BEGIN RSA PRIVATE KEY-----\n  MIIEpAIBAAKCAQEAxyz\n  /3slashFirst\n  -----END RSA PRIVATE KEY-----\n\
        logdir: /var/log/juju\n";
    const KEY: &str = "a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6a7b8c9d0aaaa\n";

    #[test]
    fn no_secret_of_the_host_is_left() {
        let secret = [
            "hunter2hunter2",
            "c2hhcmVkc2VjcmV0c2hhcmVk",
            "/bGluZTJsaW5lMmxpbmUybGlu",
            "machine:nonce-1",
            "MIIEpAIBAAKCAQEAxyz",
            "/3slashFirst",
            KEY.trim(),
        ];
        let mut redactor = Redactor::new([AGENT_CONF, KEY], None);
        for secret in secret {
            for text in [
                format!("it failed with {secret}: no"),
                format!("\"x\": \"{secret}\",\n"),
                format!("a{secret}b"),
            ] {
                let redacted = redactor.redact(&text);
                assert!(!redacted.contains(secret) && redacted.contains(REMOVED), "{redacted}");
            }
        }
        // Both files as a whole.
        let redacted = redactor.redact(&format!("{AGENT_CONF}{KEY}"));
        assert!(secret.iter().all(|secret| !redacted.contains(secret)), "{redacted}");
        assert!(redacted.contains("tag: machine-0") && redacted.contains("/var/log/juju"), "{redacted}");
    }

    #[test]
    fn unknown_secrets_go_by_their_keys_and_paths_stay() {
        let rows = [
            ("key_file = \"/etc/balancer/cluster.key\"\n", "key_file = \"/etc/balancer/cluster.key\"\n"),
            ("token = \"0123456789abcdef\"\n", "token : [removed]\n"),
            ("a\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\nb\n", "a\n[removed]\nb\n"),
            ("refused under another key: copy the file\n", "refused under another key: copy the file\n"),
        ];
        for (text, expected) in rows {
            assert_eq!(Redactor::default().redact(text), expected, "{text}");
        }
    }

    #[test]
    fn addresses_get_names_that_stay_the_same() {
        let kept = ["10.0.0.1", "fd00::1"].map(|address| address.parse().unwrap()).into_iter().collect();
        let mut redactor = Redactor::new([], Some(kept));
        let rows = [
            ("10.0.0.1 to 10.1.2.3.", "10.0.0.1 to address-1."),
            ("10.1.2.3:40000, 10.1.2.4/24", "address-1:40000, address-2/24"),
            ("[fd00::7]:5 and fd00::1", "[address-3]:5 and fd00::1"),
            ("::ffff:10.1.2.3 via ::", "address-1 via ::"),
            (
                "127.0.0.1 0.0.0.0/0 12:34:56 aa:bb:cc:dd:ee:ff 0.1.0",
                "127.0.0.1 0.0.0.0/0 12:34:56 aa:bb:cc:dd:ee:ff 0.1.0",
            ),
            ("balancer::cluster a::b", "balancer::cluster address-4"),
        ];
        for (text, expected) in rows {
            assert_eq!(redactor.redact(text), expected, "{text}");
        }
        let mut all = Redactor::new([], None);
        assert_eq!(all.redact("10.1.2.3"), "10.1.2.3");
    }
}

//! `juju_apiserver_connections` in a page of metrics, in Prometheus' text format.

use super::introspection::Connections;

const METRIC: &str = "juju_apiserver_connections";
const ENDPOINT: &str = "endpoint";

/// The sums of the samples by endpoint. Lines of other metrics, and lines that cannot be read, are skipped.
pub(super) fn parse(page: &str) -> Connections {
    let mut connections = Connections::new();
    for line in page.lines() {
        if let Some((endpoint, count)) = sample(line) {
            let sum = connections.entry(endpoint).or_default();
            *sum = count.saturating_add(*sum);
        }
    }
    connections
}

/// The endpoint and the count of a line `juju_apiserver_connections{endpoint="api",…} 12`.
fn sample(line: &str) -> Option<(String, u64)> {
    let mut rest = line.trim_start().strip_prefix(METRIC)?.trim_start().strip_prefix('{')?;
    let mut endpoint = None;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            // A timestamp may follow.
            let value: f64 = after.split_whitespace().next()?.parse().ok()?;
            let is_count = value.is_finite() && value >= 0.0;
            return is_count.then_some((endpoint?, value.round() as u64));
        }
        let (name, quoted) = rest.split_once('=')?;
        let (value, after) = unquote(quoted.trim_start())?;
        if name.trim() == ENDPOINT {
            endpoint = Some(value);
        }
        rest = after;
    }
}

/// The text in the leading quotation marks, unescaped, and the rest.
fn unquote(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_lines() {
        let rows: [(&str, Option<(&str, u64)>); 16] = [
            ("juju_apiserver_connections{endpoint=\"api\"} 12", Some(("api", 12))),
            ("juju_apiserver_connections{endpoint=\"logsink\"} 12.0 1718000000000", Some(("logsink", 12))),
            ("juju_apiserver_connections{endpoint=\"api\"} 1.2e+01", Some(("api", 12))),
            ("juju_apiserver_connections{endpoint=\"api\"}12", Some(("api", 12))),
            ("juju_apiserver_connections{a=\"x\",endpoint=\"api\",z=\"} 7\",} 12", Some(("api", 12))),
            (
                "juju_apiserver_connections { endpoint = \"a\\\"p\\\\i\\n\" , b=\"\" } 3",
                Some(("a\"p\\i\n", 3)),
            ),
            ("juju_apiserver_connections{my_endpoint=\"x\",endpoint=\"\"} 0", Some(("", 0))),
            ("juju_apiserver_connections{a=\"endpoint=\"} 12", None),
            ("juju_apiserver_connections 12", None),
            ("juju_apiserver_connections_total{endpoint=\"api\"} 12", None),
            ("# TYPE juju_apiserver_connections gauge", None),
            ("juju_apiserver_connections{endpoint=\"api\"} NaN", None),
            ("juju_apiserver_connections{endpoint=\"api\"} +Inf", None),
            ("juju_apiserver_connections{endpoint=\"api\"} -1", None),
            ("juju_apiserver_connections{endpoint=\"api", None),
            ("juju_apiserver_connections{endpoint=\"api\"}", None),
        ];
        for (line, expected) in rows {
            let found = sample(line);
            assert_eq!(
                found.as_ref().map(|(endpoint, count)| (endpoint.as_str(), *count)),
                expected,
                "{line}"
            );
        }
        let page = "x 1\njuju_apiserver_connections{endpoint=\"api\",v=\"1\"} 2\n\
                    juju_apiserver_connections{endpoint=\"api\",v=\"2\"} 3\n\n\
                    juju_apiserver_connections{endpoint=\"logsink\"} 4\n";
        assert_eq!(parse(page), Connections::from([("api".into(), 5), ("logsink".into(), 4)]));
        let huge = "juju_apiserver_connections{endpoint=\"api\"} 1e300\n".repeat(2);
        assert_eq!(parse(&huge), Connections::from([("api".into(), u64::MAX)]));
    }
}

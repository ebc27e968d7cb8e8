//! Juju's calls on one connection, and their answers: each decides by the call alone.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Known;

/// A client makes two.
const MOST_CALLS: usize = 8;
const AGENTS: [&str; 5] = ["machine-", "unit-", "application-", "controller-", "model-"];

/// What comes after a message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// The answer; the client may go on.
    Answer(String),
    /// The answer, then the end.
    Last(String),
    /// The end: this is no call of Juju's.
    End,
}

/// A client on one connection.
#[derive(Debug, Default)]
pub struct Client {
    calls: usize,
    /// The answer to `RedirectInfo`, once a login was redirected.
    redirected: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Call {
    request_id: u64,
    #[serde(rename = "type")]
    facade: String,
    #[serde(default)]
    version: u32,
    request: String,
    #[serde(default)]
    params: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Answer<'a> {
    request_id: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    error_code: &'a str,
    response: Value,
}

impl Client {
    /// Takes a message. `choose` gives the answer to `RedirectInfo`, of [`servers`], or `None` if no controller has room.
    pub fn take(&mut self, message: &str, choose: impl FnOnce() -> Option<Value>) -> Next {
        let Ok(call) = serde_json::from_str::<Call>(message) else { return Next::End };
        let answer = |error: &str, error_code: &str, response: Value| {
            let answer = Answer { request_id: call.request_id, error, error_code, response };
            serde_json::to_string(&answer).unwrap_or_default()
        };
        let refused = |error: &str, code: &str| Next::Last(answer(error, code, json!({})));
        self.calls += 1;
        if self.calls > MOST_CALLS {
            return refused("the redirector takes no more calls on this connection", "not supported");
        }
        match (call.facade.as_str(), call.version, call.request.as_str()) {
            ("Admin", 3, "Login") => {
                let tag = call.params.get("auth-tag").and_then(Value::as_str).unwrap_or_default();
                if AGENTS.iter().any(|agent| tag.starts_with(agent)) {
                    // Of "unauthorized access", an agent would conclude that it was removed, and uninstall itself.
                    return refused(
                        "agents follow no redirect: this is the balancer's redirector, for clients such as python-libjuju; an \
                         agent must dial the controllers' API port, as apiaddresses in its agent.conf lists it",
                        "not supported",
                    );
                }
                let Some(redirected) = choose() else {
                    return refused("try again: no controller has room for this client now", "try again");
                };
                self.redirected = Some(redirected);
                let error = "redirection required: this is the balancer's redirector; use a client that follows redirects, \
                             such as python-libjuju, or dial a controller's API port";
                // Without error-info, as a client that is given one does not follow.
                Next::Answer(answer(error, "redirection required", json!({})))
            }
            ("Admin", 3, "RedirectInfo") => match &self.redirected {
                Some(redirected) => Next::Answer(answer("", "", redirected.clone())),
                None => Next::Answer(answer("not redirected: log in first", "", json!({}))),
            },
            ("Admin", _, "Login" | "RedirectInfo") => {
                refused("the redirector speaks version 3 of Admin, as Juju does since 2.0", "not implemented")
            }
            _ => refused(
                "this is the balancer's redirector: it takes Login and RedirectInfo of Admin, and nothing else",
                "not implemented",
            ),
        }
    }
}

/// The answer to `RedirectInfo`: the addresses of `controllers` with the API's port, and the `authority` that signs their
/// certificates.
pub fn servers(controllers: &[&Known], port: u16, authority: &str) -> Value {
    let server = |address: &IpAddr| {
        // python-libjuju writes no brackets around an IPv6 address, and its whole dial fails; it follows public ones only.
        let (kind, scope) = if address.is_ipv4() { ("ipv4", "public") } else { ("ipv6", "local-cloud") };
        json!({ "value": address, "type": kind, "scope": scope, "port": port })
    };
    let of_one = |known: &&Known| known.controller.addresses.iter().map(server).collect::<Value>();
    json!({ "servers": controllers.iter().map(of_one).collect::<Value>(), "ca-cert": authority })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redirect::view::testing::known;

    fn call(facade: &str, version: u32, request: &str, tag: &str) -> String {
        let params = json!({ "auth-tag": tag });
        json!({ "request-id": 7, "type": facade, "version": version, "request": request, "params": params })
            .to_string()
    }

    #[test]
    fn each_call_gets_the_answer_that_its_client_understands() {
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum End {
            Open,
            Closed,
        }
        use End::{Closed, Open};
        // The call, whether a controller has room; the error's code, a part of its text, and whether the connection stays.
        let rows = [
            (
                call("Admin", 3, "Login", "user-admin"),
                true,
                "redirection required",
                "follows redirects",
                Open,
            ),
            (call("Admin", 3, "Login", "user-bob@external"), true, "redirection required", "", Open),
            (call("Admin", 3, "Login", ""), true, "redirection required", "", Open),
            (call("Admin", 3, "Login", "user-admin"), false, "try again", "no controller has room", Closed),
            (call("Admin", 3, "Login", "machine-0"), true, "not supported", "apiaddresses", Closed),
            (call("Admin", 3, "Login", "unit-mysql-0"), true, "not supported", "apiaddresses", Closed),
            (call("Admin", 3, "Login", "application-mysql"), true, "not supported", "apiaddresses", Closed),
            (call("Admin", 3, "Login", "controller-0"), false, "not supported", "apiaddresses", Closed),
            (call("Admin", 2, "Login", "user-admin"), true, "not implemented", "version 3", Closed),
            (call("Admin", 3, "RedirectInfo", ""), true, "", "not redirected", Open),
            (call("Pinger", 1, "Ping", ""), true, "not implemented", "nothing else", Closed),
            (call("Client", 6, "FullStatus", ""), true, "not implemented", "nothing else", Closed),
        ];
        for (message, has_room, code, words, end) in rows {
            let next = Client::default().take(&message, || has_room.then(|| json!({})));
            let (text, found) = match next {
                Next::Answer(text) => (text, Open),
                Next::Last(text) => (text, Closed),
                Next::End => panic!("{message}: no answer"),
            };
            let answer: Value = serde_json::from_str(&text).unwrap();
            let error = answer["error"].as_str().unwrap();
            assert_eq!((answer["request-id"].as_u64(), found), (Some(7), end), "{message}");
            assert_eq!(
                answer.get("error-code").and_then(Value::as_str).unwrap_or_default(),
                code,
                "{message}"
            );
            assert!(error.contains(words) && answer.get("error-info").is_none(), "{message}: {text}");
        }
    }

    #[test]
    fn malformed_messages_and_endless_calls_end_the_connection() {
        for message in [
            "",
            "{",
            "[]",
            "null",
            "7",
            r#"{"request-id":1}"#,
            r#"{"request-id":-1,"type":"Admin","request":"Login"}"#,
        ] {
            assert_eq!(Client::default().take(message, || Some(json!({}))), Next::End, "{message}");
        }
        let mut client = Client::default();
        let mut take = || client.take(&call("Admin", 3, "RedirectInfo", ""), || None);
        assert!((0..MOST_CALLS).all(|_| matches!(take(), Next::Answer(_))));
        assert!(matches!(take(), Next::Last(_)));
    }

    #[test]
    fn a_client_is_told_the_controllers_that_its_login_chose() {
        let (mut client, b, c) = (Client::default(), known("b", 0), known("c", 0));
        let login =
            client.take(&call("Admin", 3, "Login", "user-admin"), || Some(servers(&[&b, &c], 17071, "CA")));
        assert!(matches!(login, Next::Answer(_)));
        for _ in 0..2 {
            let Next::Answer(text) = client.take(&call("Admin", 3, "RedirectInfo", ""), || None) else {
                panic!("it stays redirected")
            };
            let server =
                |value, kind, scope| json!({ "value": value, "type": kind, "scope": scope, "port": 17071 });
            let both =
                json!([server("10.0.0.1", "ipv4", "public"), server("fd00::1", "ipv6", "local-cloud")]);
            let answer: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(
                answer,
                json!({ "request-id": 7, "response": { "servers": [both, both], "ca-cert": "CA" } })
            );
        }
    }
}

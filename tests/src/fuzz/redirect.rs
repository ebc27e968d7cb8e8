//! A client of the redirector, with messages in lines.

use balancer::redirect::rpc::{Client, Next};
use serde_json::{Value, json};

/// Each message is answered under its own number or ends the connection, and no agent is redirected.
pub fn feed(data: &[u8]) {
    let mut client = Client::default();
    for line in String::from_utf8_lossy(data).lines() {
        let (text, goes_on) = match client.take(line, || Some(json!({ "servers": [] }))) {
            Next::Answer(text) => (text, true),
            Next::Last(text) => (text, false),
            Next::End => return,
        };
        let call: Value = serde_json::from_str(line).expect("a call");
        let answer: Value = serde_json::from_str(&text).expect("an answer");
        assert_eq!(answer["request-id"], call["request-id"], "{text}");
        let tag = call["params"]["auth-tag"].as_str().unwrap_or_default();
        let is_redirect = answer["error-code"] == "redirection required";
        assert!(!is_redirect || (goes_on && !tag.starts_with("machine-")), "{text}");
        assert!(goes_on || answer["error"].as_str().is_some_and(|error| !error.is_empty()), "{text}");
        if !goes_on {
            return;
        }
    }
}

//! Juju's messages over the websocket, as far as stand-in server and fleet speak them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// A call: `{"request-id":1,"type":"Admin","version":3,"request":"Login","params":{…}}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request {
    /// Chosen by the caller, repeated in the answer.
    pub request_id: u64,
    /// Facade, such as `Admin` or `Pinger`; `Test` exists for the fixtures only.
    #[serde(rename = "type")]
    pub facade: String,
    #[serde(default)]
    pub version: u32,
    pub request: String,
    #[serde(default)]
    pub params: Value,
}

/// An answer: `{"request-id":1,"response":{…}}` or one with `error` and `error-code`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Response {
    pub request_id: u64,
    #[serde(default)]
    pub response: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The error in machine-readable words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
}

/// The answer of `Test`/`Peer`: the connection as the server sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Peer {
    pub server: String,
    /// From `accept()`, IPv4 unmapped, as is `local`.
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

/// `SocketAddr` with a v4-mapped IPv6 address turned into the IPv4 address that was meant.
pub const fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Buffers for thousands of idle connections a process: the library's default costs 300 kB a pair.
pub fn small_buffers() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0)
}

pub fn large_buffers() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(128 << 10).write_buffer_size(128 << 10)
}

/// Path on which the server takes and gives N bytes: `/test/bulk?bytes=N`.
pub const BULK_PATH: &str = "/test/bulk";
/// Payload of one websocket message of a bulk transfer, in bytes.
pub const BULK_MESSAGE: usize = 64 << 10;
/// Model of the fleet's agents; any one would do.
pub const MODEL: &str = "6a7f5e0c-5b0e-4a52-8a2a-3c1f0f4c9d11";
/// Model of the controllers themselves; any one would do.
pub const CONTROLLER_MODEL: &str = "0d2c9b1e-7a55-4c8e-8f3d-92b4f6f1c7aa";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_reads_as_juju_writes_it() {
        let text =
            r#"{"request-id":1,"type":"Admin","version":3,"request":"Login","params":{"auth-tag":"x"}}"#;
        let call: Request = serde_json::from_str(text).unwrap();
        assert_eq!((call.request_id, call.facade.as_str(), call.request.as_str()), (1, "Admin", "Login"));
        assert_eq!(serde_json::to_string(&call).unwrap(), text);
    }

    #[test]
    fn an_answer_without_error_has_no_error_keys() {
        let answer = Response { request_id: 4, response: Value::Null, error: None, error_code: None };
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"request-id":4,"response":null}"#);
    }

    #[test]
    fn mapped_addresses_are_unmapped() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:5".parse().unwrap()), "10.0.0.1:5".parse().unwrap());
        assert_eq!(canonical("[fd77::1]:5".parse().unwrap()), "[fd77::1]:5".parse().unwrap());
    }
}

//! `[redirect]`: where the redirector listens.

use std::net::SocketAddr;

use super::{error::Fault, file::Table};

const KEY: &str = "redirect.listen";

/// Where `balancer redirect` listens, if it is wanted.
pub(super) fn redirect(table: &Table<'_>) -> Result<Option<SocketAddr>, Fault> {
    let Some(text) = table.find::<String>(KEY)? else { return Ok(None) };
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    address.map(Some).ok_or_else(|| {
        table.fault(
            KEY,
            format!("{text:?} is not allowed; write an IP address and a port, such as \"[::]:17079\""),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::File;

    #[test]
    fn the_redirector_listens_at_an_address_and_a_port() {
        let rows: [(&str, Result<Option<&str>, &str>); 6] = [
            ("", Ok(None)),
            ("listen = \"[::]:17079\"", Ok(Some("[::]:17079"))),
            ("listen = \"10.0.0.11:443\"", Ok(Some("10.0.0.11:443"))),
            ("listen = \"10.0.0.11:0\"", Err("an IP address and a port")),
            ("listen = \"17079\"", Err("an IP address and a port")),
            ("listen = 17079", Err("an IP address and a port")),
        ];
        for (line, expected) in rows {
            let text = format!("[redirect]\n{line}");
            let file = File::parse(&text).map_err(|fault| fault.message).unwrap();
            let found =
                file.table("redirect").and_then(|table| redirect(&table)).map_err(|fault| fault.message);
            match (found, expected) {
                (Ok(found), Ok(listen)) => {
                    assert_eq!(found, listen.map(|text| text.parse().unwrap()), "{line}");
                }
                (Err(message), Err(words)) => assert!(message.contains(words), "{line}: {message}"),
                (found, expected) => panic!("{line}: {found:?}, not {expected:?}"),
            }
        }
    }
}

//! Both ends of the bench's connections: `bench-ends serve PORT…`, `bench-ends load`.

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    tests::support::limits::raise_open_files()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &words[..] {
        ["serve", ports @ ..] => {
            let ports = ports.iter().map(|port| port.parse().with_context(|| format!("port {port}")));
            tests::bench::server::serve(&ports.collect::<Result<Vec<u16>>>()?)
        }
        ["load"] => tests::bench::load::main(),
        _ => bail!("usage: bench-ends serve PORT… | load"),
    }
}

//! Asking `nft` and `iptables-save` for the rules.

use std::{io, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use super::{Texts, needs_iptables};

/// The longest wait for a tool.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer, bytes.
const LONGEST: u64 = 16 << 20;
/// Where distributions put the tools; a service's PATH may lack the first two.
const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// The rules that the kernel keeps outside nftables, by family.
pub type Legacy = [Option<String>; 2];

const LEGACY: [(&str, [&str; 2]); 2] = [
    ("/proc/net/ip_tables_names", ["iptables-legacy-save", "iptables-save"]),
    ("/proc/net/ip6_tables_names", ["ip6tables-legacy-save", "ip6tables-save"]),
];

/// Reads all rules of this network namespace, but those that `legacy` holds. The error names the tool that failed.
pub async fn rules(legacy: &Legacy) -> Result<Texts> {
    let nft = run("nft", &["-j", "list", "ruleset"]).await?;
    let asks = nft.as_deref().is_none_or(needs_iptables);
    let iptables = if asks {
        [run("iptables-save", &[]).await?, run("ip6tables-save", &[]).await?]
    } else {
        [None, None]
    };
    for ((names, [tool, _]), text) in LEGACY.iter().zip(legacy) {
        ensure!(
            text.is_some() || !has_tables(names),
            "{names} lists tables that only {tool} shows, and the agent may run it at its start only; restart the agent \
             (connections go on)"
        );
    }
    Ok(Texts { nft, iptables, legacy: legacy.clone() })
}

/// Reads the rules that the kernel keeps outside nftables. It takes CAP_NET_RAW.
pub async fn legacy() -> Result<Legacy> {
    let mut texts = Legacy::default();
    for (text, (names, tools)) in texts.iter_mut().zip(LEGACY) {
        for tool in tools {
            if text.is_none() && has_tables(names) {
                *text = run(tool, &[]).await?;
            }
        }
    }
    Ok(texts)
}

/// The file is absent where the kernel has no such tables.
fn has_tables(names: &str) -> bool {
    std::fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty())
}

/// The output of `tool`; `None`: this host does not have it.
async fn run(tool: &str, arguments: &[&str]) -> Result<Option<String>> {
    let spawned = Command::new(tool)
        .args(arguments)
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("failed to start {tool}")),
    };
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("{tool} has no output");
    };
    let read = async {
        let (mut text, mut complaint) = (Vec::new(), Vec::new());
        let (mut output, mut errors) = (output.take(LONGEST + 1), errors.take(4_096));
        let (output, errors) =
            tokio::join!(output.read_to_end(&mut text), errors.read_to_end(&mut complaint));
        output?;
        errors?;
        ensure!(text.len() as u64 <= LONGEST, "{tool} printed more than {LONGEST} bytes");
        let status = child.wait().await?;
        let complaint = String::from_utf8_lossy(&complaint);
        ensure!(status.success(), "{tool} failed ({status}): {}", complaint.trim());
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    match timeout(PATIENCE, read).await {
        Ok(text) => text
            .map(Some)
            .with_context(|| format!("failed to read the rules of this host's firewall by {tool}")),
        Err(_) => bail!("{tool} did not answer within {} s", PATIENCE.as_secs()),
    }
}

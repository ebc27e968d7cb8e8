//! `support-bundle`: what somebody who helps needs to see, in one file, without secrets.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use super::{
    check, control,
    control::Request,
    events,
    flows::{Sort, Wanted},
    redact::Redactor,
};
use crate::{config::Config, operator::cli};

/// A tool that takes longer is left out.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of one file.
const LONGEST: usize = 4 << 20;

/// Files of the host that tell of its kernel, its memory and its limits.
const FILES: [&str; 14] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/net/sockstat",
    "/proc/sys/fs/file-nr",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/ip_local_reserved_ports",
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
];

/// Tools that show the host's network.
const TOOLS: [&[&str]; 10] = [
    &["ip", "-details", "address"],
    &["ip", "rule"],
    &["ip", "-6", "rule"],
    &["ip", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["tc", "qdisc"],
    &["nft", "list", "ruleset"],
    &["iptables-save"],
    &["ip6tables-save"],
    &["systemctl", "status", "--no-pager", "--lines=0", "balancer"],
];

/// Writes the bundle to `file`, which must not exist, or to one with the time in its name. Returns its path.
pub async fn write(config: &Path, file: Option<PathBuf>, with_addresses: bool) -> Result<PathBuf> {
    let parts = collect(config).await;
    let own = parts.iter().find(|(name, _)| name == "status.json").map_or("", |(_, text)| text);
    let own: Value = serde_json::from_str(own).unwrap_or_default();
    let here = parts.iter().find(|(name, _)| name.ends_with("address.txt")).map_or("", |(_, text)| text);
    let kept = (!with_addresses).then(|| kept(&own, here));
    let secrets: Vec<String> =
        secret_files(config).iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let mut redactor = Redactor::new(secrets.iter().map(String::as_str), kept);
    let file = file.unwrap_or_else(|| {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        format!("balancer-support-{}.tar.gz", now.replace(':', "")).into()
    });
    let failed = || format!("failed to write {}", file.display());
    let mut options = fs::OpenOptions::new();
    let out = options.write(true).create_new(true).mode(0o600).open(&file).with_context(failed)?;
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    let at_s = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    for (name, text) in &parts {
        let mut text = redactor.redact(text).into_bytes();
        text.truncate(LONGEST);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(at_s);
        archive
            .append_data(&mut header, format!("balancer-support/{name}"), text.as_slice())
            .with_context(failed)?;
    }
    let mut out = archive.into_inner().and_then(GzEncoder::finish).with_context(failed)?;
    out.flush().with_context(failed)?;
    Ok(file)
}

/// Every part, not yet redacted; where it cannot be had, the reason.
async fn collect(config: &Path) -> Vec<(String, String)> {
    let told = |result: Result<String>| result.unwrap_or_else(|error| format!("not there: {error:#}\n"));
    let mut parts = vec![("version.txt".to_owned(), format!("balancer {}\n", env!("CARGO_PKG_VERSION")))];
    let text = fs::read_to_string(config).with_context(|| config.display().to_string());
    parts.push(("balancer.toml".into(), told(text)));
    let socket = Config::load_paths(config).map(|paths| paths.control).map_err(anyhow::Error::from);
    let wanted = Wanted { client: None, limit: 200, sort: Sort::Idle };
    let questions = [
        ("status", Request::Status),
        ("status-all", Request::StatusAll),
        ("rebalance", Request::Rebalance { now: false, dry_run: true }),
        ("flows", Request::Flows(wanted)),
        ("clients", Request::Clients { limit: 50 }),
    ];
    for (name, request) in questions {
        let answer = async {
            let socket = socket.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            Ok(serde_json::to_string_pretty(&control::call(socket, &request).await?)?)
        };
        parts.push((format!("{name}.json"), told(answer.await)));
    }
    let events = async {
        let socket = socket.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let mut out = Vec::new();
        events::show(socket, false, false, &mut out).await?;
        anyhow::Ok(String::from_utf8_lossy(&out).into_owned())
    };
    parts.push(("events.txt".into(), told(events.await)));
    let findings = check::check(config).await;
    parts.push(("check.json".into(), told(findings.map(|found| check::json(&found).to_string()))));
    for path in FILES {
        let text = fs::read_to_string(path).with_context(|| path.to_owned());
        parts.push((format!("host/{}.txt", path[1..].replace('/', "-")), told(text)));
    }
    for tool in TOOLS {
        parts.push((format!("host/{}.txt", tool.join("-")), told(run(tool).await)));
    }
    parts
}

async fn run(tool: &[&str]) -> Result<String> {
    let (program, arguments) = tool.split_first().context("a tool")?;
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, output).await.context("it took too long")??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(text(&output.stdout) + &text(&output.stderr))
}

/// The addresses of controllers and of this host.
fn kept(status: &Value, here: &str) -> BTreeSet<IpAddr> {
    let controllers = status["controllers"].as_array().into_iter().flatten();
    let theirs = controllers.flat_map(|one| one["addresses"].as_array().into_iter().flatten());
    let theirs = theirs.filter_map(|address| address.as_str()?.parse().ok());
    let mine = here.lines().filter_map(|line| {
        let (_, address) = line.trim().strip_prefix("inet")?.split_once(' ')?;
        address.split(['/', ' ']).next()?.parse().ok()
    });
    theirs.chain(mine).collect()
}

/// The files with secrets of the balancer and of Juju.
fn secret_files(config: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(config).unwrap_or_default();
    let quoted = text.split(['"', '\'']).filter(|part| part.starts_with('/')).map(PathBuf::from);
    let key = Path::new(cli::CONFIG).with_file_name("cluster.key");
    let juju = Config::load_paths(config).map(|paths| paths.juju);
    let agents = juju.ok().and_then(|juju| fs::read_dir(juju.join("agents")).ok()).into_iter().flatten();
    let agents = agents.filter_map(|entry| Some(entry.ok()?.path().join("agent.conf")));
    quoted.chain([key]).chain(agents).filter(|path| path.is_file()).collect()
}

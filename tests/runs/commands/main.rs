//! Each command that the operator's documents show, typed as it stands there on Debians that systemd has booted, with the
//! package installed. `table` says how each one is run, or why it is not.

#![expect(clippy::print_stdout, reason = "the run prints what the commands say")]

mod capture;
mod firewalls;
mod table;

use std::collections::BTreeSet;
use std::process::Output;

use anyhow::{Result, ensure};
use tests::cluster::{Cluster, ClusterOptions};
use tests::machines::controllers::{await_well, boot};
use tests::machines::debian::Debian;
use tests::support::document::{all_commands, read};

use crate::table::{How, TABLE, Typed};

/// The documents of an operator.
const DOCUMENTS: [&str; 7] = [
    "README.md",
    "SECURITY.md",
    "docs/operating.md",
    "docs/troubleshooting.md",
    "docs/configuration.md",
    "docs/metrics.md",
    "docs/kernels.md",
];

/// The commands of all documents, each once.
fn documented() -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for document in DOCUMENTS {
        all.extend(all_commands(&read(document)?));
    }
    Ok(all)
}

/// Three controllers, their clients, and the commands that were typed on them.
struct Scene {
    cluster: Cluster,
    hosts: Vec<Debian>,
    typed: BTreeSet<String>,
}

impl Scene {
    /// Types a command at controller `index`: as the document has it, between the `row`'s additions.
    fn type_at(&mut self, index: usize, command: &str, row: Typed) -> Result<Output> {
        let output = self.hosts[index].output(&format!("{}{command}{}", row.before, row.after))?;
        self.typed.insert(command.to_owned());
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        println!("{index}# {command}{}\n{}", row.after, said.lines().take(6).collect::<Vec<_>>().join("\n"));
        let code = output.status.code().unwrap_or(-1);
        ensure!(row.codes.contains(&code), "{command}: {code}, and not {:?}: {said}", row.codes);
        ensure!(said.contains(row.says), "{command}: {:?} is not in {said}", row.says);
        Ok(output)
    }

    /// Gives the clients' host another address, and each controller a way there.
    fn add_client(&self, address: &str) -> Result<()> {
        self.cluster.net.clients[0].namespace.ip(&format!("addr add {address}/32 dev eth0\n"))?;
        let mut hosts = self.cluster.net.controllers.iter();
        hosts.try_for_each(|host| host.namespace.ip(&format!("route add {address}/32 dev eth0\n")))
    }

    /// Has each agent read its host's rules now.
    fn reload(&self) -> Result<()> {
        self.hosts.iter().try_for_each(|host| host.run("systemctl reload balancer").map(drop))
    }
}

#[test]
fn every_command_of_the_documents_is_in_the_table_and_the_table_has_no_other() -> Result<()> {
    let documented = documented()?;
    let listed: BTreeSet<String> = TABLE.iter().map(|(command, _)| (*command).to_owned()).collect();
    ensure!(listed.len() == TABLE.len(), "a command stands in the table twice");
    let firewalls = firewalls::commands()?;
    // xtask has a test of its own, which parses its commands in the documents.
    let is_elsewhere = |command: &String| command.starts_with("cargo xtask ") || firewalls.contains(command);
    let missing: Vec<_> = documented.difference(&listed).filter(|command| !is_elsewhere(command)).collect();
    ensure!(missing.is_empty(), "no row says how these commands are run: {missing:#?}");
    // A command of one word is found by its row alone.
    let texts = DOCUMENTS.iter().map(|name| read(name)).collect::<Result<String>>()?;
    let stale: Vec<_> =
        listed.difference(&documented).filter(|command| !texts.contains(&format!("`{command}`"))).collect();
    ensure!(stale.is_empty(), "no document shows these commands any more: {stale:#?}");
    for (command, how) in TABLE {
        match how {
            How::ByRun(file, test) => {
                let text = read(file)?;
                ensure!(text.contains(&format!("fn {test}(")), "{command}: {file} has no {test}");
            }
            How::Never(reason) => println!("not run: {command}: {reason}"),
            How::Phrase | How::Firewall | How::Capture | How::Install | How::Here(_) => {}
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs packages and a Debian with an operator's tools: cargo xtask package --verify"]
fn each_command_does_what_its_document_says() -> Result<()> {
    let cluster =
        Cluster::start(ClusterOptions { balancer: false, nft: false, ..ClusterOptions::new("cmd") })?;
    let mut scene = Scene { cluster, hosts: Vec::new(), typed: BTreeSet::new() };
    scene.hosts = boot(&mut scene.cluster, "BALANCER_OPERATOR")?;
    for (command, _) in TABLE.iter().filter(|(_, how)| matches!(how, How::Install)) {
        for index in 0..scene.hosts.len() {
            scene.type_at(index, command, Typed::PLAIN)?;
        }
    }
    await_well(&scene.hosts)?;
    firewalls::all(&mut scene)?;
    capture::relayed_connection(&mut scene)?;
    for (command, how) in TABLE {
        if let How::Here(row) = how {
            scene.type_at(row.at, command, *row)?;
        }
    }
    let is_here = |how: &How| matches!(how, How::Here(_) | How::Firewall | How::Capture | How::Install);
    let here = TABLE.iter().filter(|(_, how)| is_here(how)).map(|(command, _)| (*command).to_owned());
    let left: Vec<_> =
        here.chain(firewalls::commands()?).filter(|command| !scene.typed.contains(command)).collect();
    ensure!(left.is_empty(), "these were not run: {left:#?}");
    Ok(())
}

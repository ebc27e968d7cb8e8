//! The section on a relayed connection: its capture at entry and owner shows the packets of its table.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tests::cluster::RELAY_PORTS;
use tests::juju::fleet::{Dial, How, Kind};
use tests::support::document::{all_commands, read};
use tests::support::eventually::{SOON, eventually};

use crate::Scene;
use crate::table::Typed;

const DOCUMENT: &str = "docs/troubleshooting.md";
/// The document's client.
const CLIENT: &str = "192.0.2.7";
/// The client of the document's questions.
const ASKED: &str = "10.0.4.7";
/// The document's entry and owner: the first two controllers here stand for them.
const ENTRY: &str = "10.0.0.11";
const OWNER: &str = "10.0.0.12";

/// What a row of the table says.
#[derive(Debug)]
struct Row {
    /// Number of the controller.
    at: usize,
    way: Way,
    from: String,
    to: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    In,
    Out,
    /// The line of `ss -tn`, local end first.
    Socket,
}

/// The rows of the document's table.
fn rows(text: &str) -> Result<Vec<Row>> {
    let (_, table) = text.split_once("| captured at | packets |\n|---|---|\n").context("the table")?;
    let mut rows: Vec<Row> = Vec::new();
    for line in table.lines().take_while(|line| line.starts_with('|')) {
        let [place, packets] = line.trim_matches('|').split(" | ").collect::<Vec<_>>()[..] else {
            anyhow::bail!("two columns: {line}");
        };
        let place = place.trim();
        let at = usize::from(!place.starts_with("A, "));
        let way = match &place[3..] {
            from if from.starts_with("from ") => Way::In,
            to if to.starts_with("to ") => Way::Out,
            "`ss -tn`" => Way::Socket,
            _ => anyhow::bail!("a place: {place}"),
        };
        let ends: Vec<&str> = packets
            .split(|one: char| !one.is_ascii_digit() && one != '.' && one != ':')
            .map(|word| word.trim_end_matches(':'))
            .filter(|word| word.parse::<SocketAddr>().is_ok())
            .collect();
        let (from, to) = match (&ends[..], rows.last()) {
            ([from, to], _) => ((*from).to_owned(), (*to).to_owned()),
            ([], Some(before)) if packets.starts_with("the same") => (before.from.clone(), before.to.clone()),
            _ => anyhow::bail!("two ends: {line}"),
        };
        rows.push(Row { at, way, from, to });
    }
    Ok(rows)
}

/// The two ends of a line of tcpdump, and whether it came in.
fn captured(line: &str) -> Option<(Way, String, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let way = words.iter().find_map(|word| match *word {
        "In" => Some(Way::In),
        "Out" => Some(Way::Out),
        _ => None,
    })?;
    let arrow = words.iter().position(|word| *word == ">")?;
    let end = |word: &str| {
        let (address, port) = word.trim_end_matches(':').rsplit_once('.')?;
        Some(format!("{address}:{port}"))
    };
    Some((way, end(words.get(arrow.checked_sub(1)?)?)?, end(words.get(arrow + 1)?)?))
}

/// The ends of an established socket of `ss -tn`.
fn socket(line: &str) -> Option<(Way, String, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["ESTAB", _, _, local, peer, ..] = words[..] else { return None };
    let plain = |end: &str| end.replace("[::ffff:", "").replace(']', "");
    Some((Way::Socket, plain(local), plain(peer)))
}

/// Whether `seen` is the document's `end`, with the numbers that stand for those of the document so far; learns new ports.
fn is_end(end: &str, seen: &str, known: &mut BTreeMap<String, String>) -> bool {
    let (Some((address, port)), Some((seen_address, seen_port))) =
        (end.rsplit_once(':'), seen.rsplit_once(':'))
    else {
        return false;
    };
    known.get(address).is_some_and(|known| known == seen_address)
        && known.entry(port.to_owned()).or_insert_with(|| seen_port.to_owned()) == seen_port
}

/// The first line that shows a `row`.
fn shows<'a>(
    row: &Row,
    lines: impl IntoIterator<Item = &'a str>,
    known: &mut BTreeMap<String, String>,
) -> Option<&'a str> {
    lines.into_iter().find(|line| {
        let Some((way, from, to)) = captured(line).or_else(|| socket(line)) else { return false };
        let mut learnt = known.clone();
        let is_it =
            way == row.way && is_end(&row.from, &from, &mut learnt) && is_end(&row.to, &to, &mut learnt);
        if is_it {
            *known = learnt;
        }
        is_it
    })
}

/// Has the client connect to the entry while all but the owner drain.
fn connect(scene: &mut Scene, client: &str) -> Result<()> {
    for index in [0, 2] {
        scene.hosts[index].run("balancer drain --within 10m")?;
    }
    let bind = vec![SocketAddr::new(client.parse()?, 0)];
    let dial = Dial { bind, ..Dial::new(client, Kind::Single, 1, &[scene.cluster.address(0)]) };
    let dialled = scene.cluster.fleet.dial_unharmed(&dial)?;
    ensure!(dialled.at("b") == 1, "it is relayed to b: {dialled:?}");
    Ok(())
}

pub fn relayed_connection(scene: &mut Scene) -> Result<()> {
    let text = read(DOCUMENT)?;
    let rows = rows(&text)?;
    ensure!(rows.len() == 6, "{rows:#?}");
    let command = all_commands(&text).into_iter().find(|command| command.starts_with("tcpdump "));
    let command = command.context("a capture")?;
    scene.add_client(CLIENT)?;
    scene.add_client(ASKED)?;
    // In the background of each host: what it writes, and its number.
    for index in [0, 1] {
        let started = format!(
            "{{ {command} --immediate-mode > capture 2> capture.errors & echo $! > capture.pid; }} && sync"
        );
        scene.hosts[index].run(&started)?;
        eventually(SOON, "a capture that listens", || {
            let said = scene.hosts[index].run("cat capture.errors")?;
            ensure!(said.contains("listening on any"), "{said}");
            Ok(())
        })?;
    }
    scene.typed.insert(command);
    connect(scene, CLIENT)?;

    let mut known =
        BTreeMap::from([(CLIENT.to_owned(), CLIENT.to_owned()), ("17070".to_owned(), "17070".to_owned())]);
    for (index, address) in [ENTRY, OWNER].into_iter().enumerate() {
        known.insert(address.to_owned(), scene.cluster.address(index).ip().to_string());
    }
    let ss = scene.type_at(1, "ss -tn", Typed::PLAIN)?;
    let ss = String::from_utf8_lossy(&ss.stdout).into_owned();
    for row in &rows {
        let line = eventually(SOON, &format!("{row:?}"), || {
            let captured = scene.hosts[row.at].run("cat capture")?;
            let text = if row.way == Way::Socket { ss.clone() } else { captured };
            let line = shows(row, text.lines(), &mut known).map(str::to_owned);
            line.with_context(|| format!("{known:?}, in {text}"))
        })?;
        println!("{row:?}: {line}");
        if row.at == 0 && row.way == Way::Out && row.from.starts_with(ENTRY) && row.to.starts_with(OWNER) {
            ensure!(line.contains("Flags [S]") && !line.ends_with("length 0"), "a SYN with data: {line}");
        }
    }
    let relay: u16 = known["17081"].parse()?;
    ensure!(RELAY_PORTS.contains(&relay), "{known:?}");
    for index in [0, 1] {
        scene.hosts[index].run("kill -INT $(cat capture.pid)")?;
    }
    connect(scene, ASKED)?;
    let questions = [
        (CLIENT, format!("balancer flows --client {CLIENT}")),
        (CLIENT, format!("balancer explain {CLIENT}")),
        (ASKED, "balancer flows --client 10.0.4.0/24".to_owned()),
        (ASKED, format!("balancer explain {ASKED}")),
        (ASKED, "balancer clients --limit 20".to_owned()),
    ];
    for (says, question) in questions {
        scene.type_at(0, &question, Typed { says, ..Typed::PLAIN })?;
    }
    scene.cluster.fleet.close(2, How::Fin)?;
    for index in [0, 2] {
        scene.hosts[index].run("balancer resume")?;
    }
    Ok(())
}

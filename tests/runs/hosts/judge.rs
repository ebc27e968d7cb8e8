//! The judgement on a row: how its clients fared with the balancer, measured by how they fared without.

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

/// A client waits no longer than the slowest one of the control and this: one repeated SYN, and some noise.
pub const LONGER: Duration = Duration::from_millis(1200);
/// A client that is usable later than this has waited.
pub const WAIT: Duration = Duration::from_millis(500);
/// Of a hundred clients in a row, so many may wait.
const WAITERS: usize = 2;
/// Clients of a series whose fate is told one by one.
const TOLD: usize = 3;

/// A new client: how long it took until it was usable or gave up, and the server that answered it, or its error.
#[derive(Clone, Debug)]
pub struct Client {
    /// Since the beginning of the run.
    pub began: Duration,
    pub waited: Duration,
    pub outcome: std::result::Result<String, String>,
}

/// New clients one after another, at one controller, of one family; it ends early when several have failed.
#[derive(Clone, Debug)]
pub struct Series {
    /// Such as `IPv4 at a, after the event`.
    pub name: String,
    /// Name of the controller that they dial.
    pub dialled: String,
    pub clients: Vec<Client>,
}

impl Series {
    fn failed(&self) -> usize {
        self.clients.iter().filter(|client| client.outcome.is_err()).count()
    }

    fn waited(&self) -> usize {
        self.clients.iter().filter(|client| client.waited > WAIT).count()
    }

    fn relayed(&self) -> usize {
        let elsewhere = |client: &&Client| client.outcome.as_ref().is_ok_and(|at| *at != self.dialled);
        self.clients.iter().filter(elsewhere).count()
    }

    fn slowest(&self) -> Duration {
        self.clients.iter().map(|client| client.waited).max().unwrap_or_default()
    }
}

/// Bulk data each way over one connection: the time of both, or the error.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub name: String,
    pub outcome: std::result::Result<Duration, String>,
}

/// Connections that are held through all of it.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// `idle` or `busy`.
    pub name: &'static str,
    pub open: u64,
    pub lost: u64,
    /// Neither lost nor answering in the end.
    pub silent: u64,
    pub why: BTreeSet<String>,
    pub stall: Duration,
}

/// All that was seen on one side.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub series: Vec<Series>,
    pub transfers: Vec<Transfer>,
    pub held: Vec<Held>,
    /// Connections that the balancers relayed, by their own counters: clients, transfers and held ones.
    pub opened: u64,
}

impl Seen {
    fn clients(&self) -> usize {
        self.series.iter().map(|series| series.clients.len()).sum()
    }

    /// Clients that were served by another controller than the one that they dialled.
    fn relayed(&self) -> usize {
        self.series.iter().map(Series::relayed).sum()
    }

    /// Clients that dialled `controller` and were served by another one, and all that dialled it.
    pub fn relayed_of(&self, controller: &str) -> (usize, usize) {
        let dialled = self.series.iter().filter(|series| series.dialled == controller);
        (dialled.clone().map(Series::relayed).sum(), dialled.map(|series| series.clients.len()).sum())
    }

    fn slowest(&self) -> Duration {
        self.series.iter().map(Series::slowest).max().unwrap_or_default()
    }
}

/// The figures of one side in a line.
impl Display for Seen {
    fn fmt(&self, to: &mut Formatter<'_>) -> Result {
        let sum = |count: fn(&Series) -> usize| self.series.iter().map(count).sum::<usize>();
        write!(
            to,
            "{} clients, {} failed, {} waited, slowest {} ms, {} served elsewhere, {} relays opened",
            self.clients(),
            sum(Series::failed),
            sum(Series::waited),
            self.slowest().as_millis(),
            self.relayed(),
            self.opened
        )?;
        let times = self.transfers.iter().filter_map(|transfer| transfer.outcome.as_ref().ok());
        let slowest = times.clone().max().copied().unwrap_or_default();
        write!(
            to,
            "; {} of {} transfers, slowest {} ms",
            times.count(),
            self.transfers.len(),
            slowest.as_millis()
        )?;
        for Held { name, open, lost, silent, stall, .. } in &self.held {
            let stall = stall.as_millis();
            write!(to, "; {open} {name}, {lost} lost, {silent} silent, longest wait {stall} ms")?;
        }
        Ok(())
    }
}

/// Everything in which the clients were worse off with the balancer than in the control.
pub fn complaints(control: &Seen, balancer: &Seen) -> Vec<String> {
    let mut complaints = Vec::new();
    let most = control.slowest() + LONGER;
    for (without, with) in control.series.iter().zip(&balancer.series) {
        let (allowed, failed) = (without.failed(), with.failed());
        if failed > allowed {
            complaints.push(format!("{}: {failed} fail, {allowed} in the control", with.name));
        }
        let kept_out = !without.clients.is_empty() && allowed == without.clients.len();
        if kept_out && failed < with.clients.len() {
            let got_in = with.clients.len() - failed;
            complaints.push(format!("{}: {got_in} get in, none in the control", with.name));
        }
        // With a hundred in a row, the second and third hundred would have waiters of their own.
        let (allowed, waited) =
            (without.waited() + WAITERS * with.clients.len().div_ceil(100), with.waited());
        if waited > allowed {
            complaints.push(format!("{}: {waited} of {} wait", with.name, with.clients.len()));
        }
        let mut told = Vec::new();
        for (number, client) in (1..).zip(&with.clients) {
            let late = client.waited > most;
            let (after, began) = (client.waited.as_millis(), client.began.as_millis());
            match &client.outcome {
                Err(_) if kept_out => {}
                Err(error) => told.push(format!(
                    "{}: client {number} fails after {after} ms (begun at {began} ms): {error}",
                    with.name
                )),
                Ok(server) if late => told.push(format!(
                    "{}: client {number}, served by {server}, waits {after} ms (begun at {began} ms)",
                    with.name
                )),
                Ok(_) => {}
            }
        }
        let more = told.len().saturating_sub(TOLD);
        told.truncate(TOLD);
        complaints.append(&mut told);
        complaints.extend((more > 0).then(|| format!("{}: {more} more", with.name)));
    }
    for (without, with) in control.transfers.iter().zip(&balancer.transfers) {
        match (&without.outcome, &with.outcome) {
            (Ok(_), Err(error)) => complaints.push(format!("{}: {error}", with.name)),
            (Err(_), Ok(_)) => complaints.push(format!("{} arrive, and not in the control", with.name)),
            // A relay's bytes take a hop more, and this machine is shared.
            (Ok(without), Ok(took)) if *took > *without * 10 + LONGER => complaints.push(format!(
                "{} takes {} ms, {} in the control",
                with.name,
                took.as_millis(),
                without.as_millis()
            )),
            _ => {}
        }
    }
    for (without, with) in control.held.iter().zip(&balancer.held) {
        if with.lost + with.silent > without.lost + without.silent {
            complaints.push(format!(
                "of {} {} connections {} are lost, {} silent; in the control {} and {}: {:?}",
                with.open, with.name, with.lost, with.silent, without.lost, without.silent, with.why
            ));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(waits_ms: &[u64]) -> Vec<Client> {
        let client = |&wait| Client {
            began: Duration::ZERO,
            waited: Duration::from_millis(wait),
            outcome: Ok("b".to_owned()),
        };
        waits_ms.iter().map(client).collect()
    }

    fn seen(clients: Vec<Client>) -> Seen {
        let series = Series { name: "IPv4 at a".to_owned(), dialled: "a".to_owned(), clients };
        Seen { series: vec![series], ..Seen::default() }
    }

    fn refused() -> Client {
        Client { outcome: Err("refused".to_owned()), ..clients(&[1]).remove(0) }
    }

    #[test]
    fn clients_are_judged_by_the_control() {
        let rows = [
            ("as in the control", vec![10, 10, 10], vec![10, 12, 9], 0),
            ("two wait for a repeated SYN", vec![10, 10, 10], vec![1010, 1010, 10], 0),
            ("three wait", vec![10, 10, 10], vec![1010, 1010, 1010], 1),
            ("one waits too long", vec![10, 10, 10], vec![10, 1300, 10], 1),
            ("as long as in the control", vec![3000, 10, 10], vec![10, 3100, 10], 0),
        ];
        for (what, without, with, found) in rows {
            let complaints = complaints(&seen(clients(&without)), &seen(clients(&with)));
            assert_eq!(complaints.len(), found, "{what}: {complaints:?}");
        }
    }

    #[test]
    fn clients_that_are_kept_out_stay_out() {
        let out = seen(vec![refused(), refused()]);
        assert_eq!(complaints(&out, &out), Vec::<String>::new());
        let found = complaints(&out, &seen(vec![refused(), clients(&[1]).remove(0)]));
        assert_eq!(found, ["IPv4 at a: 1 get in, none in the control"]);
    }

    #[test]
    fn failures_are_counted_and_named() {
        let found = complaints(&seen(clients(&[10])), &seen(vec![refused()]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("IPv4 at a: client 1 fails after 1 ms"), "{found:?}");
    }

    #[test]
    fn transfers_and_held_connections_are_judged_by_the_control() {
        let side = |outcome: std::result::Result<u64, &str>, lost, silent| Seen {
            transfers: vec![Transfer {
                name: "IPv4 at a".to_owned(),
                outcome: outcome.map(Duration::from_millis).map_err(str::to_owned),
            }],
            held: vec![Held { name: "idle", open: 20, lost, silent, ..Held::default() }],
            ..Seen::default()
        };
        let rows = [
            ("as in the control", side(Ok(100), 0, 0), side(Ok(150), 0, 0), 0),
            ("bytes stall", side(Ok(100), 0, 0), side(Err("stalled"), 0, 0), 1),
            ("bytes are slow", side(Ok(100), 0, 0), side(Ok(2300), 0, 0), 1),
            ("one is lost", side(Ok(100), 0, 0), side(Ok(100), 1, 0), 1),
            ("one is silent", side(Ok(100), 0, 0), side(Ok(100), 0, 1), 1),
            ("the control loses as many", side(Ok(100), 1, 1), side(Ok(100), 2, 0), 0),
        ];
        for (what, without, with, found) in rows {
            let complaints = complaints(&without, &with);
            assert_eq!(complaints.len(), found, "{what}: {complaints:?}");
        }
    }

    #[test]
    fn the_line_of_figures_has_all_of_them() {
        let line = seen(clients(&[10, 700])).to_string();
        let expected = "2 clients, 0 failed, 1 waited, slowest 700 ms, 2 served elsewhere, 0 relays opened; \
                        0 of 0 transfers, slowest 0 ms";
        assert_eq!(line, expected);
    }
}

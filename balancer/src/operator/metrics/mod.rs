//! The metrics for Prometheus: the latest status, told as `table` says and served by `server`.
//!
//! A scrape reads the status that the agent has looked at last, at most a second ago. So it asks the agent for nothing,
//! and neither a scraper that is stuck nor a thousand of them are in its way.

mod encode;
mod server;
mod table;

use std::{sync::Arc, time::Instant};

use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

pub use self::{
    encode::encode,
    table::{Family, Kind, Number, Sample, families},
};
use crate::{config::Listen, operator::status::Status};

/// The status at a moment.
#[derive(Debug)]
pub struct Seen {
    pub at: Instant,
    pub status: Status,
}

/// The agent's side.
pub struct Board {
    latest: watch::Sender<Option<Arc<Seen>>>,
    listen: watch::Sender<Option<Listen>>,
    fault: watch::Receiver<Option<String>>,
}

impl Board {
    /// Serves the metrics on `listen` in a task of `runtime`, which joins `tasks`.
    pub fn start(listen: Option<Listen>, runtime: &Handle, tasks: &mut Vec<JoinHandle<()>>) -> Self {
        let (board, serve) = Self::paced(listen, server::PACE);
        tasks.push(runtime.spawn(serve));
        board
    }

    fn paced(listen: Option<Listen>, pace: server::Pace) -> (Self, impl Future<Output = ()>) {
        let (latest, shown) = watch::channel(None);
        let (listen, wanted) = watch::channel(listen);
        let (fault, faulty) = watch::channel(None);
        (Self { latest, listen, fault: faulty }, server::serve(wanted, shown, fault, pace))
    }

    /// Shows `status` to scrapes from `now` on.
    pub fn show(&self, now: Instant, status: Status) {
        self.latest.send_replace(Some(Arc::new(Seen { at: now, status })));
    }

    /// Serves the metrics on `listen`, or nowhere.
    pub fn listen(&self, listen: &Option<Listen>) {
        self.listen.send_if_modified(|known| {
            let is_new = known != listen;
            known.clone_from(listen);
            is_new
        });
    }

    /// The reason why the metrics are not served, though they should be.
    pub fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }
}

//! Asks the agent for the controllers' states.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use super::{View, session::Shared};
use crate::operator::{
    control::{self, Connection, Request},
    repeated::warn_repeated,
};

const INTERVAL: Duration = Duration::from_millis(500);

/// Asks the agent behind the socket at `path` twice a second, for ever.
pub(super) async fn follow(path: PathBuf, shared: Arc<Shared>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    loop {
        ticks.tick().await;
        match ask(&path, &mut connection).await {
            Ok(view) => shared.choice(|choice| choice.heard(Instant::now(), view)),
            Err(error) => {
                connection = None;
                warn_repeated!("view", "the controllers' states are not known: {error:#}");
            }
        }
    }
}

async fn ask(path: &Path, open: &mut Option<Connection>) -> Result<View> {
    let connection = match open {
        Some(connection) => connection,
        None => open.insert(Connection::open(path).await?),
    };
    control::read(connection.ask(&Request::View).await?)
}

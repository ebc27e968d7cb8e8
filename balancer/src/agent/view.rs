//! The controllers' states for `balancer redirect`, which sends clients to them.

use std::{path::Path, time::Instant};

use anyhow::Result;
use log::warn;
use tokio::sync::{mpsc, watch};

use super::{
    Agent, boot_s,
    requests::{self, Asked},
};
use crate::{
    operator::control::{ControlSocket, Request},
    redirect::{Known, View},
};

/// Opens the view socket at `path`, and returns its service.
pub(super) fn open(
    path: &Path,
    ask: &mpsc::Sender<Asked>,
    stopped: &watch::Receiver<bool>,
) -> Option<impl Future<Output = ()> + use<>> {
    let socket = ControlSocket::bind_view(path);
    let socket =
        socket.inspect_err(|error| warn!("{error:#}; `balancer redirect` names no controller")).ok()?;
    let (ask, mut stopped) = (ask.clone(), stopped.clone());
    let handler = move |request, caller| {
        let ask = ask.clone();
        async move {
            if request != Request::View {
                return Err("this socket tells the controllers' states and nothing else".to_owned());
            }
            requests::put(&ask, request, caller).await
        }
    };
    Some(async move {
        let stop = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
        socket.serve(handler, stop).await;
    })
}

impl Agent {
    pub(super) fn view(&self) -> Result<View> {
        let config = &self.config.running;
        let mut budget = self.programs.data_path.maps.budget()?;
        budget.advance(boot_s());
        let now = Instant::now();
        let own = Known {
            controller: self.own_status(now, config.cluster.this(), &budget),
            handshakes: u64::from(budget.in_progress()),
            bypassed: self.balance.bypass().is_on(),
        };
        let peers = self.cluster.peers().iter().map(|peer| {
            let report = peer.report.as_ref();
            Known {
                controller: self.peer_status(now, peer),
                handshakes: report.map_or(0, |report| report.handshakes),
                bypassed: report.is_some_and(|report| report.bypassed),
            }
        });
        Ok(View { api_port: config.api.port, controllers: std::iter::once(own).chain(peers).collect() })
    }

    /// New clients per second here, as this host's programs pick by them. Where clients are redirected, those that dial
    /// here have been spread already: the programs are to serve them here unless this controller stands above the level.
    pub(super) fn arrivals_here(&self) -> f64 {
        if self.config.running.redirect.is_some() { 0.0 } else { self.count.arrivals_per_s() }
    }

    /// The same as the other controllers are told. Without any, each would take its own clients for all there are.
    pub(super) fn arrivals_told(&self) -> f64 {
        let arrivals = self.count.arrivals_per_s();
        if self.config.running.redirect.is_some() { arrivals.max(1.0) } else { arrivals }
    }
}

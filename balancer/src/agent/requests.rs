//! Requests on the control socket.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use log::{info, warn};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Agent, boot_s};
use crate::{
    balance::{Inputs, Limited},
    operator::{
        control::{ASKS, Caller, ControlSocket, Request},
        events,
    },
};

pub(super) type Answer = oneshot::Sender<Result<Value, String>>;
pub(super) type Asked = (Request, Caller, Answer);

pub(super) fn send(answer: Answer, result: Result<Value>) {
    // The caller may have gone.
    let _: Result<(), _> = answer.send(result.map_err(|error| format!("{error:#}")));
}

impl Agent {
    pub(super) fn answer(&mut self, request: &Request, caller: &Caller, answer: Answer) {
        if !request.only_asks() {
            info!("`{request}` by {caller}");
        }
        if *request == Request::StatusAll {
            let asking = self.ask_all(answer);
            self.inbox.tasks.beside.spawn(asking);
            return;
        }
        match self.listing(request) {
            Ok(Some(listing)) => drop(tokio::task::spawn_blocking(move || send(answer, listing.make()))),
            Ok(None) => send(answer, self.try_answer(request)),
            Err(error) => send(answer, Err(error)),
        }
    }

    fn try_answer(&mut self, request: &Request) -> Result<Value> {
        let now = Instant::now();
        let (others, left_out) = self.others(now);
        let (load, ready) = (self.load(), self.is_ready());
        let inputs = Inputs::new(&self.config.running, boot_s(), load, ready, (&others, &left_out));
        let text = match request {
            Request::Status => {
                if let Err(error) = self.collect() {
                    warn!("failed to count flows: {error:#}");
                }
                return Ok(serde_json::to_value(self.status()?)?);
            }
            Request::Sample => return Ok(serde_json::to_value(self.status()?)?),
            Request::View => return Ok(serde_json::to_value(self.view()?)?),
            Request::Explain { address } => return Ok(serde_json::to_value(self.explain(*address)?)?),
            Request::StatusAll | Request::Flows(_) | Request::Clients { .. } | Request::Events { .. } => {
                bail!("this is answered beside the agent's loop")
            }
            Request::Drain { within_s } => {
                let text = self.balance.drain(now, Duration::from_secs(*within_s), &inputs)?;
                info!("draining within {within_s} s: {load} connections");
                text
            }
            Request::Resume => match self.balance.resume(now) {
                None => return Ok("this controller is not being drained".into()),
                Some(text) => {
                    info!("taking clients again");
                    text
                }
            },
            Request::Bypass { for_s, all } => {
                self.balance.begin_bypass(for_s.map(Duration::from_secs), *all, &inputs)
            }
            Request::On => match self.balance.end_bypass() {
                None => return Ok("the balancer is not bypassed".into()),
                Some(text) => text.into(),
            },
            Request::Limit { limit, sure } => match self.balance.order_limit(now, *limit, *sure, &inputs) {
                Limited::Asks(text) => return Ok(json!({ ASKS: text })),
                Limited::Set(text) => {
                    info!("the operator sets the hard limit to {}", self.balance.admit());
                    text
                }
            },
            Request::Rebalance { now: begin, dry_run } => {
                return Ok(self.balance.rebalance(now, *begin, *dry_run, &inputs)?.into());
            }
        };
        // Publish at once: the other controllers pick by the new state.
        self.write_views();
        self.publish();
        Ok(text.into())
    }
}

/// Has the agent's loop answer.
pub(super) async fn put(
    ask: &mpsc::Sender<Asked>,
    request: Request,
    caller: Caller,
) -> Result<Value, String> {
    let (answer, answered) = oneshot::channel();
    ask.send((request, caller, answer)).await.map_err(|_gone| "the agent is ending".to_owned())?;
    answered.await.map_err(|_gone| "the agent is ending".to_owned())?
}

/// Answers requests on the control socket by asking the agent.
pub(super) async fn serve(
    control: ControlSocket,
    ask: mpsc::Sender<Asked>,
    mut stopped: watch::Receiver<bool>,
) {
    let handler = move |request, caller| {
        let ask = ask.clone();
        async move {
            if let Request::Events { after, wait } = request {
                let patience = if wait { events::WAIT } else { Duration::ZERO };
                return events::after(after, patience).await.map(|page| json!(page));
            }
            put(&ask, request, caller).await
        }
    };
    control
        .serve(handler, async move {
            let _: Result<_, _> = stopped.wait_for(|stopped| *stopped).await;
        })
        .await;
}

//! Looking at this host's firewall, off the loop: at the start, every 30 s, and when the configuration is read again.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use log::info;
use tokio::sync::{mpsc, watch};

use super::{
    Agent,
    off::{Reasons, Source},
};
use crate::host::firewall::{self, Question, changes::RuleChanges, read::Legacy};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(30);

/// The rules at the last look.
pub(super) struct Looked {
    reasons: Reasons,
    /// They have changed since the last one.
    changed: bool,
}

/// The rules' reader.
struct Reader {
    legacy: Legacy,
}

impl Reader {
    async fn look(&self, question: &Question) -> Reasons {
        if question.trusts {
            return Reasons::default();
        }
        let texts = firewall::read::rules(&self.legacy).await;
        let question = question.clone();
        let judged = tokio::task::spawn_blocking(move || firewall::why_no_relays(texts, &question)).await;
        judged.unwrap_or_else(|error| firewall::unknown(&error.into()))
    }

    /// Looks again and again, and at once when there is another question.
    async fn watch(self, mut asked: watch::Receiver<Question>, found: mpsc::Sender<Looked>) {
        let mut changes = RuleChanges::subscribe()
            .inspect_err(|error| info!("{error:#}; rules are read every {} s", LOOK.as_secs()))
            .ok();
        loop {
            let mut changed = false;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = next(&mut changes) => changed = true,
                changed = asked.changed() => if changed.is_err() {
                    // The agent is ending, and ends this task.
                    return pending().await;
                },
            }
            let question = asked.borrow_and_update().clone();
            let reasons = self.look(&question).await;
            if found.send(Looked { reasons, changed }).await.is_err() {
                return;
            }
        }
    }
}

/// The next change of the rules; never where nobody tells.
async fn next(changes: &mut Option<RuleChanges>) {
    match changes {
        Some(changes) => changes.next().await,
        None => pending().await,
    }
}

impl Agent {
    /// Looks at the firewall before the first client can be relayed, and then again and again.
    pub(super) async fn begin_firewall(
        &mut self,
        legacy: Legacy,
        mut questions: watch::Receiver<Question>,
        tell: mpsc::Sender<Looked>,
    ) {
        let reader = Reader { legacy };
        let question = self.firewall_question();
        let reasons = reader.look(&question).await;
        self.firewall_read(Looked { reasons, changed: false });
        self.inbox.firewall_question.send_replace(question);
        questions.mark_unchanged();
        let watching = self.inbox.tasks.beside.spawn(reader.watch(questions, tell));
        self.inbox.tasks.handles.push(watching);
    }

    /// Notes why the firewall allows no relays. Where the rules have changed, here and at the others each path is probed.
    pub(super) fn firewall_read(&mut self, looked: Looked) {
        self.note_off(Source::Firewall, looked.reasons);
        if looked.changed {
            self.off.rules_changed += 1;
            self.cluster.rules_changed(Instant::now());
        }
    }

    /// Has the rules read again.
    pub(super) fn look_at_firewall(&mut self) {
        let question = self.firewall_question();
        self.inbox.firewall_question.send_replace(question);
    }

    pub(super) fn firewall_question(&mut self) -> Question {
        let config = &self.config.running;
        let api = self.programs.api_interfaces(config).unwrap_or_default();
        Question::new(config, api.into_iter().map(|device| device.name))
    }
}

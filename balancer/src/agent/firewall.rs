//! Looking at this host's firewall, off the loop: at the start, every 30 s, and when the configuration is read again.

use std::{future::pending, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{
    Agent,
    off::{Reasons, Source},
};
use crate::host::firewall::{self, Question, read::Legacy};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(30);

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
    async fn watch(self, mut asked: watch::Receiver<Question>, found: mpsc::Sender<Reasons>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                changed = asked.changed() => if changed.is_err() {
                    // The agent is ending, and ends this task.
                    return pending().await;
                },
            }
            let question = asked.borrow_and_update().clone();
            if found.send(self.look(&question).await).await.is_err() {
                return;
            }
        }
    }
}

impl Agent {
    /// Looks at the firewall before the first client can be relayed, and then again and again.
    pub(super) async fn begin_firewall(
        &mut self,
        legacy: Legacy,
        mut questions: watch::Receiver<Question>,
        tell: mpsc::Sender<Reasons>,
    ) {
        let reader = Reader { legacy };
        let question = self.firewall_question();
        let reasons = reader.look(&question).await;
        self.firewall_read(reasons);
        self.inbox.firewall_question.send_replace(question);
        questions.mark_unchanged();
        let watching = self.tasks.beside.spawn(reader.watch(questions, tell));
        self.tasks.handles.push(watching);
    }

    /// Notes why the firewall allows no relays.
    pub(super) fn firewall_read(&mut self, reasons: Reasons) {
        self.note_off(Source::Firewall, reasons);
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

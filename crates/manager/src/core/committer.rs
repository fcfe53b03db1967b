//! The one thread that changes anything. It takes the commands that are waiting, runs each on the
//! state that those before it have left, writes all their changes in one transaction of the store,
//! publishes, and only then answers. A command that fails leaves nothing; a store that refuses
//! leaves nothing of the whole group. If it is not known whether the store has written, the process
//! ends: its successor reads what is true.

use std::sync::Arc;

use plimsoll_placement::Cluster;
use plimsoll_store::{CommitError, Store};
use rand::rngs::StdRng;
use tokio::sync::mpsc;

use crate::core::{Clock, Published, State, txn::Txn};

/// What came of running a command.
pub(crate) struct Executed {
    pub(crate) succeeded: bool,
    /// Answers the one who asked, once it is known whether the group was written.
    pub(crate) answer: Box<dyn FnOnce(Result<(), Arc<CommitError>>) + Send>,
}

/// Something to do in a transaction.
pub(crate) type Command = Box<dyn FnOnce(&mut Txn<'_>) -> Executed + Send>;

/// What the queue holds.
pub(crate) enum Message {
    Run(Command),
    /// End after what is queued before.
    Close,
}

/// A group ends when so many commands or records are in it, so that the first need not wait long.
const MAX_COMMANDS: usize = 512;
const MAX_CHANGES: usize = 8192;

pub(crate) struct Committer {
    pub(crate) store: Box<dyn Store>,
    pub(crate) cluster: Cluster,
    pub(crate) state: State,
    pub(crate) random: StdRng,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) published: Arc<Published>,
    pub(crate) keep_events: usize,
}

/// Ends the process when the thread panics: half a command may be in placement's books.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the committer panicked; the process ends");
            std::process::abort();
        }
    }
}

impl Committer {
    /// Runs until the queue is closed.
    pub(crate) fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let _guard = AbortOnPanic;
        let mut open = true;
        while open {
            let Some(Message::Run(first)) = queue.blocking_recv() else { break };
            let mut next = Some(first);
            let mut commands = || {
                next.take().or_else(|| match queue.try_recv() {
                    Ok(Message::Run(command)) => Some(command),
                    Ok(Message::Close) => {
                        open = false;
                        None
                    }
                    Err(_) => None,
                })
            };
            self.group(&mut commands);
        }
    }

    /// Runs commands until there are no more or the group is large enough, and commits them.
    fn group(&mut self, commands: &mut dyn FnMut() -> Option<Command>) {
        let mut txn =
            Txn::begin(&self.state, &mut self.cluster, &mut self.random, self.clock.now());
        let mut answers = Vec::new();
        while answers.len() < MAX_COMMANDS && txn.changes() < MAX_CHANGES {
            let Some(command) = commands() else { break };
            let mark = txn.mark();
            txn.actor = None;
            let executed = command(&mut txn);
            if !executed.succeeded {
                txn.roll_back(mark);
            }
            answers.push(executed.answer);
        }
        let outcome = if txn.is_dirty() {
            write(&mut txn, &mut *self.store, self.keep_events)
        } else {
            Ok(None)
        };
        let outcome = match outcome {
            Ok(revision) => {
                let (mut state, hooks) = txn.into_parts();
                if let Some(revision) = revision {
                    state.revision = revision;
                    self.published.publish(&state);
                    self.state = state;
                }
                finish(hooks);
                Ok(())
            }
            Err(error) => {
                tracing::error!(
                    error = %error,
                    cause = ?std::error::Error::source(&error).map(ToString::to_string),
                    commands = answers.len(),
                    "commit failed"
                );
                if error.outcome_unknown() {
                    std::process::abort();
                }
                txn.undo_cluster(0);
                finish(txn.into_parts().1);
                Err(Arc::new(error))
            }
        };
        for answer in answers {
            answer(outcome.clone());
        }
    }
}

fn finish(hooks: Vec<Box<dyn FnOnce() + Send>>) {
    for hook in hooks {
        hook();
    }
}

fn write(
    txn: &mut Txn<'_>,
    store: &mut dyn Store,
    keep_events: usize,
) -> Result<Option<u64>, CommitError> {
    let batch = txn.batch(keep_events).map_err(CommitError::Encode)?;
    store.commit(&batch).map(Some)
}

//! What is remembered of the manager, for an agent that restarts and does not reach it.

use std::{path::PathBuf, sync::Arc};

use plimsoll_api::cluster::{DesiredHost, ReportReply};
use serde::{Deserialize, Serialize};

use super::Wish;
use crate::vm::{
    BootTime,
    files::{self, FileError},
};

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// The last answer to a report.
    reply: Option<ReportReply>,
    /// The last document, and when it was asked for.
    desired: Option<Remembered>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    asked_at: BootTime,
    #[serde(with = "shared")]
    desired: Arc<DesiredHost>,
}

/// An `Arc` as what is in it.
mod shared {
    use super::{Arc, Deserialize, DesiredHost, Serialize};

    pub(super) fn serialize<S: serde::Serializer>(
        value: &Arc<DesiredHost>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<DesiredHost>, D::Error> {
        DesiredHost::deserialize(deserializer).map(Arc::new)
    }
}

/// The file and its content.
#[derive(Debug)]
pub(super) struct LinkState {
    path: PathBuf,
    content: Content,
}

impl LinkState {
    /// Reads it; empty where there is none. One that is damaged is only a cache that is lost.
    ///
    /// # Errors
    /// [`FileError::Read`].
    pub(super) fn load(path: PathBuf) -> Result<Self, FileError> {
        let content = match files::read_json(&path) {
            Ok(content) => content.unwrap_or_default(),
            Err(error @ FileError::Content { .. }) => {
                tracing::warn!(error = %error, "starting without what was remembered");
                Content::default()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { path, content })
    }

    /// The last document. One from before a reboot counts as asked for at the beginning of time.
    pub(super) fn wish(&self, boot_id: &str) -> Option<Wish> {
        let remembered = self.content.desired.as_ref()?;
        let same_boot = remembered.boot_id == boot_id;
        let asked_at = if same_boot { remembered.asked_at } else { BootTime(0) };
        Some(Wish { desired: Arc::clone(&remembered.desired), asked_at })
    }

    /// What the lease was granted last.
    pub(super) fn granted(&self) -> Option<Option<u64>> {
        self.content.reply.as_ref().map(|reply| reply.lease_ms)
    }

    /// Keeps what a later agent needs of an answer; writes only when that has changed.
    ///
    /// # Errors
    /// [`FileError::Write`].
    pub(super) fn keep_reply(&mut self, reply: &ReportReply) -> Result<(), FileError> {
        let key = |reply: &ReportReply| (reply.lease_ms, reply.interval_ms);
        if self.content.reply.as_ref().map(key) == Some(key(reply)) {
            return Ok(());
        }
        self.content.reply = Some(reply.clone());
        files::write_json(&self.path, &self.content)
    }

    /// Keeps a document.
    ///
    /// # Errors
    /// [`FileError::Write`]: then none is kept, not the older one either.
    pub(super) fn keep_desired(&mut self, wish: &Wish, boot_id: &str) -> Result<(), FileError> {
        self.content.desired = Some(Remembered {
            boot_id: boot_id.to_owned(),
            asked_at: wish.asked_at,
            desired: Arc::clone(&wish.desired),
        });
        files::write_json(&self.path, &self.content).inspect_err(|_| {
            // The older document that lies there would let the next agent start what was stopped
            // since, and runs elsewhere by now: rather none. A full disk still lets go of files.
            drop(files::remove(&self.path));
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_is_old_after_a_reboot() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link.json");
        let mut state = LinkState::load(path.clone()).unwrap();
        assert!(state.wish("boot").is_none() && state.granted().is_none());
        let desired = Arc::new(DesiredHost { generation: 7, ..DesiredHost::default() });
        state.keep_desired(&Wish { desired, asked_at: BootTime(5) }, "boot").unwrap();
        let reply = ReportReply { lease_ms: None, interval_ms: 9, desired_generation: 7 };
        state.keep_reply(&reply).unwrap();
        let state = LinkState::load(path.clone()).unwrap();
        let wish = state.wish("boot").unwrap();
        assert_eq!((wish.desired.generation, wish.asked_at), (7, BootTime(5)));
        assert_eq!(state.wish("another").unwrap().asked_at, BootTime(0));
        assert_eq!(state.granted(), Some(None));
        fs_err::write(&path, "{").unwrap();
        assert!(LinkState::load(path).unwrap().wish("boot").is_none());
    }
    #[test]
    fn a_document_that_cannot_be_kept_leaves_no_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link.json");
        let wish = |generation| {
            let desired = Arc::new(DesiredHost { generation, ..DesiredHost::default() });
            Wish { desired, asked_at: BootTime(5) }
        };
        let mut state = LinkState::load(path.clone()).unwrap();
        state.keep_desired(&wish(1), "boot").unwrap();
        // What is written beside the file first cannot be: a directory is in the way.
        fs_err::create_dir(path.with_extension("new")).unwrap();
        assert!(state.keep_desired(&wish(2), "boot").is_err());
        assert!(LinkState::load(path).unwrap().wish("boot").is_none());
    }
}

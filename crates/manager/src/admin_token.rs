//! The first admin's token, made when a cluster has no token at all: written to `admin.token` (mode
//! 0600) in the data folder and never anywhere else. Who has read it makes tokens of his own and may
//! revoke it and delete the file; neither comes back.
//!
//! The file is written before the store knows the token: a crash in between leaves a file that the
//! next start takes up.

use std::{
    io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use plimsoll_api::v1::SetSettingsRequest;
use thiserror::Error;

use crate::{
    app::{self, AppError},
    ca::{CaError, write_durably},
    core::Core,
};

/// Why a new cluster cannot be set up.
#[derive(Debug, Error)]
pub enum AdminTokenError {
    /// The system has no randomness.
    #[error("the system gives no random numbers")]
    Random(#[source] getrandom::Error),
    /// The file cannot be written.
    #[error("cannot keep the token")]
    Write(#[source] CaError),
    /// The file of an earlier start cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store does not take it.
    #[error("cannot register the token")]
    Register(#[source] Box<AppError>),
    /// The first settings are not allowed.
    #[error("cannot apply the settings of the configuration")]
    Settings(#[source] Box<AppError>),
}

/// In a cluster without any token: makes the admin's, and applies the first settings.
pub(crate) async fn ensure(
    core: &Core,
    folder: &Path,
    settings: &SetSettingsRequest,
) -> Result<(), AdminTokenError> {
    if !core.snapshot().tokens.is_empty() {
        return Ok(());
    }
    let path = folder.join("admin.token");
    let secret = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = random_token().map_err(AdminTokenError::Random)?;
            write_durably(&path, format!("{secret}\n").as_bytes(), 0o600)
                .map_err(AdminTokenError::Write)?;
            secret
        }
        Err(source) => return Err(AdminTokenError::Read { path, source }),
    };
    app::token_ensure_admin(core, &secret, "the first admin, made at the first start")
        .await
        .map_err(|error| AdminTokenError::Register(Box::new(error)))?;
    tracing::info!(path = %path.display(), "the first admin's token was made");
    if *settings != SetSettingsRequest::default() {
        let admin = app::token_authenticate(core, &secret)
            .map_err(|error| AdminTokenError::Register(Box::new(error)))?;
        app::settings_set(core, &admin, settings.clone())
            .await
            .map_err(|error| AdminTokenError::Settings(Box::new(error)))?;
    }
    Ok(())
}

fn random_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("plt_{}", URL_SAFE_NO_PAD.encode(bytes)))
}

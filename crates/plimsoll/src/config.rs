//! Where the manager is, who asks, and for which project.
//!
//! Each is looked for in turn: on the command line, in the environment (`PLIMSOLL_SERVER`,
//! `PLIMSOLL_CA`, `PLIMSOLL_TOKEN_FILE`, `PLIMSOLL_PROJECT`), in a context of the configuration file
//! (`$XDG_CONFIG_HOME/plimsoll/config.toml`, by default below `~/.config`). A token is never on the
//! command line: it lies in a file, and only the file's name is said.

use std::{
    collections::BTreeMap,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use fs_err as fs;
use plimsoll_api::client::{Client, ClientConfig};
use plimsoll_model::Name;
use serde::{Deserialize, Serialize};

use crate::{
    cli::GlobalArgs,
    failure::{Failure, OrFail as _, Outcome},
};

/// The socket of a manager on this machine, if nothing else is said.
const DEFAULT_SERVER: &str = "unix:/var/lib/plimsoll/manager/api.sock";
/// The first admin's token of that manager.
const DEFAULT_TOKEN_FILE: &str = "/var/lib/plimsoll/manager/admin.token";

/// The longest token file: a token is some 60 characters.
const LONGEST_TOKEN: u64 = 4096;

/// A cluster that the user knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// `unix:PATH` or `https://HOST:PORT`.
    pub(crate) server: String,
    /// The cluster's CA, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// The file with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// The project that is meant where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<Name>,
}

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConfigFile {
    /// The context that is used where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<Name>,
    /// Contexts by name.
    pub(crate) contexts: BTreeMap<Name, Context>,
}

impl ConfigFile {
    /// Where it lies; none without a home.
    fn path() -> Option<PathBuf> {
        let base = std::env::var_os("XDG_CONFIG_HOME")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
        Some(base.join("plimsoll/config.toml"))
    }

    /// Reads it; without a file it is empty.
    pub(crate) fn load() -> Outcome<Self> {
        let Some(path) = Self::path() else { return Ok(Self::default()) };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error.into()),
        };
        toml::from_str(&text)
            .or_usage(|| format!("cannot understand {}", path.display()))
            .map_err(|failure| failure.hint("mend the file, or move it away"))
    }

    /// Reads it, changes it and writes it back, at once.
    pub(crate) fn change(change: impl FnOnce(&mut Self)) -> Outcome {
        let path = Self::path().ok_or_else(|| {
            Failure::new("there is no place for the configuration file").hint("set HOME")
        })?;
        let mut config = Self::load()?;
        change(&mut config);
        let text = toml::to_string_pretty(&config)?;
        write_private(&path, &text, true)
    }
}

/// Writes a file that only its owner can read, as a whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str, overwrite: bool) -> Outcome {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new()
        .prefix(".plimsoll-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .tempfile_in(directory)
        .or_fail(|| format!("cannot write in {}", directory.display()))?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    let persisted = if overwrite { file.persist(path) } else { file.persist_noclobber(path) };
    persisted
        .map_err(|error| error.error)
        .or_fail(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// A connection to the manager, and what was said about it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The typed client.
    pub(crate) client: Client,
    /// The context that is in use.
    pub(crate) context: Option<Name>,
    project: Option<Name>,
    named_project: Option<Name>,
}

impl Connection {
    /// Finds out where the manager is and who asks; nothing is connected yet.
    pub(crate) fn open(global: &GlobalArgs) -> Outcome<Self> {
        let config = ConfigFile::load()?;
        let name = match (&global.context, &global.server) {
            (Some(name), _) => Some(name.clone()),
            // Whoever names a server means that one, not another with this context's token.
            (None, Some(_)) => None,
            (None, None) => config.current.clone(),
        };
        let context = match &name {
            None => Context::default(),
            Some(name) => config.contexts.get(name).cloned().ok_or_else(|| {
                Failure::usage(format!("there is no context `{name}`"))
                    .hint("`plimsoll context list` shows those that there are")
            })?,
        };
        let address = global
            .server
            .clone()
            .or_else(|| Some(context.server.clone()).filter(|server| !server.is_empty()))
            .unwrap_or_else(|| DEFAULT_SERVER.to_owned());
        let ca = global.ca.clone().or(context.ca);
        let token_file = global.token_file.clone().or(context.token_file);
        let ca_pem = ca
            .map(|path| {
                fs::read_to_string(&path).or_usage(|| "cannot read the CA certificate".to_owned())
            })
            .transpose()?;
        let here = Path::new(DEFAULT_TOKEN_FILE);
        let token_file = token_file
            .or_else(|| (address == DEFAULT_SERVER && here.exists()).then(|| here.to_owned()));
        let token = token_file.map(|path| read_token(&path)).transpose()?;
        let client = Client::new(&ClientConfig { address, ca_pem, token })?;
        let named_project = global.project.clone();
        let project = named_project.clone().or(context.project);
        Ok(Self { client, context: name, project, named_project })
    }

    /// A connection that is there already; no project is meant.
    pub(crate) const fn of(client: Client) -> Self {
        Self { client, context: None, project: None, named_project: None }
    }

    /// The project that is meant.
    pub(crate) fn project(&self) -> Outcome<Name> {
        self.project.clone().ok_or_else(|| {
            Failure::usage("no project is named").hint(
                "name one with --project or PLIMSOLL_PROJECT, or keep one in the context: \
                 `plimsoll context set NAME --project PROJECT`",
            )
        })
    }

    /// The project that was named on the command line or in the environment.
    pub(crate) const fn named_project(&self) -> Option<&Name> {
        self.named_project.as_ref()
    }

    /// The project that is meant, if any.
    pub(crate) const fn project_if_any(&self) -> Option<&Name> {
        self.project.as_ref()
    }
}

/// Reads a token from its file.
pub(crate) fn read_token(path: &Path) -> Outcome<String> {
    let what = || format!("cannot read the token file {}", path.display());
    let hint = "`plimsoll token create --out FILE` makes such a file";
    let size = fs::metadata(path).or_usage(what).map_err(|failure| failure.hint(hint))?.len();
    if size > LONGEST_TOKEN {
        return Err(
            Failure::usage(format!("{} is too long for a token", path.display())).hint(hint)
        );
    }
    let text = fs::read_to_string(path).or_usage(what)?;
    let token = text.trim();
    if token.is_empty() {
        return Err(
            Failure::usage(format!("the token file {} is empty", path.display())).hint(hint)
        );
    }
    Ok(token.to_owned())
}

/// Opens a new file that only its owner can read.
pub(crate) fn create_private(path: &Path) -> Outcome<std::fs::File> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .or_usage(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_understood_and_misspelt_keys_are_refused() {
        let text = "current = \"lab\"\n[contexts.lab]\nserver = \"unix:/x\"\nproject = \"shop\"\n";
        let config: ConfigFile = toml::from_str(text).unwrap();
        assert_eq!(config.contexts[&"lab".parse().unwrap()].project, Some("shop".parse().unwrap()));
        let again: ConfigFile = toml::from_str(&toml::to_string_pretty(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        assert!(toml::from_str::<ConfigFile>("[contexts.lab]\nsrever = \"x\"\n").is_err());
    }

    #[test]
    fn a_token_file_is_trimmed_and_must_not_be_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "pls_abc\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "pls_abc");
        fs::write(&path, "\n").unwrap();
        assert_eq!(read_token(&path).unwrap_err().exit_code(), crate::failure::USAGE);
        assert!(read_token(&directory.path().join("none")).is_err());
    }
}

//! The manager's configuration: its file, with the command line over it.

use std::path::Path;

use fs_err as fs;
use plimsoll_manager::ServerConfig;

use crate::{
    cli::cluster::ServerArgs,
    failure::{OrFail as _, Outcome},
};

/// Where the file is looked for when none is named.
const DEFAULT_PATH: &str = "/etc/plimsoll/server.toml";

/// Reads the file, if there is one, and puts the options over it.
pub(crate) fn load(args: ServerArgs) -> Outcome<ServerConfig> {
    let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let what = || "cannot use the manager's configuration".to_owned();
    let mut config = match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .or_usage(|| format!("cannot understand {}", path.display()))
            .or_usage(what)?,
        Err(error) if args.config.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            ServerConfig::default()
        }
        Err(error) => return Err(error).or_usage(what),
    };
    config.data_dir = args.data_dir.unwrap_or(config.data_dir);
    config.api_listen = args.listen.or(config.api_listen);
    config.cluster_listen = args.cluster_listen.unwrap_or(config.cluster_listen);
    config.advertise = args.advertise.or(config.advertise);
    config.socket = args.socket.or(config.socket);
    Ok(config)
}

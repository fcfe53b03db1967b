//! The seed disk: who the guest is, where it is on its networks, and what its owner wants it to do.
//!
//! One VFAT image serves two readers: cloud-init's NoCloud (label `CIDATA`; `meta-data`,
//! `user-data`, `network-config`) and guests without it, which read `plimsoll.env`. That file is
//! read by a shell, so its values hold nothing that a shell would act on: only
//! `[A-Za-z0-9.:/_-]`.

use std::{
    fmt::Write as _,
    io::{self, Cursor, Write as _},
    net::Ipv4Addr,
};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use plimsoll_model::MacAddress;
use thiserror::Error;

/// One sector short of nothing any reader minds: FAT12 with room for the largest user data.
const IMAGE_BYTES: u32 = 1 << 20;
const LARGEST_USER_DATA: usize = 512 << 10;
const MOST_SSH_KEYS: usize = 64;
const LONGEST_SSH_KEY: usize = 16 << 10;
const MOST_NICS: usize = 32;

/// A network interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedNic {
    /// Its MAC address, by which the guest finds it.
    pub mac: MacAddress,
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix, in bits: at most 32.
    pub prefix: u8,
    /// The way out, on networks that have one.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers; guests without cloud-init use the first.
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet, in bytes.
    pub mtu: u16,
}

/// What a seed disk tells a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The guest's name: letters, digits and dashes.
    pub hostname: String,
    /// Changes exactly when the guest shall set itself up anew.
    pub instance_id: String,
    /// Its interfaces, in order.
    pub nics: Vec<SeedNic>,
    /// cloud-init user data, handed on as it is.
    pub user_data: Option<String>,
    /// SSH public keys for the image's default user.
    pub ssh_keys: Vec<String>,
}

/// Why a seed disk cannot be made.
#[derive(Debug, Error)]
pub enum SeedError {
    /// A value could break the files that it is written to.
    #[error("{field} may only hold 1 to 253 of A-Z, a-z, 0-9, `.`, `:`, `/`, `_` and `-`")]
    Value {
        /// Which value.
        field: &'static str,
    },
    /// Too large to be given to a guest.
    #[error("{field} is {is} long, more than {most}")]
    TooLarge {
        /// Which value.
        field: &'static str,
        /// Its length.
        is: usize,
        /// What is allowed.
        most: usize,
    },
    /// A key holds a line break or another control character.
    #[error("SSH key {number} is not one line of text")]
    SshKey {
        /// Which one, from 1.
        number: usize,
    },
    /// A prefix length that no address has.
    #[error("an IPv4 prefix has at most 32 bits, not {prefix}")]
    Prefix {
        /// The length.
        prefix: u8,
    },
    /// The file system could not be written (into memory).
    #[error("cannot write the VFAT image")]
    Write {
        /// Where it failed.
        #[source]
        source: io::Error,
    },
}

impl Seed {
    /// The complete disk image.
    ///
    /// # Errors
    /// [`SeedError`] names the value that is not allowed.
    pub fn image(&self) -> Result<Vec<u8>, SeedError> {
        self.check()?;
        let user_data = self.user_data.as_deref().unwrap_or("#cloud-config\n{}\n");
        let files = [
            ("meta-data", self.meta_data()),
            ("user-data", user_data.to_owned()),
            ("network-config", self.network_config()),
            ("plimsoll.env", self.environment()),
        ];
        vfat(&files).map_err(|source| SeedError::Write { source })
    }

    fn check(&self) -> Result<(), SeedError> {
        plain("hostname", &self.hostname)?;
        plain("instance id", &self.instance_id)?;
        let bounded = |field, is, most| {
            if is <= most { Ok(()) } else { Err(SeedError::TooLarge { field, is, most }) }
        };
        bounded("user data", self.user_data.as_ref().map_or(0, String::len), LARGEST_USER_DATA)?;
        bounded("the list of SSH keys", self.ssh_keys.len(), MOST_SSH_KEYS)?;
        bounded("the list of interfaces", self.nics.len(), MOST_NICS)?;
        bounded(
            "the text of all SSH keys",
            self.ssh_keys.iter().map(String::len).sum(),
            128 << 10,
        )?;
        for (index, key) in self.ssh_keys.iter().enumerate() {
            bounded("an SSH key", key.len(), LONGEST_SSH_KEY)?;
            if key.chars().any(char::is_control) {
                return Err(SeedError::SshKey { number: index + 1 });
            }
        }
        match self.nics.iter().find(|nic| nic.prefix > 32) {
            Some(nic) => Err(SeedError::Prefix { prefix: nic.prefix }),
            None => Ok(()),
        }
    }

    fn meta_data(&self) -> String {
        let mut text = format!(
            "instance-id: {}\nlocal-hostname: {}\n",
            quoted(&self.instance_id),
            quoted(&self.hostname)
        );
        if !self.ssh_keys.is_empty() {
            text.push_str("public-keys:\n");
            for key in &self.ssh_keys {
                line(&mut text, format_args!("  - {}", quoted(key.trim())));
            }
        }
        text
    }

    fn network_config(&self) -> String {
        let mut text = "version: 2\n".to_owned();
        if self.nics.is_empty() {
            text.push_str("ethernets: {}\n");
            return text;
        }
        text.push_str("ethernets:\n");
        for (index, nic) in self.nics.iter().enumerate() {
            let SeedNic { mac, address, prefix, mtu, .. } = nic;
            line(&mut text, format_args!("  nic{index}:"));
            line(&mut text, format_args!("    match: {{macaddress: \"{mac}\"}}"));
            line(&mut text, format_args!("    addresses: [\"{address}/{prefix}\"]"));
            line(&mut text, format_args!("    mtu: {mtu}"));
            if let Some(gateway) = nic.gateway {
                // Not `to: default`, which cloud-init before 23 does not know.
                line(
                    &mut text,
                    format_args!("    routes: [{{to: \"0.0.0.0/0\", via: \"{gateway}\"}}]"),
                );
            }
            if !nic.dns.is_empty() {
                let servers: Vec<String> =
                    nic.dns.iter().map(|server| format!("\"{server}\"")).collect();
                line(
                    &mut text,
                    format_args!("    nameservers: {{addresses: [{}]}}", servers.join(", ")),
                );
            }
        }
        text
    }

    fn environment(&self) -> String {
        let mut text = format!("HOSTNAME={}\nINSTANCE_ID={}\n", self.hostname, self.instance_id);
        for (index, nic) in self.nics.iter().enumerate() {
            line(&mut text, format_args!("NIC{index}_MAC={}", nic.mac));
            line(&mut text, format_args!("NIC{index}_ADDRESS={}/{}", nic.address, nic.prefix));
            if let Some(gateway) = nic.gateway {
                line(&mut text, format_args!("NIC{index}_GATEWAY={gateway}"));
            }
            if let Some(server) = nic.dns.first() {
                line(&mut text, format_args!("NIC{index}_DNS={server}"));
            }
            line(&mut text, format_args!("NIC{index}_MTU={}", nic.mtu));
        }
        text
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("writing to a String does not fail");
}

/// A YAML string: JSON's strings are YAML's double-quoted ones.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn plain(field: &'static str, text: &str) -> Result<(), SeedError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".:/_-".contains(c);
    if (1..=253).contains(&text.len()) && text.chars().all(allowed) {
        Ok(())
    } else {
        Err(SeedError::Value { field })
    }
}

fn vfat(files: &[(&str, String)]) -> io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; IMAGE_BYTES as usize]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_cluster(512)
        .volume_label(*b"CIDATA     ");
    format_volume(&mut disk, options)?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    for (name, content) in files {
        volume.root_dir().create_file(name)?.write_all(content.as_bytes())?;
    }
    volume.unmount()?;
    Ok(disk.into_inner())
}

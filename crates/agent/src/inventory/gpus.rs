//! NVIDIA's accelerators, through their management library, which is loaded only if it is there.

use nvml_wrapper::{Nvml, error::NvmlError};
use plimsoll_model::{Bytes, Label};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An accelerator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its model, as VMs ask for it: `a100-sxm4-40gb`.
    pub model: Label,
    /// Its maker's name for it.
    pub name: String,
    /// Its own memory.
    pub memory: Bytes,
    /// What tells it from others of its model.
    pub uuid: String,
}

/// Why accelerators are not known.
#[derive(Debug, Error)]
pub enum GpuError {
    /// The library is not there or does not start.
    #[error("NVIDIA's management library does not load")]
    Load {
        /// What it said.
        #[source]
        source: NvmlError,
    },
    /// A device does not answer.
    #[error("accelerator {index} does not answer")]
    Device {
        /// Which one, from 0.
        index: u32,
        /// What the library said.
        #[source]
        source: NvmlError,
    },
}

/// All accelerators. Without the driver it is [`GpuError::Load`].
///
/// # Errors
/// [`GpuError`].
pub fn found() -> Result<Vec<Gpu>, GpuError> {
    let library = Nvml::init().map_err(|source| GpuError::Load { source })?;
    let count = library.device_count().map_err(|source| GpuError::Load { source })?;
    (0..count)
        .map(|index| {
            let failed = |source| GpuError::Device { index, source };
            let device = library.device_by_index(index).map_err(failed)?;
            let name = device.name().map_err(failed)?;
            Ok(Gpu {
                model: model(&name),
                memory: Bytes(device.memory_info().map_err(failed)?.total),
                uuid: device.uuid().map_err(failed)?,
                name,
            })
        })
        .collect()
}

/// The model as a label: lower case, without the maker, with dashes for everything else.
fn model(name: &str) -> Label {
    let lower = name.to_ascii_lowercase();
    let short = lower.strip_prefix("nvidia ").unwrap_or(&lower);
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let text: String = short.trim().chars().map(legal).take(63).collect();
    text.parse().unwrap_or_else(|_| "gpu".parse().expect("three letters are a label"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_labels() {
        assert_eq!(model("NVIDIA A100-SXM4-40GB").as_str(), "a100-sxm4-40gb");
        assert_eq!(model("NVIDIA GeForce RTX 3090").as_str(), "geforce-rtx-3090");
        assert_eq!(model("Tesla T4").as_str(), "tesla-t4");
        assert_eq!(model("").as_str(), "gpu");
        assert_eq!(model(&"x".repeat(100)).as_str().len(), 63);
    }

    #[test]
    fn without_a_driver_it_is_said_and_nothing_breaks() {
        match found() {
            Ok(gpus) => eprintln!("{} accelerators", gpus.len()),
            Err(error) => assert!(error.to_string().contains("does not")),
        }
    }
}

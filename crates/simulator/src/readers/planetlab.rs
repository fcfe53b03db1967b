//! CPU use of VMs over a day, as the `PlanetLab` workload that consolidation is measured with
//! (Beloglazov and Buyya, *Optimal online deterministic algorithms and adaptive heuristics for
//! energy and performance efficient dynamic consolidation of virtual machines in Cloud data
//! centers*, CCPE 24(13), 2012): one file a day, plain or compressed with xz, one line for each VM:
//! its name, then its CPU use in % of what it has, every five minutes.

use std::{io::BufRead, path::Path};

use super::{Limits, Lines, ReadError, lines::Cell, source};

/// The most slots: a century of five minutes.
const SLOTS: usize = 100 * 366 * 288;

/// The most samples in all.
const SAMPLES: usize = 1 << 30;

/// The longest name of a VM, in bytes.
const NAME: usize = 253;

/// A VM and what it used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Of the CPU that it has, in %, by slot.
    pub cpu_percent: Vec<u8>,
}

/// Reads a day: the VMs in the order of the file. All have the same number of slots.
///
/// # Errors
/// The first thing that is wrong.
pub fn read(file: &Path, limits: &Limits) -> Result<Vec<Vm>, ReadError> {
    read_from(source::lines(file, limits)?, limits)
}

/// [`read`] of a text.
///
/// # Errors
/// The first thing that is wrong.
pub fn read_from<R: BufRead>(mut lines: Lines<R>, limits: &Limits) -> Result<Vec<Vm>, ReadError> {
    let mut vms: Vec<Vm> = Vec::new();
    let mut room = SAMPLES;
    while let Some(line) = lines.next_filled_line()? {
        if vms.len() >= limits.records {
            return Err(line.cell(0, line.text).too_much("VMs", limits.records));
        }
        let mut cells = line.split(|byte| byte == b',');
        let name = name(&cells.next().unwrap_or_else(|| line.cell(0, "")))?;
        let slots = vms.first().map(|vm| vm.cpu_percent.len());
        let mut cpu_percent = Vec::with_capacity(slots.unwrap_or(0));
        for cell in cells {
            if slots.is_some_and(|slots| cpu_percent.len() >= slots) {
                return Err(cell.unexpected("as many slots as on the first line"));
            }
            if cpu_percent.len() >= SLOTS {
                return Err(cell.too_much("slots", SLOTS));
            }
            room = room.checked_sub(1).ok_or_else(|| cell.too_much("samples", SAMPLES))?;
            cpu_percent.push(percent(&cell)?);
        }
        if cpu_percent.is_empty() || slots.is_some_and(|slots| cpu_percent.len() < slots) {
            return Err(line.too_short("CPU use in %, as many slots as on the first line"));
        }
        vms.push(Vm { name, cpu_percent });
    }
    if vms.is_empty() {
        return Err(ReadError::Nothing { file: lines.file().to_owned(), wanted: "VM" });
    }
    Ok(vms)
}

fn name(cell: &Cell<'_>) -> Result<String, ReadError> {
    if (1..=NAME).contains(&cell.text.len()) {
        Ok(cell.text.to_owned())
    } else {
        Err(cell.unexpected("a VM's name of 1 to 253 bytes"))
    }
}

fn percent(cell: &Cell<'_>) -> Result<u8, ReadError> {
    cell.text
        .parse()
        .ok()
        .filter(|percent| *percent <= 100)
        .ok_or_else(|| cell.unexpected("CPU use in %, a whole number from 0 to 100"))
}

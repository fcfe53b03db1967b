//! Use of VMs over time, as matrices of the Grid Workloads Archive's `GWA-T-12 Bitbrains` traces:
//! a folder with `vms.csv` (columns `vm`, `cores` and `mem_cap_mb`, others are left alone) and one
//! line for each VM in `cpu_mhz.csv` and `mem_mb.csv`, each plain or compressed with xz (`.csv.xz`):
//! the VM's number, then its CPU use in MHz, or its active memory in MB, in every slot of five
//! minutes. A slot in which nothing was sampled is empty. MB are MiB.

use std::{
    collections::BTreeMap,
    io::BufRead,
    path::{Path, PathBuf},
};

use plimsoll_model::{Bytes, MilliCores};

use super::{Limits, Lines, ReadError, csv::Table, lines::Cell, source};

/// The most slots: a century of five minutes.
const SLOTS: usize = 100 * 366 * 288;

/// The most samples in all, 8 GB of them.
const SAMPLES: usize = 1 << 30;

/// The largest number of a VM.
const LAST: u64 = 1 << 40;

/// The most cores and MB of a VM, and the highest use of it in MHz or MB.
const CORES: u64 = 1 << 16;
const MOST: u64 = u32::MAX as u64;

/// A VM and what it used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its number.
    pub id: u64,
    /// Cores.
    pub cpu: MilliCores,
    /// Memory.
    pub memory: Bytes,
    /// CPU in MHz, by slot; none where nothing was sampled.
    pub cpu_mhz: Vec<Option<u32>>,
    /// Active memory in MiB, by slot.
    pub memory_mib: Vec<Option<u32>>,
}

/// Reads a folder: the VMs by their numbers, without those that have no cores or no memory. All have
/// the same number of slots, of CPU and of memory.
///
/// # Errors
/// The first thing that is wrong.
pub fn read(folder: &Path, limits: &Limits) -> Result<Vec<Vm>, ReadError> {
    let open = |name| source::lines(&either(folder, name), limits);
    read_from(open("vms.csv")?, open("cpu_mhz.csv")?, open("mem_mb.csv")?, limits)
}

/// The plain file if there is one, otherwise the compressed one.
fn either(folder: &Path, name: &str) -> PathBuf {
    let plain = folder.join(name);
    let packed = folder.join(format!("{name}.xz"));
    if !plain.exists() && packed.exists() { packed } else { plain }
}

/// [`read`] of texts.
///
/// # Errors
/// The first thing that is wrong.
pub fn read_from<R: BufRead>(
    vms: Lines<R>,
    cpu: Lines<R>,
    memory: Lines<R>,
    limits: &Limits,
) -> Result<Vec<Vm>, ReadError> {
    let file = vms.file().to_owned();
    let mut vms = list(vms, limits)?;
    let slots = matrix(cpu, "MHz", None, &mut vms, |vm| &mut vm.cpu_mhz)?;
    matrix(memory, "MB", Some(slots), &mut vms, |vm| &mut vm.memory_mib)?;
    let vms: Vec<_> = vms.into_values().filter(|vm| vm.cpu.0 > 0 && vm.memory.0 > 0).collect();
    if vms.is_empty() {
        return Err(ReadError::Nothing { file, wanted: "VM with cores and memory" });
    }
    Ok(vms)
}

fn list<R: BufRead>(lines: Lines<R>, limits: &Limits) -> Result<BTreeMap<u64, Vm>, ReadError> {
    let mut table = Table::new(lines, &["vm", "cores", "mem_cap_mb"])?;
    let mut vms = BTreeMap::new();
    while let Some(row) = table.next_row()? {
        if vms.len() >= limits.records {
            return Err(row.too_much("VMs", limits.records));
        }
        let number = row.cell("vm")?;
        let id = number.number("a VM's number", 0, LAST)?;
        let cores = row.cell("cores")?.number("cores", 0, CORES)?;
        let vm = Vm {
            id,
            cpu: MilliCores::cores(cores),
            memory: mebibytes(&row.cell("mem_cap_mb")?)?,
            cpu_mhz: Vec::new(),
            memory_mib: Vec::new(),
        };
        if vms.insert(id, vm).is_some() {
            return Err(number.unexpected("a number that no other VM has"));
        }
    }
    Ok(vms)
}

/// A decimal number of MB, such as `686.5`; thousandths of them at the finest.
fn mebibytes(cell: &Cell<'_>) -> Result<Bytes, ReadError> {
    cell.thousandths()
        .filter(|thousandths| *thousandths <= MOST * 1000)
        // Below 2^42 thousandths: the product is below 2^62.
        .map(|thousandths| Bytes(thousandths * (1 << 20) / 1000))
        .ok_or_else(|| cell.unexpected("memory in MB, a number such as 2048 or 686.5"))
}

/// Reads a line for each VM, and gives the number of slots.
fn matrix<R: BufRead>(
    mut lines: Lines<R>,
    unit: &str,
    mut slots: Option<usize>,
    vms: &mut BTreeMap<u64, Vm>,
    samples: impl Fn(&mut Vm) -> &mut Vec<Option<u32>>,
) -> Result<usize, ReadError> {
    let mut left = vms.len();
    let mut room = SAMPLES;
    while let Some(line) = lines.next_filled_line()? {
        let mut cells = line.split(|byte| byte == b',');
        let number = cells.next().unwrap_or_else(|| line.cell(0, ""));
        let id = number.number("a VM's number", 0, LAST)?;
        let vm =
            vms.get_mut(&id).map(&samples).filter(|known| known.is_empty()).ok_or_else(|| {
                number.unexpected("the number of a VM of the list, each on one line")
            })?;
        for cell in cells {
            if slots.is_some_and(|slots| vm.len() >= slots) {
                return Err(cell.unexpected("as many slots as on the lines before"));
            }
            if vm.len() >= SLOTS {
                return Err(cell.too_much("slots", SLOTS));
            }
            room = room.checked_sub(1).ok_or_else(|| cell.too_much("samples", SAMPLES))?;
            vm.push(sample(&cell, unit)?);
        }
        let count = vm.len();
        if count == 0 || slots.is_some_and(|slots| count < slots) {
            return Err(line.too_short("as many slots as on the lines before, and one at least"));
        }
        slots = Some(count);
        left -= 1;
    }
    if left > 0 {
        lines.expect_line("a line for each VM of the list")?;
    }
    Ok(slots.unwrap_or(0))
}

fn sample(cell: &Cell<'_>, unit: &str) -> Result<Option<u32>, ReadError> {
    if cell.text.is_empty() {
        return Ok(None);
    }
    let number = cell.number(unit, 0, MOST)?;
    Ok(u32::try_from(number).ok())
}

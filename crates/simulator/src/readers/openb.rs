//! The lists of nodes and pods of Alibaba's GPU cluster traces (`cluster-trace-gpu-v2023`).

use std::{io::BufRead, path::Path};

use plimsoll_model::Label;

use super::{
    Limits, Lines, ReadError,
    csv::{Row, Table},
    lines::Cell,
    source,
};

/// The most devices of one node.
const GPUS: u64 = 1024;

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Cores, in thousandths.
    pub cpu_milli: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Its accelerators, whole devices.
    pub gpus: u32,
    /// Their model; some as soon as there are any.
    pub model: Option<Label>,
}

/// Work that is to be placed on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Cores, in thousandths.
    pub cpu_milli: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// How many accelerators it uses.
    pub gpus: u32,
    /// How much of each, in thousandths: 1 to 1000, and 1000 when there are several.
    pub gpu_milli: u32,
    /// The models that will do; none when all do.
    pub models: Vec<Label>,
}

impl Pod {
    /// What it asks for of accelerators in all, in thousandths of one.
    #[must_use]
    pub fn gpu_milli_total(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.gpu_milli)
    }
}

/// Reads a list of nodes: columns `sn`, `cpu_milli`, `memory_mib`, `gpu` and `model`, others are
/// left alone.
///
/// # Errors
/// The first thing that is wrong.
pub fn nodes(path: &Path, limits: &Limits) -> Result<Vec<Node>, ReadError> {
    nodes_from(source::lines(path, limits)?, limits)
}

/// [`nodes`] of a text.
///
/// # Errors
/// The first thing that is wrong.
pub fn nodes_from<R: BufRead>(lines: Lines<R>, limits: &Limits) -> Result<Vec<Node>, ReadError> {
    let mut table = Table::new(lines, &["sn", "cpu_milli", "memory_mib", "gpu", "model"])?;
    let mut nodes = Vec::new();
    while let Some(row) = table.next_row()? {
        if nodes.len() >= limits.hosts {
            return Err(row.too_much("nodes", limits.hosts));
        }
        let gpus = row.cell("gpu")?.number("a node's devices", 0, GPUS)?;
        let model = row.cell("model")?;
        nodes.push(Node {
            name: name(&row, "sn")?,
            cpu_milli: row.cell("cpu_milli")?.number("thousandths of cores", 1, MOST)?,
            memory_mib: row.cell("memory_mib")?.number("memory in MiB", 0, MOST)?,
            gpus: u32::try_from(gpus).unwrap_or(u32::MAX),
            model: if gpus == 0 && model.text.is_empty() { None } else { Some(label(&model)?) },
        });
    }
    Ok(nodes)
}

/// The largest amount of cores or MiB: sums over all hosts and pods stay far below 2^64 bytes.
const MOST: u64 = 1 << 40;

/// Reads a list of pods: columns `name`, `cpu_milli`, `memory_mib`, `num_gpu`, `gpu_milli` and, if
/// there is one, `gpu_spec`; others are left alone.
///
/// # Errors
/// The first thing that is wrong.
pub fn pods(path: &Path, limits: &Limits) -> Result<Vec<Pod>, ReadError> {
    pods_from(source::lines(path, limits)?, limits)
}

/// [`pods`] of a text.
///
/// # Errors
/// The first thing that is wrong.
pub fn pods_from<R: BufRead>(lines: Lines<R>, limits: &Limits) -> Result<Vec<Pod>, ReadError> {
    let mut table =
        Table::new(lines, &["name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"])?;
    let mut pods = Vec::new();
    while let Some(row) = table.next_row()? {
        if pods.len() >= limits.records {
            return Err(row.too_much("pods", limits.records));
        }
        let gpus = row.cell("num_gpu")?.number("a pod's devices", 0, GPUS)?;
        let share = row.cell("gpu_milli")?;
        let gpu_milli = match gpus {
            0 => share.number("thousandths of no device", 0, 1000).map(|_| 0)?,
            1 => share.number("thousandths of a device", 1, 1000)?,
            _ => share.number("thousandths of each of several devices", 1000, 1000)?,
        };
        pods.push(Pod {
            name: name(&row, "name")?,
            cpu_milli: row.cell("cpu_milli")?.number("thousandths of cores", 0, MOST)?,
            memory_mib: row.cell("memory_mib")?.number("memory in MiB", 0, MOST)?,
            gpus: u32::try_from(gpus).unwrap_or(u32::MAX),
            gpu_milli: u32::try_from(gpu_milli).unwrap_or(1000),
            models: row.get("gpu_spec").map_or_else(|| Ok(Vec::new()), |cell| models(&cell))?,
        });
    }
    Ok(pods)
}

fn name(row: &Row<'_>, title: &str) -> Result<String, ReadError> {
    let cell = row.cell(title)?;
    match cell.text.len() {
        1..=253 => Ok(cell.text.to_owned()),
        _ => Err(cell.unexpected("a name of 1 to 253 bytes")),
    }
}

fn label(cell: &Cell<'_>) -> Result<Label, ReadError> {
    cell.text
        .parse()
        .map_err(|_| cell.unexpected("a model of 1 to 63 letters, digits, `.`, `_`, `/` and `-`"))
}

/// `A|B`, each once, sorted.
fn models(cell: &Cell<'_>) -> Result<Vec<Label>, ReadError> {
    if cell.text.is_empty() {
        return Ok(Vec::new());
    }
    let line = cell.line.cell(cell.start, cell.text);
    let mut models = Vec::new();
    let mut start = line.start;
    for text in cell.text.split('|') {
        models.push(label(&cell.line.cell(start, text))?);
        start += text.len() + 1;
    }
    models.sort();
    models.dedup();
    Ok(models)
}

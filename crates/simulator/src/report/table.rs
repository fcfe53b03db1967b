//! The table for people.

use comfy_table::{Cell, CellAlignment, Table, presets};

use super::{PolicyReport, Report, thousands};

/// The columns after the policy's name: title, value.
type Column = (&'static str, fn(&PolicyReport) -> String);

pub(super) const COLUMNS: [Column; 9] = [
    ("PLACED", |p| thousands(p.totals.placed)),
    ("REJECTED", |p| thousands(p.totals.rejected)),
    ("REJECTED %", |p| format!("{:.2}", p.totals.rejected_percent)),
    ("PEAK HOSTS", |p| thousands(u64::from(p.totals.peak_hosts))),
    ("MEAN HOSTS", |p| format!("{:.1}", p.totals.mean_hosts)),
    ("MEAN CPU %", |p| format!("{:.1}", p.totals.mean_cpu_percent)),
    ("MEAN MEMORY %", |p| format!("{:.1}", p.totals.mean_memory_percent)),
    ("FRAGMENTED %", |p| format!("{:.1}", p.totals.mean_fragmented_percent)),
    ("DECISIONS/S", |p| decisions(p.measured.decisions_per_second)),
];

/// Three digits are all that a clock is good for.
pub(super) fn decisions(per_second: f64) -> String {
    if per_second <= 0.0 {
        return "-".to_owned();
    }
    let mut unit = 1.0;
    while per_second / unit >= 1000.0 {
        unit *= 10.0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "above zero, and casts of floats saturate"
    )]
    let rounded = ((per_second / unit).round() * unit) as u64;
    thousands(rounded)
}

impl Report {
    /// What people read in a terminal: what was simulated, totals, and why VMs were rejected.
    /// Nothing in it can take a terminal over.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{}\n{}\n\n", self.scenario.name, self.summary());
        let mut totals = plain(&["POLICY"]);
        let mut header = vec![Cell::new("POLICY")];
        header.extend(COLUMNS.iter().map(|(title, _)| right(title)));
        totals.set_header(header);
        for policy in &self.policies {
            let mut row = vec![Cell::new(policy.policy)];
            row.extend(COLUMNS.iter().map(|(_, value)| right(&value(policy))));
            totals.add_row(row);
        }
        text.push_str(&finish(totals));
        let reasons = self.reasons();
        if !reasons.is_empty() {
            let mut table = plain(&["REJECTED FOR"]);
            let mut header = vec![Cell::new("REJECTED FOR")];
            header.extend(self.policies.iter().map(|policy| right(policy.policy.as_str())));
            table.set_header(header);
            for reason in reasons {
                let mut row = vec![Cell::new(&reason)];
                row.extend(
                    self.policies
                        .iter()
                        .map(|policy| right(&thousands(policy.rejected_for(&reason)))),
                );
                table.add_row(row);
            }
            text.push('\n');
            text.push_str(&finish(table));
        }
        if let Some(verdict) = self.verdict() {
            text.push_str(&format!("\n{verdict}\n"));
        }
        for note in &self.notes {
            text.push_str(&format!("\nnote: {note}\n"));
        }
        text
    }

    /// Every reason for which some policy rejected a VM, the most frequent of all first.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut sums = std::collections::BTreeMap::<&str, u64>::new();
        for reason in self.policies.iter().flat_map(|policy| &policy.rejected_for) {
            *sums.entry(&reason.reason).or_default() += reason.vms;
        }
        let mut reasons: Vec<_> = sums.into_iter().collect();
        reasons.sort_by_key(|(_, vms)| std::cmp::Reverse(*vms));
        reasons.into_iter().map(|(reason, _)| reason.to_owned()).collect()
    }
}

impl PolicyReport {
    /// How many VMs were rejected for this reason.
    pub(super) fn rejected_for(&self, reason: &str) -> u64 {
        self.rejected_for.iter().find(|r| r.reason == reason).map_or(0, |r| r.vms)
    }
}

fn right(text: &str) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn plain(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).force_no_tty().set_header(titles);
    table
}

/// As text, without what a table leaves at the ends of lines.
fn finish(mut table: Table) -> String {
    let columns = table.column_count();
    for index in 0..columns {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

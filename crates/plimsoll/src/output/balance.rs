//! How balanced the cluster is, for people.

use plimsoll_api::v1::{BalanceAction, BalancePlan, BalanceStep, BalanceView};

use super::{Output, Tone, or_dash};

/// Hosts, then the plan.
pub(crate) fn view(output: &Output, view: &BalanceView) -> String {
    let settings = &view.settings;
    let mut text = output.facts(&[
        ("mode", settings.mode.to_string()),
        ("threshold", format!("{} %", settings.threshold_percent)),
        ("moves", format!("{} at present, {} begun", view.moves_running, view.moves_begun)),
    ]);
    let mut table = output.table(&["HOST", "CPU", "WAITS", "MEMORY", "DISK", "NETWORK", ""]);
    let percent = |share: f64| format!("{share:.1} %");
    let measured = |share: Option<f64>| or_dash(share.map(percent));
    for host in &view.hosts {
        let (tone, word) = if host.hot { (Tone::Bad, "hot") } else { (Tone::Plain, "") };
        table.add_row([
            output.cell(&host.host, Tone::Plain),
            output.cell(percent(host.cpu_percent), tone),
            output.cell(measured(host.cpu_wait_percent), Tone::Plain),
            output.cell(percent(host.memory_percent), Tone::Plain),
            output.cell(measured(host.disk_percent), Tone::Plain),
            output.cell(measured(host.network_percent), Tone::Plain),
            output.cell(word, tone),
        ]);
    }
    text.push_str(&format!("\n{table}\n\n"));
    match &view.plan {
        None => text.push_str("no plan yet\n"),
        Some(plan) => text.push_str(&describe(plan)),
    }
    text
}

fn describe(plan: &BalancePlan) -> String {
    let mut text = String::new();
    for finding in &plan.findings {
        text.push_str(&format!("{finding}\n"));
    }
    if plan.steps.is_empty() && plan.left.is_empty() {
        text.push_str("nothing is to be done\n");
    }
    for (number, step) in (1..).zip(&plan.steps) {
        text.push_str(&format!("{number}. {}\n", sentence(step)));
    }
    if !plan.steps.is_empty() {
        text.push_str(&format!(
            "overload: {:.1} % of a host now, {:.1} % when this is done\n",
            plan.overload_before_percent, plan.overload_after_percent
        ));
    }
    for left in &plan.left {
        text.push_str(&format!("{left}\n"));
    }
    text
}

fn sentence(step: &BalanceStep) -> String {
    let what = match &step.what {
        BalanceAction::Move { from, to } => format!("{} from {from} to {to}", step.vm),
        BalanceAction::Resize { host, cpu, memory } => {
            format!("{} on {host}: {cpu} cores, {memory}", step.vm)
        }
    };
    let mut text = format!("{what}: {}", step.reason);
    for host in &step.hosts {
        for (what, before, after) in [
            ("cpu", host.cpu_before_percent, host.cpu_after_percent),
            ("disk", host.disk_before_percent, host.disk_after_percent),
            ("network", host.network_before_percent, host.network_after_percent),
        ] {
            if let (Some(before), Some(after)) = (before, after) {
                text.push_str(&format!("; {what} of {} {before:.1} -> {after:.1} %", host.host));
            }
        }
    }
    if step.bytes.get() > 0 {
        text.push_str(&format!("; sends {} in {} ms", step.bytes, step.expected_ms));
    }
    if !step.after.is_empty() {
        let after: Vec<String> = step.after.iter().map(ToString::to_string).collect();
        text.push_str(&format!("; after {}", after.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use plimsoll_api::v1::{BalanceMode, BalanceSettings, HostForecast, HostLoad};
    use plimsoll_model::Bytes;

    use super::*;

    #[test]
    fn a_plan_says_what_why_and_what_then() {
        let host = |name: &str| name.parse().unwrap();
        let load = |name: &str, cpu_percent, hot| HostLoad {
            host: host(name),
            cpu_percent,
            memory_percent: 20.0,
            cpu_wait_percent: Some(1.5),
            disk_percent: None,
            network_percent: Some(40.0),
            hot,
        };
        let forecast = |name: &str, before, after| HostForecast {
            host: host(name),
            cpu_before_percent: Some(before),
            cpu_after_percent: Some(after),
            memory_before_percent: None,
            memory_after_percent: None,
            disk_before_percent: None,
            disk_after_percent: None,
            network_before_percent: Some(40.0),
            network_after_percent: Some(30.0),
        };
        let shown = BalanceView {
            settings: BalanceSettings { mode: BalanceMode::Advise, ..BalanceSettings::default() },
            hosts: vec![load("host-1", 98.5, true), load("host-2", 2.0, false)],
            moves_running: 0,
            moves_begun: 3,
            plan: Some(BalancePlan {
                made_at: None,
                findings: vec!["host-1 is asked for 98.5 % of its cpu".to_owned()],
                steps: vec![BalanceStep {
                    vm: "shop/web-1".to_owned(),
                    what: BalanceAction::Move { from: host("host-1"), to: host("host-2") },
                    reason: "takes cpu from host-1, which has too little".to_owned(),
                    after: Vec::new(),
                    hosts: vec![forecast("host-1", 98.5, 50.0), forecast("host-2", 2.0, 50.5)],
                    bytes: Bytes::mib(200),
                    expected_ms: 400,
                    gain_percent: 23.5,
                }],
                left: Vec::new(),
                overload_before_percent: 23.5,
                overload_after_percent: 0.0,
            }),
        };
        insta::assert_snapshot!(view(&Output::plain(), &shown));
    }
}

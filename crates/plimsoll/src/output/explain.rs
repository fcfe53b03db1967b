//! Explanations as people read them: every host's refusal with its numbers, or its score.

use std::fmt::Write as _;

use plimsoll_api::v1::Explanation;

use super::{
    Output, Tone,
    vm::{resources, share_of},
};

/// An explanation.
pub(crate) fn explanation(output: &Output, explanation: &Explanation) -> String {
    let mut text = format!(
        "{}\n\npolicy  {}\ndemand  {} (with what a VM costs its host)\n\n",
        explanation.reason,
        explanation.policy,
        resources(&explanation.demand)
    );
    if let Some(share) = &explanation.share {
        let _ = write!(text, "It has {}.\n\n", share_of(share));
    }
    let mut table = output.table(&["", "HOST", "SCORE", "VERDICT"]);
    for host in &explanation.hosts {
        let chosen = explanation.chosen.as_ref() == Some(&host.host);
        let verdict = if !host.refusals.is_empty() {
            let reasons: Vec<_> = host.refusals.iter().map(|r| r.message.as_str()).collect();
            reasons.join("; ")
        } else if chosen {
            with_preferences("chosen", host.broken_preferences)
        } else {
            with_preferences("could hold it", host.broken_preferences)
        };
        let tone = match (chosen, host.refusals.is_empty()) {
            (true, _) => Tone::Good,
            (false, true) => Tone::Plain,
            (false, false) => Tone::Bad,
        };
        table.add_row([
            output.cell(if chosen { "*" } else { "" }, Tone::Good),
            output.cell(&host.host, Tone::Plain),
            output.cell(
                host.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.4}")),
                Tone::Plain,
            ),
            output.cell(verdict, tone),
        ]);
    }
    let _ = write!(text, "{}", output.finish(table));
    text
}

fn with_preferences(verdict: &str, broken: u32) -> String {
    match broken {
        0 => verdict.to_owned(),
        1 => format!("{verdict}; breaks 1 preference"),
        many => format!("{verdict}; breaks {many} preferences"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_their_numbers() {
        let sample: Explanation = serde_json::from_value(serde_json::json!({
            "policy": "most-free",
            "demand": {"cpu": "500m", "memory": "224MiB", "disk": "1GiB"},
            "chosen": "host-2",
            "reason": "host-2 has the highest mean free share, 0.812, of 2 that can hold it",
            "hosts": [
                {"id": "host-1", "host": "host-1", "score": 0.75, "broken_preferences": 1, "refusals": []},
                {"id": "host-2", "host": "host-2", "score": 0.8125, "broken_preferences": 0, "refusals": []},
                {"id": "host-3", "host": "host-3", "score": null, "broken_preferences": 0, "refusals": [
                    {"code": "insufficient", "message": "insufficient memory: needs 224MiB, 96MiB free",
                     "element": "memory", "need": 234881024, "free": 100663296},
                    {"code": "anti_affinity", "message": "group web has web-1 on this host"}
                ]}
            ]
        }))
        .unwrap();
        insta::assert_snapshot!(explanation(&Output::plain(), &sample));
    }
}

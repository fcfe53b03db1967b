//! One page of HTML: no network, no other files, nothing to install.
//!
//! Names and texts of a scenario are a stranger's. They are escaped where they stand in markup and
//! in the data that the script reads, and the script sets them as text. Should an escape ever be
//! forgotten, the page's content security policy runs no script but ours, known by its hash.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use super::{PolicyReport, Report, period, table::COLUMNS, thousands};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Text as it may stand in markup and in attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // A page may not hold these; a scenario's text may.
            '\0' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// JSON as it may stand in a script element: no `</script>`, no `<!--`.
fn embed(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// How a content security policy names a script or a style.
fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text.as_bytes())))
}

/// Puts values in the place of `{{name}}`, in one pass: what is put in is not looked at again.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut page = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        page.push_str(before);
        match after.split_once("}}") {
            Some((name, after)) => {
                page.push_str(&value(name));
                rest = after;
            }
            None => rest = after,
        }
    }
    page.push_str(rest);
    page
}

impl Report {
    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        // Without the scenario's text, which stands on the page already.
        let mut data = self.clone();
        data.scenario.source.clear();
        let data = serde_json::to_string(&data).expect("a report has only strings as keys");
        fill(PAGE, |name| match name {
            "style" => STYLE.to_owned(),
            "style_hash" => hash(STYLE),
            "script" => SCRIPT.to_owned(),
            "script_hash" => hash(SCRIPT),
            "data" => embed(&data),
            "name" => escape(&self.scenario.name),
            "summary" => escape(&self.summary()),
            "description" => paragraph("about", self.scenario.description.as_deref()),
            "verdict" => paragraph("verdict", self.verdict().as_deref()),
            "notes" => self.notes.iter().map(|note| paragraph("note", Some(note))).collect(),
            "totals" => self.totals_table(),
            "totals_hint" => self.totals_hint(),
            "reasons" => self.reasons_section(),
            "seed" => self.scenario.seed.to_string(),
            "source" => escape(&self.scenario.source),
            "version" => env!("CARGO_PKG_VERSION").to_owned(),
            _ => String::new(),
        })
    }

    fn totals_table(&self) -> String {
        let mut html = "<table>\n<thead><tr><th scope=\"col\">Policy</th>".to_owned();
        for (title, _) in COLUMNS {
            html.push_str(&format!("<th scope=\"col\">{}</th>", escape(&title_case(title))));
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for policy in &self.policies {
            html.push_str(&format!("<tr><th scope=\"row\">{}</th>", policy.policy));
            for (title, value) in COLUMNS {
                let class = if self.is_best(policy, title) { " class=\"best\"" } else { "" };
                html.push_str(&format!("<td{class}>{}</td>", escape(&value(policy))));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody>\n</table>");
        html
    }

    /// Whether a policy is the best in a column in which there is a best, and not all are.
    fn is_best(&self, policy: &PolicyReport, column: &str) -> bool {
        let key = |policy: &PolicyReport| match column {
            "REJECTED" | "REJECTED %" => Some(policy.totals.rejected),
            "PEAK HOSTS" => Some(u64::from(policy.totals.peak_hosts)),
            _ => None,
        };
        let mine = key(policy);
        mine.is_some()
            && self.policies.iter().all(|other| mine <= key(other))
            && self.policies.iter().any(|other| mine < key(other))
    }

    fn totals_hint(&self) -> String {
        let warm_up = match self.scenario.warm_up_seconds {
            0 => String::new(),
            seconds => format!("Since the warm-up of {}. ", period(seconds)),
        };
        let best =
            if self.policies.len() > 1 { "The best of a column is green and bold." } else { "" };
        format!("{warm_up}{best}")
    }

    fn reasons_section(&self) -> String {
        let reasons = self.reasons();
        if reasons.is_empty() {
            return String::new();
        }
        let mut html = "<section aria-labelledby=\"why\">\n<h2 id=\"why\">Why VMs were rejected</h2>\n\
             <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-labelledby=\"why\">\n<table>\n\
             <thead><tr><th scope=\"col\">VMs rejected for</th>"
            .to_owned();
        for policy in &self.policies {
            html.push_str(&format!("<th scope=\"col\">{}</th>", policy.policy));
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for reason in reasons {
            html.push_str(&format!("<tr><th scope=\"row\">{}</th>", escape(&reason)));
            for policy in &self.policies {
                html.push_str(&format!("<td>{}</td>", thousands(policy.rejected_for(&reason))));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody>\n</table>\n</div>\n</section>");
        html
    }
}

fn paragraph(class: &str, text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!("<p class=\"{class}\">{}</p>\n", escape(text)))
}

/// `MEAN CPU %` as `Mean CPU %`.
fn title_case(title: &str) -> String {
    let words = title.split(' ').enumerate().map(|(at, word)| match word {
        "CPU" => word.to_owned(),
        _ if at == 0 => word[..1].to_owned() + &word[1..].to_lowercase(),
        _ => word.to_lowercase(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_not_looked_at_again() {
        let value = |name: &str| match name {
            "a" => "{{b}}".to_owned(),
            _ => "never".to_owned(),
        };
        assert_eq!(fill("x{{a}}y{{", value), "x{{b}}y");
    }

    #[test]
    fn what_strangers_write_is_text() {
        assert_eq!(escape("<b a='1'>&\"\0"), "&lt;b a=&#39;1&#39;&gt;&amp;&quot;\u{fffd}");
        assert_eq!(embed("</script><!-- &"), "\\u003c/script\\u003e\\u003c!-- \\u0026");
    }

    #[test]
    fn titles_are_readable() {
        assert_eq!(title_case("MEAN CPU %"), "Mean CPU %");
        assert_eq!(title_case("PEAK HOSTS"), "Peak hosts");
        assert_eq!(title_case("DECISIONS/S"), "Decisions/s");
    }
}

//! Values with a syntax of their own: durations, instants, constraints, accelerators.

use std::{str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use plimsoll_model::{
    Constraint, ExclusiveAgainst, Fraction, Label, MilliCores, Name, Rule, Scope, Strength,
};

/// A duration as people write it: `30s`, `5m`, `2h 30m`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("`{text}` is not a duration: use a number and a unit, such as 30s or 2h");
    // `SignedDuration` knows no days, because days of a calendar differ; here a day is 24 hours.
    if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()) {
        return days.checked_mul(86_400).map(Duration::from_secs).ok_or_else(wrong);
    }
    let signed = SignedDuration::from_str(text).map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}

/// A share as people write it: `1%`, `0.1%` or `0.01`.
pub(crate) fn share(text: &str) -> Result<Fraction, String> {
    let wrong =
        || format!("`{text}` is not a share: it is from 0 to below 1, such as 0.1% or 0.001");
    let (number, whole) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let share = Fraction::try_from(number / whole).map_err(|_| wrong())?;
    Some(share).filter(|share| *share < Fraction::ONE).ok_or_else(wrong)
}

/// A duration as the wire has it.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An instant: RFC 3339, or `+2h` from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instant {
    /// At this time.
    At(Timestamp),
    /// So long after the request is made.
    After(Duration),
}

impl FromStr for Instant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix('+') {
            return duration(rest).map(Self::After);
        }
        text.parse().map(Self::At).map_err(|_| {
            format!("`{text}` is not an instant: use 2030-01-31T12:00:00Z, or +2h from now")
        })
    }
}

impl Instant {
    /// The instant, seen from `now`.
    pub(crate) fn resolve(self, now: Timestamp) -> Result<Timestamp, String> {
        match self {
            Self::At(at) => Ok(at),
            Self::After(duration) => now
                .checked_add(duration)
                .map_err(|_| "the instant is too far in the future".to_owned()),
        }
    }
}

/// `GROUP` or `GROUP:host|rack|zone`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupScope {
    group: Name,
    scope: Scope,
}

impl FromStr for GroupScope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (group, scope) = text.split_once(':').unwrap_or((text, "host"));
        let scope = match scope {
            "host" => Scope::Host,
            "rack" => Scope::Rack,
            "zone" => Scope::Zone,
            other => return Err(format!("`{other}` is not a scope: use host, rack or zone")),
        };
        Ok(Self { group: group.parse().map_err(|e| format!("{e}"))?, scope })
    }
}

/// `KEY=VALUE[,VALUE...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LabelValues {
    key: Label,
    values: Vec<Label>,
}

impl FromStr for LabelValues {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not of the form KEY=VALUE[,VALUE...]"))?;
        let parse = |text: &str| text.parse::<Label>().map_err(|e| e.to_string());
        Ok(Self {
            key: parse(key)?,
            values: values.split(',').map(parse).collect::<Result<_, _>>()?,
        })
    }
}

/// `MODEL=AMOUNT`: whole devices or a share of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelAmount {
    pub(crate) model: Label,
    pub(crate) amount: MilliCores,
}

impl FromStr for ModelAmount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (model, amount) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not of the form MODEL=AMOUNT, such as a100=1"))?;
        Ok(Self {
            model: model.parse().map_err(|e| format!("{e}"))?,
            amount: amount.parse().map_err(|_| {
                format!("`{amount}` is not an amount: use whole devices (`2`) or a share (`500m`)")
            })?,
        })
    }
}

/// `other-projects` or `other-applications`.
pub(crate) fn exclusive(text: &str) -> Result<ExclusiveAgainst, String> {
    match text {
        "other-projects" => Ok(ExclusiveAgainst::OtherProjects),
        "other-applications" => Ok(ExclusiveAgainst::OtherApplications),
        other => Err(format!("`{other}`: use other-projects or other-applications")),
    }
}

/// One of the names that serde knows for an enum, written with dashes.
pub(crate) fn snake<T: serde::de::DeserializeOwned>(
    text: &str,
    allowed: &str,
) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.replace('-', "_")))
        .map_err(|_| format!("`{text}` is not one of {allowed}"))
}

/// The constraints that options describe.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ConstraintArgs {
    /// Run on the same host (or rack, zone) as this placement group
    #[arg(long, value_name = "GROUP[:SCOPE]", help_heading = "Constraints")]
    pub(crate) affinity: Vec<GroupScope>,
    /// Run on another host (or rack, zone) than every other member of this placement group
    #[arg(long, value_name = "GROUP[:SCOPE]", help_heading = "Constraints")]
    pub(crate) anti_affinity: Vec<GroupScope>,
    /// Share the host with no `other-projects` or no `other-applications`
    #[arg(long, value_name = "AGAINST", value_parser = exclusive, help_heading = "Constraints")]
    pub(crate) exclusive: Option<ExclusiveAgainst>,
    /// Run on a host that has this label with one of these values
    #[arg(long, value_name = "KEY=VALUE,...", help_heading = "Constraints")]
    pub(crate) host_label: Vec<LabelValues>,
    /// The same as a preference
    #[arg(long, value_name = "GROUP[:SCOPE]", help_heading = "Constraints")]
    pub(crate) prefer_affinity: Vec<GroupScope>,
    /// The same as a preference
    #[arg(long, value_name = "GROUP[:SCOPE]", help_heading = "Constraints")]
    pub(crate) prefer_anti_affinity: Vec<GroupScope>,
    /// The same as a preference
    #[arg(long, value_name = "KEY=VALUE,...", help_heading = "Constraints")]
    pub(crate) prefer_host_label: Vec<LabelValues>,
}

impl ConstraintArgs {
    /// The constraints, required ones first.
    pub(crate) fn constraints(&self) -> Vec<Constraint> {
        let near = |g: &GroupScope| Rule::Affinity { group: g.group.clone(), scope: g.scope };
        let far = |g: &GroupScope| Rule::AntiAffinity { group: g.group.clone(), scope: g.scope };
        let label =
            |l: &LabelValues| Rule::HostLabel { key: l.key.clone(), values: l.values.clone() };
        let required = self
            .affinity
            .iter()
            .map(near)
            .chain(self.anti_affinity.iter().map(far))
            .chain(self.exclusive.map(|against| Rule::Exclusive { against }))
            .chain(self.host_label.iter().map(label))
            .map(|rule| Constraint { strength: Strength::Required, rule });
        let preferred = self
            .prefer_affinity
            .iter()
            .map(near)
            .chain(self.prefer_anti_affinity.iter().map(far))
            .chain(self.prefer_host_label.iter().map(label))
            .map(|rule| Constraint { strength: Strength::Preferred, rule });
        required.chain(preferred).collect()
    }
}

/// How long to wait for what was asked for.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// Do not wait until it is done
    #[arg(long, conflicts_with = "timeout", help_heading = "Waiting")]
    pub(crate) no_wait: bool,
    /// Wait at most so long
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "5m",
        value_parser = duration,
        help_heading = "Waiting"
    )]
    pub(crate) timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_written_as_percent_or_parts() {
        for (text, millionths) in [("1%", 10_000), ("0.1 %", 1000), ("0.5", 500_000), ("0", 0)] {
            assert_eq!(share(text), Ok(Fraction::millionths(millionths)), "{text}");
        }
        for text in ["", "%", "x", "-1%", "100%", "1", "1%%", "NaN", "inf"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_written_in_many_ways() {
        for (text, seconds) in
            [("30s", 30), ("5m", 300), ("2h", 7200), ("2h 30m", 9000), ("7d", 604_800)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "x", "-5s", "5", "5 parsecs", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn instants_are_absolute_or_from_now() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let parse = |text: &str| text.parse::<Instant>().and_then(|i| i.resolve(now));
        assert_eq!(parse("+1h").unwrap().to_string(), "2030-01-01T01:00:00Z");
        assert_eq!(parse("2031-01-01T00:00:00Z").unwrap().to_string(), "2031-01-01T00:00:00Z");
        for text in ["tomorrow", "+", "+x", "2031", "+99999999d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn constraints_are_options() {
        let args = ConstraintArgs {
            anti_affinity: vec!["web".parse().unwrap()],
            prefer_affinity: vec!["db:rack".parse().unwrap()],
            host_label: vec!["disk=ssd,nvme".parse().unwrap()],
            ..ConstraintArgs::default()
        };
        let printed: Vec<_> = args.constraints().iter().map(ToString::to_string).collect();
        assert_eq!(
            printed,
            [
                "other host than group web",
                "host label disk in [ssd, nvme]",
                "preferably same rack as group db"
            ]
        );
        assert!("web:floor".parse::<GroupScope>().is_err());
        assert!("disk".parse::<LabelValues>().is_err());
    }
}

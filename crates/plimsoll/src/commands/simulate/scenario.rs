//! `plimsoll simulate run`: a scenario of the user's own.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use fs_err::{File, OpenOptions};
use plimsoll_simulator::scenario::{Scenario, simulate};

use crate::{
    cli::simulate::RunArgs,
    failure::{OrFail as _, Outcome},
    output::{Output, progress::Work, talk},
};

/// Simulates, and shows the report.
pub(crate) fn run(args: RunArgs, output: Output) -> Outcome {
    let mut scenario =
        Scenario::read(&args.scenario).or_usage(|| "cannot simulate this".to_owned())?;
    if let Some(policies) = args.policy {
        scenario.policies = Vec::new();
        for policy in policies.0 {
            if !scenario.policies.contains(&policy) {
                scenario.policies.push(policy);
            }
        }
    }
    if let Some(seed) = args.seed {
        scenario.seed = seed;
    }
    // Opened before the work, so that a page that cannot be written is known before it is done.
    let page = args.html.map(Page::open).transpose()?;
    let work = Work::new();
    let report = simulate(&scenario, &mut |at| {
        work.set(permille(at.done), 1000, || {
            format!("{} ({} of {})", at.policy, at.policy_index + 1, at.policies)
        });
    })?;
    drop(work);
    if let Some(page) = page {
        let path = page.write(&report.html())?;
        talk(&format!("the charts are in {}", path.display()));
    }
    if output.is_json() {
        // On one line: a series has hundreds of numbers.
        output.json_line(&report)
    } else {
        output.data(&report.table())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of 1, and casts of floats saturate"
)]
fn permille(share: f64) -> u64 {
    (share * 1000.0) as u64
}

/// A file that will hold a page. What it held stays until then.
struct Page {
    file: File,
    path: PathBuf,
}

impl Page {
    fn open(path: PathBuf) -> Outcome<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .or_usage(|| "cannot write the page".to_owned())?;
        Ok(Self { file, path })
    }

    fn write(mut self, html: &str) -> Outcome<PathBuf> {
        let Self { file, path } = &mut self;
        let fail = |path: &Path| format!("cannot write the page {}", path.display());
        // A pipe or a terminal has no length.
        if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            file.set_len(0).or_fail(|| fail(path))?;
        }
        file.write_all(html.as_bytes()).or_fail(|| fail(path))?;
        file.flush().or_fail(|| fail(path))?;
        Ok(self.path)
    }
}

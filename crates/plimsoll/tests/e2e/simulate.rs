//! The page of a simulation in a real browser: its charts are drawn, and its console is silent.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// A browser on a busy machine with two cores takes its time.
const LIMIT: Duration = Duration::from_secs(90);

const BROWSERS: [&str; 2] = ["chromium", "chromium-headless-shell"];

/// What a browser made of a page.
struct Opened {
    /// The document after its scripts ran.
    document: String,
    /// What was said in the console: calls of it, uncaught errors, what was blocked.
    console: Vec<String>,
}

/// The browser, or none with a loud word.
fn browser() -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = BROWSERS.into_iter().find(|program| {
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    });
    if found.is_none() {
        // A proof that proved nothing must not look like one.
        assert!(std::env::var_os("CI").is_none(), "no browser: install Debian's chromium");
        eprintln!("SKIPPED: no browser; install Debian's chromium");
    }
    found
}

/// Opens a page in a browser of its own, with a profile of its own that is gone afterwards.
fn open(browser: &str, page: &Path, options: &[&str]) -> Opened {
    let world = tempfile::Builder::new().prefix("plimsoll-browser-").tempdir().unwrap();
    let (out, log) = (world.path().join("document"), world.path().join("log"));
    let mut child = Command::new(browser)
        // Root has no sandbox; the machine may have no GPU, and nothing may leave it.
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"])
        .args(options)
        // In the page's own time, which stands still while it waits for nothing.
        .args(["--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", world.path().join("profile").display()))
        .arg(format!("file://{}", page.display()))
        .env("HOME", world.path())
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&log).unwrap())
        // Its many processes are one group, to be ended together.
        .process_group(0)
        .spawn()
        .unwrap();
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > end {
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if status.is_none() {
        // Not waited for yet: the number is still its own.
        let _ = killpg(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL);
        let _ = child.wait();
    }
    let log = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{log}");
    Opened {
        document: String::from_utf8_lossy(&fs::read(&out).unwrap()).into_owned(),
        console: log
            .lines()
            .filter(|line| line.contains(":CONSOLE:") || line.contains(":CONSOLE("))
            .map(str::to_owned)
            .collect(),
    }
}

/// The values of an attribute of the elements that have this class first.
fn attributes<'a>(document: &'a str, class: &str, attribute: &str) -> Vec<&'a str> {
    let (start, name) = (format!("class=\"{class}"), format!("{attribute}=\""));
    document
        .split(start.as_str())
        .skip(1)
        .filter_map(|rest| rest.split_once('>'))
        .filter_map(|(tag, _)| tag.split_once(name.as_str()))
        .filter_map(|(_, rest)| rest.split_once('"'))
        .map(|(value, _)| value)
        .collect()
}

fn simulate(home: &Path, scenario: &Path) -> std::path::PathBuf {
    let page = home.join("report.html");
    let output = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["simulate", "run"])
        .arg(scenario)
        .arg("--html")
        .arg(&page)
        .env("HOME", home)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    page
}

#[test]
fn the_charts_of_a_simulation_are_drawn_and_the_console_is_silent() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();

    // A page that does everything wrong shows that we would see it.
    let control = folder.path().join("control.html");
    fs::write(
        &control,
        "<!doctype html><meta http-equiv='Content-Security-Policy' content=\"script-src \
         'unsafe-inline'\"><script>console.error('said aloud'); setTimeout(() => { throw new \
         Error('thrown') })</script><script src='http://127.0.0.1:9/x.js'></script>",
    )
    .unwrap();
    let console = open(browser, &control, &[]).console.join("\n");
    for expected in ["said aloud", "thrown", "violates"] {
        assert!(console.contains(expected), "{expected} is not in the console:\n{console}");
    }

    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/cluster.toml");
    let page = simulate(folder.path(), &example);
    // Wide and light, narrow and dark: the script draws to the width that it finds.
    for options in [
        ["--window-size=1280,2000", "--blink-settings=preferredColorScheme=1"],
        ["--window-size=500,2000", "--blink-settings=preferredColorScheme=0"],
    ] {
        let Opened { document, console } = open(browser, &page, &options);
        assert!(console.is_empty(), "the console is not silent:\n{}", console.join("\n"));
        assert!(!document.contains("data-failed"), "the script failed");
        let charts = document.matches("<figure>").count();
        assert!(document.contains(&format!("data-drawn=\"{charts}\"")), "of {charts} charts");
        for title in [
            "CPU committed",
            "Memory committed",
            "Accelerators a100 committed",
            "Rejected VMs",
            "Hosts in use",
            "Fragmentation, typical VM",
            "Fragmentation, largest VM",
            "Running VMs",
        ] {
            assert!(document.contains(&format!("<strong>{title}</strong>")), "{title}");
        }
        // Five policies in each chart, each a line of hundreds of finite points.
        let lines = attributes(&document, "line p", "d");
        assert_eq!(lines.len(), 5 * charts);
        for line in lines {
            assert!(line.matches('L').count() > 300 && !line.contains("NaN"), "{line}");
            let heights: std::collections::BTreeSet<&str> =
                line[1..].split('L').filter_map(|point| point.split(' ').nth(1)).collect();
            assert!(heights.len() > 1, "a flat line: {line}");
        }
        assert_eq!(document.matches("aria-pressed=\"true\"").count(), 5, "the legend");
    }
    pointing_shows_values(browser, folder.path(), &page);
}

/// Points at a chart of a copy of the page, and clicks in its legend. The page itself lets no script
/// but its own run.
fn pointing_shows_values(browser: &str, folder: &Path, page: &Path) {
    let text = fs::read_to_string(page).unwrap();
    let (before, after) = text.split_once("<meta http-equiv=").unwrap();
    let (_, after) = after.split_once('>').unwrap();
    let copy = folder.join("copy.html");
    let point = "<script>\
        document.querySelectorAll('.legend button')[1].click();\
        const chart = document.querySelectorAll('svg.chart')[2];\
        const box = chart.getBoundingClientRect();\
        chart.dispatchEvent(new PointerEvent('pointermove', \
          { clientX: box.left + box.width / 2, clientY: box.top + 60 }));</script></body>";
    fs::write(&copy, format!("{before}{}", after.replace("</body>", point))).unwrap();
    let Opened { document, console } = open(browser, &copy, &["--window-size=1280,2000"]);
    assert!(console.is_empty(), "the console is not silent:\n{}", console.join("\n"));
    let tips: Vec<&str> = document
        .split("<div class=\"tip\"")
        .skip(1)
        .filter(|tip| !tip.split('>').next().is_some_and(|tag| tag.contains("hidden")))
        .collect();
    let [tip] = tips.as_slice() else { panic!("{} tips", tips.len()) };
    let (style, content) = tip.split_once('>').unwrap();
    assert!(style.contains("left: ") && style.contains("top: "), "it has no place: {style}");
    let content = content.split("</figure>").next().unwrap();
    assert_eq!(content.matches("<i>").count(), 4, "the values of those that are shown: {content}");
    let charts = document.matches("<figure>").count();
    assert_eq!(attributes(&document, "line p", "d").len(), 4 * charts, "one policy is hidden");
    assert_eq!(document.matches("class=\"cross\"").count(), charts, "the instant, in all charts");
}

#[test]
fn names_in_a_scenario_run_nothing_in_the_browser() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("evil.toml");
    fs::write(
        &scenario,
        r#"
name = "</title></script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
description = "<svg onload=alert(1)> {{script}} <!-- </style>"
duration = "1d"
policies = ["first-fit"]
# </pre><script>document.documentElement.dataset.owned = 1</script>
[[cluster.host]]
name = "h"
count = 2
capacity = { cpu = 8, memory = "32GiB" }
[[workload]]
name = "w"
arrivals = { poisson = "2/h" }
lifetime = { exponential = "3h" }
[[workload.flavor]]
name = "f"
resources = { cpu = 2, memory = "4GiB" }
"#,
    )
    .unwrap();
    let page = simulate(folder.path(), &scenario);
    let Opened { document, console } = open(browser, &page, &[]);
    assert!(console.is_empty(), "the console is not silent:\n{}", console.join("\n"));
    let charts = document.matches("<figure>").count();
    assert!(charts > 5 && document.contains(&format!("data-drawn=\"{charts}\"")), "{charts}");
    assert!(!document.contains("data-owned") && !document.contains("<title>owned"));
    assert!(!document.contains("<img") && !document.contains("<svg onload"));
}

//! A profile as one page of HTML, which asks nothing of any other server.

use std::fmt::Write as _;

use super::Profile;

/// The drawing: so wide and high, with so much around it.
const SIZE: (f64, f64) = (640.0, 360.0);
const MARGIN: f64 = 48.0;

/// The page.
pub(super) fn html(profile: &Profile) -> String {
    let x = |share: f64| MARGIN + share * (SIZE.0 - 2.0 * MARGIN);
    let y = |share: f64| SIZE.1 - MARGIN - share * (SIZE.1 - 2.0 * MARGIN);
    let (mut line, mut dots, mut rows) = (String::new(), String::new(), String::new());
    for step in &profile.steps {
        let (a, u) = (step.allocation.as_f64(), step.utility.as_f64());
        let _ = write!(line, "{:.1},{:.1} ", x(a), y(u));
        let _ = write!(dots, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"/>", x(a), y(u));
        let _ = write!(
            rows,
            "<tr><td>{:.1} %</td><td>{:.1}</td><td>{:.1} %</td></tr>",
            a * 100.0,
            step.measured,
            u * 100.0
        );
    }
    let mut grid = String::new();
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let percent = quarter * 25;
        let (left, right, bottom) = (x(0.0), x(1.0), y(0.0));
        let (at_x, at_y) = (x(share), y(share));
        let _ = write!(
            grid,
            "<path d=\"M{left} {at_y}H{right}\"/><text x=\"{:.0}\" y=\"{:.0}\">{percent} %</text>\
             <text x=\"{:.0}\" y=\"{:.0}\">{percent} %</text>",
            left - 40.0,
            at_y + 4.0,
            at_x - 12.0,
            bottom + 18.0
        );
    }
    let resource = profile.resource.as_str();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{vm}: {resource}</title><style>\
         body{{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}}\
         svg{{width:100%;height:auto}}path{{stroke:#8884;fill:none}}text{{font-size:11px;fill:#888}}\
         polyline{{fill:none;stroke:#0a7;stroke-width:2}}circle{{fill:#0a7}}\
         td,th{{padding:.2rem 1rem .2rem 0;text-align:right}}</style>\
         <h1>{vm}</h1><p>Performance against the share of its {resource} that it has. \
         Workload: <code>{workload}</code></p>\
         <svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"utility against allocation\">\
         {grid}<polyline points=\"{line}\"/>{dots}</svg>\
         <table><tr><th>allocation</th><th>measured</th><th>utility</th></tr>{rows}</table></html>\n",
        vm = escaped(profile.vm.as_str()),
        workload = escaped(&profile.workload),
        width = SIZE.0,
        height = SIZE.1,
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

//! The experiment against hand-made cases, and the published days.

use super::{Aim, Experiment, Idle, Memory, Policy};
use crate::{
    data,
    readers::{Limits, planetlab},
};

#[test]
#[ignore = "scratch"]
fn scratch() {
    let Some(folder) = data::folder("planetlab") else { return };
    let var = |name: &str, or: f64| std::env::var(name).map_or(or, |t| t.parse().unwrap());
    for day in ["20110303", "20110306"] {
        let vms =
            planetlab::read(&folder.join(format!("{day}.csv.xz")), &Limits::default()).unwrap();
        let idle = if var("ENDS", 0.0) > 0.0 { Idle::Ends } else { Idle::Stays };
        let experiment = Experiment::new(&vms, Memory::Ignored, idle).unwrap();
        let mut aim = Aim::default();
        aim.deviations_at_least = var("L", aim.deviations_at_least);
        aim.deviations_wanted = var("W", aim.deviations_wanted);
        aim.fill = var("F", aim.fill);
        aim.cooldown = var("C", f64::from(aim.cooldown)) as u32;
        aim.horizon_hours = var("H", aim.horizon_hours);
        aim.watt_hours_per_gib = var("G", aim.watt_hours_per_gib);
        aim.sight.mean_memory = var("MM", aim.sight.mean_memory);
        aim.sight.variance_memory = var("VM", aim.sight.variance_memory);
        aim.sight.presumed_samples = var("PS", aim.sight.presumed_samples);
        aim.sight.presumed_deviation = var("PD", aim.sight.presumed_deviation);
        aim.sight.samples = var("N", aim.sight.samples as f64) as usize;
        let all = if var("ALL", 0.0) > 0.0 { &Policy::ALL[..] } else { &Policy::ALL[4..] };
        for policy in all {
            let o = experiment.run(*policy, &aim, &mut |_| ()).unwrap();
            println!("{day} {policy} kWh {:.2} mig {} slatah {:.2} pdm {:.4} slav {:.5} esv {:.4} hosts {:.1} unmet {:.3} vms {}",
                o.energy_kwh, o.migrations, o.slatah_percent, o.pdm_percent, o.slav_percent, o.esv, o.mean_hosts, o.unmet_percent, o.vms_at_end);
        }
    }
}

//! Which project of a host is merged.
//!
//! Decided anew at each start of a VM, and never for one that runs: memory that was once given to
//! the scanner stays merged. So the project that has a mergeable VM keeps its place until the last
//! of them is gone.

use std::collections::BTreeMap;

use plimsoll_model::{Bytes, ProjectId, VmId};

/// How a VM stands towards the scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It runs and is mergeable, or may be.
    Merged,
    /// It runs and is not: that lasts as long as it runs.
    Apart,
    /// It is to run and does not yet.
    Starting,
}

/// A VM of the host that runs or is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The VM.
    pub vm: VmId,
    /// Whose it is.
    pub project: ProjectId,
    /// From what it boots: VMs of the same image have most in common.
    pub image: &'a str,
    /// Its memory.
    pub memory: Bytes,
    /// How it stands towards the scanner.
    pub standing: Standing,
}

/// Whether a VM that starts may be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Merge,
    /// VMs of another project are merged here.
    OtherProject,
    /// Another project's VMs that are about to start have more to gain.
    Outweighed,
}

/// Whether the VM that starts may be merged, among all of the host, itself included. One that is
/// not among them may not.
#[must_use]
pub fn elect(starting: VmId, vms: &[Candidate<'_>]) -> Verdict {
    let Some(own) = vms.iter().find(|vm| vm.vm == starting) else { return Verdict::OtherProject };
    let others = vms.iter().filter(|vm| vm.vm != starting);
    let mut merged = others.filter(|vm| vm.standing == Standing::Merged).peekable();
    if merged.peek().is_some() {
        let alone = merged.all(|vm| vm.project == own.project);
        return if alone { Verdict::Merge } else { Verdict::OtherProject };
    }
    let gains = gains(starting, vms);
    let gain = |project| gains.get(&project).copied().unwrap_or(0);
    // Whoever comes first among equals has it: nobody waits for what may never start.
    if gains.values().any(|other| *other > gain(own.project)) {
        return Verdict::Outweighed;
    }
    Verdict::Merge
}

/// What each project could save at most: of its VMs of equal image that start, all but the largest.
fn gains(starting: VmId, vms: &[Candidate<'_>]) -> BTreeMap<ProjectId, u128> {
    let mut groups: BTreeMap<(ProjectId, &str), (u128, u128)> = BTreeMap::new();
    for vm in vms.iter().filter(|vm| vm.vm == starting || vm.standing == Standing::Starting) {
        let (sum, largest) = groups.entry((vm.project, vm.image)).or_default();
        *sum += u128::from(vm.memory.get());
        *largest = (*largest).max(u128::from(vm.memory.get()));
    }
    let mut gains = BTreeMap::new();
    for ((project, _), (sum, largest)) in groups {
        *gains.entry(project).or_default() += sum - largest;
    }
    gains
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec,
        prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, proptest},
        sample::Index,
    };
    use uuid::Uuid;

    use super::*;

    const IMAGES: [&str; 3] = ["debian", "tiny", "windows"];

    fn vm(id: u128, project: u128, image: &str, gib: u64, standing: Standing) -> Candidate<'_> {
        Candidate {
            vm: VmId(Uuid::from_u128(id)),
            project: ProjectId(Uuid::from_u128(project)),
            image,
            memory: Bytes::gib(gib),
            standing,
        }
    }

    fn start(vms: &[Candidate<'_>]) -> Verdict {
        elect(vms[0].vm, vms)
    }

    #[test]
    fn the_first_is_merged_and_others_of_its_project_with_it() {
        use Standing::{Apart, Merged, Starting};
        let own = vm(1, 1, "tiny", 1, Starting);
        assert_eq!(start(&[own]), Verdict::Merge);
        assert_eq!(start(&[own, vm(2, 1, "debian", 1, Merged)]), Verdict::Merge);
        assert_eq!(start(&[own, vm(2, 2, "tiny", 1, Merged)]), Verdict::OtherProject);
        assert_eq!(start(&[own, vm(2, 2, "tiny", 9, Apart)]), Verdict::Merge);
        assert_eq!(elect(VmId(Uuid::nil()), &[own]), Verdict::OtherProject);
    }

    #[test]
    fn a_project_whose_vms_have_more_to_gain_is_let_before() {
        use Standing::{Apart, Starting};
        let own = vm(1, 1, "tiny", 4, Starting);
        // One other VM has nothing equal to itself, however large.
        assert_eq!(start(&[own, vm(2, 2, "tiny", 64, Starting)]), Verdict::Merge);
        let two = [own, vm(2, 2, "tiny", 2, Starting), vm(3, 2, "tiny", 2, Starting)];
        assert_eq!(start(&two), Verdict::Outweighed);
        // Of different images, or running already: no gain.
        let mixed = [own, vm(2, 2, "tiny", 2, Starting), vm(3, 2, "debian", 2, Starting)];
        assert_eq!(start(&mixed), Verdict::Merge);
        let apart = [own, vm(2, 2, "tiny", 2, Starting), vm(3, 2, "tiny", 2, Apart)];
        assert_eq!(start(&apart), Verdict::Merge);
        // As much as the others: whoever comes first.
        let equal = [
            own,
            vm(4, 1, "tiny", 2, Starting),
            vm(2, 2, "tiny", 2, Starting),
            vm(3, 2, "tiny", 3, Starting),
        ];
        assert_eq!(start(&equal), Verdict::Merge);
    }

    fn host() -> impl Strategy<Value = Vec<(u128, usize, u64)>> {
        vec((0u128..4, 0..IMAGES.len(), 0u64..64), 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        /// VMs start and end in any order: those that are mergeable are of one project at any time,
        /// and the place does not stay empty when somebody starts on an idle host.
        #[test]
        fn two_projects_are_never_merged_together(
            host in host(),
            turns in vec((any::<Index>(), any::<bool>()), 0..60),
        ) {
            let mut vms: Vec<Candidate<'_>> = (0u128..)
                .zip(&host)
                .map(|(id, (project, image, gib))| {
                    vm(id, *project, IMAGES[*image], *gib, Standing::Starting)
                })
                .collect();
            for (who, ends) in turns {
                let who = who.index(vms.len());
                let before: Vec<_> = vms
                    .iter()
                    .filter(|vm| vm.standing == Standing::Merged)
                    .map(|vm| vm.project)
                    .collect();
                if ends {
                    vms[who].standing = Standing::Starting;
                    continue;
                }
                if vms[who].standing != Standing::Starting {
                    continue;
                }
                let verdict = elect(vms[who].vm, &vms);
                prop_assert_eq!(verdict, elect(vms[who].vm, &vms));
                let merged = verdict == Verdict::Merge;
                vms[who].standing = if merged { Standing::Merged } else { Standing::Apart };
                match before.first() {
                    Some(project) => prop_assert_eq!(merged, *project == vms[who].project),
                    None if !merged => {
                        prop_assert_eq!(verdict, Verdict::Outweighed);
                        // Somebody is there for whom it gave way.
                        prop_assert!(vms.iter().any(|vm| vm.standing == Standing::Starting));
                    }
                    None => {}
                }
            }
        }

        #[test]
        fn the_order_of_the_vms_does_not_matter(host in host(), who in any::<Index>(), turn in 0usize..12) {
            let mut vms: Vec<Candidate<'_>> = (0u128..)
                .zip(&host)
                .map(|(id, (project, image, gib))| {
                    vm(id, *project, IMAGES[*image], *gib, Standing::Starting)
                })
                .collect();
            let starting = vms[who.index(vms.len())].vm;
            let verdict = elect(starting, &vms);
            let turn = turn % vms.len();
            vms.rotate_left(turn);
            prop_assert_eq!(elect(starting, &vms), verdict);
        }
    }
}

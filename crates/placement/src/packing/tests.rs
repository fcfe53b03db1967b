use plimsoll_model::Policy;
use proptest::prelude::*;

use super::{
    Choice, FoundBy, Heuristic, Instance, InstanceError, Item, MAX_DIMENSIONS, MAX_ITEMS, Method,
    Packing, Weights, WrongPacking,
    lanes::{Layout, minus, plus},
    lower_bound, pack,
};

fn instance(capacity: &[u64], items: &[&[u64]]) -> Instance {
    let items = items.iter().map(|sizes| Item { sizes: sizes.to_vec(), count: 1 }).collect();
    Instance::new(capacity.to_vec(), items).unwrap()
}

/// Stops after so many questions.
fn questions(mut left: u32) -> impl FnMut() -> bool {
    move || {
        left = left.saturating_sub(1);
        left > 0
    }
}

/// The fewest bins, by trying every item in every bin.
fn exact(instance: &Instance) -> u32 {
    fn place(items: &[&[u64]], bins: &mut Vec<Vec<u64>>, capacity: &[u64], best: &mut usize) {
        let Some((item, rest)) = items.split_first() else {
            *best = (*best).min(bins.len());
            return;
        };
        for bin in 0..bins.len() {
            if bins[bin].iter().zip(*item).all(|(free, size)| size <= free) {
                let before = bins[bin].clone();
                bins[bin].iter_mut().zip(*item).for_each(|(free, size)| *free -= size);
                place(rest, bins, capacity, best);
                bins[bin] = before;
            }
        }
        if bins.len() + 1 < *best {
            bins.push(capacity.iter().zip(*item).map(|(free, size)| free - size).collect());
            place(rest, bins, capacity, best);
            bins.pop();
        }
    }
    let items: Vec<&[u64]> = instance.items().collect();
    let mut best = items.len();
    place(&items, &mut Vec::new(), instance.capacity(), &mut best);
    u32::try_from(best).unwrap()
}

prop_compose! {
    /// Capacities of all magnitudes, and sizes of some share of them.
    fn instances(most: usize, copies: u64)(
        capacity in prop::collection::vec(
            prop_oneof![Just(0), Just(1), 2..12_u64, Just(100), 20_000..40_000_u64, Just(1 << 34),
                (1_u64 << 40)..(1 << 41)],
            1..=6,
        ),
        spread in prop_oneof![Just((0_u64, 1000_u64)), Just((0, 400)), Just((250, 700)), Just((300, 1000))],
    )(
        shares in prop::collection::vec(
            (prop::collection::vec(spread.0..=spread.1, capacity.len()), 0..=copies),
            0..=most,
        ),
        capacity in Just(capacity),
    ) -> Instance {
        let item = |(shares, count): &(Vec<u64>, u64)| Item {
            // Multiples of thousandths, so that sums meet capacities exactly now and then.
            sizes: shares.iter().zip(&capacity).map(|(share, capacity)| capacity * share / 1000).collect(),
            count: *count,
        };
        let items = shares.iter().map(item).collect();
        Instance::new(capacity, items).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_heuristic_gives_a_packing(instance in instances(20, 4)) {
        let lower_bound = lower_bound(&instance);
        for heuristic in Heuristic::all().into_iter().chain([Heuristic::NextFit]) {
            let mut go = || true;
            let assignment = heuristic.run(&instance, &mut super::Progress::new(&mut go));
            let packing = Packing {
                bins: super::bins_of(&assignment),
                assignment,
                lower_bound,
                found_by: FoundBy::Heuristic(heuristic),
                stopped: false,
            };
            prop_assert_eq!(packing.verify(&instance), Ok(()), "{}", heuristic);
        }
    }

    #[test]
    fn the_best_is_no_worse_than_any_policy(instance in instances(30, 3), seed: u64) {
        let best = pack(&instance, Method::Best { seed }, &mut questions(20));
        prop_assert_eq!(best.verify(&instance), Ok(()));
        for policy in Policy::ALL {
            let packing = pack(&instance, Method::Policy(policy), &mut || true);
            prop_assert_eq!(packing.verify(&instance), Ok(()));
            prop_assert!(!packing.stopped);
            prop_assert!(best.bins <= packing.bins, "{policy}");
        }
    }

    #[test]
    fn what_fits_in_lanes_fits(instance in instances(6, 2)) {
        let layout = Layout::new(&instance);
        let lanes = layout.lanes::<32>(&instance);
        let sizes: Vec<&[u64]> = instance.items().collect();
        for (a, first) in lanes.items.iter().enumerate() {
            prop_assert!(lanes.fits(&lanes.capacity, first));
            let free = minus(&lanes.capacity, first);
            prop_assert_eq!(plus(&free, first), lanes.capacity);
            for (b, second) in lanes.items.iter().enumerate() {
                let fit = sizes[a].iter().zip(sizes[b]).zip(instance.capacity());
                let fit = fit.into_iter().all(|((a, b), capacity)| a + b <= *capacity);
                if a != b && lanes.fits(&free, second) {
                    prop_assert!(fit);
                } else if a != b && instance.capacity().iter().all(|&capacity| capacity < 1 << 31) {
                    prop_assert!(!fit, "nothing is lost where no lane is rounded");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn it_may_be_stopped_at_any_time(instance in instances(40, 20), seed: u64, left in 0..12_u32) {
        for method in [
            Method::Best { seed },
            Method::Policy(Policy::FfdSum),
            Method::Policy(Policy::Cosine),
        ] {
            let packing = pack(&instance, method, &mut questions(left));
            prop_assert_eq!(packing.verify(&instance), Ok(()));
            prop_assert_eq!(&packing, &pack(&instance, method, &mut questions(left)));
        }
    }
}

/// So many kinds of items that every look at them asks whether to go on.
#[test]
fn stopped_before_a_bin_has_anything_it_leaves_none_empty() {
    let sizes: Vec<[u64; 1]> = (0..9000).map(|index| [10_001 + index]).collect();
    let items: Vec<&[u64]> = sizes.iter().map(<[u64; 1]>::as_slice).collect();
    let instance = instance(&[20_000], &items);
    let heuristic = Heuristic::BinCentric { choice: Choice::DotProduct, weights: Weights::Unit };
    for left in 1..=4 {
        let mut keep_going = questions(left);
        let assignment = heuristic.run(&instance, &mut super::Progress::new(&mut keep_going));
        let packing = Packing {
            bins: super::bins_of(&assignment),
            assignment,
            lower_bound: 0,
            found_by: FoundBy::Heuristic(heuristic),
            stopped: true,
        };
        assert_eq!(packing.verify(&instance), Ok(()), "after {left} questions");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_optimum_is_between_the_bound_and_the_best(instance in instances(9, 2).prop_filter("small", |it| it.len() <= 9), seed: u64) {
        let optimum = exact(&instance);
        let best = pack(&instance, Method::Best { seed }, &mut questions(4));
        prop_assert_eq!(best.verify(&instance), Ok(()));
        prop_assert!(best.lower_bound <= optimum, "{} > {}", best.lower_bound, optimum);
        prop_assert!(best.bins >= optimum);
        prop_assert_eq!(best.lower_bound, lower_bound(&instance));
    }
}

#[test]
fn finds_the_optimum_where_heuristics_do_not() {
    // Triples that fill their bins exactly: first-fit decreasing needs a third more.
    let sizes: [u64; 12] = [44, 42, 41, 39, 38, 35, 32, 30, 29, 26, 24, 20];
    let items: Vec<[u64; 2]> = sizes.iter().map(|&size| [size, size / 2]).collect();
    let items: Vec<&[u64]> = items.iter().map(<[u64; 2]>::as_slice).collect();
    let instance = instance(&[100, 60], &items);
    let best = pack(&instance, Method::Best { seed: 7 }, &mut questions(1000));
    assert_eq!(best.verify(&instance), Ok(()));
    assert_eq!((best.bins, best.lower_bound, best.stopped), (4, 4, false));
}

#[test]
fn the_bound_knows_what_does_not_go_together() {
    // Three large items have no room for each other, whatever their sum says.
    let large = instance(&[10], &[&[6], &[6], &[6]]);
    assert_eq!(lower_bound(&large), 3);
    // A ring of five: each fits beside its two neighbours only, so two pairs and one alone.
    let sides: Vec<Vec<u64>> = (0..5_usize)
        .map(|item| {
            let apart = |pair: usize| {
                let (a, b) = [(0, 2), (1, 3), (2, 4), (3, 0), (4, 1)][pair];
                if item == a || item == b { 6 } else { 4 }
            };
            (0..5).map(apart).collect()
        })
        .collect();
    let sides: Vec<&[u64]> = sides.iter().map(Vec::as_slice).collect();
    assert_eq!(lower_bound(&instance(&[10; 5], &sides)), 3);
    // Nothing at all, and items without sizes.
    assert_eq!(lower_bound(&instance(&[10], &[])), 0);
    assert_eq!(lower_bound(&instance(&[10, 0], &[&[0, 0], &[0, 0]])), 1);
}

#[test]
fn a_million_items_are_packed_before_the_time_is_over() {
    let kinds = (0..1024_u64).map(|n| Item { sizes: vec![n % 37 + 1, n % 53 + 1], count: 1024 });
    let instance = Instance::new(vec![128, 256], kinds.collect()).unwrap();
    assert_eq!(instance.len() as u64, MAX_ITEMS);
    let best = pack(&instance, Method::Best { seed: 1 }, &mut questions(100));
    assert_eq!(best.verify(&instance), Ok(()));
    assert!(best.stopped);
}

#[test]
fn what_cannot_be_packed_is_refused_with_the_reason() {
    let new = |capacity: &[u64], items: &[(&[u64], u64)]| {
        let items =
            items.iter().map(|(sizes, count)| Item { sizes: sizes.to_vec(), count: *count });
        Instance::new(capacity.to_vec(), items.collect()).unwrap_err()
    };
    assert_eq!(new(&[], &[]), InstanceError::NoDimensions);
    assert_eq!(
        new(&[1; MAX_DIMENSIONS + 1], &[]),
        InstanceError::TooManyDimensions { dimensions: MAX_DIMENSIONS + 1 }
    );
    assert_eq!(
        new(&[5, 5], &[(&[1, 1], 1), (&[1], 1)]),
        InstanceError::Dimensions { item: 1, sizes: 1, dimensions: 2 }
    );
    assert_eq!(
        new(&[5, 5], &[(&[1, 6], 0)]),
        InstanceError::TooLarge { item: 0, dimension: 1, size: 6, capacity: 5 }
    );
    assert_eq!(
        new(&[5], &[(&[1], u64::MAX), (&[1], 1)]),
        InstanceError::TooManyItems { items: u64::MAX, sizes: 1 }
    );
    assert_eq!(
        new(&[1, u64::MAX], &[(&[1, u64::MAX], 2)]),
        InstanceError::Overflow { dimension: 1 }
    );
}

#[test]
fn a_wrong_packing_is_told_from_a_right_one() {
    let instance = instance(&[10], &[&[6], &[4], &[5]]);
    let verify = |assignment: &[u32], bins, lower_bound| {
        let found_by = FoundBy::Heuristic(Heuristic::NextFit);
        let assignment = assignment.to_vec();
        Packing { assignment, bins, lower_bound, found_by, stopped: false }.verify(&instance)
    };
    assert_eq!(verify(&[0, 0, 1], 2, 2), Ok(()));
    assert_eq!(verify(&[0, 0], 2, 2), Err(WrongPacking::Items { packed: 2, items: 3 }));
    assert_eq!(verify(&[0, 0, 2], 2, 2), Err(WrongPacking::NoSuchBin { item: 2, bin: 2, bins: 2 }));
    assert_eq!(verify(&[0, 1, 0], 2, 2), Err(WrongPacking::Over { bin: 0, dimension: 0 }));
    assert_eq!(verify(&[0, 0, 1], 3, 2), Err(WrongPacking::Empty { bin: 2 }));
    assert_eq!(verify(&[0, 0, 1], u32::MAX, 2), Err(WrongPacking::Empty { bin: 2 }));
    assert_eq!(verify(&[0, 1, 2], u32::MAX, 2), Err(WrongPacking::Empty { bin: 3 }));
    assert_eq!(verify(&[0, 0, 1], 2, 3), Err(WrongPacking::BelowBound { bins: 2, lower_bound: 3 }));
}

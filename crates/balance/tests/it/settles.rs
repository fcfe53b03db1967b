//! Nothing flips to and fro: closed loops of loads, samples, plans and moves.

use plimsoll_balance::Settings;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::world::{INTERVAL, World, moves, request, vm};

/// Ten minutes of samples.
const ROUNDS: u64 = 600 / INTERVAL.as_secs();

const HOSTS: u32 = 4;

/// Ten minutes on hosts whose load is noise around `mean` (of the CPU, in thousandths); returns the
/// moves. The noise of a host is white, or has a memory of some samples.
fn moves_under_noise(seed: u64, mean: u64, noise: u64, memory: u64) -> usize {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = World::with_hosts(Settings::default(), HOSTS, 16, 64);
    for host in 1..=HOSTS {
        for i in 0..8 {
            world.add_vm(&request(vm(host * 100 + i), 2, 4), host, 0);
        }
    }
    let mut deviations = vec![0_i64; 8 * HOSTS as usize];
    let mut count = 0;
    for _ in 0..ROUNDS {
        let ids: Vec<_> = world.seen.keys().copied().collect();
        for (id, deviation) in ids.into_iter().zip(&mut deviations) {
            // Of a VM's two cores; of eight VMs together the noise is about `noise` of the host.
            let most = i64::try_from(noise * 8).unwrap();
            let memory = i64::try_from(memory).unwrap();
            *deviation = *deviation * memory / (memory + 1) + rng.random_range(-most..=most);
            let cpu = i64::try_from(mean * 2).unwrap() + *deviation;
            world.load(id, u64::try_from(cpu.clamp(0, 2000)).unwrap());
        }
        world.observe(1);
        let plan = world.plan();
        count += moves(&plan).len();
        world.carry_out(&plan);
    }
    count
}

#[test]
fn ten_minutes_of_noise_around_the_threshold_give_at_most_two_moves() {
    for seed in 0..20 {
        for mean in [700, 730, 750] {
            let count = moves_under_noise(seed, mean, 30, 0);
            assert!(count <= 2, "{count} moves with seed {seed} at {mean}");
        }
    }
}

/// One host is at the threshold, the others are cool: one move is worth it, and not ten.
#[test]
fn a_noisy_host_beside_cool_ones_is_relieved_once() {
    for seed in 0..20 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::with_hosts(Settings::default(), HOSTS, 16, 64);
        for i in 0..8 {
            world.add_vm(&request(vm(100 + i), 2, 4), 1, 0);
            for host in 2..=HOSTS {
                world.add_vm(&request(vm(host * 100 + i), 2, 4), host, 800);
            }
        }
        let mut count = 0;
        let mut wave = 0_i64;
        for _ in 0..ROUNDS {
            wave = wave * 4 / 5 + rng.random_range(-60..=60);
            for i in 0..8 {
                let cpu = 1500 + wave + rng.random_range(-200..=200);
                world.load(vm(100 + i), u64::try_from(cpu.clamp(0, 2000)).unwrap());
            }
            world.observe(1);
            let plan = world.plan();
            count += moves(&plan).len();
            world.carry_out(&plan);
        }
        assert!(count <= 2, "{count} moves with seed {seed}");
    }
}

#[test]
fn under_a_constant_load_no_vm_moves_twice() {
    for seed in 0..50 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::with_hosts(Settings::default(), 6, 16, 64);
        for i in 0..40 {
            let cores = rng.random_range(1..=4);
            let host = if rng.random_bool(0.5) { 1 } else { rng.random_range(1..=6) };
            let cpu = rng.random_range(0..=cores * 1000);
            world.add_vm(&request(vm(i), cores, 2), host, cpu);
        }
        let mut moved = std::collections::BTreeSet::new();
        for _ in 0..400 {
            world.observe(1);
            let plan = world.plan();
            for (vm, ..) in moves(&plan) {
                assert!(moved.insert(vm), "{vm} moves twice with seed {seed}");
            }
            world.carry_out(&plan);
        }
    }
}

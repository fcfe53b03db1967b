//! On the real kernel, in network namespaces of their own: hosts and guests are threads, each in a
//! namespace; a guest is connected to its tap by copying frames, as QEMU would.

mod place;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::*;
use crate::command::Tool;
use place::{Guest, Namespace};

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn network(vni: u32) -> NetworkWanted {
    NetworkWanted {
        vni,
        cidr: "10.10.0.0/24".parse().unwrap(),
        outside: false,
        mtu: DEFAULT_MTU,
        peers: BTreeSet::new(),
    }
}

fn nic(vni: u32, number: u8) -> NicWanted {
    NicWanted {
        vm: vm(u128::from(number)),
        index: 0,
        vni,
        mac: MacAddress([0x52, 0x54, 0, 0, 0, number]),
        address: Ipv4Addr::new(10, 10, 0, number),
        owner_uid: Some(65_534),
        rates: NicRates::default(),
    }
}

fn mbit(rate: u64) -> Option<BitsPerSecond> {
    Some(BitsPerSecond(rate * 1_000_000))
}

/// Sends a packet and says whether the answer came in time.
fn reaches(from: &Namespace, to: &Namespace, address: SocketAddr) -> bool {
    let server = to.run(move || UdpSocket::bind(address)).unwrap();
    let limit = Some(Duration::from_millis(300));
    server.set_read_timeout(limit).unwrap();
    let client = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.set_read_timeout(limit).unwrap();
    let answer = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        for _ in 0..3 {
            if let Ok((count, from)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..count], from);
                return;
            }
        }
    });
    let mut buffer = [0; 64];
    let got = (0..3).any(|_| {
        // No route is an answer too, and may come as an error of an earlier packet.
        client.send_to(b"ping", address).is_ok() && client.recv_from(&mut buffer).is_ok()
    });
    answer.join().unwrap();
    got
}

/// Bits per second of a TCP stream, after its first moments.
fn rate(from: &Namespace, to: &Namespace, address: SocketAddr) -> f64 {
    let server = to.run(move || TcpListener::bind(address)).unwrap();
    let mut sender =
        from.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5))).unwrap();
    sender.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let (mut receiver, _) = server.accept().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let pump = std::thread::spawn(move || {
        let chunk = vec![7; 64 << 10];
        while sender.write_all(&chunk).is_ok() {}
    });
    let mut buffer = vec![0; 64 << 10];
    let mut read_for = |limit: Duration| {
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < limit {
            match receiver.read(&mut buffer) {
                Ok(count) => bytes += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the stream broke: {error}"),
            }
        }
        bytes as f64 * 8.0 / start.elapsed().as_secs_f64()
    };
    read_for(Duration::from_millis(700));
    let rate = read_for(Duration::from_millis(2000));
    drop(receiver);
    drop(server);
    pump.join().unwrap();
    rate
}

/// Measures until the rate is within a tenth of so many Mbit/s, three times at most: a busy machine
/// makes it lower now and then; nothing but a missing limit makes it higher.
fn assert_near(mbits: u32, measure: impl Fn() -> f64) {
    let wanted = f64::from(mbits) * 1e6;
    let mut rates = Vec::new();
    for _ in 0..3 {
        let rate = measure();
        rates.push(rate);
        assert!(rate < 1.02 * wanted, "{rates:?} for {wanted}");
        if rate > 0.9 * wanted {
            return;
        }
    }
    panic!("{rates:?} for {wanted}");
}

#[test]
fn a_network_is_made_once_changed_and_removed() {
    let Some(host) = Namespace::new() else { return };
    let underlay = Underlay { address: "192.0.2.1".parse().unwrap(), port: VXLAN_PORT };
    host.run_async(async move || {
        let fabric = Fabric::prepare(Some(underlay)).await;
        assert_eq!(fabric.guard(), &GuardState::Active, "this machine has nftables");
        let peers = |last: &[u8]| -> BTreeSet<IpAddr> {
            last.iter().map(|last| Ipv4Addr::new(192, 0, 2, *last).into()).collect()
        };
        let mut wanted = NetworkWanted { peers: peers(&[1, 2, 3]), ..network(7) };
        for _ in 0..2 {
            let is = fabric.ensure_network(&wanted).await.unwrap();
            let bridge = "plb7".to_owned();
            assert_eq!(
                is,
                NetworkInForce { vni: 7, bridge, mtu: 1450, peers: peers(&[2, 3]), gateway: None }
            );
        }
        wanted.peers = peers(&[3, 4]);
        wanted.mtu = 1400;
        wanted.outside = true;
        for _ in 0..2 {
            let is = fabric.ensure_network(&wanted).await.unwrap();
            assert_eq!((is.mtu, is.peers), (1400, peers(&[3, 4])));
            assert_eq!(is.gateway, Some(Ipv4Addr::new(10, 10, 0, 1)));
        }
        let overlap = NetworkWanted { outside: true, ..network(8) };
        let error = fabric.ensure_network(&overlap).await.unwrap_err();
        assert!(matches!(error, NetError::Overlap { vni: 8, ref device, .. } if device == "plb7"));
        assert_eq!(fabric.ensure_network(&network(8)).await.unwrap().gateway, None);
        wanted.outside = false;
        assert_eq!(fabric.ensure_network(&wanted).await.unwrap().gateway, None);
        assert_eq!(fabric.networks().unwrap(), vec![7, 8]);
        // Another underlay address: the device is made anew.
        let moved = Underlay { address: "192.0.2.9".parse().unwrap(), ..underlay };
        let fabric = Fabric::prepare(Some(moved)).await;
        assert_eq!(fabric.ensure_network(&wanted).await.unwrap().peers, peers(&[3, 4]));
        for vni in [7, 8, 7] {
            fabric.remove_network(vni).await.unwrap();
        }
        assert_eq!(fabric.networks().unwrap(), Vec::<u32>::new());
        assert!(links::show("plx7").await.unwrap().is_none());
    });
}

#[test]
fn what_is_right_already_is_left_alone() {
    let Some(host) = Namespace::new() else { return };
    for (address, peer) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        host.run_async(async move || {
            let address = address.parse().unwrap();
            let fabric = Fabric::prepare(Some(Underlay { address, port: VXLAN_PORT })).await;
            let peers: BTreeSet<IpAddr> = [peer.parse().unwrap()].into();
            let wanted = NetworkWanted { peers: peers.clone(), ..network(7) };
            let devices = async || {
                assert_eq!(fabric.ensure_network(&wanted).await.unwrap().peers, peers);
                fabric.ensure_nic(&nic(7, 1)).await.unwrap();
                [bridge_name(7), vxlan_name(7), tap_name(vm(1), 0)]
                    .map(|name| nix::net::if_::if_nametoindex(name.as_str()).unwrap())
            };
            assert_eq!(devices().await, devices().await, "the same devices, not new ones");
        });
    }
}

#[test]
fn an_interface_is_made_once_changed_and_removed() {
    let Some(host) = Namespace::new() else { return };
    host.run_async(async || {
        let fabric = Fabric::prepare(None).await;
        let mut wanted = nic(7, 1);
        let error = fabric.ensure_nic(&wanted).await.unwrap_err();
        assert!(matches!(error, NetError::NoNetwork { vni: 7 }));
        fabric.ensure_network(&network(7)).await.unwrap();
        wanted.rates = NicRates { to_guest: mbit(100), from_guest: mbit(30) };
        for _ in 0..2 {
            let is = fabric.ensure_nic(&wanted).await.unwrap();
            assert_eq!((is.rates, is.mtu, is.guarded), (wanted.rates, 1450, true));
            assert_eq!(is.tap, tap_name(wanted.vm, 0));
        }
        assert_eq!(fabric.rates(wanted.vm, 0).await.unwrap(), wanted.rates);
        for rates in [
            NicRates { to_guest: mbit(20), from_guest: None },
            NicRates { to_guest: None, from_guest: mbit(20) },
            NicRates::default(),
            NicRates::both(BitsPerSecond(8_000)),
            NicRates::both(BitsPerSecond(100_000_000_000)),
        ] {
            assert_eq!(fabric.set_rates(wanted.vm, 0, rates).await.unwrap(), rates);
            assert_eq!(fabric.rates(wanted.vm, 0).await.unwrap(), rates);
        }
        let low = NicRates::both(BitsPerSecond(1000));
        let error = fabric.set_rates(wanted.vm, 0, low).await.unwrap_err();
        assert!(matches!(error, NetError::RateTooLow { .. }));

        // Same last 40 bits, another VM.
        let twin = NicWanted { vm: vm(1 | 1 << 64), ..wanted.clone() };
        let error = fabric.ensure_nic(&twin).await.unwrap_err();
        assert!(matches!(error, NetError::NameTaken { .. }), "{error}");
        // Another user: made anew while nobody holds it, refused while somebody does.
        wanted.owner_uid = None;
        let tap = fabric.ensure_nic(&wanted).await.unwrap().tap;
        let open = open_tap(&tap).unwrap();
        assert!(matches!(open_tap(&tap), Err(NetError::OpenTap { .. })));
        wanted.owner_uid = Some(1);
        let error = fabric.ensure_nic(&wanted).await.unwrap_err();
        assert!(matches!(error, NetError::NameTaken { .. }), "{error}");
        drop(open);

        assert_eq!(fabric.taps().unwrap().keys().collect::<Vec<_>>(), vec![&tap]);
        assert!(matches!(fabric.remove_tap("lo").await, Err(NetError::NameTaken { .. })));
        fabric.remove_tap(&tap).await.unwrap();
        fabric.remove_nic(wanted.vm, 0).await.unwrap();
        assert_eq!(fabric.taps().unwrap(), BTreeMap::new());
        let error = fabric.rates(wanted.vm, 0).await.unwrap_err();
        assert!(matches!(error, NetError::NoNic { .. }));
    });
}

#[test]
fn what_makes_no_sense_is_refused() {
    let Some(host) = Namespace::new() else { return };
    host.run_async(async || {
        let fabric = Fabric::prepare(None).await;
        for (wanted, expected) in [
            (NetworkWanted { vni: 0, ..network(1) }, "identifier 0"),
            (NetworkWanted { vni: 1 << 24, ..network(1) }, "identifier 16777216"),
            (NetworkWanted { mtu: 100, ..network(1) }, "MTU 100"),
            (
                NetworkWanted { peers: [Ipv4Addr::LOCALHOST.into()].into(), ..network(1) },
                "no underlay",
            ),
        ] {
            let error = fabric.ensure_network(&wanted).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let command = Tool::new("ip", ["link", "add", "plb5", "type", "ifb"]);
        command.run().await.unwrap();
        let error = fabric.ensure_network(&network(5)).await.unwrap_err();
        assert!(matches!(error, NetError::NameTaken { .. }), "{error}");
        let error = open_tap("a-name-that-is-too-long").unwrap_err();
        assert!(matches!(error, NetError::OpenTap { .. }));
    });
}

#[test]
fn guests_on_two_hosts_share_a_network_and_no_other() {
    let (Some(left), Some(right)) = (Namespace::new(), Namespace::new()) else { return };
    left.connect(&right, "192.0.2.1/24", "192.0.2.2/24");
    for (host, own, peer) in [(&left, 1, 2), (&right, 2, 1)] {
        let address = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
        host.run_async(async move || {
            let underlay = Underlay { address: address(own), port: VXLAN_PORT };
            let fabric = Fabric::prepare(Some(underlay)).await;
            for vni in [7, 8] {
                let wanted = NetworkWanted { peers: [address(peer)].into(), ..network(vni) };
                fabric.ensure_network(&wanted).await.unwrap();
            }
        });
    }
    let here = Guest::start(&left, nic(7, 11));
    let there = Guest::start(&right, nic(7, 12));
    let stranger = Guest::start(&right, nic(8, 13));
    let neighbour = Guest::start(&left, nic(7, 14));
    let at = |number| SocketAddr::from((Ipv4Addr::new(10, 10, 0, number), 7000));
    assert!(reaches(here.namespace(), there.namespace(), at(12)), "same network, other host");
    assert!(reaches(there.namespace(), here.namespace(), at(11)), "and back");
    assert!(reaches(here.namespace(), neighbour.namespace(), at(14)), "same network, same host");
    assert!(!reaches(here.namespace(), stranger.namespace(), at(13)), "other network");
    assert!(!reaches(stranger.namespace(), there.namespace(), at(12)), "other network, same host");
    let across = rate(here.namespace(), there.namespace(), at(12));
    assert!(across > 20e6, "{across}");
}

#[test]
fn limits_are_felt_in_both_directions_and_change_under_load() {
    let Some(host) = Namespace::new() else { return };
    host.run_async(async || {
        let fabric = Fabric::prepare(None).await;
        fabric.ensure_network(&network(7)).await.unwrap();
    });
    let limited = Guest::start(
        &host,
        NicWanted { rates: NicRates { to_guest: mbit(20), from_guest: mbit(10) }, ..nic(7, 11) },
    );
    let free = Guest::start(&host, nic(7, 12));
    let at = |number| SocketAddr::from((Ipv4Addr::new(10, 10, 0, number), 7000));
    let to_guest = || rate(free.namespace(), limited.namespace(), at(11));
    let from_guest = || rate(limited.namespace(), free.namespace(), at(12));
    assert_near(20, to_guest);
    assert_near(10, from_guest);
    let rates = NicRates { to_guest: mbit(10), from_guest: mbit(20) };
    host.run_async(async move || {
        let fabric = Fabric::prepare(None).await;
        assert_eq!(fabric.set_rates(vm(11), 0, rates).await.unwrap(), rates);
    });
    assert_near(10, to_guest);
    assert_near(20, from_guest);
    let taps = host.run_async(async || Fabric::prepare(None).await.taps().unwrap());
    let counters = taps[&tap_name(vm(11), 0)];
    assert!(counters.to_guest_bytes > 4 << 20 && counters.from_guest_bytes > 4 << 20);
}

#[test]
fn a_guest_cannot_pretend_to_be_another() {
    let Some(host) = Namespace::new() else { return };
    host.run_async(async || {
        let fabric = Fabric::prepare(None).await;
        fabric.ensure_network(&network(7)).await.unwrap();
    });
    let rates = NicRates { to_guest: mbit(100), from_guest: mbit(100) };
    // Also with a limit: what comes back from the ifb must not slip past the guard.
    for (number, rates) in [(21, NicRates::default()), (22, rates)] {
        let liar = Guest::start(&host, NicWanted { rates, ..nic(7, number) });
        let other = Guest::start(&host, nic(7, number + 10));
        let at = SocketAddr::from((Ipv4Addr::new(10, 10, 0, number + 10), 7000));
        assert!(reaches(liar.namespace(), other.namespace(), at));
        liar.set(&["address del 10.10.0.{n}/24 dev eth0", "address add 10.10.0.99/24 dev eth0"]);
        assert!(!reaches(liar.namespace(), other.namespace(), at), "another address");
        liar.set(&["address del 10.10.0.99/24 dev eth0", "address add 10.10.0.{n}/24 dev eth0"]);
        assert!(reaches(liar.namespace(), other.namespace(), at), "its own again");
        liar.set(&["link set dev eth0 address 52:54:00:00:00:77"]);
        assert!(!reaches(liar.namespace(), other.namespace(), at), "another MAC address");
    }
}

#[test]
fn guests_go_outside_only_where_they_may_and_never_to_the_host() {
    let (Some(host), Some(outside)) = (Namespace::new(), Namespace::new()) else { return };
    host.connect(&outside, "192.0.2.1/24", "192.0.2.2/24");
    host.run_async(async || {
        let fabric = Fabric::prepare(None).await;
        let with_way_out = NetworkWanted { outside: true, ..network(7) };
        fabric.ensure_network(&with_way_out).await.unwrap();
        fabric.ensure_network(&network(8)).await.unwrap();
        let second =
            NetworkWanted { outside: true, cidr: "10.20.0.0/24".parse().unwrap(), ..network(9) };
        fabric.ensure_network(&second).await.unwrap();
    });
    let free = Guest::start(&host, nic(7, 11));
    let inside = Guest::start(&host, nic(8, 12));
    let second =
        Guest::start(&host, NicWanted { address: Ipv4Addr::new(10, 20, 0, 13), ..nic(9, 13) });
    let away = SocketAddr::from(([192, 0, 2, 2], 7000));
    // The server has no route back to 10.10.0.0/24: the answer finds the way by masquerade only.
    assert!(reaches(free.namespace(), &outside, away), "a way out");
    assert!(reaches(second.namespace(), &outside, away), "a way out of the second network");
    assert!(!reaches(inside.namespace(), &outside, away), "no way out");
    for address in ["192.0.2.1:7000", "10.10.0.1:7000"] {
        let address: SocketAddr = address.parse().unwrap();
        assert!(!reaches(free.namespace(), &host, address), "the host itself at {address}");
        assert!(!reaches(inside.namespace(), &host, address), "the host itself at {address}");
    }
    let at = SocketAddr::from(([10, 20, 0, 13], 7000));
    assert!(!reaches(free.namespace(), second.namespace(), at), "another network via the host");
    outside.ip(&["route add 10.10.0.0/24 via 192.0.2.1"]);
    let at = SocketAddr::from(([10, 10, 0, 11], 7000));
    assert!(!reaches(&outside, free.namespace(), at), "nobody comes in from outside");
}

//! Recorded workloads: whatever the bytes, an error that names the file or records that keep the rules;
//! never a panic, never much memory.
#![no_main]

use std::ops::ControlFlow;

use libfuzzer_sys::fuzz_target;
use plimsoll_simulator::readers::{Limits, Lines, ReadError, azure, openb, vbp};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let limits = Limits { line_bytes: 4096, bytes: 1 << 20, records: 1000, ..Limits::default() };
    let lines = || Lines::new("file".to_owned(), data, &limits);
    let flavors = || azure::flavors_from(Lines::new("map".to_owned(), &b"1,2 a\n2,4 b\n"[..], &limits));
    let intervals = || azure::intervals_from(Lines::new("map".to_owned(), &b"0 0\n300 1\n"[..], &limits));
    let result = match kind % 7 {
        0 => vbp::read(&mut lines(), &limits).map(|instance| {
            assert!(instance.items().all(|item| item.len() == instance.capacity().len()));
        }),
        1 => vbp::archive("file", data, None, &limits, &mut |named| {
            assert!(named.file.starts_with("file/"));
            ControlFlow::Continue(())
        }),
        2 => openb::nodes_from(lines(), &limits).map(|nodes| {
            assert!(nodes.iter().all(|node| node.gpus == 0 || node.model.is_some()));
        }),
        3 => openb::pods_from(lines(), &limits).map(|pods| {
            assert!(pods.iter().all(|pod| pod.gpus < 2 || pod.gpu_milli == 1000));
        }),
        4 => azure::flavors_from(lines()).map(drop),
        5 => azure::intervals_from(lines()).map(drop),
        _ => {
            // The first half is the requests, the second the lifetimes.
            let (requests, lifetimes) = data.split_at(data.len() / 2);
            let lines = |bytes| Lines::new("file".to_owned(), bytes, &limits);
            let (Ok(flavors), Ok(intervals)) = (flavors(), intervals()) else {
                unreachable!("they are well written");
            };
            azure::Requests::new(lines(requests), lines(lifetimes), flavors, intervals, &limits)
                .try_for_each(|moment: Result<_, ReadError>| moment.map(drop))
        }
    };
    if let Err(error) = result {
        assert!(error.to_string().starts_with("file"));
    }
});

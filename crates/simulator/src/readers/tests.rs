//! Files as they should be, and as they should not.

use std::{
    fs,
    io::Write as _,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use liblzma::write::XzEncoder;
use proptest::prelude::{any, prop, proptest};

use super::{Limits, Lines, ReadError, azure, bitbrains, bytedance, openb, planetlab, source, vbp};
use crate::data;

/// What reads a file.
#[derive(Clone, Copy, Debug)]
enum As {
    Vbp,
    Nodes,
    Pods,
    Flavors,
    Intervals,
    /// The requests are the file; the lifetimes are `0 U0,U0,|,C1` and `300 U1`.
    Requests,
    /// The lifetimes are the file; the requests are `0 a,b,|,a` and `300 b`.
    Lifetimes,
    /// The list of VMs is the file; both matrices are `1,5` and `2,5`.
    Vms,
    /// The CPU is the file; the VMs are 1 and 2, their memory `1,5,5` and `2,5,5`.
    Cpu,
    /// The memory is the file; the VMs are 1 and 2, their CPU `1,5,5` and `2,5,5`.
    Memory,
    Percents,
}
use As::{Cpu, Flavors, Intervals, Lifetimes, Memory, Nodes, Percents, Pods, Requests, Vbp, Vms};

const NODES: &str = "sn,cpu_milli,memory_mib,gpu,model\n";
const VMS: &str = "vm,cores,mem_cap_mb\n";
const PODS: &str = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n";

/// So small that tests exceed them; a line of 64 bytes, 2 KiB in all.
fn small() -> Limits {
    Limits {
        line_bytes: 64,
        bytes: 2048,
        records: 20,
        dimensions: 3,
        hosts: 3,
        ..Limits::default()
    }
}

fn read(kind: As, path: &Path, limits: &Limits) -> Result<(), ReadError> {
    let beside = |text: &str| {
        let path = path.with_extension("beside");
        fs::write(&path, text).unwrap();
        path
    };
    let flavors = || azure::flavors_from(text("map", "1,2 a\n2,4 b\n", limits));
    let intervals = || azure::intervals_from(text("map", "0 0\n300 1\n", limits));
    let requests = |requests: &Path, lifetimes: &Path| {
        azure::requests(requests, lifetimes, flavors()?, intervals()?, limits)?
            .try_for_each(|moment| moment.map(|_| ()))
    };
    match kind {
        Vbp => vbp::for_each(path, limits, &mut |_| ControlFlow::Continue(())),
        Nodes => openb::nodes(path, limits).map(|_| ()),
        Pods => openb::pods(path, limits).map(|_| ()),
        Flavors => azure::flavors(path, limits).map(|_| ()),
        Intervals => azure::intervals(path, limits).map(|_| ()),
        Requests => requests(path, &beside("0 U0,U0,|,C1\n300 U1\n")),
        Lifetimes => requests(&beside("0 a,b,|,a\n300 b\n"), path),
        Percents => planetlab::read(path, limits).map(|_| ()),
        Vms | Cpu | Memory => {
            let list = format!("{VMS}1,1,1\n2,1,1\n");
            let matrix = if matches!(kind, Vms) { "1,5\n2,5\n" } else { "1,5,5\n2,5,5\n" };
            // `path` itself is opened, so that errors name it; the others lie beside it.
            let open = |is: As, text: &str| {
                if is as u8 == kind as u8 {
                    return source::lines(path, limits);
                }
                let beside = path.with_extension(format!("{is:?}"));
                fs::write(&beside, text).unwrap();
                source::lines(&beside, limits)
            };
            let (list, cpu) = (open(Vms, &list)?, open(Cpu, matrix)?);
            bitbrains::read_from(list, cpu, open(Memory, matrix)?, limits).map(|_| ())
        }
    }
}

fn text<'a>(file: &str, text: &'a str, limits: &Limits) -> Lines<&'a [u8]> {
    Lines::new(file.to_owned(), text.as_bytes(), limits)
}

/// What reads it, what is in the file, the line and the column that the error must name, and what
/// else it must say.
type Case = (As, &'static [&'static str], u64, usize, &'static str);

const BROKEN: &[Case] = &[
    (Percents, &["a,1,2\n", "b,1\n"], 2, 4, "as many slots as on the first line, found the end"),
    (
        Percents,
        &["a,1,2\n", "\n", "b,1,2,3\n"],
        3,
        7,
        "as many slots as on the first line, found `3`",
    ),
    (Percents, &["a\n"], 1, 2, "expected CPU use in %, as many slots"),
    (Percents, &["a,\n"], 1, 3, "a whole number from 0 to 100, found nothing"),
    (Percents, &["a,1,101\n"], 1, 5, "a whole number from 0 to 100, found `101`"),
    (Percents, &["a,1,1.5\n"], 1, 5, "found `1.5`"),
    (Percents, &["a,-1\n"], 1, 3, "found `-1`"),
    (Percents, &[",1\n"], 1, 1, "a VM's name of 1 to 253 bytes, found nothing"),
    (Percents, &["a,1\n"; 21], 21, 1, "more than 20 VMs"),
    (Vbp, &[""], 1, 1, "expected the number of dimensions, found the end of the file"),
    (Vbp, &["two\n"], 1, 1, "above 0, found `two`"),
    (Vbp, &["0\n"], 1, 1, "above 0, found `0`"),
    (Vbp, &["2 2\n"], 1, 3, "expected the end of the line, found `2`"),
    (Vbp, &["4\n1 1 1 1\n0\n"], 1, 1, "more than 3 dimensions"),
    (Vbp, &["99999999999999999999\n"], 1, 1, "a whole number above 0"),
    (Vbp, &["2\n10\n1\n1 1 1\n"], 2, 3, "expected a capacity, found the end of the line"),
    (Vbp, &["2\n10 10\n"], 3, 1, "the number of items that follow, found the end of the file"),
    (Vbp, &["2\n10 10\n1000000000000\n"], 3, 1, "more than 20 items"),
    (Vbp, &["2\n10 10\n2\n1 1 1\n"], 5, 1, "found the end of the file"),
    (Vbp, &["2\n10 10\n1\n1 11 1\n"], 4, 3, "from 0 to 10, found `11`"),
    (Vbp, &["2\n10 10\n1\n1  -1 1\n"], 4, 4, "found `-1`"),
    (Vbp, &["2\n10 10\n1\n1 1\n"], 4, 4, "how many there are of the item, found the end"),
    (Vbp, &["2\n10 10\n1\n1 1 1 1\n"], 4, 7, "expected the end of the line"),
    (Vbp, &["2\n10 10\n1\n1 1 1\n\n2 2 1\n"], 6, 1, "expected no more than 1 items"),
    (Nodes, &[""], 1, 1, "expected the titles sn,cpu_milli,memory_mib,gpu,model"),
    (Nodes, &["sn,cpu_milli,gpu,model\n"], 1, 1, "with `memory_mib`"),
    (Nodes, &[NODES, "a,1,1,1\n"], 2, 8, "expected 5 cells as in the first line"),
    (Nodes, &[NODES, "a,1,1,1,T4,7\n"], 2, 12, "expected 5 cells as in the first line, found `7`"),
    (Nodes, &[NODES, "a,1,1,1,T4\nb,x,1,0,\n"], 3, 3, "thousandths of cores"),
    (Nodes, &[NODES, "a,1,1,2000,T4\n"], 2, 7, "devices, a whole number from 0 to 1024"),
    (Nodes, &[NODES, "a,1,1,1,\n"], 2, 9, "a model of 1 to 63 letters"),
    (Nodes, &[NODES, "a,1,99999999999999,1,T4\n"], 2, 5, "found `99999999999999`"),
    (Nodes, &[NODES, "\"a,1,1,1,T4\n"], 2, 1, "quotes closed on their line"),
    (Nodes, &[NODES, "\"a\"\"b\",1,x,1,T4\n"], 2, 10, "memory in MiB, a whole number"),
    (Nodes, &[NODES, "a,1,1,0,\nb,1,1,0,\nc,1,1,0,\nd,1,1,0,\n"], 5, 1, "more than 3 nodes"),
    (Pods, &[PODS, "a,1,1,1,1001,\n"], 2, 9, "from 1 to 1000, found `1001`"),
    (Pods, &[PODS, "a,1,1,1,0,\n"], 2, 9, "thousandths of a device"),
    (Pods, &[PODS, "a,1,1,2,500,\n"], 2, 9, "each of several devices"),
    (Pods, &[PODS, "a,1,1,1,500,A10||T4\n"], 2, 17, "a model of 1 to 63 letters"),
    (Pods, &[PODS, ",1,1,0,0,\n"], 2, 1, "a name of 1 to 253 bytes, found nothing"),
    (Pods, &["name,cpu_milli\n"], 1, 1, "with `memory_mib`"),
    (Flavors, &["\n\n"], 3, 1, "a flavour such as `2,3.5 g`, found the end of the file"),
    (Flavors, &["1,2 a\n2;4 b\n"], 2, 1, "cores and GB such as `2,3.5`, found `2;4`"),
    (Flavors, &["1,0 a\n"], 1, 3, "GB of memory, a number above 0"),
    (Flavors, &["1,2 ab\n"], 1, 5, "expected one letter, found `ab`"),
    (Flavors, &["1,2 a\n2,4 a\n"], 2, 5, "a letter that no other flavour has"),
    (Flavors, &["1e9,2 a\n"], 1, 1, "cores, a number above 0, such as 2 or 0.5"),
    (Intervals, &["0 0\n300 2\n"], 2, 5, "a bin, a whole number from 0 to 1, found `2`"),
    (Intervals, &["0 0\n0 1\n"], 2, 1, "seconds in rising order"),
    (Intervals, &["0\n"], 1, 2, "the bin of these seconds, found the end of the line"),
    (Intervals, &["0 1\n"], 1, 3, "a bin"),
    (Requests, &["0 a,z,|,a\n300 b\n"], 1, 5, "the letter of a flavour or `|`, found `z`"),
    (Requests, &["0 a,b,|,a\n0 b\n"], 2, 1, "a time in seconds, later than that of the line"),
    (Requests, &["0 a,b,|,a\n300 b b\n"], 2, 7, "expected the end of the line"),
    (Requests, &["x a\n"], 1, 1, "a time in seconds"),
    (Lifetimes, &["0 U0,U9,|,C1\n300 U1\n"], 1, 6, "of a known bin, or `|`, found `U9`"),
    (Lifetimes, &["0 U0,|,U1,C1\n"], 1, 6, "the requests' line has one, and only there, found `|`"),
    (Lifetimes, &["0 U0,X1,|,C1\n300 U1\n"], 1, 6, "found `X1`"),
    (Lifetimes, &["0 U0,U1,|\n300 U1\n"], 1, 10, "as many VMs as the requests' line has"),
    (Lifetimes, &["0 U0,U1,|,C1,U1\n300 U1\n"], 1, 14, "no more VMs than the requests' line"),
    (Lifetimes, &["0 U0,U1,|,C1\n600 U1\n"], 2, 1, "the time of the requests' line in seconds"),
    (Lifetimes, &["0 U0,U1,|,C1\n"], 2, 1, "found the end of the file"),
    (Lifetimes, &["0 U0,U1,|,C1\n300 U1\n600 U0\n"], 3, 1, "no more lines than there are of"),
    (Lifetimes, &["0 U0,\u{e9},|,C1\n300 U1\n"], 1, 6, "found `\u{e9}`"),
    (Vms, &[""], 1, 1, "expected the titles vm,cores,mem_cap_mb, found the end of the file"),
    (Vms, &["vm,cores\n1,1\n"], 1, 1, "with `mem_cap_mb`"),
    (Vms, &[VMS, "1,1\n"], 2, 4, "expected 3 cells as in the first line"),
    (Vms, &[VMS, "1,1,1,1\n"], 2, 7, "expected 3 cells as in the first line, found `1`"),
    (Vms, &[VMS, "x,1,1\n"], 2, 1, "a VM's number, a whole number from 0 to"),
    (Vms, &[VMS, "-1,1,1\n"], 2, 1, "found `-1`"),
    (Vms, &[VMS, "1,1.5,1\n"], 2, 3, "cores, a whole number from 0 to 65536, found `1.5`"),
    (Vms, &[VMS, "1,99999999999999999999,1\n"], 2, 3, "cores, a whole number"),
    (Vms, &[VMS, "1,1,\n"], 2, 5, "memory in MB, a number such as 2048 or 686.5, found nothing"),
    (Vms, &[VMS, "1,1,1GiB\n"], 2, 5, "memory in MB"),
    (Vms, &[VMS, "1,1,-1\n"], 2, 5, "memory in MB"),
    (Vms, &[VMS, "1,1,1.2.3\n"], 2, 5, "memory in MB"),
    (Vms, &[VMS, "1,1,1e9\n"], 2, 5, "memory in MB"),
    (Vms, &[VMS, "1,1,99999999999\n"], 2, 5, "memory in MB"),
    (Vms, &[VMS, "1,1,1\n1,1,1\n"], 3, 1, "a number that no other VM has, found `1`"),
    (Cpu, &[""], 1, 1, "a line for each VM of the list, found the end of the file"),
    (Cpu, &["1,5,5\n"], 2, 1, "a line for each VM of the list, found the end of the file"),
    (Cpu, &["1,5,5\n1,5,5\n"], 2, 1, "the number of a VM of the list, each on one line"),
    (Cpu, &["3,5,5\n2,5,5\n"], 1, 1, "the number of a VM of the list, each on one line"),
    (Cpu, &[",5,5\n2,5,5\n"], 1, 1, "a VM's number, a whole number from 0"),
    (Cpu, &["1\n2,5,5\n"], 1, 2, "and one at least, found the end of the line"),
    (Cpu, &["1,5,5\n2,5\n"], 2, 4, "as many slots as on the lines before, and one at least"),
    (Cpu, &["1,5,5\n2,5,5,7\n"], 2, 7, "as many slots as on the lines before, found `7`"),
    (Cpu, &["1,5,-5\n2,5,5\n"], 1, 5, "MHz, a whole number from 0 to 4294967295, found `-5`"),
    (Cpu, &["1,5,5.5\n2,5,5\n"], 1, 5, "MHz, a whole number"),
    (Cpu, &["1,5, 5\n2,5,5\n"], 1, 5, "MHz, a whole number"),
    (Cpu, &["1,5,4294967296\n2,5,5\n"], 1, 5, "found `4294967296`"),
    (Cpu, &["1,5,NaN\n2,5,5\n"], 1, 5, "found `NaN`"),
    (Memory, &["1,5,5\n2,x,5\n"], 2, 3, "MB, a whole number from 0 to 4294967295, found `x`"),
    (Memory, &["1,5,5,5\n2,5,5,5\n"], 1, 7, "as many slots as on the lines before, found `5`"),
    (Memory, &["2,5,5\n"], 2, 1, "a line for each VM of the list"),
];

/// The place in words, as every error begins.
fn place(path: &Path, line: u64, column: usize) -> String {
    format!("{}, line {line}, column {column}: ", path.display())
}

#[test]
fn whatever_is_wrong_is_named_with_its_file_line_and_column() {
    assert!(BROKEN.len() >= 80);
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (number, (kind, parts, line, column, says)) in BROKEN.iter().enumerate() {
        for packed in [false, true] {
            let path = folder.path().join(format!("{number}-{packed}"));
            let bytes = parts.concat().into_bytes();
            fs::write(&path, if packed { xz(&bytes) } else { bytes }).unwrap();
            let said = match read(*kind, &path, &small()) {
                Ok(()) => "nothing wrong".to_owned(),
                Err(error) => error.to_string(),
            };
            if !said.starts_with(&place(&path, *line, *column)) || !said.contains(says) {
                wrong.push(format!("{parts:?}\n  {said}\n  not {line}:{column} {says}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = XzEncoder::new(Vec::new(), 6);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// The error and all of its causes.
fn chain(error: &ReadError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [Vbp, Nodes, Pods, Flavors, Intervals, Requests, Lifetimes, Vms, Cpu] {
        let path = written(folder.path(), "bytes", b"\n\n1 \xff\xfe\0");
        let said = read(kind, &path, &Limits::default()).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{}, line ", path.display())), "{kind:?}: {said}");
        let path = written(folder.path(), "bytes", b"1 \xff\xfe\0");
        let said = read(kind, &path, &Limits::default()).unwrap_err().to_string();
        let expected = "expected text, found bytes that are not UTF-8 text";
        assert_eq!(said, place(&path, 1, 3) + expected, "{kind:?}");
    }
}

#[test]
fn a_line_or_a_file_that_is_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), "long", &[b'1'; 65]);
    let said = read(Vbp, &path, &small()).unwrap_err().to_string();
    assert_eq!(said, place(&path, 1, 65) + "more than 64 bytes in a line");
    let mut many = PODS.to_owned();
    (0..200).for_each(|_| many.push_str("a,1,1,0,0,\n"));
    let path = written(folder.path(), "many", many.as_bytes());
    let said = read(Pods, &path, &small()).unwrap_err().to_string();
    assert_eq!(said, place(&path, 22, 1) + "more than 20 pods");
    let limits = Limits { records: 1000, ..small() };
    let said = read(Pods, &path, &limits).unwrap_err().to_string();
    assert!(
        said.contains(", line 183, column ") && said.contains("2048 bytes in the file"),
        "{said}"
    );
}

#[test]
fn a_file_that_unpacks_to_very_much_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    // 16 MiB of line feeds in a few KiB.
    let bomb = written(folder.path(), "bomb", &xz(&vec![b'\n'; 16 << 20]));
    assert!(fs::metadata(&bomb).unwrap().len() < 32 << 10);
    let limits = Limits { bytes: 1 << 16, ..Limits::default() };
    for kind in [Nodes, Flavors, Intervals, Requests] {
        let said = read(kind, &bomb, &limits).unwrap_err().to_string();
        let late = said.contains("more than 65536 bytes in the file when it is unpacked");
        assert!(late || said.starts_with(&place(&bomb, 1, 1)), "{kind:?}: {said}");
    }
    let said = read(Flavors, &bomb, &limits).unwrap_err().to_string();
    assert!(said.contains("line 65537, column 1: more than 65536 bytes"), "{said}");
    // In an archive what is not looked at counts too.
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "zeros", &vec![0; 1 << 20]);
    append(&mut archive, "a.vbp", b"1\n1\n0\n");
    let path = written(folder.path(), "bomb.tar.xz", &xz(&archive.into_inner().unwrap()));
    let said = chain(&read(Vbp, &path, &limits).unwrap_err());
    assert!(said.contains("file 2 in it") && said.contains("more than 65536 bytes"), "{said}");
    // A dictionary of 8 MiB is more than may be used here.
    let limits = Limits { unpacking_bytes: 1 << 16, ..Limits::default() };
    let said = chain(&read(Flavors, &bomb, &limits).unwrap_err());
    assert!(said.contains("line 1, column 1") && said.contains("memory"), "{said}");
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes).unwrap();
}

#[test]
fn compressed_files_that_are_cut_off_or_damaged_are_refused_where_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let mut pods = PODS.to_owned();
    (0..5000).for_each(|n| pods.push_str(&format!("pod-{n},{},1,0,0,\n", n * 7919 % 10_007)));
    let whole = xz(pods.as_bytes());
    read(Pods, &written(folder.path(), "whole", &whole), &Limits::default()).unwrap();
    for cut in [6, 7, 20, whole.len() / 2, whole.len() - 30, whole.len() - 1] {
        let path = written(folder.path(), "cut", &whole[..cut]);
        let error = read(Pods, &path, &Limits::default()).unwrap_err();
        let named = error.to_string().starts_with(&format!("{}, line ", path.display()));
        assert!(named && matches!(error, ReadError::Read { .. }), "{cut}: {}", chain(&error));
    }
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        let path = written(folder.path(), "damaged", &bytes);
        let error = read(Pods, &path, &Limits::default()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{}, line ", path.display())), "{error}");
    }
}

#[test]
fn archives_give_the_instances_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let good = b"1\n10\n2\n5 1\n6 2\n";
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "README", b"hello");
    append(&mut archive, "a/one.vbp", good);
    let long = format!("b/{}.vbp", "x".repeat(150));
    append(&mut archive, &long, good);
    let bytes = archive.into_inner().unwrap();
    let path = written(folder.path(), "all.tar.xz", &xz(&bytes));
    let names = |path: &Path| {
        let mut names = Vec::new();
        vbp::for_each(path, &Limits::default(), &mut |named| {
            assert_eq!(named.instance.len(), 3);
            names.push(named.file);
            ControlFlow::Continue(())
        })
        .map(|()| names)
    };
    let inside = |name: &str| format!("{}/{name}", path.display());
    assert_eq!(names(&path).unwrap(), [inside("a/one.vbp"), inside(&long)]);
    assert_eq!(names(&path.join("a")).unwrap(), [inside("a/one.vbp")]);
    assert_eq!(names(&path.join("a/one.vbp")).unwrap(), [inside("a/one.vbp")]);
    let said = names(&path.join("c")).unwrap_err().to_string();
    assert!(said.contains("there is no `.vbp` file in it"), "{said}");
    // Cut off in the middle of an instance, and in the middle of a header.
    let plain = written(folder.path(), "cut.tar", &bytes[..512 + 512 + 512 + 8]);
    let said = chain(&names(&plain).unwrap_err());
    assert!(
        said.starts_with(&place(&plain.join("a/one.vbp"), 4, 1)) || said.contains("line "),
        "{said}"
    );
    let plain = written(folder.path(), "cut.tar", &bytes[..512 + 512 + 100]);
    let said = chain(&names(&plain).unwrap_err());
    assert!(said.contains("cut.tar, file 2 in it: cannot read the archive"), "{said}");
    let noise = written(folder.path(), "noise.tar", &[7; 4096]);
    let said = chain(&names(&noise).unwrap_err());
    assert!(said.contains("noise.tar, file 1 in it: cannot read the archive"), "{said}");
    // A name of 3 MiB is not held.
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(3 << 20);
    header.set_cksum();
    archive.append(&header, &vec![b'n'; 3 << 20][..]).unwrap();
    let plain = written(folder.path(), "name.tar", &archive.into_inner().unwrap());
    let said = chain(&names(&plain).unwrap_err());
    assert!(said.contains("a file's name is too long"), "{said}");
}

#[test]
fn files_that_cannot_be_opened_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [Vbp, Nodes, Pods, Flavors, Intervals] {
        let path = folder.path().join("nowhere");
        let error = read(kind, &path, &Limits::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot open {}", path.display()));
    }
    let error = read(Nodes, folder.path(), &Limits::default()).unwrap_err();
    assert!(matches!(error, ReadError::Open { .. }));
    let error = read(Vbp, folder.path(), &Limits::default()).unwrap_err();
    assert!(matches!(error, ReadError::Nothing { .. }));
}

#[test]
fn what_vms_used_is_read_plain_or_compressed() {
    let folder = tempfile::tempdir().unwrap();
    // VM 3 has no cores and VM 4 no memory: they are left out.
    let list = "vm,owner,cores,mem_cap_mb\n7,a,2,686.5\n3,b,0,64\n4,b,1,0.0\n5,c,1,64\n";
    written(folder.path(), "vms.csv", list.as_bytes());
    written(folder.path(), "cpu_mhz.csv", b"3,1,1,1\n4,1,1,1\n5,7,8,9\n7,1,,3\n");
    let memory = xz(b"7,,20,30\r\n5,0,0,\n3,,,\n4,1,1,1");
    written(folder.path(), "mem_mb.csv.xz", &memory);
    let vms = bitbrains::read(folder.path(), &Limits::default()).unwrap();
    assert_eq!(vms.iter().map(|vm| vm.id).collect::<Vec<_>>(), [5, 7]);
    assert_eq!(vms[1].cpu.0, 2000);
    assert_eq!(vms[1].memory.0, (1 << 20) * 6865 / 10);
    assert_eq!(vms[1].cpu_mhz, [Some(1), None, Some(3)]);
    assert_eq!(vms[0].memory_mib, [Some(0), Some(0), None]);
    let read = || bitbrains::read(folder.path(), &Limits::default()).unwrap_err().to_string();
    written(folder.path(), "mem_mb.csv.xz", &memory[..memory.len() - 3]);
    assert!(read().contains("mem_mb.csv.xz, line "), "{}", read());
    written(folder.path(), "vms.csv", b"vm,cores,mem_cap_mb\n");
    written(folder.path(), "cpu_mhz.csv", b"");
    written(folder.path(), "mem_mb.csv", b"");
    assert!(read().ends_with("vms.csv: there is no VM with cores and memory in it"), "{}", read());
    fs::remove_file(folder.path().join("cpu_mhz.csv")).unwrap();
    assert!(read().starts_with("cannot open ") && read().ends_with("cpu_mhz.csv"), "{}", read());
}

#[test]
fn days_are_read_plain_or_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let day = b"one,1,100\r\n\ntwo,0,7";
    for bytes in [day.to_vec(), xz(day)] {
        let vms =
            planetlab::read(&written(folder.path(), "day", &bytes), &Limits::default()).unwrap();
        let said: Vec<_> = vms.iter().map(|vm| (&*vm.name, &*vm.cpu_percent)).collect();
        assert_eq!(said, [("one", &[1, 100][..]), ("two", &[0, 7])]);
    }
    let empty = written(folder.path(), "empty", b"\n\n");
    let said = planetlab::read(&empty, &Limits::default()).unwrap_err().to_string();
    assert!(said.ends_with("empty: there is no VM in it"), "{said}");
}

const CLUSTER: &str = r#"{"cluster_list":[{"host_info":[{"node_id":"a","numa":[
{"node":1,"total_cpu":44,"free_cpu":40.0,"memory_huge_total_mb":99,"memory_huge_free_mb":50.5},
{"node":0,"total_cpu":44,"free_cpu":4,"memory_huge_total_mb":99,"memory_huge_free_mb":99}]}],
"vm_instance":[{"instance_id":"v","host_id":"a","numa":[{"node":0,"cpu":40,"mem_mb":9.0},
{"node":1,"cpu":4,"mem_mb":9}],"allow_migration":true}],"other_requirement":{"deployment_set":[]}}]}"#;

#[test]
fn clusters_are_read_plain_or_compressed() {
    let folder = tempfile::tempdir().unwrap();
    for bytes in [CLUSTER.as_bytes().to_vec(), xz(CLUSTER.as_bytes())] {
        let path = written(folder.path(), "clusters", &bytes);
        let cluster = bytedance::read(&path, 0, &Limits::default()).unwrap();
        let free: Vec<_> = cluster.hosts[0].nodes.iter().map(|node| node.free_cpu.0).collect();
        assert_eq!(free, [4000, 40_000]);
        // The lesser of what is stated and what the VM leaves.
        let free: Vec<_> = cluster.hosts[0].nodes.iter().map(|node| node.free_memory.0).collect();
        assert_eq!(free, [90 << 20, 101 << 19]);
        assert_eq!((&cluster.host_names[0][..], &cluster.vm_names[0][..]), ("a", "v"));
        assert_eq!(cluster.vms[0].place.nodes, [0, 1]);
        assert!(cluster.vms[0].may_move);
    }
}

/// What of the cluster is changed for what, and what the error must say.
const BROKEN_CLUSTERS: &[(&str, &str, &str)] = &[
    ("{\"cluster_list", "[\"cluster_list", "c, line 1, column 15: this is not the JSON"),
    ("\"allow_migration\":true", "\"allow\":true", "this is not the JSON"),
    ("\"free_cpu\":4,", "\"free_cpu\":\"4\",", "this is not the JSON"),
    ("\"free_cpu\":4,", "\"free_cpu\":-4,", "host `a`: cores are not a number from 0"),
    ("\"free_cpu\":4,", "\"free_cpu\":5,", "host `a`: more CPU of a NUMA node is stated as free"),
    ("\"free_cpu\":4,", "\"free_cpu\":1e300,", "host `a`: cores are not a number"),
    ("_total_mb\":99", "_total_mb\":1e10", "host `a`: memory is not a number of MB"),
    ("\"cpu\":40", "\"cpu\":45", "host `a`: its VMs take more CPU of a NUMA node than there is"),
    ("\"mem_mb\":9.0", "\"mem_mb\":100", "host `a`: its VMs take more memory of a NUMA node"),
    ("{\"node\":1,\"total", "{\"node\":2,\"total", "host `a`: its NUMA nodes are not numbered"),
    ("{\"node\":1,\"cpu", "{\"node\":2,\"cpu", "VM `v`: its NUMA node is not there"),
    ("{\"node\":1,\"cpu", "{\"node\":0,\"cpu", "VM `v`: it is on a NUMA node twice"),
    ("{\"node\":1,\"cpu", "{\"node\":-1,\"cpu", "this is not the JSON"),
    ("\"host_id\":\"a\"", "\"host_id\":\"b\"", "VM `v`: its host is not there"),
    ("\"instance_id\":\"v\"", "\"instance_id\":\"\"", "VM ``: its name has not"),
    ("\"deployment_set\":[]", "\"deployment_set\":[1]", "`deployment_set` is not empty"),
    ("}}]}", "}}]", "this is not the JSON"),
];

#[test]
fn clusters_that_are_none_are_refused() {
    let read = |text: &str, number, limits: &Limits| {
        bytedance::read_from("c", text.as_bytes(), number, limits).unwrap_err()
    };
    for (from, to, wanted) in BROKEN_CLUSTERS {
        assert!(CLUSTER.contains(from), "{from}");
        let said = read(&CLUSTER.replacen(from, to, 1), 0, &Limits::default()).to_string();
        assert!(said.contains(wanted), "{from} -> {to}: {said}");
    }
    let said = read(CLUSTER, 1, &Limits::default()).to_string();
    assert_eq!(said, "c: there is no cluster 1, counted from 0: it has 1");
    let said = chain(&read(CLUSTER, 0, &Limits { bytes: 100, ..Limits::default() }));
    assert!(said.contains("more than 100 bytes"), "{said}");
    let said = read(CLUSTER, 0, &Limits { hosts: 0, ..Limits::default() }).to_string();
    assert!(said.contains("it has more hosts than are read"), "{said}");
    let said = read(CLUSTER, 0, &Limits { records: 0, ..Limits::default() }).to_string();
    assert!(said.contains("it has more VMs than are read"), "{said}");
    let deep = "[".repeat(100_000);
    assert!(read(&deep, 0, &Limits::default()).to_string().contains("not the JSON"));
}

#[test]
fn requests_and_lifetimes_find_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["v1.txt.xz", "v1.c2100000.txt.xz", "v2.txt", "v1.interval_map.txt.xz"] {
        fs::write(at(name), "").unwrap();
    }
    let both = Some((at("v1.txt.xz"), at("v1.c2100000.txt.xz")));
    assert_eq!(azure::pair(&at("v1.txt.xz")), both);
    assert_eq!(azure::pair(&at("v1.c2100000.txt.xz")), both);
    assert_eq!(azure::pair(&at("v2.txt")), None);
    fs::write(at("v1.c7.txt"), "").unwrap();
    assert_eq!(azure::pair(&at("v1.txt.xz")), None);
    assert_eq!(azure::pair(&at("flav_map")), None);
}

#[test]
fn lifetimes_are_the_middles_of_their_bins() {
    let map = "0 0\n300 1\n600 2\n900 2\n1200 2\n";
    let intervals = azure::intervals_from(text("map", map, &Limits::default())).unwrap();
    let seconds: Vec<_> = (0..4).map(|bin| intervals.seconds(bin)).collect();
    assert_eq!(seconds, [Some(150), Some(300), Some(900), None]);
}

#[test]
fn the_published_lists_are_read() {
    let Some(folder) = data::folder("openb") else { return };
    let limits = Limits::default();
    let nodes = openb::nodes(&folder.join("openb_node_list_all_node.csv.xz"), &limits).unwrap();
    assert_eq!(nodes.len(), 1523);
    let nodes = openb::nodes(&folder.join("openb_node_list_gpu_node.csv.xz"), &limits).unwrap();
    assert_eq!(nodes.len(), 1213);
    let pods = openb::pods(&folder.join("openb_pod_list_gpuspec33.csv.xz"), &limits).unwrap();
    assert_eq!(pods.len(), 8152);
    assert!(pods.iter().any(|pod| pod.models.len() > 1));
    let capacity = crate::openb::capacity_milli(&nodes);
    let order = crate::openb::arrivals(&pods, capacity, 1, 1.3);
    let asked: u64 = order.iter().map(|at| pods[*at].gpu_milli_total()).sum();
    assert!(asked >= capacity * 13 / 10 && asked < capacity * 13 / 10 + 8000, "{asked}");
    assert_eq!(order, crate::openb::arrivals(&pods, capacity, 1, 1.3));
    assert_ne!(order, crate::openb::arrivals(&pods, capacity, 2, 1.3));
}

#[test]
fn the_published_instances_are_read() {
    let Some(folder) = data::folder("vbp") else { return };
    let mut count = 0;
    vbp::for_each(&folder.join("instances.tar.xz"), &Limits::default(), &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(count, 1440);
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        every_reader(&bytes);
    }

    #[test]
    fn no_text_of_the_right_letters_makes_a_reader_panic(
        text in "[0-9a-zUC|,.\"\n\r -]{0,120}",
        title in 0..4_usize,
    ) {
        every_reader(format!("{}{text}", ["", NODES, PODS, VMS][title]).as_bytes());
    }
}

fn every_reader(bytes: &[u8]) {
    let limits = small();
    let lines = || Lines::new("file".to_owned(), bytes, &limits);
    let _ = vbp::read(&mut lines(), &limits);
    let _ = openb::nodes_from(lines(), &limits);
    let _ = openb::pods_from(lines(), &limits);
    let _ = bitbrains::read_from(lines(), lines(), lines(), &limits);
    let vms = || Lines::new("vms".to_owned(), "vm,cores,mem_cap_mb\n1,1,1\n".as_bytes(), &limits);
    let _ = bitbrains::read_from(vms(), lines(), lines(), &limits);
    let _ = planetlab::read_from(lines(), &limits);
    let _ = bytedance::read_from("file", bytes, 0, &limits);
    let _ = azure::flavors_from(lines());
    let _ = azure::intervals_from(lines());
    let flavors = azure::flavors_from(text("map", "1,2 a\n2,4 b\n", &limits)).unwrap();
    let intervals = azure::intervals_from(text("map", "0 0\n300 1\n", &limits)).unwrap();
    azure::Requests::new(lines(), lines(), flavors, intervals, &limits).for_each(drop);
}

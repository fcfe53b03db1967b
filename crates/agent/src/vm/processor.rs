//! What this host's processors can do, as a guest under KVM sees it (`-cpu host`).

/// The features of the first processor, sorted; empty where the kernel does not tell.
#[must_use]
pub(crate) fn features() -> Vec<String> {
    parse(&fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn parse(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        matches!(name.trim(), "flags" | "Features").then_some(value)
    });
    let mut features: Vec<String> =
        line.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    features.sort_unstable();
    features.dedup();
    features
}

/// Those of the features that `here` lacks.
#[must_use]
pub(crate) fn missing(wanted: &[String], here: &[String]) -> Vec<String> {
    wanted.iter().filter(|feature| here.binary_search(feature).is_err()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_lacks_is_named() {
        let here = parse("processor\t: 0\nflags\t\t: sse2 fpu avx\nbugs\t: x\n\nflags\t: other\n");
        assert_eq!(here, ["avx", "fpu", "sse2"]);
        let wanted = ["avx", "avx512f", "fpu"].map(str::to_owned);
        assert_eq!(missing(&wanted, &here), ["avx512f"]);
        assert!(missing(&here, &here).is_empty());
        assert!(parse("").is_empty());
    }
}

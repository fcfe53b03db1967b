//! Fields of the kernel's text files that tell amounts of memory: `MemTotal:   2048 kB`.

use plimsoll_model::Bytes;

/// The amount in the line that begins with `name` and a colon; `None` where there is no such line,
/// or it is not a whole number of kB that fits.
pub(crate) fn memory_field(text: &str, name: &str) -> Option<Bytes> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let amount = lines.filter_map(|rest| rest.strip_prefix(':')).next()?;
    let kib: u64 = amount.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_read_and_nonsense_is_not() {
        let text = "MemTotal:       24683780 kB\nMemTotalX: 1 kB\nMemFree:         1234 kB\n";
        assert_eq!(memory_field(text, "MemTotal"), Some(Bytes(24_683_780 * 1024)));
        assert_eq!(memory_field(text, "MemFree"), Some(Bytes(1234 * 1024)));
        assert_eq!(memory_field(text, "Mem"), None);
        for text in ["", "MemTotal: x kB", "MemTotal: 5 MB", "MemTotal: 99999999999999999999 kB"] {
            assert_eq!(memory_field(text, "MemTotal"), None, "{text}");
        }
    }
}

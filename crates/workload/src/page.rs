//! Pages whose bytes follow from a seed and a number, and that tell when they are not whole.
//!
//! A page is filled with the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable
//! pseudorandom number generators, OOPSLA 2014) over seed, number and position; its last word is a
//! checksum that also covers seed and number, so that a page in another's place is found as well as
//! a changed one. Checking is a quarter of the work of filling.

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Words of a page.
pub(crate) const WORDS: usize = PAGE / size_of::<u64>();

/// A page at a page's address: what the host sees of it is equal for equal contents.
#[derive(Debug, Clone, Copy)]
#[repr(align(4096))]
pub(crate) struct Page(pub(crate) [u64; WORDS]);

/// Mixes all bits of a word into all others.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// What tells one block of one seed from all others.
fn tag(seed: u64, number: u64) -> u64 {
    mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ number)
}

/// Fills `words` with what `seed` and `number` say, the checksum last.
pub(crate) fn fill(words: &mut [u64], seed: u64, number: u64) {
    let mut state = tag(seed, number);
    let Some((last, body)) = words.split_last_mut() else { return };
    let mut sum = state;
    for word in body {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        *word = mix(state);
        sum = sum.rotate_left(5) ^ *word;
    }
    *last = sum;
}

/// Whether `words` are what [`fill`] wrote for `seed` and `number`.
pub(crate) fn is_whole(words: &[u64], seed: u64, number: u64) -> bool {
    let Some((last, body)) = words.split_last() else { return true };
    body.iter().fold(tag(seed, number), |sum, word| sum.rotate_left(5) ^ word) == *last
}

impl Page {
    /// The page with this number.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        let mut page = Self([0; WORDS]);
        fill(&mut page.0, seed, number);
        page
    }

    /// Whether it is [`Page::new`] of these.
    pub(crate) fn is_whole(&self, seed: u64, number: u64) -> bool {
        is_whole(&self.0, seed, number)
    }
}

/// The bytes of a page, as they stand in a file.
pub(crate) fn to_bytes(words: &[u64; WORDS], bytes: &mut [u8]) {
    for (word, bytes) in words.iter().zip(bytes.chunks_exact_mut(size_of::<u64>())) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// Whether bytes of a file are the page that [`to_bytes`] made of this one.
pub(crate) fn bytes_are_whole(bytes: &[u8], seed: u64, number: u64) -> bool {
    let mut words = bytes.chunks_exact(size_of::<u64>()).map(|bytes| {
        // A chunk is as long as a word.
        bytes.try_into().map_or(0, u64::from_le_bytes)
    });
    let mut sum = tag(seed, number);
    for word in words.by_ref().take(WORDS - 1) {
        sum = sum.rotate_left(5) ^ word;
    }
    words.next() == Some(sum) && words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_equal_for_equal_seeds_and_distinct_otherwise() {
        assert_eq!(Page::new(1, 7).0, Page::new(1, 7).0);
        let mut first = Vec::new();
        for seed in 0..4 {
            for number in 0..256 {
                let page = Page::new(seed, number);
                assert!(page.is_whole(seed, number));
                assert!(!page.is_whole(seed, number + 1) && !page.is_whole(seed + 1, number));
                first.push(page.0[0]);
            }
        }
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 4 * 256);
    }

    #[test]
    fn a_page_begins_at_a_pages_address() {
        let pages: Vec<_> = (0..2).map(|number| Page::new(1, number)).collect();
        assert_eq!((&raw const pages[1]).addr() % PAGE, 0);
        assert_eq!(size_of::<Page>(), PAGE);
    }

    #[test]
    fn every_changed_bit_is_found() {
        let page = Page::new(3, 5);
        for word in 0..WORDS {
            for bit in [0, 1, 31, 63] {
                let mut changed = page;
                changed.0[word] ^= 1 << bit;
                assert!(!changed.is_whole(3, 5), "word {word} bit {bit}");
            }
        }
        let mut swapped = page;
        swapped.0.swap(10, 11);
        assert!(!swapped.is_whole(3, 5));
        assert!(!Page([0; WORDS]).is_whole(3, 5));
    }

    #[test]
    fn bytes_of_a_file_are_checked_as_the_page_is() {
        let page = Page::new(9, 2);
        let mut bytes = [0; PAGE];
        to_bytes(&page.0, &mut bytes);
        assert!(bytes_are_whole(&bytes, 9, 2));
        assert!(!bytes_are_whole(&bytes, 9, 3));
        assert!(!bytes_are_whole(&bytes[..PAGE - 8], 9, 2));
        bytes[77] ^= 1;
        assert!(!bytes_are_whole(&bytes, 9, 2));
    }
}

/// At least the size of the caches that a core shares with others.
const CACHE_BYTES: usize = 32 << 20;
const CACHE_LINE_BYTES: usize = 64;

/// Data to fill the processor's caches with before a run is timed: a slice that gets occasional
/// requests does not find its own data there.
#[derive(Debug)]
pub struct Caches(Vec<u8>);

impl Caches {
    /// Data to fill them with.
    #[allow(clippy::new_without_default)] // 32 MiB are no default
    pub fn new() -> Self {
        Self(vec![1; CACHE_BYTES])
    }

    /// Reads all of it.
    pub fn fill(&self) {
        let lines = self.0.iter().step_by(CACHE_LINE_BYTES);
        std::hint::black_box(lines.fold(0_u8, |sum, byte| sum.wrapping_add(*byte)));
    }
}

//! Hints to the processor: they change when something is ready, never what it is.

/// Bytes that the processor fetches at once.
const LINE: usize = 64;
/// Lines of one value that are worth a hint: beyond them the processor has no room to fetch more at a time.
const LINES_MAX: usize = 6;

/// Says that `value` will be used in a moment: where it has left the cache, it is fetched while other work goes on.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = std::ptr::from_ref(value).cast::<i8>();
        for line in 0..size_of::<T>().div_ceil(LINE).min(LINES_MAX) {
            // SAFETY: every x86_64 processor has the instruction, and it reads nothing: an address of no use is ignored.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * LINE)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

//! Arithmetic without branches.
//!
//! Branches in a loop are what a verifier's work grows by, and what it knows of a number's range in
//! one branch keeps it from merging that branch with the other: a pick over 16 controllers took it
//! over a million instructions on 6.18. So picking is made of masks. All values are below 2^63.

/// All ones if `a < b`, else zero.
#[inline(always)]
pub fn if_below(a: u64, b: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut mask = a;
        // Written out: LLVM makes a comparison of the same in Rust, and a branch of that. Behind `black_box`
        // it did not, but that goes through the stack, and a verifier before 6.2 then no longer forgets what
        // it knew of the mask: it followed 860,000 instructions of `tc_choose`, and 16,000 of this.
        // SAFETY: two instructions on one register.
        unsafe {
            core::arch::asm!(
                "{mask} -= {b}",
                "{mask} s>>= 63",
                mask = inout(reg) mask,
                b = in(reg) b,
                options(pure, nomem, nostack),
            );
        }
        mask
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        (a.wrapping_sub(b) as i64 >> 63) as u64
    }
}

/// All ones if `a == b`, else zero.
#[inline(always)]
pub fn if_equal(a: u64, b: u64) -> u64 {
    if_below(a ^ b, 1)
}

/// `max(0, a − b)`.
#[inline(always)]
pub fn lacking(a: u64, b: u64) -> u64 {
    a.wrapping_sub(b) & !if_below(a, b)
}

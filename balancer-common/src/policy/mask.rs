//! Arithmetic without branches.
//!
//! A verifier's work grows with the branches in a loop. It also tracks the range of a number in each branch,
//! and so cannot merge the branches afterwards: a pick over 16 controllers took it over a million
//! instructions on 6.18. So picking uses masks. All values are below 2^63.

/// All ones if `a < b`, else zero.
#[inline(always)]
pub fn if_below(a: u64, b: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut mask = a;
        // Written in assembly: LLVM turns the same code in Rust into a comparison and a branch. `black_box`
        // prevents that but goes through the stack, where a verifier before 6.2 keeps the mask's known range:
        // it followed 860,000 instructions of `tc_choose`, and follows 16,000 with this.
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

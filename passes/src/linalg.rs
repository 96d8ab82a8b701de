//! What is solved in f64: the library, and how many threads it takes.

use std::ffi::c_int;

unsafe extern "C" {
    fn openblas_set_num_threads(threads: c_int);
}

/// Lets OpenBLAS use so many threads, everywhere in the process.
pub fn set_threads(threads: usize) {
    let threads = c_int::try_from(threads).unwrap_or(c_int::MAX).max(1);
    // SAFETY: it takes any number above 0; OpenBLAS is the library that ndarray-linalg is built with here.
    unsafe { openblas_set_num_threads(threads) }
}

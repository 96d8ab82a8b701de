//! What is solved in f64: the library, on how many threads, and least squares.

pub mod least_squares;

use std::ffi::c_int;

unsafe extern "C" {
    fn openblas_set_num_threads(threads: c_int);
}

/// Keeps OpenBLAS to one thread, everywhere in the process.
///
/// With several it adds up in another order, and the same seed would give other weights on another machine. What is
/// solved is small beside what ONNX Runtime computes.
pub fn use_one_thread() {
    // SAFETY: it takes any number above 0; OpenBLAS is the library that ndarray-linalg is built with here.
    unsafe { openblas_set_num_threads(1) }
}

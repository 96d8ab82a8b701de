//! What is solved in f64: the library, on how many threads, least squares, and positive definite matrices.

pub mod least_squares;
pub mod positive;

use std::ffi::c_int;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use rayon::prelude::*;

unsafe extern "C" {
    fn openblas_set_num_threads(threads: c_int);
}

/// Columns that a thread takes at a time.
const BLOCK: usize = 64;

static THREADS: AtomicUsize = AtomicUsize::new(1);

/// Solves on so many threads from now on, everywhere in the process; OpenBLAS itself is kept to one.
///
/// With several, OpenBLAS adds up in another order, and the same seed would give other weights on another machine. What
/// is spread instead are blocks of columns, which are the same whatever the number of threads.
pub fn use_threads(threads: usize) {
    THREADS.store(threads.max(1), Ordering::Relaxed);
    // SAFETY: it takes any number above 0; OpenBLAS is the library that ndarray-linalg is built with here.
    unsafe { openblas_set_num_threads(1) }
}

/// Works on blocks of columns side by side; the results come in the order of the blocks.
fn in_blocks<T: Send>(columns: usize, work: impl Fn(Range<usize>) -> T + Send + Sync) -> Vec<T> {
    let blocks: Vec<_> = (0..columns).step_by(BLOCK).map(|start| start..columns.min(start + BLOCK)).collect();
    let threads = THREADS.load(Ordering::Relaxed).min(blocks.len());
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build() {
        Ok(pool) if threads > 1 => pool.install(|| blocks.into_par_iter().map(work).collect()),
        _ => blocks.into_iter().map(work).collect(),
    }
}

/// Blocks of columns side by side, of so many rows.
fn joined(blocks: &[Array2<f64>], rows: usize) -> Array2<f64> {
    let views: Vec<_> = blocks.iter().map(|block| block.view()).collect();
    concatenate(Axis(1), &views).unwrap_or_else(|_| Array2::zeros((rows, 0)))
}

/// A matrix product.
pub fn product(left: ArrayView2<f64>, right: ArrayView2<f64>) -> Array2<f64> {
    let blocks = in_blocks(right.ncols(), |columns| left.dot(&right.slice(s![.., columns])));
    joined(&blocks, left.nrows())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_column_once_and_in_order_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            use_threads(threads);
            let columns: Vec<_> = in_blocks(3 * BLOCK + 7, |block| block).into_iter().flatten().collect();
            assert_eq!(columns, (0..3 * BLOCK + 7).collect::<Vec<_>>());
            assert!(in_blocks(0, |block| block).is_empty());
        }
    }
}

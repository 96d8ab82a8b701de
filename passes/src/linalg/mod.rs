//! What is solved in f64: the library, on how many threads, least squares, and positive definite matrices.

pub mod least_squares;
pub mod positive;

use std::ffi::c_int;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, concatenate};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

unsafe extern "C" {
    fn openblas_set_num_threads(threads: c_int);
}

/// Columns, or rows, that a thread takes at a time.
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
    side_by_side((0..columns).step_by(BLOCK).map(|start| start..columns.min(start + BLOCK)).collect(), work)
}

/// Does each piece of work, on as many threads as may be used; the results come in order.
pub(crate) fn side_by_side<P: Send, T: Send>(pieces: Vec<P>, work: impl Fn(P) -> T + Send + Sync) -> Vec<T> {
    match pool().filter(|_| pieces.len() > 1) {
        Some(pool) => pool.install(|| pieces.into_par_iter().map(work).collect()),
        None => pieces.into_iter().map(work).collect(),
    }
}

/// The threads that solve, where there may be several.
fn pool() -> Option<Arc<ThreadPool>> {
    static POOL: Mutex<Option<Arc<ThreadPool>>> = Mutex::new(None);
    let threads = THREADS.load(Ordering::Relaxed);
    if threads < 2 {
        return None;
    }
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.as_ref().is_none_or(|pool| pool.current_num_threads() != threads) {
        *pool = ThreadPoolBuilder::new().num_threads(threads).build().ok().map(Arc::new);
    }
    pool.clone()
}

/// Blocks of columns side by side, of so many rows.
fn joined(blocks: &[Array2<f64>], rows: usize) -> Array2<f64> {
    let views: Vec<_> = blocks.iter().map(|block| block.view()).collect();
    concatenate(Axis(1), &views).unwrap_or_else(|_| Array2::zeros((rows, 0)))
}

/// A matrix product.
pub fn product(left: ArrayView2<f64>, right: ArrayView2<f64>) -> Array2<f64> {
    let mut product = Array2::zeros((left.nrows(), right.ncols()));
    add_product(1.0, left, right, product.view_mut());
    product
}

/// Adds a multiple of a matrix product to `sum`.
pub fn add_product(factor: f64, left: ArrayView2<f64>, right: ArrayView2<f64>, mut sum: ArrayViewMut2<f64>) {
    let rows = left.axis_chunks_iter(Axis(0), BLOCK).zip(sum.axis_chunks_iter_mut(Axis(0), BLOCK)).collect();
    side_by_side(rows, |(left, mut sum): (_, ArrayViewMut2<f64>)| {
        general_mat_mul(factor, &left, &right, 1.0, &mut sum);
    });
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

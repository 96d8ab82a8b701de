//! The library call.
#![allow(missing_docs)]

mod support;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use onnx_kprune::{Error, Progress, Pruner, Tensor};
use support::reviews;

/// Batches of two lengths.
fn batches() -> impl Iterator<Item = Vec<(String, Tensor)>> {
    (0..16).map(|batch: i64| {
        let length = 8 + 3 * (batch % 2);
        let ids: Vec<i64> = (0..8 * length).map(|i| 4 + (i * 7 + batch) % 60).collect();
        let tensor = |values: &[i64]| Tensor::from_i64s(&[8, length as usize], values);
        let (ones, zeros) = (vec![1; ids.len()], vec![0; ids.len()]);
        let named = |name: &str, tensor| (name.to_string(), tensor);
        vec![
            named("input_ids", tensor(&ids)),
            named("attention_mask", tensor(&ones)),
            named("token_type_ids", tensor(&zeros)),
        ]
    })
}

#[derive(Default)]
struct Recorder {
    expected: Cell<usize>,
    done: Cell<usize>,
    lines: RefCell<Vec<String>>,
    /// Raised after the first sublayer.
    stop: Option<Arc<AtomicBool>>,
}

impl Progress for Recorder {
    fn expect(&self, work: usize) {
        self.expected.set(work);
    }

    fn done(&self, line: &str) {
        self.lines.borrow_mut().push(line.to_string());
        if let Some(stop) = &self.stop {
            stop.store(true, Ordering::Relaxed);
        }
    }

    fn advance(&self, work: usize) {
        self.done.set(self.done.get() + work);
    }
}

#[test]
fn a_toolchain_gives_its_own_batches_and_sees_the_progress() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.onnx");
    let recorder = Recorder::default();
    let report = Pruner::new(reviews().join("model.onnx"))
        .calibration_batches(batches())
        .compression(0.4)
        .options(|options| options.runtime.threads = 1)
        .progress(&recorder)
        .prune(&output)
        .unwrap();
    assert_eq!(report.calibration.samples, 112, "an eighth is set aside");
    assert!((112 * 8..112 * 11).contains(&report.calibration.tokens), "the filling is no token");
    assert!((0.4..0.5).contains(&report.removed()), "{}", report.removed());
    assert_eq!(recorder.lines.borrow().len(), 8, "a line for every sublayer");
    assert_eq!(recorder.done.get(), recorder.expected.get(), "the work is what was expected");
    assert!(output.is_file());
}

#[test]
fn several_students_take_the_work_that_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = Recorder::default();
    let pruner = Pruner::new(reviews().join("model.onnx"))
        .calibration_batches(batches())
        .options(|o| o.aim.amount = onnx_kprune::options::Amount::Compression(vec![0.2, 0.5, 0.7]))
        .progress(&recorder);
    pruner.prune(folder.path().join("out.onnx")).unwrap();
    assert_eq!(recorder.done.get(), recorder.expected.get());
}

#[test]
fn a_run_can_be_stopped_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let recorder = Recorder { stop: Some(stop.clone()), ..Recorder::default() };
    let pruner = Pruner::new(reviews().join("model.onnx")).calibration_batches(batches()).progress(&recorder);
    let stopped = pruner.cancelled_by(stop).prune(folder.path().join("out.onnx"));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn settings_that_make_no_sense_are_refused_before_any_work() {
    let pruner = || Pruner::new("nowhere.onnx");
    for refused in
        [pruner().compression(1.5).plan(), pruner().compression(f64::NAN).plan(), pruner().speedup(0.5).plan()]
    {
        assert!(matches!(refused, Err(Error::Usage(_))), "{refused:?}");
    }
    let pruner = pruner().options(|o| o.data.batch_size = Some(0));
    assert!(matches!(pruner.plan(), Err(Error::Usage(_))));
}

//! Time by stage.

use std::cell::RefCell;
use std::time::Instant;

use crate::machine::{give_back, peak_memory};
use crate::report::{Cost, Stage};

/// Books the time of a run on its stages.
pub struct Clock {
    start: Instant,
    books: RefCell<Books>,
}

struct Books {
    last: Instant,
    stages: Vec<Stage>,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { start: now, books: RefCell::new(Books { last: now, stages: Vec::new() }) }
    }

    /// Books the time since the last call on a stage. Once it is there for the first time, free memory goes back to the system:
    /// not every time, since a walk has many short ones.
    pub fn stage(&self, name: &'static str) {
        let mut books = self.books.borrow_mut();
        let seconds = books.last.elapsed().as_secs_f64();
        books.last = Instant::now();
        match books.stages.iter_mut().find(|s| s.name == name) {
            Some(stage) => stage.seconds += seconds,
            None => {
                books.stages.push(Stage { name, seconds });
                give_back();
            }
        }
    }

    /// What the run cost so far; `forward` is one pass of the original, in seconds.
    pub(crate) fn cost(&self, forward: Option<f64>) -> Cost {
        let total = self.start.elapsed().as_secs_f64();
        Cost {
            forward,
            total,
            forward_equivalents: forward.map(|f| total / f),
            stages: self.books.borrow().stages.clone(),
            peak_memory: peak_memory(),
            ..Cost::default()
        }
    }
}

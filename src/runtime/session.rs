//! Sessions: a graph, ready to run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kprune_passes::ir::Model;
use kprune_passes::onnx::write_detached;
use ort::memory::MemoryInfo;
use ort::session::builder::SessionBuilder;
use ort::value::DynValue;

use super::interrupt::Interrupt;
use super::{Runtime, weights};
use crate::error::Error;

/// Constants from this many bytes on are handed to a session by reference.
const BY_REFERENCE: usize = 4096;

/// What a session gave, by name.
pub type Values = HashMap<String, DynValue>;

/// A graph that can be run.
pub struct Session {
    inner: ort::session::Session,
    doing: String,
    interrupt: Arc<Interrupt>,
    /// Where outputs may stay; `None` where that is the host.
    device: Option<MemoryInfo<'static>>,
    /// What becomes a session anew where inner values turn out to have other shapes.
    declared: Option<Declared>,
    _weights: Vec<weights::Held>,
}

/// A model of which shapes are declared, and what makes a session of it without them.
struct Declared {
    builder: SessionBuilder,
    model: Model,
}

impl Runtime {
    /// Makes a session of `model`, optimised for many runs or made quickly for a few; `doing` says what for in
    /// errors.
    ///
    /// # Errors
    /// Where ONNX Runtime refuses the graph.
    pub fn session(&self, model: &Model, doing: &str, optimise: bool) -> Result<Session, Error> {
        self.check_cancelled()?;
        let start = Instant::now();
        let detached = write_detached(model, BY_REFERENCE);
        let mut builder = self.builder(optimise).map_err(Error::runtime(doing))?;
        let mut held = Vec::new();
        for (name, tensor) in &detached.constants {
            let weight = self.weights.borrow_mut().value(tensor)?;
            builder = builder
                .with_external_initializer(name, weight.value.clone())
                .map_err(|e| Error::runtime(doing)(e.into()))?;
            held.push(weight);
        }
        let declared = model.declares_shapes().then(|| Declared { builder: builder.clone(), model: model.clone() });
        let inner = builder.commit_from_memory(&detached.bytes).map_err(Error::runtime(doing))?;
        self.set_up.set(self.set_up.get() + start.elapsed());
        Ok(Session { declared, ..self.session_of(inner, doing, self.device()?, held)? })
    }

    /// Makes a session of a model file, as any user of the file would.
    ///
    /// # Errors
    /// Where ONNX Runtime refuses the file.
    pub fn session_of_file(&self, path: &Path, doing: &str) -> Result<Session, Error> {
        let builder = self.builder(true);
        let inner = builder.and_then(|mut b| b.commit_from_file(path)).map_err(Error::runtime(doing))?;
        self.session_of(inner, doing, None, Vec::new())
    }

    fn session_of(
        &self,
        inner: ort::session::Session,
        doing: &str,
        device: Option<MemoryInfo<'static>>,
        weights: Vec<weights::Held>,
    ) -> Result<Session, Error> {
        self.check_cancelled()?;
        let interrupt = self.interrupt.clone();
        Ok(Session { inner, doing: doing.to_string(), interrupt, device, declared: None, _weights: weights })
    }
}

impl Session {
    /// Runs the graph on inputs that `find` gives by name; returns every output, on the host.
    ///
    /// # Errors
    /// Where an input is not found, or ONNX Runtime fails.
    pub fn run_with<'a>(&mut self, find: impl Fn(&str) -> Option<&'a DynValue>) -> Result<Values, Error> {
        self.run_keeping(find, |_| false)
    }

    /// Runs the graph on inputs that `find` gives by name; returns every output, those that `stays` names on
    /// the device where they were made.
    ///
    /// # Errors
    /// Where an input is not found, or ONNX Runtime fails.
    pub fn run_keeping<'a>(
        &mut self,
        find: impl Fn(&str) -> Option<&'a DynValue>,
        stays: impl Fn(&str) -> bool,
    ) -> Result<Values, Error> {
        match self.run_as_declared(&find, &stays) {
            Err(error) if self.declared.is_some() && !matches!(error, Error::Interrupted) => {
                self.forget_shapes()?;
                self.run_as_declared(&find, &stays)
            }
            values => values,
        }
    }

    /// Makes the session anew without declared shapes.
    fn forget_shapes(&mut self) -> Result<(), Error> {
        let Some(Declared { mut builder, model }) = self.declared.take() else { return Ok(()) };
        let plain = write_detached(&model.without_declared_shapes(), BY_REFERENCE);
        self.inner = builder.commit_from_memory(&plain.bytes).map_err(Error::runtime(&self.doing))?;
        Ok(())
    }

    fn run_as_declared<'a>(
        &mut self,
        find: &impl Fn(&str) -> Option<&'a DynValue>,
        stays: &impl Fn(&str) -> bool,
    ) -> Result<Values, Error> {
        let names: Vec<String> = self.inner.inputs().iter().map(|i| i.name().to_string()).collect();
        let mut feeds = Vec::new();
        for name in &names {
            let missing = || Error::internal(format!("nothing gives input {name:?} while {}", self.doing));
            feeds.push((name.as_str(), find(name).ok_or_else(missing)?));
        }
        match self.device.take() {
            None => self.run(feeds),
            Some(device) => {
                let values = self.run_bound(&feeds, &device, stays);
                let values = values.map_err(|error| self.interrupt.error(&self.doing, error));
                self.device = Some(device);
                values
            }
        }
    }

    /// Every output is bound to the host or to the device, anew for every run: its shape may be another.
    fn run_bound(
        &mut self,
        feeds: &[(&str, &DynValue)],
        device: &MemoryInfo,
        stays: impl Fn(&str) -> bool,
    ) -> Result<Values, ort::Error> {
        let host = MemoryInfo::default();
        let mut binding = self.inner.create_binding()?;
        for (name, value) in feeds {
            binding.bind_input(*name, value)?;
        }
        for output in self.inner.outputs() {
            let name = output.name();
            binding.bind_output_to_device(name, if stays(name) { device } else { &host })?;
        }
        let outputs = self.inner.run_binding_with_options(&binding, self.interrupt.options())?;
        Ok(outputs.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }

    /// Runs the graph on inputs given by name; returns every output.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn run<'a>(&mut self, feeds: impl IntoIterator<Item = (&'a str, &'a DynValue)>) -> Result<Values, Error> {
        let feeds: Vec<_> =
            feeds.into_iter().map(|(name, value)| (name, ort::session::SessionInputValue::from(value))).collect();
        let outputs = self.inner.run_with_options(feeds, self.interrupt.options());
        let outputs = outputs.map_err(|error| self.interrupt.error(&self.doing, error))?;
        Ok(outputs.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use kprune_passes::ir::{ElementType, Graph, Operator, Tensor};
    use kprune_passes::signature::{declare, declare_symbols};
    use ndarray::ArrayD;

    use super::*;
    use crate::runtime::{Choice, numbers, scalars};

    /// A sum of doubled `x`, and one of doubled `y`, which are said to be equally long.
    fn sums_said_to_be_alike() -> Model {
        let mut graph = Graph::new();
        let mut ends = Vec::new();
        for name in ["x", "y"] {
            let input = graph.add_input(declare(name, ElementType::F32, 1));
            let twice = graph.add(Operator::new("Add"), &[input, input], &format!("twice_{name}"));
            let symbols = vec!["length".to_string()];
            graph.set_info(twice, Some(declare_symbols(graph.name(twice), ElementType::F32, symbols)));
            ends.push(graph.add(Operator::new("ReduceSum"), &[twice], &format!("sum_{name}")));
        }
        // A constant that is handed over by reference, whoever makes the session.
        let table = Tensor::from_floats(ElementType::F32, &ArrayD::from_elem(vec![BY_REFERENCE], 0.5)).unwrap();
        let table = graph.add_constant("table", table);
        ends.push(graph.add(Operator::new("ReduceSum"), &[table], "sum_table"));
        graph.set_outputs(&ends);
        let mut model = Model::new(graph, 17);
        model.list_declared();
        model
    }

    #[test]
    fn shapes_that_turn_out_to_be_others_than_declared_are_forgotten() {
        let runtime = Runtime::load(None, Choice::Cpu, 1, Default::default()).unwrap();
        let mut session = runtime.session(&sums_said_to_be_alike(), "testing", true).unwrap();
        for [x, y] in [[4, 4], [3, 500], [500, 3]] {
            let held = [x, y].map(|length| numbers(&ArrayD::from_elem(vec![length], 1.0)).unwrap());
            let find = |name: &str| Some(held[usize::from(name == "y")].value());
            let values = session.run_with(find).unwrap();
            let sum = |name: &str| scalars(&values[name]).unwrap().sum();
            assert_eq!((sum("sum_x"), sum("sum_y")), (2.0 * x as f64, 2.0 * y as f64));
            assert_eq!(sum("sum_table"), 0.5 * BY_REFERENCE as f64);
            assert!(session.declared.is_some() || x != y, "as long as they hold, shapes are used");
        }
        assert!(session.declared.is_none(), "the buffer of the shorter one was to hold the longer");
    }

    /// With the host in the place of a device: what comes back is the same, for inputs of any shape.
    #[test]
    fn outputs_are_bound_anew_in_every_run() {
        let runtime = Runtime::load(None, Choice::Cpu, 1, Default::default()).unwrap();
        let mut graph = Graph::new();
        let x = graph.add_input(declare("x", ElementType::F32, 1));
        let twice = graph.add(Operator::new("Add"), &[x, x], "twice");
        let four_times = graph.add(Operator::new("Add"), &[twice, twice], "four_times");
        graph.set_outputs(&[twice, four_times]);
        let mut session = runtime.session(&Model::new(graph, 17), "testing", true).unwrap();
        session.device = Some(MemoryInfo::default());
        let mut earlier = Vec::new();
        for length in [3, 5, 2] {
            let x = ArrayD::from_elem(vec![length], length as f64);
            let held = numbers(&x).unwrap();
            let values = session.run_keeping(|_| Some(held.value()), |name| name == "twice").unwrap();
            earlier.push((x, values));
        }
        for (x, values) in &earlier {
            assert_eq!(scalars(&values["twice"]).unwrap(), x * 2.0);
            assert_eq!(scalars(&values["four_times"]).unwrap(), x * 4.0);
        }
    }
}

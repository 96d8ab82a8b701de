//! Sessions: a graph, ready to run.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kprune_passes::ir::{ElementType, Model, Tensor};
use kprune_passes::onnx::{Detached, write_detached, write_fed};
use ort::memory::MemoryInfo;
use ort::session::SessionInputValue;
use ort::session::builder::SessionBuilder;
use ort::value::{DynValue, Outlet};

use super::interrupt::Interrupt;
use super::tensors::element_of;
use super::{Provider, Runtime, weights};
use crate::error::Error;

/// What a session is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A few runs: it is there at once, and nothing is optimised.
    Trial,
    /// Many runs. Large weights are read where they are.
    Work,
    /// Runs that are timed, as those of anybody who uses the model: whatever makes it fast.
    Timing,
}

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
    /// Constants that every run is given, by name.
    fed: BTreeMap<String, weights::Held>,
    /// Constants that the session was given once.
    _given: Vec<weights::Held>,
}

/// A model of which shapes are declared, and what makes a session of it without them.
struct Declared {
    builder: SessionBuilder,
    model: Model,
    write: Write,
}

/// How a model is written for a session, without its larger constants.
type Write = fn(&Model, usize) -> Detached;

impl Runtime {
    /// Makes a session of `model`; `doing` says what for in errors.
    ///
    /// # Errors
    /// Where ONNX Runtime refuses the graph.
    pub fn session(&self, model: &Model, doing: &str, purpose: Purpose) -> Result<Session, Error> {
        self.check_cancelled()?;
        let start = Instant::now();
        let session = match (self.provider, purpose) {
            (Provider::Cpu, Purpose::Trial) => self.fed(model, doing),
            _ => self.prepared(model, doing, purpose),
        };
        self.set_up.set(self.set_up.get() + start.elapsed());
        session
    }

    /// A session that is given larger constants in every run, since it would take copies of them before the first.
    fn fed(&self, model: &Model, doing: &str) -> Result<Session, Error> {
        let written = write_fed(model, BY_REFERENCE);
        let value = |tensor| self.weights.borrow_mut().value(tensor);
        let fed = written.constants.iter().map(|(name, tensor)| Ok((name.clone(), value(tensor)?)));
        let fed = fed.collect::<Result<_, Error>>()?;
        let builder = self.builder(Purpose::Trial, 0).map_err(Error::runtime(doing))?;
        Ok(Session { fed, ..self.commit(builder, model, write_fed, &written, doing)? })
    }

    /// A session that has the constants in the form in which its operators read them.
    fn prepared(&self, model: &Model, doing: &str, purpose: Purpose) -> Result<Session, Error> {
        let written = write_detached(model, BY_REFERENCE);
        let weight = written.constants.values().map(Tensor::count).sum();
        let mut builder = self.builder(purpose, weight).map_err(Error::runtime(doing))?;
        let mut given = Vec::new();
        for (name, tensor) in &written.constants {
            let weight = self.weights.borrow_mut().value(tensor)?;
            builder = self.with_weight(builder, name, &weight).map_err(Error::runtime(doing))?;
            given.push(weight);
        }
        let device = self.device()?;
        Ok(Session { device, _given: given, ..self.commit(builder, model, write_detached, &written, doing)? })
    }

    fn commit(
        &self,
        mut builder: SessionBuilder,
        model: &Model,
        write: Write,
        written: &Detached,
        doing: &str,
    ) -> Result<Session, Error> {
        let again = || Declared { builder: builder.clone(), model: model.clone(), write };
        let declared = model.declares_shapes().then(again);
        let inner = builder.commit_from_memory(&written.bytes).map_err(Error::runtime(doing))?;
        Ok(Session { declared, ..self.session_of(inner, doing)? })
    }

    /// Gives a constant to a session. While it is made, ONNX Runtime looks at a copy; on the host it lets go of that then, and
    /// operators that do not want another form of it read the constant itself.
    fn with_weight(
        &self,
        builder: SessionBuilder,
        name: &str,
        weight: &weights::Held,
    ) -> Result<SessionBuilder, ort::Error> {
        let builder = builder.with_external_initializer(name, weight.value.clone())?;
        Ok(match self.provider {
            Provider::Cpu => builder.with_initializer(name, weight.value.clone())?,
            Provider::Cuda(_) => builder,
        })
    }

    /// Makes a session of a model file, as any user of the file would.
    ///
    /// # Errors
    /// Where ONNX Runtime refuses the file.
    pub fn session_of_file(&self, path: &Path, doing: &str) -> Result<Session, Error> {
        let builder = self.builder(Purpose::Timing, 0);
        let inner = builder.and_then(|mut b| b.commit_from_file(path)).map_err(Error::runtime(doing))?;
        self.session_of(inner, doing)
    }

    fn session_of(&self, inner: ort::session::Session, doing: &str) -> Result<Session, Error> {
        self.check_cancelled()?;
        let (doing, interrupt) = (doing.to_string(), self.interrupt.clone());
        let (device, declared, fed, _given) = (None, None, BTreeMap::new(), Vec::new());
        Ok(Session { inner, doing, interrupt, device, declared, fed, _given })
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
        let Some(Declared { mut builder, model, write }) = self.declared.take() else { return Ok(()) };
        let plain = write(&model.without_declared_shapes(), BY_REFERENCE);
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
        for name in names.iter().filter(|name| !self.fed.contains_key(*name)) {
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

    /// The element types of the outputs that are tensors, by name.
    pub fn elements(&self) -> HashMap<String, ElementType> {
        let element = |output: &Outlet| Some((output.name().to_string(), element_of(output.dtype())?));
        self.inner.outputs().iter().filter_map(element).collect()
    }

    /// Runs the graph on inputs given by name; returns every output.
    ///
    /// # Errors
    /// Where ONNX Runtime fails.
    pub fn run<'a>(&mut self, feeds: impl IntoIterator<Item = (&'a str, &'a DynValue)>) -> Result<Values, Error> {
        let given = feeds.into_iter().map(|(name, value)| (name, SessionInputValue::from(value)));
        let fed = self.fed.iter().map(|(name, weight)| (name.as_str(), SessionInputValue::from(&*weight.value)));
        let feeds: Vec<_> = given.chain(fed).collect();
        let outputs = self.inner.run_with_options(feeds, self.interrupt.options());
        let outputs = outputs.map_err(|error| self.interrupt.error(&self.doing, error))?;
        Ok(outputs.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use kprune_passes::ir::{Graph, Operator};
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
        for purpose in [Purpose::Work, Purpose::Trial] {
            try_lengths(runtime.session(&sums_said_to_be_alike(), "testing", purpose).unwrap());
        }
    }

    fn try_lengths(mut session: Session) {
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

    #[test]
    fn trials_are_fed_the_larger_numbers_and_others_have_them() {
        let runtime = Runtime::load(None, Choice::Cpu, 1, Default::default()).unwrap();
        let mut graph = Graph::new();
        let x = graph.add_input(declare("x", ElementType::F32, 1));
        let numbers_of = |element, value| Tensor::from_floats(element, &ArrayD::from_elem(vec![BY_REFERENCE], value));
        let single = graph.add_constant("single", numbers_of(ElementType::F32, 2.0).unwrap());
        let double = graph.add_constant("double", numbers_of(ElementType::F64, 3.0).unwrap());
        let places = Tensor::from_i64s(&[BY_REFERENCE], &vec![0; BY_REFERENCE]);
        let places = graph.add_constant("places", places);
        let picked = graph.add(Operator::new("Gather"), &[x, places], "picked");
        let product = graph.add(Operator::new("Mul"), &[picked, single], "product");
        graph.set_outputs(&[product, double]);
        let model = Model::new(graph, 17);
        for (purpose, fed) in [(Purpose::Trial, vec!["single"]), (Purpose::Work, vec![]), (Purpose::Timing, vec![])] {
            let mut session = runtime.session(&model, "testing", purpose).unwrap();
            assert_eq!(session.fed.keys().collect::<Vec<_>>(), fed);
            assert_eq!(session.elements()["product"], ElementType::F32);
            let held = numbers(&ArrayD::from_elem(vec![1], 5.0)).unwrap();
            let values = session.run_with(|_| Some(held.value())).unwrap();
            assert_eq!(scalars(&values["product"]).unwrap().sum(), 10.0 * BY_REFERENCE as f64);
            assert_eq!(scalars(&values["double"]).unwrap().sum(), 3.0 * BY_REFERENCE as f64, "an output is no input");
        }
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
        let mut session = runtime.session(&Model::new(graph, 17), "testing", Purpose::Work).unwrap();
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

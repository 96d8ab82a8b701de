//! One operator, as its rule sees it.

use super::plane::{self, Plane, Planes};
use super::{Decline, Provenance};
use crate::ir::{Graph, NodeId, Operator, ValueId};
use crate::observe::Observation;

/// What an operator reads at one slot.
pub(super) struct Operand {
    pub(super) shape: Vec<usize>,
    pub(super) planes: Planes,
}

/// One operator, as its rule sees it.
pub(super) struct Scene<'a> {
    pub(super) graph: &'a Graph,
    pub(super) seen: &'a Observation,
    pub(super) node: NodeId,
    pub(super) provenance: &'a mut Provenance,
}

impl Scene<'_> {
    pub(super) fn operator(&self) -> &Operator {
        self.graph.operator(self.node)
    }

    pub(super) fn has_input(&self, slot: usize) -> bool {
        self.operator().input(slot).is_some()
    }

    pub(super) fn value(&self, slot: usize) -> Result<ValueId, Decline> {
        self.operator().input(slot).ok_or_else(|| format!("has no input {slot}").into())
    }

    /// The value at `slot` read as data: its shape in the first run, and its planes.
    pub(super) fn operand(&mut self, slot: usize) -> Result<Operand, Decline> {
        self.operand_but(slot, None)
    }

    /// The same of a table in which entries are looked up along `axis`: where it is a constant, they stay, and carry no
    /// channels. There may be millions.
    pub(super) fn table(&mut self, slot: usize, axis: usize) -> Result<Operand, Decline> {
        self.operand_but(slot, Some(axis))
    }

    fn operand_but(&mut self, slot: usize, axis: Option<usize>) -> Result<Operand, Decline> {
        let value = self.value(slot)?;
        let shape = self.seen.shape(value).ok_or("reads a value of unknown shape")?.to_vec();
        let planes = match self.graph.constant(value) {
            Some(_) => {
                let reader = self.operator();
                let is_weight = reader.contracts() || reader.is("Transpose") || reader.is("Identity");
                self.provenance.constant_planes((value, &shape), (self.node, slot), is_weight, axis)
            }
            None if self.provenance.shared.contains(&value) => {
                self.provenance.shared_planes(self.graph, value, self.node, slot)
            }
            None => self.provenance.planes(value).to_vec(),
        };
        Ok(Operand { shape, planes })
    }

    /// All inputs read as data.
    pub(super) fn operands(&mut self) -> Result<Vec<Operand>, Decline> {
        let given: Vec<_> = (0..self.operator().inputs().len()).filter(|&s| self.has_input(s)).collect();
        given.into_iter().map(|slot| self.operand(slot)).collect()
    }

    pub(super) fn output_shape(&self, slot: usize) -> Result<Vec<usize>, Decline> {
        let value = self.operator().output(slot).ok_or_else(|| format!("has no output {slot}"))?;
        Ok(self.seen.shape(value).ok_or("makes a value of unknown shape")?.to_vec())
    }

    /// The integers read at `slot` in the first run, and whether they are the same in both.
    pub(super) fn integers(&self, slot: usize) -> Result<(Vec<i64>, bool), Decline> {
        let value = self.value(slot)?;
        let seen = self.seen.integers(value).ok_or("reads integers that were not seen")?;
        Ok((seen.iter().copied().collect(), self.seen.fixed_integers(value).is_some()))
    }

    /// An axis attribute or value as an index into `rank` axes.
    pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, Decline> {
        let index = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(index)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| format!("names the impossible axis {axis}").into())
    }

    pub(super) fn freeze(&mut self, plane: &Plane, why: &str) {
        let reason = self.provenance.channels.reason(self.graph.label(self.node), why);
        for &channel in &plane.0 {
            self.provenance.channels.freeze(channel, reason);
        }
    }

    /// What lies on `axes` goes together or not at all; where a plane varies on nothing else, not at all.
    pub(super) fn bind_along(&mut self, planes: &[Plane], axes: &[usize], why: &str) {
        for plane in planes.iter().filter(|p| axes.iter().any(|&a| p.varies(a))) {
            if plane.axes().iter().all(|a| axes.contains(a)) {
                self.freeze(plane, why);
            } else {
                let channels = &mut self.provenance.channels;
                axes.iter().try_fold(plane.clone(), |plane, &axis| plane::summed(&plane, axis, channels));
            }
        }
    }

    pub(super) fn freeze_varying(&mut self, planes: &[Plane], axes: &[usize], why: &str) {
        for plane in planes.iter().filter(|p| axes.iter().any(|&a| p.varies(a))) {
            self.freeze(plane, why);
        }
    }
}

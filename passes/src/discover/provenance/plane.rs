//! Which channel every element of a value belongs to.

use ndarray::{ArrayD, Axis, IxDyn, Order, Slice};

use super::channels::{Channel, Channels};

/// An array of channels that broadcasts to a value's shape: length 1 on axes where the channel of an
/// element does not depend on its index, the axis's length elsewhere.
///
/// A value has one plane for every independent group of axes: a weight matrix one for its rows and one
/// for its columns; activations split into heads one over the head axis and the width axis together.
/// An element goes when its channel in any of the planes goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane(pub ArrayD<Channel>);

/// The planes of one value; no two vary on the same axis.
pub type Planes = Vec<Plane>;

impl Plane {
    /// Channels along one axis of a value of rank `rank`.
    pub fn along(rank: usize, axis: usize, channels: impl Iterator<Item = Channel>) -> Self {
        let channels: Vec<_> = channels.collect();
        let mut shape = vec![1; rank];
        shape[axis] = channels.len();
        Self(ArrayD::from_shape_vec(shape, channels).expect("as many channels as the axis is long"))
    }

    /// Whether the channel depends on the index on `axis`.
    pub fn varies(&self, axis: usize) -> bool {
        self.0.shape()[axis] > 1
    }

    /// The axes on which the channel depends.
    pub fn axes(&self) -> Vec<usize> {
        (0..self.0.ndim()).filter(|&a| self.varies(a)).collect()
    }

    /// The plane as one of a value of higher rank, as broadcasting does it.
    pub fn aligned(mut self, rank: usize) -> Self {
        while self.0.ndim() < rank {
            self.0.insert_axis_inplace(Axis(0));
        }
        self
    }

    /// The plane with every index of `shape` written out.
    fn spread(&self, shape: &[usize]) -> ArrayD<Channel> {
        self.0.broadcast(IxDyn(shape)).expect("a plane broadcasts to its value's shape").to_owned()
    }

    /// The plane after a reshape from `from` to `to`.
    pub fn reshaped(&self, from: &[usize], to: &[usize]) -> Self {
        let full = self.spread(from);
        let moved = full.to_shape((IxDyn(to), Order::RowMajor)).expect("a reshape keeps the number of elements");
        Self(moved.into_owned()).collapsed()
    }

    /// Length 1 on every axis where all indices agree.
    fn collapsed(mut self) -> Self {
        for axis in (0..self.0.ndim()).map(Axis) {
            let first = self.0.slice_axis(axis, Slice::from(..self.0.len_of(axis).min(1)));
            if self.0.len_of(axis) > 1 && first.broadcast(self.0.raw_dim()).is_some_and(|first| first == self.0) {
                self.0 = first.to_owned();
            }
        }
        self
    }

    /// The plane with its axes in another order.
    pub fn transposed(&self, order: &[usize]) -> Self {
        Self(self.0.view().permuted_axes(IxDyn(order)).as_standard_layout().to_owned())
    }

    /// The indices `keep` of `axis`, where the plane varies there.
    pub fn selected(&self, axis: usize, keep: &[usize]) -> Self {
        if self.varies(axis) { Self(self.0.select(Axis(axis), keep)).collapsed() } else { self.clone() }
    }

    /// The plane with the axis taken out, on which it must not vary.
    pub fn without(mut self, axis: usize) -> Self {
        self.0 = self.0.index_axis_move(Axis(axis), 0);
        self
    }

    /// Whether the channel is the same everywhere.
    pub fn is_uniform(&self) -> bool {
        self.0.len() <= 1
    }
}

/// Joins two planes index by index over the axes of both.
pub(super) fn pair(a: &Plane, b: &Plane, channels: &mut Channels) -> Plane {
    let shape: Vec<_> = a.0.shape().iter().zip(b.0.shape()).map(|(&x, &y)| x.max(y)).collect();
    let (a, b) = (a.spread(&shape), b.spread(&shape));
    ndarray::Zip::from(&a).and(&b).for_each(|&x, &y| channels.unite(x, y));
    Plane(a)
}

/// Joins planes that vary on a common axis, until none do.
pub(super) fn merge(planes: Planes, channels: &mut Channels) -> Planes {
    let mut merged: Planes = Vec::new();
    for mut plane in planes.into_iter().filter(|p| !p.is_uniform()) {
        while let Some(i) = merged.iter().position(|m| plane.axes().iter().any(|&a| m.varies(a))) {
            plane = pair(&merged.swap_remove(i), &plane, channels);
        }
        merged.push(plane);
    }
    merged
}

/// As [`merge`], but where one plane varies on only some of the axes of another, as a vector that
/// broadcasts, the two are not joined: the pair is returned, the wider first, to be settled when all
/// else is known.
pub(super) fn merge_apart(planes: Planes, channels: &mut Channels) -> (Planes, Vec<(Plane, Plane)>) {
    let mut narrow: Planes = planes.into_iter().filter(|p| !p.is_uniform()).collect();
    narrow.sort_by_key(|p| std::cmp::Reverse(p.axes().len()));
    let mut wide: Planes = Vec::new();
    let mut apart = Vec::new();
    for plane in narrow {
        let within = |m: &&Plane| m.axes().len() > plane.axes().len() && plane.axes().iter().all(|&a| m.varies(a));
        match wide.iter().find(within) {
            Some(wider) => apart.push((wider.clone(), plane)),
            None => {
                wide.push(plane);
                wide = merge(wide, channels);
            }
        }
    }
    (wide, apart)
}

/// Makes all channels along `axis` one wherever the plane also varies elsewhere, and drops the axis:
/// what a sum over the axis leaves of a plane. A plane that varies on this axis alone ends here.
pub(super) fn summed(plane: &Plane, axis: usize, channels: &mut Channels) -> Option<Plane> {
    if !plane.varies(axis) {
        return Some(plane.clone());
    }
    if plane.axes() == [axis] {
        return None;
    }
    let first = plane.0.slice_axis(Axis(axis), Slice::from(..1)).to_owned();
    let spread = first.broadcast(plane.0.raw_dim()).expect("one index broadcasts to all");
    ndarray::Zip::from(&spread).and(&plane.0).for_each(|&x, &y| channels.unite(x, y));
    Some(Plane(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_into_heads_and_back_keeps_every_channel() {
        let flat = Plane::along(3, 2, 0..12);
        let heads = flat.reshaped(&[2, 5, 12], &[2, 5, 3, 4]);
        assert_eq!(heads.0.shape(), [1, 1, 3, 4]);
        assert_eq!(
            heads.transposed(&[0, 2, 1, 3]).transposed(&[0, 2, 1, 3]).reshaped(&[2, 5, 3, 4], &[2, 5, 12]),
            flat
        );
    }

    #[test]
    fn batch_and_heads_folded_into_one_axis_repeat_the_heads() {
        let heads = Plane::along(2, 1, 0..3).reshaped(&[2, 3], &[6]);
        assert_eq!(heads.0.as_slice().unwrap(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_sum_over_one_of_two_axes_unites_along_it() {
        let mut channels = Channels::default();
        channels.fresh(6);
        let heads = Plane::along(1, 0, 0..6).reshaped(&[6], &[2, 3]);
        let left = summed(&heads, 1, &mut channels).unwrap();
        assert_eq!(left.0.shape(), [2, 1]);
        assert_eq!((channels.find(2), channels.find(5)), (0, 3));
        assert!(summed(&Plane::along(2, 1, 0..6), 1, &mut channels).is_none());
    }

    #[test]
    fn overlapping_planes_are_merged_and_others_left_apart() {
        let mut channels = Channels::default();
        channels.fresh(20);
        let planes = vec![Plane::along(2, 0, 0..4), Plane::along(2, 1, 4..10), Plane::along(2, 1, 10..16)];
        let merged = merge(planes, &mut channels);
        assert_eq!(merged.len(), 2);
        assert_eq!(channels.find(12), 6);
        assert_eq!(channels.find(0), 0);
    }
}
